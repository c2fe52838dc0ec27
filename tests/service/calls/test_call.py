"""Callers that don't read, at the moment that matters: each still hears exactly one typed status, once it reads."""

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from service.generation.events import Text
from service.testing import FakeProvider
from tests.conftest import Serve, Served, failure
from tests.hostile import http2
from tests.service.calls.test_servicer import FINISHED, HELLO, Silent
from tokenwire.v1 import generation_service_pb2 as pb

ASK = pb.GenerateRequest(prompt="hi").SerializeToString()
COUNT = "/tokenwire.v1.GenerationService/CountTokens"
WATCH = "/grpc.health.v1.Health/Watch"
CHECK = "/grpc.health.v1.Health/Check"
STALLED = ("DEADLINE_EXCEEDED", "The caller has not read for 0.1 s")
DRAINING = ("UNAVAILABLE", "The server is going away, and the answer took longer than it could wait")
REFLECT = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"


class Reader:
    """A caller with a window of so many bytes for what the server sends, by hand."""

    def __init__(self, served: Served, window: int = 0) -> None:
        self._connection = http2.Connection(served.address, patience=10)
        self._connection.hello((http2.INITIAL_WINDOW_SIZE, window))
        self.data = b""
        """What has come, as gRPC frames it."""

    async def call(self, request: bytes, path: str = http2.GENERATE, stream: int = 1) -> None:
        await asyncio.to_thread(self._connection.send, http2.call(request, path=path, stream=stream))

    async def open(self, size: int = 1 << 20, stream: int = 1) -> None:
        await asyncio.to_thread(self._connection.send, http2.window_update(stream, size))

    async def headers(self) -> bytes | None:
        """Wait for the header block that comes before any message."""
        return await asyncio.to_thread(self._connection.until, http2.HEADERS)

    async def rest(self) -> tuple[list[bytes], tuple[str, str]]:
        """The messages, and the status behind them: code and text. Fails if another ending comes."""
        return await asyncio.to_thread(self._rest)

    def _rest(self) -> tuple[list[bytes], tuple[str, str]]:
        for kind, flags, _, payload in self._connection.frames():
            if kind == http2.DATA:
                self.data += payload
            elif kind == http2.HEADERS and flags & http2.END_STREAM:
                return list(self._messages()), _ending(payload)
            else:
                assert kind != http2.RST_STREAM, "reset without a status"
        raise AssertionError("closed without a status")

    def _messages(self) -> Any:
        data = self.data
        while data:
            (size,) = struct.unpack(">xI", data[:5])
            yield data[5 : 5 + size]
            data = data[5 + size :]

    def close(self) -> None:
        self._connection.__exit__(None, None, None)


def _ending(block: bytes) -> tuple[str, str]:
    """Code and text in trailers of literal fields."""
    code = http2.status_in(block)
    text = block.partition(b"grpc-message")[2]
    return next(one.name for one in grpc.StatusCode if one.value[0] == code), text[
        1 : 1 + text[0]
    ].decode() if text else ""


@asynccontextmanager
async def reading(served: Served, window: int = 0) -> AsyncIterator[Reader]:
    reader = await asyncio.to_thread(Reader, served, window)
    try:
        yield reader
    finally:
        reader.close()


async def watching(watch: Any, heard: list[Any]) -> None:
    async for one in watch:
        heard.append(one.status)  # noqa: PERF401 - an error ends it, and what came before counts


async def free(served: Served, running: int = 0) -> None:
    """Wait until so many handlers are at work."""
    async with asyncio.timeout(10):
        while len(served.server._guard._running) != running:  # noqa: ASYNC110 - nobody tells when it changes
            await asyncio.sleep(0.01)


async def test_a_first_write_that_is_given_up_still_ends_in_a_status(serve: Serve) -> None:
    model = Silent(HELLO[:2])
    served = await serve(model, write_timeout=0.1)
    async with reading(served) as reader:
        await reader.call(ASK)
        await model.left.wait()
        await free(served)
        await reader.open()
        messages, ending = await reader.rest()
    assert ending == STALLED
    assert [pb.GenerateResponse.FromString(one).WhichOneof("event") for one in messages] == ["started"]


@pytest.mark.parametrize("limit", ["deadline", "write", "drain"])
async def test_behind_completed_the_status_is_ok_whatever_strikes_while_it_is_written(serve: Serve, limit: str) -> None:
    """Whatever number of bytes the caller has room for."""
    settings: dict[str, Any] = {"write_timeout": 0.1 if limit == "write" else 20}
    if limit == "deadline":
        settings |= {"default_deadline": 0.2, "write_timeout": 0.4}
    served = await serve(FakeProvider([HELLO[0], Text("x" * 50), FINISHED]), drain_delay=0, **settings)
    sizes = range(0, 260, 20)
    stopping = None
    readers = [await asyncio.to_thread(Reader, served, size) for size in sizes]
    for reader in readers:
        await reader.call(ASK)
        await reader.headers()
    if limit == "drain":
        stopping = asyncio.ensure_future(served.server.stop(0.1))
    await free(served)
    for reader in readers:
        await reader.open()
    ends = set()
    for reader in readers:
        messages, (code, text) = await reader.rest()
        last = pb.GenerateResponse.FromString(messages[-1])
        assert (code == "OK") == last.HasField("completed"), (code, text, last)
        ends.add(code)
        reader.close()
    assert len(ends) == 2, "no reader stalled before `completed`, or none behind it"
    if stopping is not None:
        await asyncio.wait_for(stopping, 20)


@pytest.mark.parametrize(("path", "request_"), [(COUNT, pb.CountTokensRequest(prompt="hi")), (CHECK, b"")])
async def test_a_reply_that_is_not_read_holds_nothing_up_and_is_whole_once_it_is(
    serve: Serve, path: str, request_: Any
) -> None:
    served = await serve(FakeProvider(HELLO), write_timeout=0.1, slots=2, queue=0)
    data = request_ if isinstance(request_, bytes) else request_.SerializeToString()
    async with reading(served) as first, reading(served) as second:
        for reader in (first, second):
            await reader.call(data, path)
            await reader.headers()
        await free(served)
        assert (await served.ask())[-1].HasField("completed")
        for reader in (first, second):
            await reader.open()
            messages, ending = await reader.rest()
            assert ending == ("OK", "")
            assert len(messages) == 1


async def test_a_watcher_that_does_not_read_keeps_no_other_from_hearing(serve: Serve) -> None:
    served = await serve(FakeProvider(HELLO), drain_delay=0)
    stub: Any = health_pb2_grpc.HealthStub(served.channel)
    async with reading(served) as deaf:
        await deaf.call(b"", WATCH)
        await deaf.headers()
        watch = stub.Watch(health_pb2.HealthCheckRequest())
        assert (await anext(aiter(watch))).status == health_pb2.HealthCheckResponse.SERVING
        stopping = asyncio.ensure_future(served.server.stop(0))
        # Not by `read`: grpc.aio's drops what has come once the status is there.
        heard: list[Any] = []
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await watching(watch, heard)
        assert heard == [health_pb2.HealthCheckResponse.NOT_SERVING]
        assert failure(caught.value) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
        await deaf.open()
        _, ending = await deaf.rest()
        assert ending == DRAINING
        await asyncio.wait_for(stopping, 20)


@pytest.mark.parametrize("path", [WATCH, REFLECT])
async def test_streams_that_are_not_ours_are_given_up_too(serve: Serve, path: str) -> None:
    served = await serve(FakeProvider(HELLO), write_timeout=0.1)
    async with reading(served) as reader:
        await reader.call(b"\x3a\x00" if path == REFLECT else b"", path)  # list_services
        async with asyncio.timeout(10):
            await reader.headers()
            while not any(call.time_limits._over for call in served.server._guard._calls.values()):  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.01)
        await reader.open()
        _, ending = await reader.rest()
    assert ending == STALLED


async def test_a_call_whose_request_has_not_come_hears_of_the_drain(serve: Serve) -> None:
    served = await serve(FakeProvider(HELLO), drain_delay=0)
    opened: Any = served.channel.stream_stream(http2.GENERATE)
    call = opened()
    await call.wait_for_connection()
    await free(served, running=1)
    stopping = asyncio.ensure_future(served.server.stop(0))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert failure(caught.value) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
    await stopping
