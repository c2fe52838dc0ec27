"""One request over a real socket, from a model that says what the test tells it to."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.json_format import ParseDict
from google.protobuf.struct_pb2 import Struct
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo

from service import errors
from service.generation.capabilities import ModelCard
from service.generation.events import Event, Finished, FinishReason, Started, Text, Usage
from service.generation.prompt import Prompt
from service.testing import FakeProvider
from tests.conftest import Serve, detail, failure
from tokenwire.v1 import generation_service_pb2 as pb

FINISHED = Finished(
    reason=FinishReason.STOP, upstream_reason="STOP", usage=Usage(input_tokens=1, output_tokens=2, total_tokens=3)
)
HELLO: Sequence[Event] = (Started("gemini-2.5-flash"), Text("Hel"), Text("lo"), FINISHED)


async def failing(serve: Serve, *events: Event | BaseException, **fields: Any) -> grpc.aio.AioRpcError:
    served = await serve(FakeProvider(events))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await served.ask(**fields)
    return caught.value


async def test_an_answer_is_started_told_and_completed(serve: Serve) -> None:
    model = FakeProvider(HELLO)
    served = await serve(model)
    messages = await served.ask(request_id="mine")
    assert [message.sequence for message in messages] == [0, 1, 2, 3]
    assert [message.WhichOneof("event") for message in messages] == ["started", "text", "text", "completed"]
    assert "".join(message.text for message in messages) == "Hello"
    assert messages[0].started.request_id == "mine"
    assert messages[0].started.generation_id
    timing = messages[3].completed.timing
    assert 0 < timing.first_chunk.ToNanoseconds() <= timing.total.ToNanoseconds()
    assert model.open == 0


async def test_two_generations_have_two_ids(serve: Serve) -> None:
    served = await serve(FakeProvider(HELLO))
    first, second = await served.ask(), await served.ask()
    assert first[0].started.generation_id != second[0].started.generation_id


async def test_a_bad_request_names_its_fields_and_asks_no_model(serve: Serve) -> None:
    model = FakeProvider(HELLO)
    served = await serve(model)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await served.ask(config={"temperature": 3, "top_p": 0})
    assert failure(caught.value) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    assert {one.field: one.description for one in detail(caught.value, BadRequest).field_violations} == {
        "config.temperature": "is 3: 0 to 2 is wanted",
        "config.top_p": "is 0: above 0, up to 1 is wanted",
    }
    assert model.asked == []


@pytest.mark.parametrize("data", [b"\x0a\x02\xff\xff", b"\x0a\x7f", b"\xff", b"\x0b"])
async def test_bytes_that_are_no_request_get_a_clean_status(serve: Serve, data: bytes) -> None:
    model = FakeProvider(HELLO)
    served = await serve(model)
    raw: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = served.channel.unary_stream(
        "/tokenwire.v1.GenerationService/Generate"
    )
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in raw(data):
            pass
    assert failure(caught.value) == (grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_REQUEST")
    assert model.asked == []


async def test_an_error_after_some_pieces_says_how_far_the_stream_had_come(serve: Serve) -> None:
    error = await failing(serve, *HELLO[:2], errors.UpstreamCut("cut"))
    assert failure(error) == (grpc.StatusCode.UNAVAILABLE, "UPSTREAM_CUT")
    assert detail(error, ErrorInfo).metadata["last_sequence"] == "1"


async def test_an_error_before_the_first_piece_says_nothing_of_a_sequence(serve: Serve) -> None:
    error = await failing(serve, errors.UpstreamQuota("busy", retry_after=1.5))
    assert failure(error) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "UPSTREAM_QUOTA")
    assert "last_sequence" not in detail(error, ErrorInfo).metadata
    assert detail(error, RetryInfo).retry_delay.ToMilliseconds() == 1500


async def test_before_the_model_is_ready_calls_are_asked_to_come_again(serve: Serve) -> None:
    served = await serve(None)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await served.ask()
    assert failure(caught.value) == (grpc.StatusCode.UNAVAILABLE, "STARTING")
    assert detail(caught.value, RetryInfo).retry_delay.ToSeconds() == 1


class Silent(FakeProvider):
    """Says its events, and then nothing; `left` is set once its stream has been left."""

    def __init__(self, events: Sequence[Event]) -> None:
        super().__init__(events, endless=True)
        self.left = asyncio.Event()

    @asynccontextmanager
    async def stream(self, prompt: Prompt, *, deadline: float) -> AsyncIterator[AsyncIterator[Event]]:
        try:
            async with super().stream(prompt, deadline=deadline) as events:
                yield events
        finally:
            self.left.set()


async def test_the_servers_own_deadline_ends_a_call_that_brought_none(serve: Serve) -> None:
    model = Silent(HELLO[:2])
    served = await serve(model, default_deadline=0.1)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await served.ask()
    assert failure(caught.value) == (grpc.StatusCode.DEADLINE_EXCEEDED, "SERVER_DEADLINE")
    assert model.open == 0


async def test_a_deadline_beyond_the_servers_maximum_is_cut_to_it(serve: Serve) -> None:
    served = await serve(Silent([]), default_deadline=0.1, max_deadline=0.1)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in served.stub.Generate(pb.GenerateRequest(prompt="hi"), timeout=60):
            pass
    assert failure(caught.value) == (grpc.StatusCode.DEADLINE_EXCEEDED, "SERVER_DEADLINE")


async def test_models_are_listed_with_the_default_first(serve: Serve) -> None:
    known = ModelCard(
        name="b",
        provider="gcp.vertex_ai",
        max_input_tokens=9,
        max_output_tokens=5,
        input_kinds=frozenset({"text", "image"}),
        thinking=True,
        tools=False,
        unsupported=frozenset({"labels", "config.top_k"}),
        metadata={"region": "europe"},
    )
    served = await serve(FakeProvider(HELLO, cards=[known, ModelCard(name="a", provider="openai")]))
    listed = (await served.stub.ListModels(pb.ListModelsRequest())).models
    assert listed[0] == pb.Model(
        name="b",
        default=True,
        provider="gcp.vertex_ai",
        max_input_tokens=9,
        max_output_tokens=5,
        input_kinds=["image", "text"],
        thinking=True,
        tools=False,
        unsupported_fields=["config.top_k", "labels"],
        metadata=ParseDict({"region": "europe"}, Struct()),
    )
    assert listed[1] == pb.Model(name="a", provider="openai")


async def test_models_are_not_listed_before_they_are_known(serve: Serve) -> None:
    served = await serve(None)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await served.stub.ListModels(pb.ListModelsRequest())
    assert failure(caught.value) == (grpc.StatusCode.UNAVAILABLE, "STARTING")


async def test_tokens_are_counted_without_generating(serve: Serve) -> None:
    model = FakeProvider(HELLO, tokens=7)
    served = await serve(model)
    counted = await served.stub.CountTokens(pb.CountTokensRequest(prompt="hi"))
    assert counted == pb.CountTokensResponse(total_tokens=7, model="gemini-2.5-flash")
    assert [prompt.turns[0].parts for prompt in model.asked] == [("hi",)]
    assert model.open == 0


async def test_a_count_waits_its_turn_like_any_other_call(serve: Serve) -> None:
    model = Silent(HELLO[:2])
    served = await serve(model, slots=1, queue=0)
    stream = served.stub.Generate(pb.GenerateRequest(prompt="hi"))
    await stream.read()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await served.stub.CountTokens(pb.CountTokensRequest(prompt="hi"))
    assert failure(caught.value) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "SERVER_BUSY")
    assert len(model.asked) == 1
    stream.cancel()


async def test_what_cannot_be_counted_is_refused_as_it_would_be_for_generating(serve: Serve) -> None:
    model = FakeProvider(HELLO)
    served = await serve(model)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await served.stub.CountTokens(pb.CountTokensRequest())
    assert failure(caught.value) == (grpc.StatusCode.INVALID_ARGUMENT, "EMPTY_PROMPT")
    assert model.asked == []


async def test_an_unknown_method_is_unimplemented(serve: Serve) -> None:
    served = await serve(FakeProvider(HELLO))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await served.channel.unary_unary("/tokenwire.v1.GenerationService/Sing", bytes)(b"")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("bug", [ZeroDivisionError("secret"), asyncio.CancelledError(), TimeoutError("secret")])
@pytest.mark.parametrize("before", [0, 2])
async def test_a_bug_ends_as_internal_with_an_id_and_nothing_else(
    serve: Serve, bug: BaseException, before: int, capfd: pytest.CaptureFixture[str]
) -> None:
    error = await failing(serve, *HELLO[:before], bug)
    assert failure(error) == (grpc.StatusCode.INTERNAL, "INTERNAL")
    info = detail(error, ErrorInfo)
    assert set(info.metadata) - {"last_sequence"} == {"error_id"}
    assert info.metadata["error_id"] in str(error.details())
    assert "secret" not in str(error)
    assert "secret" not in capfd.readouterr().err


async def test_a_cancelled_call_leaves_the_model(serve: Serve) -> None:
    model = Silent(HELLO[:2])
    served = await serve(model)
    call = served.stub.Generate(pb.GenerateRequest(prompt="hi"))
    await call.read()
    call.cancel()
    async with asyncio.timeout(5):
        await model.left.wait()
