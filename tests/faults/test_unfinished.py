"""Requests that don't arrive: bounded in memory over the whole server, and nobody else feels them."""

import asyncio
import os
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.faults.processes import MEGABYTE, NARROW, ServerChild, ending, engine, eventually, outcome, server, stalled
from tests.faults.recorder import record
from tests.faults.uploads import FRAME_BYTES, Uploads
from tokenwire.v1 import generation_service_pb2 as pb
from vertex_emulator.emulator import Emulator
from vertex_emulator.script import answer, repeat

DECLARED = 5 * MEGABYTE
SERVED = (grpc.StatusCode.OK, "")
BUSY = (grpc.StatusCode.RESOURCE_EXHAUSTED, "SERVER_BUSY")

# connections, calls on each, bytes at a time, compressed
FLOODS = {
    "200 on 2 connections": (2, 100, FRAME_BYTES, False),
    "616 on one": (1, 616, FRAME_BYTES, False),
    "600 on each of 10": (10, 600, FRAME_BYTES, False),
    "one byte a second": (2, 100, 1, False),
    "only promised": (2, 300, 0, False),
    "compressed": (2, 100, FRAME_BYTES, True),
}
MANY = "600 on each of 10"  # that is a burst of calls as well; what it costs others is told by others


@pytest.fixture(scope="module")
async def pair(the_upstream: Emulator) -> AsyncIterator[ServerChild]:
    async with server(the_upstream.address, workers=2) as running:
        yield running


def memory(served: ServerChild) -> float:
    """Resident in all processes of the server, in MB."""
    pages = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in served.tree())
    return pages * os.sysconf("SC_PAGE_SIZE") / MEGABYTE


class Beside:
    """What goes on beside a flood: the server's memory, and decent calls."""

    def __init__(self) -> None:
        self.grown = [0.0]
        self.endings: Counter[Any] = Counter()
        self.seconds: list[float] = []


@asynccontextmanager
async def beside(served: ServerChild) -> AsyncIterator[Beside]:
    seen = Beside()
    before = memory(served)

    async def look() -> None:
        while True:
            seen.grown.append(memory(served) - before)
            await asyncio.sleep(0.02)

    async def ask() -> None:
        while True:
            async with served.caller() as caller:  # each time perhaps at the other worker
                for _ in range(5):
                    begin = time.monotonic()
                    _, error = await outcome(caller.start("decent", timeout=20))
                    seen.seconds.append(time.monotonic() - begin)
                    seen.endings[ending(error)] += 1
                    await asyncio.sleep(0.02)

    tasks = [asyncio.ensure_future(one()) for one in (look, ask)]
    try:
        yield seen
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "200 on 2 connections" else pytest.mark.soak) for name in FLOODS]
)
async def test_unfinished_requests_take_bounded_memory_and_harm_nobody(
    pair: ServerChild, upstream: Emulator, name: str
) -> None:
    upstream.script.play(default=answer("word"))
    connections, calls, piece, compressed = FLOODS[name]
    await asyncio.sleep(1)  # what went before is given back
    before = memory(pair)
    async with beside(pair) as seen:
        with ExitStack() as stack:
            opened = (Uploads(pair.address, declared=DECLARED, compressed=compressed) for _ in range(connections))
            uploads = [stack.enter_context(one) for one in opened]
            await asyncio.gather(*(asyncio.to_thread(one.begin, calls) for one in uploads))
            pause = 1 if piece == 1 else 0.05
            sending = [asyncio.to_thread(one.send_for, 3, piece=piece, pause=pause) for one in uploads]
            await asyncio.gather(*sending)
            endings = sum((one.endings for one in uploads), Counter[Any]())
    record("unfinished: memory", max(seen.grown))
    record("unfinished: others refused", seen.endings.total() - seen.endings[SERVED])
    if name != MANY:
        record("unfinished: others", *(1000 * one for one in seen.seconds))
    assert set(endings) <= {4, 8}, "gRPC has ended some, and not we"  # DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED
    assert seen.endings.total() > 0
    await eventually(lambda: memory(pair) - before < 60)


async def test_of_500_requests_of_1_mb_at_once_each_is_served_or_refused_in_words() -> None:
    image = {"inline_data": {"mime_type": "image/png", "data": bytes(MEGABYTE)}}
    messages: list[Any] = [{"role": "ROLE_USER", "parts": [image, {"text": "What is it?"}]}]
    request = pb.GenerateRequest(messages=messages)
    async with AsyncExitStack() as stack:
        # Upstream in a process of its own: this one writes for seconds, and upstream would be taken for dead.
        _, address = await stack.enter_async_context(engine(0))
        pair = await stack.enter_async_context(server(address, workers=2))
        callers = [await stack.enter_async_context(pair.caller()) for _ in range(4)]
        calls = [callers[number % 4].stub.Generate(request, timeout=60) for number in range(500)]
        endings = Counter(ending(error) for _, error in await asyncio.gather(*map(outcome, calls)))
    assert endings.keys() <= {SERVED, BUSY}
    record("500 requests of 1 MB", 500 - endings[SERVED] - endings[BUSY])
    assert endings[SERVED] > 0


@pytest.mark.soak
async def test_a_hundred_slow_readers_of_5_mb_answers_cost_little_and_each_has_a_typed_ending(
    pair: ServerChild, upstream: Emulator
) -> None:
    upstream.script.play(default=answer(repeat(5 * MEGABYTE // 16384, "x" * 16384)))
    await asyncio.sleep(2)  # what went before is given back
    before = memory(pair)
    async with pair.caller(*NARROW) as caller:
        calls = [caller.start(timeout=120) for _ in range(100)]
        await stalled(upstream, 100)
        record("100 readers of 5 MB", (memory(pair) - before) / 100)

        async def slowly(call: Any) -> Any:
            while (message := await call.read()) is not grpc.aio.EOF:
                await asyncio.sleep(0.01)
                last = message
            return last.WhichOneof("event")

        assert set(await asyncio.gather(*map(slowly, calls))) == {"completed"}
