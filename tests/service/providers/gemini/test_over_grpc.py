"""The real ChatVertexAI against the local Vertex: what reaches it, what comes back, and how it ends."""

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from service import errors
from service.generation.events import Event, Finished, FinishReason, SafetyRating, Started, Text, Usage
from service.generation.prompt import Prompt, Role, Sampling, Turn
from service.providers.gemini.over_grpc import VertexProvider, upstream_error
from service.providers.spec import Offer
from vertex_emulator.emulator import Emulator
from vertex_emulator.protos import prediction_pb2 as google
from vertex_emulator.script import (
    answer,
    blocked,
    cut,
    delay,
    end,
    headers,
    response,
    silence,
    status,
    thought,
    usage,
    wait_for,
)

NAME = "gemini-2.5-flash"


def prompt(text: str = "hi", **fields: object) -> Prompt:
    return Prompt(model=NAME, turns=(Turn(Role.USER, (text,)),), **fields)  # type: ignore[arg-type] # whatever a test sets


@pytest.fixture
async def model(emulator: Emulator) -> AsyncIterator[VertexProvider]:
    made = VertexProvider.local(emulator.address, [Offer(NAME)], project="project", location="us-central1")
    yield made
    await made.close()


def soon(seconds: float) -> float:
    return asyncio.get_running_loop().time() + seconds


def stream(model: VertexProvider, asked: Prompt | None = None) -> AbstractAsyncContextManager[AsyncIterator[Event]]:
    return model.stream(asked or prompt(), deadline=soon(20))


async def collect(model: VertexProvider, asked: Prompt | None = None, into: list[Event] | None = None) -> list[Event]:
    got: list[Event] = [] if into is None else into
    async with stream(model, asked) as events:
        async for event in events:
            got.append(event)  # noqa: PERF401 - what came before an error counts too
    return got


async def test_an_answer_is_its_pieces_between_started_and_finished(emulator: Emulator, model: VertexProvider) -> None:
    emulator.script.play(answer("Base", "ball is", " a game.", usage=usage(4, 9, thoughts=2, cached=1)))
    assert await collect(model) == [
        Started(NAME),
        Text("Base"),
        Text("ball is"),
        Text(" a game."),
        Finished(
            reason=FinishReason.STOP,
            upstream_reason="STOP",
            usage=Usage(input_tokens=4, output_tokens=9, reasoning_tokens=2, cached_tokens=1, total_tokens=15),
            model_version=NAME,
        ),
    ]


async def test_upstream_is_asked_what_the_caller_asked(emulator: Emulator, model: VertexProvider) -> None:
    turns = (Turn(Role.USER, ("a", "b")), Turn(Role.MODEL, ("c",)), Turn(Role.USER, ("d",)))
    sampling = Sampling(
        temperature=0.0,
        top_p=0.5,
        top_k=7,
        max_output_tokens=11,
        stop_sequences=("END", "x"),
        seed=0,
        presence_penalty=-0.5,
        frequency_penalty=0.0,
    )
    await collect(model, Prompt(model=NAME, turns=turns, system_instruction="Be brief.", sampling=sampling))
    (call,) = emulator.calls
    request = call.request
    assert isinstance(request, google.GenerateContentRequest)
    assert request.model == f"projects/project/locations/us-central1/publishers/google/models/{NAME}"
    assert [(one.role, [part.text for part in one.parts]) for one in request.contents] == [
        ("user", ["a", "b"]),
        ("model", ["c"]),
        ("user", ["d"]),
    ]
    assert [part.text for part in request.system_instruction.parts] == ["Be brief."]
    config = request.generation_config
    assert config == google.GenerationConfig(
        temperature=0,
        top_p=0.5,
        top_k=7,
        max_output_tokens=11,
        stop_sequences=["END", "x"],
        seed=0,
        presence_penalty=-0.5,
        frequency_penalty=0,
        candidate_count=1,
    )
    assert call.method == "StreamGenerateContent"
    assert call.api_version == "v1beta1"
    assert call.header("x-goog-request-params") == f"model={request.model}"
    assert "tokenwire" in str(call.header("x-goog-api-client"))


async def test_what_is_unset_is_not_sent(emulator: Emulator, model: VertexProvider) -> None:
    await collect(model)
    request = emulator.calls[0].request
    assert isinstance(request, google.GenerateContentRequest)
    assert request.generation_config == google.GenerationConfig(candidate_count=1)
    assert not request.HasField("system_instruction")


async def test_upstream_is_told_how_long_it_may_take(emulator: Emulator, model: VertexProvider) -> None:
    async with model.stream(prompt(), deadline=soon(300)) as events:
        async for _ in events:
            pass
    deadline = emulator.calls[0].deadline
    assert deadline is not None
    # The first connection takes its time on a busy machine; and gRPC has whole seconds for what is longer than 100, and
    # rounds up: 300 s and less than a millisecond, as it counts, are 301.
    assert 240 < deadline <= 301


async def test_a_chunk_is_here_before_the_next_has_been_made(emulator: Emulator, model: VertexProvider) -> None:
    emulator.script.play(answer("one", wait_for("second"), "two"))
    async with stream(model) as events:
        assert [await anext(events), await anext(events)] == [Started(NAME), Text("one")]
        emulator.open_gate("second")
        assert await anext(events) == Text("two")


async def test_thoughts_are_told_apart_from_the_answer(emulator: Emulator, model: VertexProvider) -> None:
    emulator.script.play(answer(thought("hm"), "yes"))
    kinds = [type(event).__name__ for event in await collect(model)]
    assert kinds == ["Started", "Reasoning", "Text", "Finished"]


def finish_reasons() -> list[tuple[int, FinishReason, str]]:
    by_name = {name: number for name, number in google.Candidate.FinishReason.items() if number}
    assert by_name
    known = [(number, FinishReason.__members__.get(name, FinishReason.OTHER), name) for name, number in by_name.items()]
    return [*known, (99, FinishReason.OTHER, "99")]


@pytest.mark.filterwarnings("ignore:Unrecognized FinishReason enum value:UserWarning")  # proto-plus on number 99
@pytest.mark.parametrize(("number", "reason", "upstream"), finish_reasons())
async def test_each_finish_reason_is_told_in_our_word_and_upstreams(
    emulator: Emulator, model: VertexProvider, number: int, reason: FinishReason, upstream: str
) -> None:
    emulator.script.play(answer("a", finish=number))
    finished = (await collect(model))[-1]
    assert isinstance(finished, Finished)
    assert (finished.reason, finished.upstream_reason) == (reason, upstream)


@pytest.mark.parametrize(
    "name", [n for n, v in google.GenerateContentResponse.PromptFeedback.BlockedReason.items() if v]
)
async def test_a_blocked_prompt_is_finished_and_says_why(emulator: Emulator, model: VertexProvider, name: str) -> None:
    emulator.script.play(answer(blocked(name)))
    events = await collect(model)
    assert events[0] == Started(NAME)
    assert isinstance(events[-1], Finished)
    assert (events[-1].reason, events[-1].upstream_reason) == (FinishReason.PROMPT_BLOCKED, name)
    assert len(events) == 2


async def test_safety_ratings_are_kept(emulator: Emulator, model: VertexProvider) -> None:
    rating = google.SafetyRating(
        category=google.HARM_CATEGORY_HARASSMENT, probability=google.SafetyRating.HIGH, blocked=True
    )
    emulator.script.play(answer("a", finish="SAFETY", safety_ratings=[rating]))
    finished = (await collect(model))[-1]
    assert isinstance(finished, Finished)
    assert finished.safety_ratings == (
        SafetyRating(category="HARM_CATEGORY_HARASSMENT", probability="HIGH", blocked=True),
    )


async def test_an_answer_without_text_is_still_finished(emulator: Emulator, model: VertexProvider) -> None:
    emulator.script.play(answer(finish="SAFETY"))
    assert [type(event) for event in await collect(model)] == [Started, Finished]


async def test_usage_that_was_not_told_is_unknown(emulator: Emulator, model: VertexProvider) -> None:
    candidate = google.Candidate(
        content=google.Content(parts=[google.Part(text="a")]), finish_reason=google.Candidate.STOP
    )
    emulator.script.play(answer(response(google.GenerateContentResponse(candidates=[candidate])), end()))
    finished = (await collect(model))[-1]
    assert isinstance(finished, Finished)
    assert finished.usage is None


async def test_an_answer_without_a_finish_reason_was_cut(emulator: Emulator, model: VertexProvider) -> None:
    emulator.script.play(answer("half", finish=None))
    async with stream(model) as events:
        assert [await anext(events), await anext(events)] == [Started(NAME), Text("half")]
        with pytest.raises(errors.UpstreamCut):
            await anext(events)


async def test_no_message_at_all_was_cut(emulator: Emulator, model: VertexProvider) -> None:
    emulator.script.play(answer(end()))
    with pytest.raises(errors.UpstreamCut):
        await collect(model)


async def test_a_reset_connection_is_unavailable_and_not_an_end(emulator: Emulator, model: VertexProvider) -> None:
    emulator.script.play(answer("half", cut()))
    with pytest.raises(errors.UpstreamUnavailable):
        await collect(model)


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
@pytest.mark.parametrize("pieces", [0, 2])
async def test_every_status_of_upstream_is_an_error_of_ours_after_one_attempt(
    emulator: Emulator, model: VertexProvider, code: grpc.StatusCode, pieces: int
) -> None:
    emulator.script.play(answer(*["a"] * pieces, status(code, "secret words")))
    got: list[Event] = []
    with pytest.raises(errors.UpstreamError) as caught:
        await collect(model, into=got)
    assert [event.text for event in got if isinstance(event, Text)] == ["a"] * pieces
    assert caught.value.metadata["upstream_code"] == code.name
    assert "secret" not in str(caught.value.status())
    assert len(emulator.calls) == 1


async def test_upstreams_reason_and_retry_delay_are_relayed(emulator: Emulator, model: VertexProvider) -> None:
    details = (
        ErrorInfo(reason="RATE_LIMIT_EXCEEDED", domain="googleapis.com"),
        RetryInfo(retry_delay=Duration(seconds=7)),
    )
    emulator.script.play(answer(status(grpc.StatusCode.RESOURCE_EXHAUSTED, "Quota exceeded for project 123", *details)))
    with pytest.raises(errors.UpstreamQuota) as caught:
        await collect(model)
    assert caught.value.metadata == {"upstream_code": "RESOURCE_EXHAUSTED", "upstream_reason": "RATE_LIMIT_EXCEEDED"}
    assert caught.value.retry_after == 7
    assert "123" not in str(caught.value.status())


async def test_a_reason_that_is_a_sentence_is_not_relayed(emulator: Emulator, model: VertexProvider) -> None:
    emulator.script.play(answer(status(grpc.StatusCode.ABORTED, "", ErrorInfo(reason="project 123 is out of luck"))))
    with pytest.raises(errors.UpstreamCut) as caught:
        await collect(model)
    assert caught.value.metadata == {"upstream_code": "ABORTED"}


def rpc_error(code: grpc.StatusCode, words: str, details: bytes = b"") -> grpc.aio.AioRpcError:
    trailing = grpc.aio.Metadata(("grpc-status-details-bin", details)) if details else grpc.aio.Metadata()
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailing, details=words)


def test_details_that_cannot_be_read_leave_the_code() -> None:
    error = upstream_error(rpc_error(grpc.StatusCode.NOT_FOUND, "x", b"\xff\xff"))
    assert isinstance(error, errors.UpstreamNotFound)
    status = Status(code=grpc.StatusCode.NOT_FOUND.value[0], message="x")
    status.details.add(type_url="type.googleapis.com/google.rpc.ErrorInfo", value=b"\xff\xff")
    error = upstream_error(rpc_error(grpc.StatusCode.NOT_FOUND, "x", status.SerializeToString()))
    assert isinstance(error, errors.UpstreamNotFound)


def test_a_retry_delay_beyond_what_a_duration_may_hold_can_still_be_told() -> None:
    status = Status(code=grpc.StatusCode.UNAVAILABLE.value[0], message="x")
    status.details.add().Pack(RetryInfo(retry_delay=Duration(seconds=2**63 - 1, nanos=2**31 - 1)))
    error = upstream_error(rpc_error(grpc.StatusCode.UNAVAILABLE, "x", status.SerializeToString()))
    told = RetryInfo()
    assert error.status().details[1].Unpack(told)
    assert told.retry_delay == Duration(seconds=365 * 86_400)


def test_a_retry_delay_in_the_past_is_none_at_all() -> None:
    status = Status(code=grpc.StatusCode.UNAVAILABLE.value[0], message="x")
    status.details.add().Pack(RetryInfo(retry_delay=Duration(seconds=-5)))
    assert upstream_error(rpc_error(grpc.StatusCode.UNAVAILABLE, "x", status.SerializeToString())).retry_after == 0


async def test_a_part_that_cannot_be_relayed_is_an_error_and_not_dropped(
    emulator: Emulator, model: VertexProvider
) -> None:
    picture = google.GenerateContentResponse()
    picture.candidates.add().content.parts.add(inline_data={"mime_type": "image/png", "data": b"x"})
    emulator.script.play(answer("a", response(picture), "b"))
    with pytest.raises(errors.UpstreamFault, match="inlineData"):
        await collect(model)


async def test_figures_that_cannot_be_are_unknown(emulator: Emulator, model: VertexProvider) -> None:
    broken = google.GenerateContentResponse()
    broken.usage_metadata.prompt_token_count = -1
    broken.candidates.add(finish_reason=google.Candidate.STOP)
    emulator.script.play(answer("a", response(broken), end()))
    finished = (await collect(model))[-1]
    assert isinstance(finished, Finished)
    assert finished.usage is None


async def test_an_ending_that_was_told_is_not_forgotten_for_what_comes_behind_it(
    emulator: Emulator, model: VertexProvider
) -> None:
    told = google.GenerateContentResponse()
    told.prompt_feedback.block_reason = google.GenerateContentResponse.PromptFeedback.SAFETY
    behind = google.GenerateContentResponse()
    behind.usage_metadata.prompt_token_count = 3
    emulator.script.play(answer(response(told), response(behind), end()))
    finished = (await collect(model))[-1]
    assert isinstance(finished, Finished)
    assert (finished.reason, finished.upstream_reason) == (FinishReason.PROMPT_BLOCKED, "SAFETY")


async def test_a_very_long_piece_is_told_in_pieces_that_callers_take(emulator: Emulator, model: VertexProvider) -> None:
    long = "ab" * 600_000
    emulator.script.play(answer(long))
    texts = [event.text for event in await collect(model) if isinstance(event, Text)]
    assert "".join(texts) == long
    assert len(texts) > 1


async def test_more_calls_than_a_connection_takes_get_another_connection() -> None:
    async with Emulator(max_concurrent_streams=100) as emulator:
        emulator.script.play(default=answer("one", silence()))
        model = VertexProvider.local(emulator.address, [Offer(NAME)], project="project", location="us-central1")
        async with AsyncExitStack() as stack:
            stack.push_async_callback(model.close)
            streams = [await stack.enter_async_context(stream(model)) for _ in range(250)]
            assert set(await asyncio.gather(*(anext(events) for events in streams))) == {Started(NAME)}
            assert len(emulator.open_calls) == 250


@pytest.mark.parametrize("steps", [(silence(),), (headers(), silence()), ("one", silence()), ("one", delay(60), "two")])
async def test_leaving_the_stream_cancels_upstream_wherever_it_stands(
    emulator: Emulator, model: VertexProvider, steps: tuple[str, ...]
) -> None:
    emulator.script.play(answer(*steps))

    async def read() -> None:
        async with stream(model) as events:
            async for _ in events:
                pass

    reading = asyncio.ensure_future(read())
    await emulator.wait_until(lambda e: bool(e.open_calls) and e.calls[0].pieces_sent == sum(s == "one" for s in steps))
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    await emulator.wait_until(lambda e: not e.open_calls)
    assert emulator.calls[0].code is grpc.StatusCode.CANCELLED


async def test_breaking_off_cancels_upstream_without_the_garbage_collector(
    emulator: Emulator, model: VertexProvider
) -> None:
    emulator.script.play(answer("one", silence()))
    gc.disable()
    try:
        async with stream(model) as events:
            async for event in events:
                if isinstance(event, Text):
                    break
        await emulator.wait_until(lambda e: not e.open_calls)
    finally:
        gc.enable()
    assert emulator.calls[0].code is grpc.StatusCode.CANCELLED


async def test_an_error_of_the_reader_cancels_upstream(emulator: Emulator, model: VertexProvider) -> None:
    emulator.script.play(answer("one", silence()))

    async def fail() -> None:
        async with stream(model) as events:
            await anext(events)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    await emulator.wait_until(lambda e: not e.open_calls)
    assert emulator.calls[0].code is grpc.StatusCode.CANCELLED
