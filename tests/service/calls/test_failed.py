"""A stream that fails says so by its last message, to callers that want it."""

import asyncio
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import ErrorInfo

from service.errors import UpstreamCut
from service.generation.events import Started, Text
from service.testing import FakeProvider
from tests.conftest import Serve, Served, detail, failure
from tests.faults.processes import outcome
from tests.service.calls.test_servicer import FINISHED, HELLO
from tokenwire.v1 import generation_service_pb2 as pb
from tokenwire.v1.generation_service_pb2_grpc import GenerationServiceStub

WANTED = (("tokenwire-failed", "in-stream"),)
MODEL = "gemini-2.5-flash"


async def heard(
    served: Served, metadata: tuple[tuple[str, str], ...] = WANTED, **fields: Any
) -> tuple[list[pb.GenerateResponse], grpc.aio.AioRpcError | None]:
    call = served.stub.Generate(pb.GenerateRequest(**{"prompt": "hi", **fields}), metadata=metadata)
    return await outcome(call)


def says_the_same(messages: list[pb.GenerateResponse], error: grpc.aio.AioRpcError | None) -> None:
    """The last message is what the status says, and the others are as ever."""
    assert error is not None
    *others, last = messages
    assert [message.sequence for message in messages] == list(range(len(messages)))
    assert "failed" not in {message.WhichOneof("event") for message in others}
    assert (last.failed.code, last.failed.message) == (error.code().value[0], error.details())
    info = ErrorInfo()
    assert last.failed.details[0].Unpack(info)
    assert info == detail(error, ErrorInfo)
    assert info.metadata["last_sequence"] == str(len(others) - 1)


async def test_an_error_in_mid_stream_is_the_last_message_and_the_status(serve: Serve) -> None:
    served = await serve(FakeProvider([Started(MODEL), Text("a"), UpstreamCut("The model ended the call")]))
    messages, error = await heard(served)
    assert [message.WhichOneof("event") for message in messages] == ["started", "text", "failed"]
    says_the_same(messages, error)


async def test_a_limit_of_time_is_told_in_the_same_way(serve: Serve) -> None:
    served = await serve(FakeProvider([Started(MODEL), Text("a")], endless=True))
    messages, error = await heard(served, idle_timeout=Duration(nanos=50_000_000))
    assert error is not None
    assert failure(error) == (grpc.StatusCode.DEADLINE_EXCEEDED, "IDLE_TIMEOUT")
    says_the_same(messages, error)


async def test_so_is_a_server_that_goes(serve: Serve) -> None:
    served = await serve(FakeProvider([Started(MODEL), Text("a")], endless=True))
    call: Any = served.stub.Generate(pb.GenerateRequest(prompt="hi"), metadata=WANTED)
    first = [await call.read(), await call.read()]
    stopping = asyncio.create_task(served.server.stop(0))
    last = await call.read()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    says_the_same([*first, last], caught.value)
    assert failure(caught.value) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
    await stopping


@pytest.mark.parametrize("metadata", [(), (("tokenwire-failed", ""),), (("tokenwire-failed", "yes"),)])
async def test_a_caller_that_does_not_want_it_hears_the_status_alone(
    serve: Serve, metadata: tuple[tuple[str, str], ...]
) -> None:
    served = await serve(FakeProvider([Started(MODEL), Text("a"), UpstreamCut("The model ended the call")]))
    messages, error = await heard(served, metadata)
    assert [message.WhichOneof("event") for message in messages] == ["started", "text"]
    assert error is not None


async def test_what_fails_before_the_first_message_has_its_status_alone(serve: Serve) -> None:
    served = await serve(FakeProvider([UpstreamCut("The model ended the call")]))
    for prompt, model in (("hi", ""), ("", ""), ("hi", "another")):
        messages, error = await heard(served, prompt=prompt, model=model)
        assert not messages
        assert error is not None


async def test_a_whole_answer_ends_as_ever(serve: Serve) -> None:
    served = await serve(FakeProvider([*HELLO, FINISHED]))
    messages, error = await heard(served)
    assert error is None
    assert messages[-1].HasField("completed")


async def test_a_caller_that_does_not_read_gets_its_status_no_later(serve: Serve) -> None:
    served = await serve(FakeProvider([Started(MODEL), *[Text("x" * 60_000)] * 400]), write_timeout=0.1)
    options = [("grpc.http2.lookahead_bytes", 65536), ("grpc.http2.bdp_probe", 0)]
    async with grpc.aio.insecure_channel(served.address, options=options) as channel:
        stub: Any = GenerationServiceStub(channel)
        call = stub.Generate(pb.GenerateRequest(prompt="hi"), metadata=WANTED)
        await call.read()
        async with asyncio.timeout(10):
            while served.server._guard._running:  # noqa: ASYNC110 - it has given the call up
                await asyncio.sleep(0.01)
        messages, error = await outcome(call)
    assert error is not None
    assert failure(error) == (grpc.StatusCode.DEADLINE_EXCEEDED, "READER_STALLED")
    assert {message.WhichOneof("event") for message in messages} == {"text"}
