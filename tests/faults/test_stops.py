"""A stop counts once, in whatever way and at whatever moment: streams are whole, the code is 0, nothing is left."""

import asyncio
import contextlib
import os
import random
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from service.runtime import workers
from service.runtime.stop import SIGNALS
from tests.faults.forkserver import ForkedServer, ForkServer
from tests.faults.processes import ending, eventually, outcome, pieces
from tests.faults.recorder import record
from tests.faults.skipping import skipped_where_refused
from vertex_emulator.emulator import Emulator
from vertex_emulator.script import answer, silence, wait_for

pytestmark = pytest.mark.skipif(not workers.possible(), reason="workers are forked, which is for Linux")

Ending = tuple[grpc.StatusCode, str]

STREAMS = 8
WHOLE = [(grpc.StatusCode.OK, "")] * STREAMS
CUT = [(grpc.StatusCode.UNAVAILABLE, "DRAINING")] * STREAMS

Stop = Callable[[ForkedServer], None]


def by_group(server: ForkedServer) -> None:
    """Ctrl-C in a terminal, or `kill -- -PGID`."""
    server.group(signal.SIGINT)


def by_parent(server: ForkedServer) -> None:
    server.signal(signal.SIGTERM)


def by_service_manager(server: ForkedServer) -> None:
    """As systemd does: to everybody, and then something that wakes them up."""
    server.everybody(signal.SIGTERM)
    server.everybody(signal.SIGCONT)
    server.everybody(signal.SIGHUP)


def by_terminal_that_closes(server: ForkedServer) -> None:
    """The kernel and the shell say SIGHUP, and then the session's manager SIGTERM."""
    server.group(signal.SIGHUP)
    server.group(signal.SIGHUP)
    server.everybody(signal.SIGTERM)


def by_wrapper(server: ForkedServer) -> None:
    """As timeout(1) does it: to its child, and to the group that the child is in."""
    server.signal(signal.SIGTERM)
    server.group(signal.SIGTERM)
    server.group(signal.SIGCONT)


PROCESS_1 = {"pid_one": True}
WAYS: dict[str, tuple[Stop, dict[str, Any]]] = {
    "group": (by_group, {}),
    "parent": (by_parent, {}),
    "process 1": (by_parent, PROCESS_1),
    "service manager": (by_service_manager, {}),
    "terminal that closes": (by_terminal_that_closes, {}),
    "wrapper": (by_wrapper, {}),
}


@asynccontextmanager
async def born(forkserver: ForkServer, upstream: Emulator, *flags: str, **around: Any) -> AsyncIterator[ForkedServer]:
    """A server on the local Vertex, with two workers unless `flags` say another number."""
    flags = ("--port", "0", "--emulator", upstream.address, "--workers", "2", *flags)
    with skipped_where_refused("namespaces and other users, which root may make where no sandbox forbids it"):
        async with forkserver.started(*flags, **around) as server:
            yield server


@asynccontextmanager
async def running(server: ForkedServer, count: int = STREAMS) -> AsyncIterator[list[Any]]:
    """So many streams that have said their first piece, each on a connection of its own, for any worker."""
    async with AsyncExitStack() as stack:
        callers = [await stack.enter_async_context(server.caller()) for _ in range(count)]
        calls = [caller.start() for caller in callers]
        await asyncio.gather(*(pieces(call, 1) for call in calls))
        yield calls


async def ends(calls: list[Any]) -> list[Ending]:
    return [ending(error) for _, error in await asyncio.gather(*map(outcome, calls))]


def free(address: str) -> bool:
    host, _, port = address.rpartition(":")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with contextlib.suppress(OSError):
            probe.bind((host, int(port)))
            return True
    return False


# ---- whatever way it comes


async def failed(forkserver: ForkServer, upstream: Emulator, way: str, *flags: str) -> int:
    """Stop a server that way; how many streams were cut, and one more for an exit code that isn't 0."""
    stop, around = WAYS[way]
    upstream.reset()
    upstream.script.play(default=answer("one", wait_for("two"), "two"))
    async with born(forkserver, upstream, *flags, **around) as server:
        await server.ready()
        async with running(server) as calls:
            stop(server)
            await eventually(lambda: server.words.count("draining") == len(server.workers()))
            await asyncio.sleep(0.3)  # what is counted twice cuts them now, which nobody tells
            upstream.open_gate("two")
            cut = sum(one != WHOLE[0] for one in await ends(calls))
        code = await server.ended()
        assert free(server.address)
        assert "Traceback" not in server.words, server.words
    return cut + (code != 0)


@pytest.mark.parametrize("way", WAYS)
async def test_one_stop_counts_once(forkserver: ForkServer, upstream: Emulator, way: str) -> None:
    failures = await failed(forkserver, upstream, way)
    record(f"stop: {way}", failures)
    assert not failures


@pytest.mark.soak
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.timeout(600)
async def test_one_stop_counts_once_25_times(forkserver: ForkServer, upstream: Emulator, way: str) -> None:
    failures = [await failed(forkserver, upstream, way) for _ in range(24)]
    record(f"stop: {way}", *failures)
    assert not any(failures)


async def restless(server: ForkedServer, begun: asyncio.Event) -> list[Ending]:
    """The endings of a caller who asks again and again, on one channel, until nobody listens."""
    found: list[Ending] = []
    async with server.caller() as caller:
        while True:
            _, error = await outcome(caller.start())
            if error is not None and "failed to connect" in (error.details() or ""):
                return found
            found.append(ending(error))
            begun.set()


async def cut_short(forkserver: ForkServer, upstream: Emulator, count: str) -> list[Any]:
    """Stop a server that is asked without a pause; how calls end that neither succeed nor are refused in our words."""
    upstream.reset()
    upstream.script.play(default=answer("one"))
    async with born(forkserver, upstream, "--workers", count, "--drain-delay", "0") as server:
        await server.ready()
        events = [asyncio.Event() for _ in range(20)]
        callers = [asyncio.ensure_future(restless(server, event)) for event in events]
        for event in events:
            await event.wait()
        server.signal(signal.SIGTERM)
        endings = [one for caller in callers for one in await caller]
        assert await server.ended() == 0
    return [one for one in endings if one not in (WHOLE[0], CUT[0])]


@pytest.mark.parametrize("count", ["1", "2"])
async def test_callers_that_never_pause_hear_how_each_call_ended(
    forkserver: ForkServer, upstream: Emulator, count: str
) -> None:
    bare = await cut_short(forkserver, upstream, count)
    assert not bare
    record("stop: callers without a pause", 0)


@pytest.mark.soak
@pytest.mark.timeout(600)
async def test_callers_that_never_pause_hear_how_each_call_ended_25_times(
    forkserver: ForkServer, upstream: Emulator
) -> None:
    bare = [await cut_short(forkserver, upstream, count) for count in "12" * 12]
    assert not any(bare), bare
    record("stop: callers without a pause", *map(len, bare))


@pytest.mark.parametrize("count", ["1", "2"])
async def test_sighup_never_hurries_and_the_second_of_the_others_does(
    forkserver: ForkServer, upstream: Emulator, count: str
) -> None:
    upstream.script.play(default=answer("one", silence()))
    async with born(forkserver, upstream, "--workers", count, "--grace", "3600", "--drain-delay", "0") as server:
        await server.ready()
        async with running(server) as calls:
            server.group(signal.SIGHUP)
            await server.said("draining")
            for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGHUP):
                server.group(number)
                await asyncio.sleep(0.1)  # nothing may happen, which nobody tells
            assert len(upstream.open_calls) == STREAMS
            server.signal(signal.SIGINT)
            assert await ends(calls) == CUT
        assert await server.ended() == 0


async def test_a_worker_stops_once_whoever_tells_it_and_is_replaced(forkserver: ForkServer, upstream: Emulator) -> None:
    upstream.script.play(default=answer("one", wait_for("two"), "two"))
    async with born(forkserver, upstream) as server:
        await server.ready()
        await eventually(lambda: len(server.tree()) == 3)
        async with running(server) as calls:
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                os.kill(server.tree()[1], number)
                await server.said("draining")
            upstream.open_gate("two")
            assert await ends(calls) == WHOLE
        await server.said("starting another")
        server.group(signal.SIGTERM)
        assert await server.ended() == 0


# ---- at whatever moment


@pytest.mark.parametrize(
    ("count", "around", "number"),
    [
        ("1", {}, signal.SIGHUP),
        ("2", {}, signal.SIGINT),
        ("2", {}, signal.SIGHUP),
        ("1", PROCESS_1, signal.SIGTERM),
        ("2", PROCESS_1, signal.SIGTERM),
    ],
)
async def test_a_stop_during_the_import_ends_it_at_once(
    forkserver: ForkServer, upstream: Emulator, count: str, around: dict[str, Any], number: signal.Signals
) -> None:
    async with born(forkserver, upstream, "--workers", count, cold=True, **around) as server:
        await server.listens()
        server.group(number)
        assert await server.ended() == 0
        assert "ready after" not in server.words
        assert "Traceback" not in server.words, server.words
        assert free(server.address)


MOMENTS: dict[str, Callable[[ForkedServer], bool]] = {
    "the greeter listens": lambda server: len(server.tree()) >= 2,
    "the first worker is forked": lambda server: len(server.tree()) >= 3,
    "the second worker is forked": lambda server: len(server.tree()) >= 4,
    "the workers serve": lambda server: "ready after" in server.words,
}


@pytest.mark.parametrize("around", [{}, PROCESS_1], ids=["", "process 1"])
@pytest.mark.parametrize("moment", MOMENTS)
async def test_a_stop_at_any_moment_of_the_start(
    forkserver: ForkServer, upstream: Emulator, moment: str, around: dict[str, Any]
) -> None:
    async with born(forkserver, upstream, "--drain-delay", "0", **around) as server:
        async with asyncio.timeout(30):
            while not MOMENTS[moment](server):  # noqa: ASYNC110 - a fork tells nobody
                await asyncio.sleep(0.0005)
        server.group(signal.SIGTERM)
        assert await server.ended() == 0, server.words
        assert "Traceback" not in server.words, server.words


@pytest.mark.soak
@pytest.mark.timeout(600)
async def test_a_stop_at_a_hundred_moments(forkserver: ForkServer, upstream: Emulator) -> None:
    chance = random.Random(10)
    for _ in range(100):
        around = chance.choice([{}, PROCESS_1])
        count = chance.choice(["1", "2"])
        async with born(forkserver, upstream, "--workers", count, "--drain-delay", "0", **around) as server:
            await server.listens()
            await asyncio.sleep(chance.uniform(0, 1))
            for number in chance.choices(SIGNALS, k=chance.randint(1, 3)):
                chance.choice([server.group, server.signal, server.everybody])(number)
            server.signal(signal.SIGTERM)
            assert await server.ended() == 0, server.words
            assert "Traceback" not in server.words, server.words


async def test_a_stop_while_a_dead_worker_is_being_replaced(forkserver: ForkServer, upstream: Emulator) -> None:
    async with born(forkserver, upstream, "--drain-delay", "0") as server:
        await server.ready()
        await eventually(lambda: len(server.tree()) == 3)
        for pid in server.tree()[1:]:
            os.kill(pid, signal.SIGKILL)
        await eventually(lambda: server.words.count("starting another") == 2)
        server.signal(signal.SIGTERM)
        assert await server.ended() == 0, server.words


@pytest.mark.parametrize("count", ["1", "2"])
async def test_signals_without_end_change_nothing(forkserver: ForkServer, upstream: Emulator, count: str) -> None:
    async with born(forkserver, upstream, "--workers", count, "--drain-delay", "0") as server:
        await server.ready()

        async def pester() -> None:
            while server.process.returncode is None:
                for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                    server.group(number)
                await asyncio.sleep(0.0005)

        code, _ = await asyncio.gather(server.ended(), pester())
        assert code == 0, server.words
        assert "Traceback" not in server.words, server.words


async def test_nohup_is_heeded(forkserver: ForkServer, upstream: Emulator) -> None:
    upstream.script.play(default=answer("one", wait_for("two"), "two"))
    async with born(forkserver, upstream, handlers={"SIGHUP": "SIG_IGN"}) as server:
        await server.ready()
        async with running(server) as calls:
            server.group(signal.SIGHUP)
            await asyncio.sleep(0.2)  # nothing may happen, which nobody tells
            assert "draining" not in server.words
            upstream.open_gate("two")
            assert await ends(calls) == WHOLE
        server.group(signal.SIGTERM)
        assert await server.ended() == 0


# ---- the demo, whose children are in sessions of their own

DEMO = """
import signal, sys
from pathlib import Path
from tokenwire.cli.running import demo
def run(question, **_):
    with demo._Children(Path(question)) as children:
        children.start("model", "emulator", "--mind", "script", "--port", "0")
        print(children._running[0][1].pid, flush=True)
        signal.pause()
demo._demo = run
sys.exit(demo.main(sys.argv[1:]))
"""


async def test_the_demo_waits_for_its_children_however_often_it_is_stopped(tmp_path: Path) -> None:
    demo = await asyncio.create_subprocess_exec(
        sys.executable, "-c", DEMO, str(tmp_path), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    assert demo.stdout is not None
    child = int(await demo.stdout.readline())
    await eventually(lambda: catches(child, signal.SIGTERM))
    os.kill(child, signal.SIGSTOP)  # so that it can't end yet
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGINT):
        demo.send_signal(number)
        await asyncio.sleep(0.1)  # nothing may happen, which nobody tells
        assert demo.returncode is None, await demo.communicate()
    os.kill(child, signal.SIGCONT)
    _, words = await demo.communicate()
    assert (demo.returncode, words) == (130, b"")
    assert not Path(f"/proc/{child}").exists()  # noqa: ASYNC240 - a look at the kernel


def catches(pid: int, number: signal.Signals) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    return bool(int(status.partition("SigCgt:")[2].split()[0], 16) >> (number - 1) & 1)


# ---- what else a parent has to do


@pytest.mark.parametrize("count", ["1", "2"])
async def test_process_1_buries_strangers(forkserver: ForkServer, upstream: Emulator, count: str) -> None:
    async with born(forkserver, upstream, "--workers", count, pid_one=True, orphans=5) as server:
        await server.ready()
        await eventually(lambda: not any(zombie(pid) for pid in server.tree()))
        server.signal(signal.SIGTERM)
        assert await server.ended() == 0


def zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].startswith("Z")
    except FileNotFoundError:
        return False


async def test_streams_are_whole_when_the_parent_is_killed(forkserver: ForkServer, upstream: Emulator) -> None:
    upstream.script.play(default=answer("one", wait_for("two"), "two"))
    async with born(forkserver, upstream) as server:
        await server.ready()
        async with running(server, 50) as calls:
            server.signal(signal.SIGKILL)
            await server.said("draining")
            upstream.open_gate("two")
            cut = [one != WHOLE[0] for one in await ends(calls)]
        record("parent killed", *map(float, cut))
        assert await server.ended() == -signal.SIGKILL
        assert free(server.address)
        assert not any(cut)


async def test_nobody_is_left_when_the_parent_is_killed_during_the_import(
    forkserver: ForkServer, upstream: Emulator
) -> None:
    async with born(forkserver, upstream, cold=True) as server:
        await server.listens()
        server.signal(signal.SIGKILL)
        assert await server.ended() == -signal.SIGKILL
        assert free(server.address)


def test_nothing_starts_a_thread_before_the_fork(forkserver: ForkServer) -> None:
    threads = [task.read_text().strip() for task in Path(f"/proc/{forkserver.pid}/task").glob("*/comm")]
    assert len(threads) == 1, threads
