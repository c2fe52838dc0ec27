"""Two things at once, thousands of times: each call ends with exactly one typed status, and nothing is left behind.

A failure tells the storm's seed; TOKENWIRE_STORM=SEED sends the same calls again.
"""

import os
import random
from collections.abc import AsyncIterator, Collection
from typing import get_args

import grpc
import pytest

from tests.faults.forkserver import ForkServer, Loop
from tests.faults.processes import engine
from tests.faults.recorder import STRICT, record
from tests.faults.storm import AIMS, AIMS_OF_DRAINS, DRAIN_FLAGS, FLAGS, SLOTS, Heard, Storm, fault, left_over, tasks
from tokenwire.v1 import generation_service_pb2 as pb
from vertex_emulator import ControlClient

SEED = os.environ.get("TOKENWIRE_STORM") or f"{random.getrandbits(32):x}"

# How late a status may be; on a busy machine processes are forgotten for a while.
PATIENCE_SECONDS = 1 if STRICT else 5

LOOPS: tuple[Loop, ...] = get_args(Loop)

GRACE_SECONDS = 0.2

# Of an aim's outcomes: with fewer, the share of either order says nothing.
FEW = 50


@pytest.fixture(scope="module")
async def vertex() -> AsyncIterator[tuple[str, ControlClient]]:
    """A local Vertex in a process of its own."""
    async with engine(0, "--relay") as (_, address):
        with ControlClient(address) as control:
            yield address, control


@pytest.fixture
async def storm(vertex: tuple[str, ControlClient]) -> Storm:
    made = Storm(SEED, *vertex, patience=PATIENCE_SECONDS)
    await made.load()
    return made


def hold(storm: Storm, left: dict[str, int] | None = None) -> None:
    """Fail with all that is known, if something was wrong or is left behind."""
    assert not storm.faults, storm.report()
    record("storm: calls without exactly one typed status", storm.faults.total())
    if left is not None:
        assert not any(left.values()), f"{left} are left after the {storm.report()}"
        record("storm: slots, queue places, upstream calls left over", sum(left.values()))


def aimed(storm: Storm, aims: Collection[str], *, least: float, few: int = 1, places: bool = False) -> None:
    """Each of these aims with as many outcomes had each order of chunk and event in at least this part of them."""
    for aim, orders in storm.hits(places=places).items():
        judged = orders["chunk"] + orders["event"]
        if aim in aims and judged >= few:
            assert min(orders["chunk"], orders["event"]) >= least * judged, f"{aim}: {orders}; {storm.report()}"


async def strikes(
    storm: Storm, forkserver: ForkServer, loop: Loop, workers: int, *, read: range, stalled: range
) -> None:
    """A storm of calls that are read and of calls that are not, on one server."""
    async with forkserver.serving(storm.upstream, *FLAGS, loop=loop, workers=workers) as served:
        before = await tasks(served)
        await storm.rage(served, read)
        await storm.stall(served, stalled)
        left = await left_over(served, storm.control, tasks_before=before, seconds=PATIENCE_SECONDS)
        storm.look_at_log(served)
    hold(storm, left)


async def drains(storm: Storm, forkserver: ForkServer, loop: Loop, workers: int, rounds: range) -> None:
    for number in rounds:
        grace = GRACE_SECONDS if number % 3 == 0 else 20
        flags = (*DRAIN_FLAGS, "--grace", str(grace))
        async with forkserver.serving(storm.upstream, *flags, loop=loop, workers=workers) as served:
            await storm.drain(served, number, grace=grace)
        storm.look_at_log(served)
    hold(storm)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("loop", LOOPS)
async def test_whatever_meets_a_chunk_a_call_ends_once_and_typed(
    storm: Storm, forkserver: ForkServer, loop: Loop, workers: int
) -> None:
    await strikes(storm, forkserver, loop, workers, read=range(800), stalled=range(80))
    # Its first calls find out where the moments are.
    aimed(storm, AIMS, least=0.05, few=40)
    assert storm.met["far deadline, typed"] or storm.met["far deadline, untyped"] < 5, storm.met


@pytest.mark.parametrize(("loop", "workers"), [("uvloop", 1), ("asyncio", 2)])
async def test_whatever_meets_a_signal_a_call_ends_once_and_typed(
    storm: Storm, forkserver: ForkServer, loop: Loop, workers: int
) -> None:
    await drains(storm, forkserver, loop, workers, range(2))


async def test_a_caller_that_never_reads_holds_nothing_once_its_limits_have_passed(
    storm: Storm, forkserver: ForkServer
) -> None:
    async with forkserver.serving(storm.upstream, *FLAGS) as served:
        left = await storm.never_read(served, each=SLOTS // 2)
        storm.look_at_log(served)
    hold(storm, left)


@pytest.mark.soak
@pytest.mark.timeout(1800)
async def test_of_100000_calls_that_only_the_server_ends_each_ends_once_and_typed(
    vertex: tuple[str, ControlClient], forkserver: ForkServer
) -> None:
    storm = Storm(SEED, *vertex, patience=PATIENCE_SECONDS, own=0.2)
    await storm.load()
    for place, (loop, workers) in enumerate((loop, workers) for loop in LOOPS for workers in (1, 2)):
        # No more at once than the local Vertex keeps records of.
        for part in range(4):
            read, stalled = (range((4 * place + part) * size, (4 * place + part + 1) * size) for size in (7_200, 400))
            await strikes(storm, forkserver, loop, workers, read=read, stalled=stalled)
        await drains(storm, forkserver, loop, workers, range(place * 18, (place + 1) * 18))
    assert storm.decisive >= 100_000
    record("storm: calls", storm.calls)
    record("storm: calls whose ending only the server could tell", storm.decisive)
    hit(storm)


def hit(storm: Storm) -> None:
    """Fail unless a long storm hits what it aims at."""
    typed, untyped, late = (storm.met[f"far deadline, {how}"] for how in ("typed", "untyped", "untyped, server late"))
    record("storm: deadlines without a reason", 100 * untyped / (typed + untyped))
    record("storm: deadlines that the server told too late", 100 * late / (typed + untyped))
    kinds, aims = storm.hits(), storm.hits(places=True)
    assert kinds.keys() == AIMS | AIMS_OF_DRAINS
    # A drain has one moment for all of its calls, so that its orders are told by a dozen of moments.
    aimed(storm, AIMS_OF_DRAINS, least=0.1 if STRICT else 0.02)
    single = {aim: orders for aim, orders in aims.items() if aim not in AIMS_OF_DRAINS}
    aimed(storm, single, least=0.2 if STRICT else 0.05, few=FEW, places=True)
    often = [one for one in single.values() if one["chunk"] + one["event"] >= FEW]
    assert len(often) >= 0.8 * len(single), aims
    record(
        "storm: chunk first or event first",
        *(100 * max(one["chunk"], one["event"]) / (one["chunk"] + one["event"]) for one in often),
    )
    for kind in ("cancel", "reacting cancel"):
        near = kinds[kind]["near"] / kinds[kind]["behind"]
        assert near >= (0.1 if STRICT else 0.05), f"{kind}: {kinds[kind]}"


# ---- that the storm would notice -------------------------------------------------------------------------------------

STARTED = pb.GenerateResponse(sequence=0, started=pb.Started())
WORD = pb.GenerateResponse(sequence=1, text="word")
MORE = pb.GenerateResponse(sequence=2, text=" after word")
COMPLETED_FIRST, EARLY, COMPLETED = (pb.GenerateResponse(sequence=n, completed=pb.Completed()) for n in (1, 2, 3))

LAST = pb.GenerateResponse(sequence=2, text="word")

OK, LATE = grpc.StatusCode.OK, grpc.StatusCode.DEADLINE_EXCEEDED


@pytest.mark.parametrize(
    ("heard", "wrong"),
    [
        (Heard([STARTED, WORD, MORE, COMPLETED], OK), ""),
        (Heard([STARTED, WORD, EARLY], OK), "text"),
        (Heard([STARTED, WORD], LATE, "IDLE_TIMEOUT"), ""),
        (Heard([STARTED, WORD], LATE), "untyped DEADLINE_EXCEEDED"),
        (Heard([STARTED, WORD], grpc.StatusCode.CANCELLED), ""),
        (Heard([STARTED, WORD]), "no status: "),
        (Heard([STARTED, WORD, MORE], OK), "OK without completed"),
        (Heard([STARTED, WORD, EARLY], LATE, "READER_STALLED"), "completed, then an error"),
        (Heard([STARTED], grpc.StatusCode.INTERNAL, "INTERNAL"), "INTERNAL/INTERNAL"),
        (Heard([WORD, MORE], LATE, "IDLE_TIMEOUT"), "sequence"),
        (Heard([STARTED, COMPLETED_FIRST, LAST], LATE, "IDLE_TIMEOUT"), "order"),
        (Heard([pb.GenerateResponse(text="word")], LATE, "IDLE_TIMEOUT"), "order"),
        (Heard([STARTED, pb.GenerateResponse(sequence=1, text="other")], LATE, "IDLE_TIMEOUT"), "text"),
    ],
)
def test_an_ending_that_breaks_a_promise_is_a_fault(heard: Heard, wrong: str) -> None:
    assert fault(heard, text="word after word", own=frozenset({grpc.StatusCode.CANCELLED})) == wrong
