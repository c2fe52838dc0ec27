"""What a call took is free once it has ended, without the collector's help, and goes back to the system."""

import asyncio
import gc
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc.aio
import pytest

from service.calls import memory, receive
from service.generation.events import Event, Finished, FinishReason, Started
from service.generation.prompt import Prompt
from service.testing import FakeProvider
from tests.conftest import Serve
from tokenwire.v1 import generation_service_pb2 as pb


@pytest.fixture
def _collector_off() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("_collector_off")
@pytest.mark.parametrize(
    "fields",
    [{"config": {"temperature": 3}}, {"first_chunk_timeout": {"nanos": 10_000_000}}, {}],
    ids=["refused", "too late", "past the deadline"],
)
async def test_a_request_that_fails_is_not_kept(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any]
) -> None:
    requests: list[Any] = []
    parsed = receive.parsed

    def noted(data: bytes, parse: Callable[[bytes], Any]) -> Any:
        request = parsed(data, parse)
        requests.append(request)
        return request

    monkeypatch.setattr(receive, "parsed", noted)
    served = await serve(FakeProvider([], endless=True), default_deadline=0.1)
    with pytest.raises(grpc.aio.AioRpcError):
        await served.ask(**fields)
    async with asyncio.timeout(3):
        while sys.getrefcount(requests[0]) > len((requests, "the argument")):  # noqa: ASYNC110 - no event tells that gRPC has let go of a call
            await asyncio.sleep(0.01)


@dataclass
class Trim:
    """Stands in for malloc_trim."""

    calls: int = 0
    called: asyncio.Event = field(default_factory=asyncio.Event)
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)

    def __call__(self, pad: int) -> None:
        assert pad == 0
        self.calls += 1
        self.loop.call_soon_threadsafe(self.called.set)


@pytest.fixture
async def trim(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Trim]:
    await nothing_waits()  # for what tests before this one let go of
    standing_in = Trim()
    monkeypatch.setattr(memory, "_trim", standing_in)
    monkeypatch.setattr(memory, "_PAUSE_SECONDS", 0.2)
    yield standing_in
    await nothing_waits()


async def nothing_waits() -> None:
    async with asyncio.timeout(10):
        while asyncio.get_running_loop() in memory._waiting:  # noqa: ASYNC110 - nobody tells when it changes
            await asyncio.sleep(0.01)


async def test_memory_goes_back_once_for_large_requests_that_end_together(serve: Serve, trim: Trim) -> None:
    served = await serve(FakeProvider([]))
    small, *large = (served.ask(prompt="x" * size, config={"temperature": 3}) for size in (1, 300_000, 300_000))
    with pytest.raises(grpc.aio.AioRpcError):
        await small
    assert asyncio.get_running_loop() not in memory._waiting
    await asyncio.gather(*large, return_exceptions=True)
    await trim.called.wait()
    assert trim.calls == 1


async def test_so_does_what_streams_took_once_the_last_of_them_has_ended(serve: Serve, trim: Trim) -> None:
    finished = Finished(reason=FinishReason.STOP, upstream_reason="STOP", usage=None)
    served = await serve(FakeProvider([Started("gemini-2.5-flash"), finished]))
    await asyncio.gather(*(served.ask() for _ in range(3)))
    await trim.called.wait()
    assert trim.calls == 1


async def test_memory_goes_back_though_calls_go_on_ending(trim: Trim, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_LOOKS", 10)
    monkeypatch.setattr(memory, "_PAUSE_SECONDS", 0.02)
    async with asyncio.timeout(10):
        for _ in range(2):
            trim.called.clear()
            while not trim.called.is_set():
                memory.give_back()
                await asyncio.sleep(0)
    assert trim.calls == 2


async def test_it_waits_for_a_pause_while_there_may_be_one(trim: Trim, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_LOOKS", 1000)
    monkeypatch.setattr(memory, "_PAUSE_SECONDS", 0.02)
    looked = 0

    def look(*arguments: Any) -> None:
        nonlocal looked
        looked += 1
        seen(*arguments)

    seen = memory._look
    monkeypatch.setattr(memory, "_look", look)
    async with asyncio.timeout(10):
        while looked < 5:
            memory.give_back()
            await asyncio.sleep(0)
        assert not trim.called.is_set()
        await trim.called.wait()
    assert trim.calls == 1


async def test_it_goes_back_though_another_stream_still_runs(serve: Serve, trim: Trim) -> None:
    finished = Finished(reason=FinishReason.STOP, upstream_reason="STOP", usage=None)
    served = await serve(FirstWithoutEnd([Started("gemini-2.5-flash"), finished]))
    first = served.stub.Generate(pb.GenerateRequest(prompt="hi"))
    await first.read()
    await served.ask()
    async with asyncio.timeout(10):
        await trim.called.wait()
    assert not first.done()
    first.cancel()


class FirstWithoutEnd(FakeProvider):
    """One whose first answer never ends."""

    @asynccontextmanager
    async def stream(self, prompt: Prompt, *, deadline: float) -> AsyncIterator[AsyncIterator[Event]]:
        async with super().stream(prompt, deadline=deadline) as events:
            yield events if len(self.asked) > 1 else self._without_end()

    async def _without_end(self) -> AsyncIterator[Event]:
        yield Started("gemini-2.5-flash")
        await asyncio.Event().wait()
