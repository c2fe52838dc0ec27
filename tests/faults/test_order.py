"""First come, first served, whichever worker a caller comes to."""

import asyncio
import multiprocessing
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.faults.crowd import Noted, overtaken, worker
from tests.faults.forkserver import ForkServer
from tests.faults.processes import Caller, ServerChild, ending, outcome
from tests.faults.recorder import record
from vertex_emulator.emulator import Emulator
from vertex_emulator.script import answer, repeat

FORK = multiprocessing.get_context("fork")
BUSY_AT_ONCE, OTHERS_AT_ONCE = 60, 5
HOLD_SECONDS = 0.002


@pytest.mark.parametrize("calls", [2000, pytest.param(10_000, marks=pytest.mark.soak)])
def test_a_call_is_not_let_in_before_one_that_came_earlier_to_another_worker(calls: int) -> None:
    slots = Noted(slots=8, per_caller=0, workers=2)
    loads = ((BUSY_AT_ONCE, 0.9 * calls, HOLD_SECONDS), (OTHERS_AT_ONCE, 0.1 * calls, HOLD_SECONDS))
    noted: list[tuple[int, int]] = []
    ears = []
    for number, load in enumerate(loads):
        ear, tell = FORK.Pipe(duplex=False)
        process = FORK.Process(target=worker, args=(slots, number, tell, *load))
        process.start()
        ears.append((ear, process))
    for ear, process in ears:
        noted += ear.recv()
        process.join(30)
        assert process.exitcode == 0
    assert len(noted) >= calls
    assert slots.taken == 0
    record("order over workers", overtaken(noted, 50_000_000))


def test_those_who_are_overtaken_are_counted() -> None:
    assert overtaken([(0, 100), (10, 90), (60, 95), (70, 120)], 50) == 1


def sockets(pid: int) -> set[str]:
    links = (entry.readlink() for entry in Path(f"/proc/{pid}/fd").iterdir())
    return {str(link) for link in links if str(link).startswith("socket:")}


async def callers_at_both(served: ServerChild, stack: AsyncExitStack) -> tuple[Caller, Caller]:
    """One caller at each of two workers: the kernel chooses, so there are some to choose from."""
    first = served.workers()[0]
    found: dict[bool, Caller] = {}
    while len(found) < 2:
        before = len(sockets(first))
        caller = await stack.enter_async_context(served.caller())
        await caller.ask()
        found[len(sockets(first)) > before] = caller
    return found[True], found[False]


async def test_a_polite_caller_is_served_beside_a_greedy_one_at_the_other_worker(
    forkserver: ForkServer, upstream: Emulator
) -> None:
    upstream.script.play(default=answer("word"))
    flags = ("--slots", "8", "--queue", "100", "--queue-timeout", "5")
    async with forkserver.serving(upstream.address, *flags, workers=2) as served, AsyncExitStack() as stack:
        greedy, polite = await callers_at_both(served, stack)
        upstream.script.play(default=answer(repeat(3, "word ", interval=0.01)))
        over = asyncio.Event()

        async def again() -> None:
            while not over.is_set():
                await outcome(greedy.start())

        crowd = [asyncio.ensure_future(again()) for _ in range(40)]
        await upstream.wait_until(lambda upstream: len(upstream.open_calls) == 8)
        endings = [ending((await outcome(polite.start()))[1])[0].name for _ in range(44)]
        over.set()
        await asyncio.gather(*crowd)
    record("polite beside greedy", *(float(one != "OK") for one in endings))
    assert endings == ["OK"] * 44
