"""A server in surroundings that are worse than usual: it serves all the same, or says in one line what it lacks."""

import asyncio
import itertools
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest

from service.runtime import workers
from tests.faults.forkserver import ForkedServer, ForkServer, Refused
from tests.faults.processes import ending, eventually, fate, outcome, pieces
from tests.faults.skipping import skipped_where_refused
from vertex_emulator.emulator import Emulator
from vertex_emulator.script import answer, silence, wait_for

pytestmark = pytest.mark.skipif(not workers.possible(), reason="workers are forked, which is for Linux")

DAY_SECONDS = 24 * 3600
USERS = itertools.count(100_000 + os.getpid() * 100)  # nobody else's, so that limits on a user's processes are exact


@asynccontextmanager
async def born(forkserver: ForkServer, upstream: str, *flags: str, **around: Any) -> AsyncIterator[ForkedServer]:
    with skipped_where_refused("namespaces, limits and other users, which root may make where no sandbox forbids it"):
        async with forkserver.started("--port", "0", "--emulator", upstream, *flags, **around) as server:
            yield server


async def serves(server: ForkedServer) -> None:
    """It answers, and drains."""
    await server.ready()
    async with server.caller() as caller:
        assert ending((await outcome(caller.start()))[1]) == (grpc.StatusCode.OK, "")
    server.group(signal.SIGTERM)
    assert await server.ended() == 0
    assert "Traceback" not in server.words, server.words


async def refuses(server: ForkedServer, *words: str) -> None:
    """It ends with the code of a setting that can't be taken, and says these words."""
    assert await server.ended() == 2, server.words
    assert all(word in server.words for word in words), server.words
    assert "Traceback" not in server.words, server.words


@pytest.mark.parametrize("count", ["1", "2"])
async def test_nothing_can_be_written_anywhere(forkserver: ForkServer, upstream: Emulator, count: str) -> None:
    upstream.script.play(default=answer("one"))
    hidden = ["/dev/shm", "/tmp", "/var/tmp"]
    hidden = [path for path in hidden if not str(Path(__file__)).startswith(path + "/")]
    async with born(
        forkserver, upstream.address, "--workers", count, read_only=["/"], hidden=hidden, user=next(USERS)
    ) as server:
        await serves(server)


@pytest.mark.soak
@pytest.mark.parametrize("count", ["1", "2"])
async def test_nothing_can_be_written_anywhere_by_the_import_either(
    forkserver: ForkServer, upstream: Emulator, count: str
) -> None:
    upstream.script.play(default=answer("one"))
    async with born(
        forkserver, upstream.address, "--workers", count, read_only=["/"], hidden=["/dev/shm"], cold=True
    ) as server:
        await serves(server)


@pytest.mark.parametrize("count", ["1", "2"])
@pytest.mark.parametrize("host", ["::1", "::"])
async def test_ipv6_only(forkserver: ForkServer, host: str, count: str) -> None:
    async with Emulator(host="[::1]") as upstream:
        upstream.script.play(default=answer("one"))
        async with born(
            forkserver, upstream.address, "--host", host, "--workers", count, "--insecure", "true"
        ) as server:
            await server.listens()
            assert server.address.startswith(f"[{host}]:")
            await serves(server)


@pytest.fixture
async def clock(forkserver: ForkServer) -> AsyncIterator[Callable[[int], None]]:
    """`clock(seconds)`: the wall clock of servers jumps to so far from the truth."""
    yield forkserver.set_clock
    with suppress(Refused):
        forkserver.set_clock(0)


@pytest.mark.parametrize("count", ["1", "2"])
@pytest.mark.parametrize("days", [1, -1])
async def test_the_wall_clock_jumps(
    forkserver: ForkServer, upstream: Emulator, clock: Callable[[int], None], days: int, count: str
) -> None:
    upstream.script.play(
        answer("one", wait_for("two"), "two", user_text="whole"), answer("one", silence(), user_text="silent", uses=0)
    )
    flags = ("--workers", count, "--default-deadline", "2")
    async with born(forkserver, upstream.address, *flags) as server, AsyncExitStack() as stack:
        await server.ready()
        caller, other = [await stack.enter_async_context(server.caller()) for _ in range(2)]
        whole = caller.start("whole", timeout=60)
        limited = caller.start("silent")
        idle = caller.start("silent", idle_timeout={"seconds": 2}, timeout=60)
        for call in (whole, limited, idle):
            await pieces(call, 1)
        begin = time.monotonic()
        with skipped_where_refused("a C compiler, for a library that shifts the clock of servers"):
            clock(days * DAY_SECONDS)
        # Calls from before and from after; the deadline of one is its caller's, whose own clock hasn't jumped.
        late, theirs = other.start("silent"), other.start("silent", timeout=2)
        endings = await asyncio.gather(*(fate(call) for call in (limited, idle, late, theirs)))
        assert [ending(error) for _, error in endings][:3] == [
            (grpc.StatusCode.DEADLINE_EXCEEDED, reason)
            for reason in ("SERVER_DEADLINE", "IDLE_TIMEOUT", "SERVER_DEADLINE")
        ]
        assert endings[3][1].code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert 1 < time.monotonic() - begin < 10
        upstream.open_gate("two")
        assert ending((await outcome(whole))[1]) == (grpc.StatusCode.OK, "")
        server.group(signal.SIGTERM)
        assert await server.ended() == 0, server.words
        # By now all lines are there: the log hands them on twenty times a second.
        stamps = {line[:10] for _, line in server.log if "Generate" in line}
        assert stamps == {time.strftime("%Y-%m-%d", time.gmtime(time.time() + days * DAY_SECONDS))}  # it did jump


# ---- too little of something


@pytest.mark.parametrize(
    ("count", "processes"),
    [
        ("1", 5),  # no threads for the only process
        ("2", 1),  # no process
        ("2", 2),  # no threads for the greeter
        ("2", 30),  # no threads for the workers
    ],
)
async def test_too_few_processes(forkserver: ForkServer, upstream: Emulator, count: str, processes: int) -> None:
    limits = {"NPROC": processes + 1}  # one waits outside
    async with born(forkserver, upstream.address, "--workers", count, limits=limits, user=next(USERS)) as server:
        await refuses(server, "ulimit -u")


async def test_a_worker_that_cannot_be_replaced_is_replaced_later(forkserver: ForkServer, upstream: Emulator) -> None:
    upstream.script.play(default=answer("one", wait_for("two"), "two"))
    user = next(USERS)
    async with born(forkserver, upstream.address, "--workers", "2", user=user, limits={"NPROC": 150}) as server:
        await server.ready()
        await eventually(lambda: len(server.tree()) == 3)
        _, first, second = server.tree()
        async with server.caller() as caller:
            call = caller.start()
            await pieces(call, 1)
            crowd = await asyncio.create_subprocess_shell(
                "for i in $(seq 150); do sleep 600 & done; echo all; wait",
                user=user,
                stdout=asyncio.subprocess.PIPE,
                start_new_session=True,
            )
            assert crowd.stdout is not None
            assert await crowd.stdout.readline() == b"all\n"
            try:
                # The call is on one of the two; the other dies.
                served = where(server, first, second)
                os.kill(first if served == second else second, signal.SIGKILL)
                await server.said("can't be started")
                upstream.open_gate("two")
                assert ending((await outcome(call))[1]) == (grpc.StatusCode.OK, "")
            finally:
                os.killpg(crowd.pid, signal.SIGKILL)
                await crowd.wait()
            await eventually(lambda: len(server.tree()) == 3)
        server.signal(signal.SIGTERM)
        assert await server.ended() == 0, server.words


def where(server: ForkedServer, *pids: int) -> int:
    """Which of these processes has a connection on the server's port."""
    port = f":{int(server.address.rpartition(':')[2]):04X}"
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()]
    sockets = {f"socket:[{row[9]}]" for row in rows if row[1].endswith(port) and row[3] == "01"}
    (found,) = [pid for pid in pids if sockets & {str(entry.readlink()) for entry in Path(f"/proc/{pid}/fd").iterdir()}]
    return found


@pytest.mark.parametrize("count", ["1", "2"])
async def test_too_few_files(forkserver: ForkServer, upstream: Emulator, count: str) -> None:
    async with born(forkserver, upstream.address, "--workers", count, limits={"NOFILE": 16}) as server:
        await refuses(server, "ulimit -n", "is 16")


async def test_more_callers_than_files(forkserver: ForkServer, upstream: Emulator) -> None:
    upstream.script.play(default=answer("one", wait_for("two"), "two"))
    async with born(forkserver, upstream.address, "--workers", "1", limits={"NOFILE": 64}) as server:
        await server.ready()
        async with server.caller() as caller:
            call = caller.start()
            await pieces(call, 1)
            crowd = [server.caller() for _ in range(100)]
            others = [await one.__aenter__() for one in crowd]
            late = [asyncio.ensure_future(outcome(one.start(timeout=1))) for one in others]
            codes = {ending(error)[0] for _, error in await asyncio.gather(*late)}
            assert codes <= {grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE}
            for one in crowd:
                await one.__aexit__(None, None, None)
            upstream.open_gate("two")
            assert ending((await outcome(call))[1]) == (grpc.StatusCode.OK, "")
            assert ending((await outcome(caller.start()))[1]) == (grpc.StatusCode.OK, "")
        server.signal(signal.SIGTERM)
        assert await server.ended() == 0, server.words
