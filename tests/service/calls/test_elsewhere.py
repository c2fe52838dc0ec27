"""What a proxy may send to another server is told by a header, and nothing else is."""

import asyncio
from typing import Any

import grpc
import grpc.aio
import pytest

from service import errors
from service.generation.events import Started, Text
from service.testing import FakeProvider
from tests.conftest import Serve, failure
from tests.hostile import http2
from tests.service.calls.test_failed import Endless
from tokenwire.v1 import generation_service_pb2 as pb

ASK = pb.GenerateRequest(prompt="hi").SerializeToString()
TOLD = ("tokenwire-retry", "elsewhere")


def told(error: grpc.aio.AioRpcError) -> bool:
    return TOLD in [(key, value) for key, value in error.trailing_metadata() or ()]


async def test_a_server_that_starts_tells_it_by_the_first_header_of_all(serve: Serve) -> None:
    served = await serve(None)

    def first() -> tuple[int, bytes]:
        with http2.Connection(served.address, patience=10) as connection:
            connection.hello().send(http2.call(ASK))
            return next((flags, payload) for kind, flags, _, payload in connection.frames() if kind == http2.HEADERS)

    flags, payload = await asyncio.to_thread(first)
    assert flags & http2.END_STREAM, "a proxy sees it in the headers only if nothing came before"
    assert b"tokenwire-retry" in payload
    assert b"elsewhere" in payload


async def test_so_does_one_that_goes_for_new_calls_and_not_for_those_it_has_begun(serve: Serve) -> None:
    served = await serve(Endless([Started("gemini-2.5-flash"), Text("a")]), drain_delay=0.3)
    running: Any = served.stub.Generate(pb.GenerateRequest(prompt="hi"))
    await running.read()
    stopping = asyncio.create_task(served.server.stop(0.5))
    await asyncio.sleep(0)  # it drains from here on
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await served.ask()
    with pytest.raises(grpc.aio.AioRpcError) as cut:
        [_ async for _ in rest(running)]
    assert failure(refused.value)[1] == failure(cut.value)[1] == "DRAINING"
    assert (told(refused.value), told(cut.value)) == (True, False)
    await stopping


async def rest(call: Any) -> Any:
    while (message := await call.read()) is not grpc.aio.EOF:
        yield message


@pytest.mark.parametrize(
    "error",
    [
        errors.ServerBusy("no"),
        errors.UpstreamUnavailable("no"),
        errors.UpstreamQuota("no"),
        errors.QuotaExceeded("no"),
        errors.QuotasUnavailable("no"),
    ],
)
async def test_no_other_error_has_it(serve: Serve, error: errors.CallError) -> None:
    served = await serve(FakeProvider([error]))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await served.ask()
    assert not told(caught.value)
