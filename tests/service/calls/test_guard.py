"""Requests that never come, or come broken. What becomes of a bug is told in test_servicer."""

import asyncio

import grpc
import grpc.aio
import pytest

from service.calls import receive
from service.errors import InvalidRequest
from service.testing import FakeProvider
from tests.conftest import Serve, Served, failure

PREFIX = "/tokenwire.v1.GenerationService/"


def streamed(served: Served, method: str) -> grpc.aio.StreamStreamCall[bytes, bytes]:
    """A call whose request is a stream for its caller, who may then send none at all."""
    opened: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = served.channel.stream_stream(PREFIX + method)
    return opened(timeout=20)


@pytest.mark.parametrize("method", ["Generate", "ListModels"])
async def test_a_call_without_a_request_is_told_so(serve: Serve, method: str) -> None:
    call = streamed(await serve(FakeProvider([])), method)
    await call.done_writing()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert failure(caught.value) == (grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_REQUEST")


@pytest.mark.parametrize("method", ["Generate", "ListModels"])
async def test_a_request_that_does_not_come_is_not_waited_for(
    serve: Serve, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receive, "RECEIVE_SECONDS", 0.05)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await streamed(await serve(FakeProvider([])), method).read()
    assert failure(caught.value) == (grpc.StatusCode.DEADLINE_EXCEEDED, "REQUEST_STALLED")


async def test_a_status_that_cannot_be_made_is_a_bug_like_any_other(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: object) -> None:
        raise ValueError("something confidential")

    monkeypatch.setattr(InvalidRequest, "status", broken)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await (await serve(FakeProvider([]))).ask(prompt="")
    assert failure(caught.value) == (grpc.StatusCode.INTERNAL, "INTERNAL")
    assert "confidential" not in str(caught.value.details())


async def test_a_caller_that_leaves_before_it_asked_leaves_nothing_behind(serve: Serve) -> None:
    served = await serve(FakeProvider([]))
    before = len(asyncio.all_tasks())
    calls = [streamed(served, "Generate") for _ in range(20)]
    await asyncio.gather(*(call.wait_for_connection() for call in calls))
    for call in calls:
        call.cancel()
    async with asyncio.timeout(10):
        while len(asyncio.all_tasks()) > before:  # noqa: ASYNC110 - no event tells that gRPC's own tasks are done
            await asyncio.sleep(0.01)
