"""Everything at once, for minutes; afterwards the server is as it was before."""

import asyncio
import random
import time
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.duration_pb2 import Duration

from tests.conftest import failure
from tests.faults.processes import NARROW, Caller, ServerChild, eventually, fate
from tests.faults.recorder import record
from tests.faults.test_deadlines import mend
from vertex_emulator.emulator import Emulator
from vertex_emulator.script import Answer, answer, blackhole, blocked, cut, delay, end, headers, repeat, silence, status

pytestmark = pytest.mark.soak

WARM_SECONDS = 60  # until caches and the allocator's arenas have grown to what such a load wants
SECONDS = 300
CALLERS = 20


@pytest.mark.timeout(WARM_SECONDS + SECONDS + 120)
async def test_after_minutes_of_everything_the_server_is_as_it_was(upstream: Emulator, served: ServerChild) -> None:
    async with served.caller() as caller, served.caller(*NARROW) as slow:
        await everything(upstream, caller, slow, seconds=WARM_SECONDS)
        tasks, sockets, memory = await served.tasks(), served.sockets(), served.memory()
        calls = await everything(upstream, caller, slow, seconds=SECONDS)
        await eventually(lambda: not upstream.open_calls)
        async with asyncio.timeout(10):
            while await served.tasks() > tasks:  # noqa: ASYNC110 - nobody tells when it changes
                await asyncio.sleep(0.05)
        await eventually(lambda: served.sockets() <= sockets)
        assert " bug " not in served.words
        record("soak", served.memory() - memory)
        record("soak: calls", calls)


async def everything(upstream: Emulator, caller: Caller, slow: Caller, *, seconds: float) -> int:
    """Callers of all kinds on an upstream of all kinds; how many calls that were."""
    over = time.monotonic() + seconds

    async def come_again() -> int:
        count = 0
        while time.monotonic() < over:
            upstream.script.play(anything())
            await anyone(caller, slow)
            count += 1
        return count

    return sum(await asyncio.gather(*(come_again() for _ in range(CALLERS))))


def anything() -> Answer:
    """Pieces at any pace, and any ending."""
    steps: list[Any] = [headers()] if random.random() < 0.3 else []
    if random.random() < 0.8:
        size = random.choice([1, 10, 1000, 10_000])
        steps.append(repeat(random.randint(1, 30), "x" * size, interval=random.choice([0.001, 0.01, 0.03])))
    if random.random() < 0.2:
        steps.append(delay(random.uniform(0, 0.5)))
    codes = ["UNAVAILABLE", "RESOURCE_EXHAUSTED", "INVALID_ARGUMENT", "PERMISSION_DENIED", "INTERNAL", "ABORTED"]
    endings = [
        status(random.choice(codes), "no"),
        blocked(),
        silence(),
        end(),
        *([cut()] if random.random() < 0.1 else []),
    ]
    if random.random() < 0.4:
        steps.append(random.choice(endings))
    return answer(*steps or ["word"], finish=random.choice(["STOP", "MAX_TOKENS", "SAFETY", 99, None]))


async def anyone(caller: Caller, slow: Caller) -> None:
    """One call, read to its end, left in the middle, or not read at all."""
    limits: dict[str, Any] = {"coalesce": {}} if random.random() < 0.3 else {}
    who = slow if random.random() < 0.2 else caller
    call = who.start(timeout=random.choice([0.2, 1, 2]), **limits)
    match random.choice(["read", "read", "leave", "stall"]):
        case "leave":
            await asyncio.sleep(random.uniform(0, 0.3))
            call.cancel()
        case "stall":
            await asyncio.sleep(random.uniform(0, 1))
            call.cancel()
        case _:
            await read(call)


async def read(call: Any) -> None:
    """Promises 1 and 2, whatever happens."""
    count, last = 0, None
    try:
        while (message := await call.read()) is not grpc.aio.EOF:
            assert message.sequence == count
            count, last = count + 1, message
    except grpc.aio.AioRpcError as error:
        assert last is None or not last.HasField("completed")
        if "Deadline Exceeded" not in str(error.details()):  # the caller's own clock, which may come first
            assert failure(error)[0] is not grpc.StatusCode.CANCELLED  # noqa: PT017 - or it may end well
    else:
        assert last is not None
        assert last.HasField("completed")


@pytest.mark.timeout(180)
async def test_a_connection_to_upstream_that_swallows_everything_is_found_out(
    upstream: Emulator, served: ServerChild
) -> None:
    upstream.script.play(answer("word ", blackhole()))
    async with served.caller() as caller:
        begin = time.monotonic()
        _, error = await fate(caller.start(timeout=120, idle_timeout=Duration(seconds=100)))
        record("upstream mute for good", 1000 * (time.monotonic() - begin))
        assert failure(error) == (grpc.StatusCode.UNAVAILABLE, "UPSTREAM_UNAVAILABLE")
        assert (await caller.ask())[-1].HasField("completed")
    mend(upstream)
