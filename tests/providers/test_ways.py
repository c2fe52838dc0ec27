"""What a model's line can say of a server of OpenAI's protocol that has ways of its own."""

import json
from typing import Any

import grpc
import grpc.aio
import pytest

from tests.conftest import failure
from tests.providers.conftest import LINES, OK, ByHand, Open, Upstream
from tests.service.contract.test_whole_request import MODEL, TOOL, USER, message, struct
from tokenwire.messages import Turn
from tokenwire.v1 import generation_service_pb2 as pb


async def opened(open_provider: Open, provider: str, options: str, address: str) -> Upstream:
    line = LINES[provider].format(rest=address)
    return await open_provider(provider, line=f"{line}{'&' if '?' in line else '?'}{options}")


async def asked(open_provider: Open, provider: str, options: str, upstream: Upstream) -> Any:
    """The body of a request for at most 7 tokens."""
    served = await opened(open_provider, provider, options, str(upstream.emulator.rest_address))
    await served.ask(config={"max_output_tokens": 7})
    return json.loads(served.call.body or b"")


@pytest.mark.parametrize("provider", ["openai", "azure"])
@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
async def test_the_limit_has_the_name_that_upstream_knows(open_provider: Open, provider: str, name: str) -> None:
    upstream = await open_provider(provider)
    body = await asked(open_provider, provider, f"token_limit={name}", upstream)
    assert {key: value for key, value in body.items() if key.startswith("max_")} == {name: 7}


@pytest.mark.parametrize("provider", ["openai", "azure"])
async def test_counts_are_not_asked_for_where_upstream_refuses_that(open_provider: Open, provider: str) -> None:
    upstream = await open_provider(provider)
    assert "stream_options" in await asked(open_provider, provider, "stream_options=true", upstream)
    assert "stream_options" not in await asked(open_provider, provider, "stream_options=false", upstream)


@pytest.mark.parametrize("provider", ["openai", "azure"])
async def test_the_model_thinks_as_long_as_its_line_says(open_provider: Open, provider: str) -> None:
    upstream = await open_provider(provider)
    assert "reasoning_effort" not in await asked(open_provider, provider, "thoughts=true", upstream)
    body = await asked(open_provider, provider, "reasoning_effort=low", upstream)
    assert body["reasoning_effort"] == "low"
    assert body["stream"] is True


@pytest.mark.parametrize("held", [True, False])
async def test_the_model_is_held_to_a_schema_as_its_line_says(open_provider: Open, held: bool) -> None:
    line = LINES["openai"].format(rest=(await open_provider("openai")).emulator.rest_address)
    upstream = await open_provider("openai", line=f"{line}&strict={str(held).lower()}")
    schema = struct({"type": "object", "properties": {}, "additionalProperties": False})
    await upstream.ask(
        config={"response_mime_type": "application/json", "response_schema": schema},
        tools=[{"function_declarations": [{"name": "f", "parameters": schema}]}],
    )
    body = json.loads(upstream.call.body or b"")
    assert ("strict" in body["response_format"]["json_schema"]) is held
    assert ("strict" in body["tools"][0]["function"]) is held


@pytest.mark.parametrize("provider", ["openai", "azure"])
@pytest.mark.parametrize("told", [True, False])
async def test_thoughts_come_as_its_line_says(
    open_provider: Open, by_hand: tuple[ByHand, str], provider: str, told: bool
) -> None:
    chunks = [
        {"choices": [{"index": 0, "delta": {"reasoning_content": "hm"}}]},
        {"choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": "stop"}]},
    ]
    lines = b"".join(b"data: %s\n\n" % json.dumps(one).encode() for one in chunks)
    by_hand[0].says = OK + b"connection: close\r\n\r\n" + lines
    upstream = await opened(open_provider, provider, f"thoughts={str(told).lower()}", by_hand[1])
    messages: list[pb.GenerateResponse] = await upstream.ask()
    assert "".join(message.text for message in messages) == "a"
    assert [message.reasoning.text for message in messages if message.HasField("reasoning")] == ["hm"] * told


WEATHER = {"function_declarations": [{"name": "get_weather"}]}
CALL = {"id": "one", "name": "get_weather", "arguments": {"city": "Rome"}}
RESULT = message(TOOL, {"tool_result": {"tool_call_id": "one", "response": {"celsius": 20}}})


@pytest.mark.parametrize("provider", ["openai", "azure"])
@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
async def test_thoughts_go_back_under_the_name_that_its_line_says(
    open_provider: Open, provider: str, field: str
) -> None:
    """DeepSeek refuses a call of a tool without the thoughts that led to it."""
    address = str((await open_provider(provider)).emulator.rest_address)
    upstream = await opened(open_provider, provider, f"thoughts_back={field}", address)
    thinking = message(MODEL, {"reasoning": "h"}, {"reasoning": "m"}, {"text": "a"}, {"text": "b"}, {"tool_call": CALL})
    plain = message(MODEL, {"text": "b"})
    asked = message(USER, {"text": "hi"})
    await upstream.ask(prompt="", messages=[asked, plain, asked, thinking, RESULT], tools=[WEATHER])
    _, first, _, second, result = json.loads(upstream.call.body or b"")["messages"]
    assert (first["content"], first.get(field)) == ("b", None)
    assert second[field] == "hm"
    assert second["content"] == "ab"
    assert result["role"] == "tool"


@pytest.mark.parametrize("provider", ["openai", "azure"])
async def test_signatures_of_google_come_and_go_back(
    open_provider: Open, by_hand: tuple[ByHand, str], provider: str
) -> None:
    """Gemini refuses a call of a tool without its signature, by OpenAI's protocol too."""
    extra = {"google": {"thought_signature": "AP8="}}
    call = {"id": "one", "type": "function", "function": {"name": "get_weather", "arguments": '{"city":"Rome"}'}}
    calls = [{**call, "extra_content": extra}, {**call, "id": "two"}]
    delta = {"role": "assistant", "tool_calls": [{**one, "index": place} for place, one in enumerate(calls)]}
    chunk = {"choices": [{"index": 0, "delta": delta, "finish_reason": "tool_calls"}]}
    by_hand[0].says = OK + b"connection: close\r\n\r\ndata: %s\n\n" % json.dumps(chunk).encode()
    upstream = await opened(open_provider, provider, "thoughts_back=google", by_hand[1])
    answer: list[pb.GenerateResponse] = await upstream.ask(tools=[WEATHER])
    parts = [message.tool_call for message in answer if message.HasField("tool_call")]
    assert [part.reasoning_signature for part in parts] == [b"\x00\xff", b""]

    address = str((await open_provider(provider)).emulator.rest_address)
    upstream = await opened(open_provider, provider, "thoughts_back=google", address)
    signed = message(
        MODEL, *({"tool_call": part.tool_call, "reasoning_signature": part.reasoning_signature} for part in parts)
    )
    results = [{"tool_result": {"tool_call_id": name, "response": {"celsius": 20}}} for name in ("one", "two")]
    asked = message(USER, {"text": "hi"})
    await upstream.ask(prompt="", messages=[asked, signed, message(TOOL, *results)], tools=[WEATHER])
    first, second = json.loads(upstream.call.body or b"")["messages"][1]["tool_calls"]
    assert first["extra_content"] == extra
    assert "extra_content" not in second


@pytest.mark.parametrize("provider", ["openai", "azure"])
async def test_what_was_thought_in_secret_comes_and_goes_back(
    open_provider: Open, by_hand: tuple[ByHand, str], provider: str
) -> None:
    details = [
        {"type": "reasoning.text", "text": "hm", "signature": "s", "format": "anthropic-claude-v1", "index": 0},
        {"type": "reasoning.encrypted", "data": "Zm9v", "format": "google-gemini-v1", "index": 1},
    ]
    delta = {"role": "assistant", "content": "a", "reasoning_details": details}
    chunk = {"choices": [{"index": 0, "delta": delta, "finish_reason": "stop"}]}
    by_hand[0].says = OK + b"connection: close\r\n\r\ndata: %s\n\n" % json.dumps(chunk).encode()
    upstream = await opened(open_provider, provider, "thoughts_back=reasoning_details", by_hand[1])
    turn = Turn()
    for one in await upstream.ask():
        turn.saw(one)
    assert "".join(part.reasoning for part in turn.message.parts) == "hm"

    address = str((await open_provider(provider)).emulator.rest_address)
    upstream = await opened(open_provider, provider, "thoughts_back=reasoning_details", address)
    asked = message(USER, {"text": "hi"})
    plain = message(MODEL, {"reasoning": "h"}, {"text": "b"})
    await upstream.ask(prompt="", messages=[asked, turn.message, asked, plain, asked])
    _, first, _, second, _ = json.loads(upstream.call.body or b"")["messages"]
    assert (first["content"], first["reasoning_details"]) == ("a", details)
    assert (second["reasoning"], "reasoning_details" in second) == ("h", False)
    signed = message(MODEL, {"tool_call": CALL, "reasoning_signature": b"s"})
    for wrong in (message(MODEL, {"reasoning": "h", "reasoning_signature": b"s"}), signed):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await upstream.ask(prompt="", messages=[asked, wrong, RESULT], tools=[WEATHER])
        assert failure(caught.value) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")


async def test_a_signature_of_anything_but_a_call_is_refused(open_provider: Open) -> None:
    address = str((await open_provider("openai")).emulator.rest_address)
    upstream = await opened(open_provider, "openai", "thoughts_back=google", address)
    asked = message(USER, {"text": "hi"})
    signed = message(MODEL, {"text": "a", "reasoning_signature": b"s"})
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await upstream.ask(prompt="", messages=[asked, signed, asked])
    assert failure(caught.value) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    assert not upstream.emulator.calls


async def test_a_signature_that_cannot_be_read_is_the_models_fault(
    open_provider: Open, by_hand: tuple[ByHand, str]
) -> None:
    upstream = await opened(open_provider, "openai", "thoughts_back=google", by_hand[1])
    for extra in (
        "SECRET",
        {"google": "SECRET"},
        *({"google": {"thought_signature": one}} for one in ("A", 7, "é", "A%B=")),
    ):
        call = {"id": "one", "function": {"name": "f", "arguments": "{}"}, "extra_content": extra}
        chunk = {"choices": [{"index": 0, "delta": {"tool_calls": [call]}, "finish_reason": "stop"}]}
        by_hand[0].says = OK + b"connection: close\r\n\r\ndata: %s\n\n" % json.dumps(chunk).encode()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await upstream.ask()
        assert failure(caught.value) == (grpc.StatusCode.INTERNAL, "UPSTREAM_FAULT")
        assert "SECRET" not in str(caught.value.details())
