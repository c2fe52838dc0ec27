"""What a model's line can say of a server of OpenAI's protocol that has ways of its own."""

import json
from typing import Any

import pytest

from tests.providers.conftest import LINES, OK, ByHand, Open, Upstream
from tests.service.contract.test_whole_request import struct
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
