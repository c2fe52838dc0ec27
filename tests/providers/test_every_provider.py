"""One suite over all providers: the same events, errors, cancellation, deadlines and usage, whoever answers."""

import asyncio
import json
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf import json_format
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo

from tests.conftest import detail, failure
from tests.hostile import http2
from tests.providers.conftest import LINES, Open, Upstream
from tests.providers.test_gemini import CITY, struct
from tokenwire.v1 import content_pb2
from tokenwire.v1 import generation_service_pb2 as pb
from vertex_emulator.script import (
    answer,
    cut,
    end,
    function_call,
    headers,
    logprobs,
    message_bytes,
    silence,
    status,
    usage,
    wait_for,
)

USER, MODEL, TOOL = content_pb2.ROLE_USER, content_pb2.ROLE_MODEL, content_pb2.ROLE_TOOL
Code = grpc.StatusCode


@pytest.fixture(params=sorted(LINES))
async def upstream(request: pytest.FixtureRequest, open_provider: Open) -> Upstream:
    return await open_provider(request.param)


async def failing(upstream: Upstream, **fields: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await upstream.ask(**fields)
    return caught.value


def call_of(upstream: Upstream, **fields: Any) -> Any:
    """A call whose messages are still to be read."""
    return upstream.served.stub.Generate(pb.GenerateRequest(prompt="hi", **fields))


# ---- what comes back -------------------------------------------------------------------------------------------------


async def test_an_answer_is_its_pieces_with_usage_and_finish(upstream: Upstream) -> None:
    upstream.emulator.script.play(answer("Base", "ball is", " a game.", usage=usage(4, 9)))
    messages = await upstream.ask()
    assert [message.sequence for message in messages] == list(range(5))
    assert [message.WhichOneof("event") for message in messages] == ["started", "text", "text", "text", "completed"]
    assert [message.text for message in messages[1:4]] == ["Base", "ball is", " a game."]
    completed = messages[-1].completed
    assert completed.finish_reason == pb.FINISH_REASON_STOP
    assert completed.usage == pb.Usage(exact=True, input_tokens=4, output_tokens=9, total_tokens=13)
    assert completed.timing.upstream_attempts == 1
    assert completed.model == messages[0].started.model
    assert completed.model_version


async def test_the_first_piece_is_out_before_the_second_is_made(upstream: Upstream) -> None:
    upstream.emulator.script.play(answer("a", wait_for("gate"), "b"))
    call = call_of(upstream)
    assert (await call.read()).WhichOneof("event") == "started"
    assert (await call.read()).text == "a"
    await upstream.emulator.wait_until(lambda emulator: emulator.calls[-1].waiting_for == "gate")
    upstream.emulator.open_gate("gate")
    assert (await call.read()).text == "b"


async def test_a_token_limit_is_told(upstream: Upstream) -> None:
    upstream.emulator.script.play(answer("a", finish="MAX_TOKENS"))
    assert (await upstream.ask())[-1].completed.finish_reason == pb.FINISH_REASON_MAX_TOKENS


async def test_a_safety_stop_is_told(upstream: Upstream) -> None:
    upstream.emulator.script.play(answer("a", finish="SAFETY"))
    assert (await upstream.ask())[-1].completed.finish_reason == pb.FINISH_REASON_SAFETY


async def test_the_conversation_and_the_common_fields_reach_upstream(upstream: Upstream) -> None:
    request = await upstream.request(
        messages=[
            {"role": USER, "parts": [{"text": "a"}]},
            {"role": MODEL, "parts": [{"text": "b"}]},
        ],
        prompt="c",
        system_instruction="Be brief.",
        config={"temperature": 0.5, "top_p": 0.25, "max_output_tokens": 11, "stop_sequences": ["END"], "seed": 3},
    )
    assert [(one.role, one.parts[0].text) for one in request.contents] == [("user", "a"), ("model", "b"), ("user", "c")]
    assert request.system_instruction.parts[0].text == "Be brief."
    config = request.generation_config
    assert (config.temperature, config.top_p, config.max_output_tokens) == (0.5, 0.25, 11)
    assert (list(config.stop_sequences), config.seed) == (["END"], 3)


@pytest.mark.parametrize("name", ["weather", "default_api:weather", "weather in Rome"])
async def test_a_round_of_tool_use_in_which_the_model_names_functions_as_it_likes(
    upstream: Upstream, name: str
) -> None:
    tools: Any = [{"function_declarations": [{"name": "weather", "parameters": struct(CITY)}]}]
    upstream.emulator.script.play(answer(function_call(name, {"city": "Rome", "days": 3}, call_id="call_1")))
    messages = await upstream.ask(tools=tools)
    (event,) = [message.tool_call for message in messages if message.HasField("tool_call")]
    assert (event.tool_call.name, event.tool_call.id) == (name, "call_1")
    assert json_format.MessageToDict(event.tool_call.arguments) == {"city": "Rome", "days": 3.0}
    assert messages[-1].completed.finish_reason == pb.FINISH_REASON_STOP
    upstream.emulator.script.play(answer("It is warm."))
    result = {"tool_result": {"tool_call_id": "call_1", "response": struct({"degrees": 20})}}
    request = await upstream.request(
        prompt="",
        messages=[
            {"role": USER, "parts": [{"text": "Weather?"}]},
            {"role": MODEL, "parts": [{"tool_call": event.tool_call}]},
            {"role": TOOL, "parts": [result]},
        ],
        tools=tools,
    )
    declared = [one for tool in request.tools for one in tool.function_declarations]
    assert [one.name for one in declared] == ["weather"]
    said = [one for content in request.contents for one in content.parts]
    (called,) = [one.function_call for one in said if one.WhichOneof("data") == "function_call"]
    assert (called.name, json_format.MessageToDict(called.args)) == (name, {"city": "Rome", "days": 3.0})
    (answered,) = [one.function_response for one in said if one.WhichOneof("data") == "function_response"]
    response = json_format.MessageToDict(answered.response)
    # Chat Completions has a result as text, which holds the same JSON.
    assert (answered.name, json.loads(response["output"]) if "output" in response else response) == (
        name,
        {"degrees": 20.0},
    )


async def test_an_image_reaches_upstream_as_it_is(upstream: Upstream) -> None:
    image = {"inline_data": {"mime_type": "image/png", "data": b"\x89PNG\0\xff"}}
    request = await upstream.request(prompt="", messages=[{"role": USER, "parts": [{"text": "What?"}, image]}])
    blobs = [one.inline_data for one in request.contents[0].parts if one.WhichOneof("data") == "inline_data"]
    assert [(one.mime_type, one.data) for one in blobs] == [("image/png", b"\x89PNG\0\xff")]


async def test_json_by_a_schema_is_asked_for(upstream: Upstream) -> None:
    schema = {"type": "object", "properties": {"runs": {"type": "integer"}}, "required": ["runs"]}
    request = await upstream.request(
        config={"response_mime_type": "application/json", "response_schema": struct(schema)}
    )
    config = request.generation_config
    assert config.response_mime_type == "application/json"
    arrived = config.response_schema if config.HasField("response_schema") else config.response_json_schema
    assert "runs" in str(json_format.MessageToDict(arrived))


# ---- how it ends -----------------------------------------------------------------------------------------------------

FAILURES = {
    Code.INVALID_ARGUMENT: (Code.INVALID_ARGUMENT, "UPSTREAM_REJECTED"),
    Code.UNAUTHENTICATED: (Code.FAILED_PRECONDITION, "UPSTREAM_CREDENTIALS"),
    Code.PERMISSION_DENIED: (Code.FAILED_PRECONDITION, "UPSTREAM_CREDENTIALS"),
    Code.NOT_FOUND: (Code.NOT_FOUND, "UPSTREAM_MODEL_NOT_FOUND"),
    Code.INTERNAL: (Code.INTERNAL, "UPSTREAM_FAULT"),
}


@pytest.mark.parametrize("code", FAILURES, ids=lambda code: code.name)
async def test_an_error_of_upstream_is_relayed_by_its_kind_after_one_attempt(
    upstream: Upstream, code: grpc.StatusCode
) -> None:
    upstream.emulator.script.play(answer(status(code, "CANARY of upstream's own words")))
    error = await failing(upstream)
    assert failure(error) == FAILURES[code]
    assert "CANARY" not in repr(error.trailing_metadata()) + str(error.details())
    assert len(upstream.emulator.calls) == 1


@pytest.mark.parametrize("code", [Code.UNAVAILABLE, Code.RESOURCE_EXHAUSTED], ids=lambda code: code.name)
async def test_what_may_pass_is_asked_again_and_nothing_comes_twice(upstream: Upstream, code: grpc.StatusCode) -> None:
    upstream.emulator.script.play(answer(status(code)), answer("a", "b"))
    messages = await upstream.ask()
    assert "".join(message.text for message in messages) == "ab"
    assert messages[-1].completed.timing.upstream_attempts == 2


async def test_the_delay_that_upstream_asks_for_is_relayed(upstream: Upstream) -> None:
    delay = RetryInfo(retry_delay=Duration(seconds=4000))
    upstream.emulator.script.play(answer(status(Code.RESOURCE_EXHAUSTED, "", delay), uses=0))
    error = await failing(upstream)
    assert failure(error) == (Code.RESOURCE_EXHAUSTED, "UPSTREAM_QUOTA")
    assert detail(error, RetryInfo).retry_delay.seconds == 4000
    assert len(upstream.emulator.calls) == 1


async def test_an_error_after_some_pieces_says_how_far_the_stream_had_come(upstream: Upstream) -> None:
    upstream.emulator.script.play(answer("a", "b", status(Code.UNAVAILABLE)))
    call = call_of(upstream)
    assert [(await call.read()).text for _ in range(3)] == ["", "a", "b"]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert caught.value.code() in (Code.UNAVAILABLE, Code.INTERNAL)
    assert detail(caught.value, ErrorInfo).metadata["last_sequence"] == "2"
    assert len(upstream.emulator.calls) == 1


async def test_an_answer_without_a_finish_reason_is_cut(upstream: Upstream) -> None:
    upstream.emulator.script.play(answer("a", end()))
    error = await failing(upstream)
    assert failure(error) == (Code.UNAVAILABLE, "UPSTREAM_CUT")
    assert detail(error, ErrorInfo).metadata["last_sequence"] == "1"


async def test_an_answer_of_nothing_is_cut(upstream: Upstream) -> None:
    upstream.emulator.script.play(answer(headers(), end()))
    assert failure(await failing(upstream)) == (Code.UNAVAILABLE, "UPSTREAM_CUT")


async def test_a_connection_that_breaks_in_mid_stream_is_upstream_being_away(upstream: Upstream) -> None:
    upstream.emulator.script.play(answer("a", wait_for("read"), cut()))
    call = call_of(upstream)
    await call.read()
    assert (await call.read()).text == "a"
    upstream.emulator.open_gate("read")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert failure(caught.value) == (Code.UNAVAILABLE, "UPSTREAM_UNAVAILABLE")
    assert detail(caught.value, ErrorInfo).metadata["last_sequence"] == "1"


async def test_bytes_that_are_no_message_are_upstreams_fault(upstream: Upstream) -> None:
    upstream.emulator.script.play(answer("a", message_bytes(b"\xff\xfe{")))
    assert failure(await failing(upstream)) == (Code.INTERNAL, "UPSTREAM_FAULT")


# ---- who goes, and when ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "script", [[silence()], [headers(), silence()], ["a", silence()]], ids=["silent", "headers", "mid-stream"]
)
async def test_a_cancelled_call_ends_upstream(upstream: Upstream, script: list[Any]) -> None:
    upstream.emulator.script.play(answer(*script))
    call = call_of(upstream)
    if script[0] == "a":
        await call.read()
        assert (await call.read()).text == "a"
    await upstream.emulator.wait_until(lambda emulator: len(emulator.open_calls) == 1)
    call.cancel()
    await upstream.emulator.wait_until(lambda emulator: not emulator.open_calls, timeout=1)
    assert upstream.call.by_caller


async def test_a_hundred_cancelled_calls_leave_nothing_open(upstream: Upstream) -> None:
    upstream.emulator.script.play(answer("a", silence(), uses=0))
    calls = [call_of(upstream) for _ in range(100)]
    for call in calls:
        await call.read()
    for call in calls:
        call.cancel()
    await upstream.emulator.wait_until(lambda emulator: not emulator.open_calls, timeout=5)
    assert len(upstream.emulator.calls) == 100


async def test_a_cancelled_call_that_was_merging_pieces_ends_upstream(upstream: Upstream) -> None:
    upstream.emulator.script.play(answer("a", silence()))
    call = call_of(upstream, coalesce=pb.Coalesce())
    await call.read()
    await upstream.emulator.wait_until(lambda emulator: len(emulator.open_calls) == 1)
    call.cancel()
    await upstream.emulator.wait_until(lambda emulator: not emulator.open_calls, timeout=1)


async def test_silence_is_ended_by_the_requests_own_limit(upstream: Upstream) -> None:
    upstream.emulator.script.play(answer("a", silence()))
    error = await failing(upstream, idle_timeout=Duration(nanos=100_000_000))
    assert failure(error) == (Code.DEADLINE_EXCEEDED, "IDLE_TIMEOUT")
    await upstream.emulator.wait_until(lambda emulator: not emulator.open_calls, timeout=1)


async def test_the_callers_deadline_ends_the_call_upstream(upstream: Upstream) -> None:
    """That of a caller without a clock: on a busy machine a caller's own may come first, and it knows no reasons."""
    upstream.emulator.script.play(answer(silence()))
    request = http2.grpc_message(pb.GenerateRequest(prompt="hi").SerializeToString())
    with http2.Connection(upstream.served.address, patience=10) as caller:
        caller.hello().send(
            http2.frame(http2.HEADERS, http2.END_HEADERS, 1, http2.call_headers(("grpc-timeout", "400m")))
            + http2.frame(http2.DATA, http2.END_STREAM, 1, request)
        )
        trailers = await asyncio.to_thread(caller.until, http2.HEADERS, flags=http2.END_STREAM)
    assert http2.status_in(trailers) == Code.DEADLINE_EXCEEDED.value[0]
    assert b"The caller's deadline has passed" in (trailers or b"")
    await upstream.emulator.wait_until(lambda emulator: not emulator.open_calls, timeout=1)


async def test_vertex_ai_over_http_is_told_how_long_it_may_take(open_provider: Open) -> None:
    upstream = await open_provider("genai")
    await upstream.served.stub.Generate(pb.GenerateRequest(prompt="hi"), timeout=7).read()
    assert upstream.call.deadline == 7  # whole seconds


# ---- what is refused -------------------------------------------------------------------------------------------------


async def test_a_field_that_this_model_cannot_take_never_reaches_it(upstream: Upstream) -> None:
    error = await failing(upstream, config={"response_mime_type": "text/html"}, request_id="é")
    assert failure(error) == (Code.INVALID_ARGUMENT, "INVALID_FIELD")
    assert {one.field for one in detail(error, BadRequest).field_violations} == {
        "config.response_mime_type",
        "request_id",
    }
    assert not upstream.emulator.calls


OPENAI_LACKS: dict[str, dict[str, Any]] = {
    "config.top_k": {"config": {"top_k": 3}},
    "config.thinking_budget": {"config": {"thinking_budget": 0}},
    "config.include_thoughts": {"config": {"include_thoughts": True}},
    "safety_settings": {"safety_settings": [{"category": 1, "threshold": 1}]},
    "labels": {"labels": {"a": "b"}},
    "tools.google_search": {"tools": [{"google_search": {}}]},
}


@pytest.mark.parametrize("provider", ["openai", "azure"])
@pytest.mark.parametrize("path", OPENAI_LACKS)
async def test_what_chat_completions_has_no_word_for_is_refused_by_name(
    open_provider: Open, provider: str, path: str
) -> None:
    upstream = await open_provider(provider)
    error = await failing(upstream, **OPENAI_LACKS[path])
    assert {one.field for one in detail(error, BadRequest).field_violations} == {path}
    assert not upstream.emulator.calls


async def test_log_probabilities_come_back_behind_their_text(upstream: Upstream) -> None:
    upstream.emulator.script.play(answer(logprobs(("Ye", -0.25, {"Ye": -0.25, "No": -1.5}), ("s", -0.5))))
    messages = await upstream.ask(config={"response_logprobs": True, "logprobs": 2})
    assert "".join(message.text for message in messages) == "Yes"
    tokens = [token for message in messages for token in message.logprobs.tokens]
    assert [(one.token, one.log_probability) for one in tokens] == [("Ye", -0.25), ("s", -0.5)]
    assert [(one.token, one.log_probability) for one in tokens[0].alternatives] == [("Ye", -0.25), ("No", -1.5)]
    config = upstream.call.request.generation_config  # type: ignore[union-attr] # it generated
    assert (config.response_logprobs, config.logprobs) == (True, 2)
