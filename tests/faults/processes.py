"""The server in a process of its own, watched from outside: its log, its sockets, its memory, its tasks."""

import asyncio
import contextlib
import os
import re
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2_grpc

from tests.conftest import failure
from tokenwire.v1 import generation_service_pb2 as pb
from tokenwire.v1.generation_service_pb2_grpc import GenerationServiceStub
from vertex_emulator.emulator import Emulator

MEGABYTE = 1024 * 1024

LAUNCHER = ("tests.faults.launcher",)

# Small windows: a caller that doesn't read is felt after 64 KB instead of megabytes.
NARROW = (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65536))


class Child:
    """A process and what it has said on standard error."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.log: list[tuple[float, str]] = []
        """Its lines so far, each with the moment it came on `time.monotonic()`."""
        self._more = asyncio.Event()
        self._silent = False

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def words(self) -> str:
        return "\n".join(line for _, line in self.log)

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def read(self) -> None:
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            self.log.append((time.monotonic(), line.decode().rstrip()))
            self._more.set()
        self._silent = True
        self._more.set()

    async def said(self, words: str, *, since: int = 0) -> tuple[float, str]:
        """The first line, from the `since`th on, that holds these words; waits for it."""
        async with asyncio.timeout(60):
            while True:
                for moment, line in self.log[since:]:
                    if words in line:
                        return moment, line
                    since += 1
                assert not self._silent, f"it has ended without saying {words!r}:\n{self.words}"
                self._more.clear()
                await self._more.wait()

    def tree(self) -> list[int]:
        """Its process and all below it."""
        return _tree(self.pid)

    def workers(self) -> list[int]:
        """The processes that serve: it is one of several, or the only one."""
        return _tree(self.pid)[1:] or [self.pid]

    def sockets(self) -> int:
        count = 0
        for entry in Path(f"/proc/{self.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed in between
                count += str(entry.readlink()).startswith("socket:")
        return count

    def memory(self) -> float:
        """Resident, in MB."""
        found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{self.pid}/status").read_text())
        assert found is not None
        return int(found[1]) / 1024

    async def tasks(self) -> int:
        """How many asyncio tasks it has; needs the launcher."""
        since = len(self.log)
        self.signal(signal.SIGUSR1)
        _, line = await self.said("tasks=", since=since)
        return int(line.removeprefix("tasks="))


def _tree(pid: int) -> list[int]:
    try:
        below = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):  # it has ended, before its file was looked for or just behind that
        return []
    return [pid, *(one for child in below for one in _tree(int(child)))]


def lives(pid: int) -> bool:
    """Whether it is there, and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


class ServerChild(Child):
    """A tokenwire server that is ready."""

    address: str

    async def blocked(self, loop: str = "uvloop") -> list[float]:
        """Milliseconds for which its event loops were blocked at the longest, of each process that has served.

        Fails if such a process doesn't tell, unless it was killed, and if it didn't run on this `loop`. Needs what the
        launcher prepares.
        """
        since = len(self.log)
        asked = [pid for pid in self.workers() if lives(pid)]
        for pid in asked:
            with contextlib.suppress(ProcessLookupError):  # it has ended in between, and told
                os.kill(pid, signal.SIGUSR2)

        def answered() -> bool:
            answers = sum(line.startswith("blocked=") for _, line in self.log[since:])
            return lives(self.pid) and answers >= sum(map(lives, asked))

        await eventually(lambda: self._silent or answered(), seconds=30)
        loops, told = self._told("loop"), self._told("blocked")
        assert loops, f"no process has said that it serves:\n{self.words}"
        assert set(loops.values()) == {loop}, loops
        silent = [pid for pid in loops if told.get(pid, "unwatched") == "unwatched"]
        killed = self.words.count(f"ended with {-signal.SIGKILL}") + (self.process.returncode == -signal.SIGKILL)
        assert len(silent) <= killed, f"{silent} served, and didn't tell of their loops:\n{self.words}"
        return [float(told[pid]) for pid in loops if pid not in silent]

    def _told(self, name: str) -> dict[str, str]:
        """What processes have told last, by process id; see `tests.faults.launcher.tell`."""
        lines = [line.removeprefix(f"{name}=").split() for _, line in self.log if line.startswith(f"{name}=")]
        return {pid: value for value, pid in lines}

    @asynccontextmanager
    async def caller(self, *options: tuple[str, int]) -> AsyncIterator["Caller"]:
        """A caller with a connection of its own."""
        own = ("grpc.use_local_subchannel_pool", 1)
        async with grpc.aio.insecure_channel(self.address, options=[own, *options]) as channel:
            yield Caller(channel)


class Caller:
    """Somebody who asks."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.stub: Any = GenerationServiceStub(channel)
        self.health: Any = health_pb2_grpc.HealthStub(channel)

    def start(self, prompt: str = "hi", *, timeout: float | None = None, **fields: Any) -> Any:
        return self.stub.Generate(pb.GenerateRequest(prompt=prompt, **fields), timeout=timeout)

    async def ask(self, prompt: str = "hi", **fields: Any) -> list[pb.GenerateResponse]:
        return [message async for message in self.start(prompt, **fields)]


async def pieces(call: Any, count: int) -> None:
    """Read until so many pieces of text have come."""
    while count:
        count -= bool((await call.read()).text)


async def outcome(call: Any) -> tuple[list[pb.GenerateResponse], grpc.aio.AioRpcError | None]:
    """What came of a call, and the error behind it, if there was one."""
    messages = []
    try:
        while (message := await call.read()) is not grpc.aio.EOF:
            messages.append(message)
    except grpc.aio.AioRpcError as error:
        return messages, error
    return messages, None


async def fate(call: Any) -> tuple[list[pb.GenerateResponse], grpc.aio.AioRpcError]:
    """What came of a call that fails, and the error behind it."""
    messages, error = await outcome(call)
    assert error is not None, f"the call ended well: {messages}"
    return messages, error


def ending(error: grpc.aio.AioRpcError | None) -> tuple[grpc.StatusCode, str]:
    """Code and reason of any ending, for those who count; one that isn't typed gives its text for a reason."""
    if error is None:
        return grpc.StatusCode.OK, ""
    try:
        return failure(error)
    except AssertionError:
        return error.code(), f"untyped: {error.details()}"


@asynccontextmanager
async def server(
    upstream: str,
    *flags: str,
    module: tuple[str, ...] = LAUNCHER,
    environ: Mapping[str, str] | None = None,
    workers: int = 1,
) -> AsyncIterator[ServerChild]:
    """A server, ready, on the local Vertex at `upstream`; as one process it can be watched."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", *module, "--port", "0", "--emulator", upstream),
        *("--workers", str(workers), *flags),
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **(environ or {})},
    )
    child = ServerChild(process)
    async with ended(child):
        _, line = await child.said("listening on")
        child.address = line.partition("listening on ")[2].partition(";")[0]
        await child.said("ready after")
        await eventually(lambda: len(child.workers()) == workers)  # and the one that greeted has gone
        yield child
        if module[:1] == LAUNCHER:
            BLOCKED.extend(blamed(await child.blocked()))


BLOCKED: list[tuple[float, str]] = []
"""Of each server process the longest for which its event loop was blocked, in ms, and the test that ended it."""


def blamed(milliseconds: Iterable[float]) -> Iterator[tuple[float, str]]:
    """As `BLOCKED` has them."""
    return ((one, os.environ["PYTEST_CURRENT_TEST"]) for one in milliseconds)


def written_at(line: str) -> float:
    """When a line of the log was written, in seconds of `time.time`: the end of the millisecond that it tells."""
    return datetime.fromisoformat(line.split(maxsplit=1)[0]).timestamp() + 0.001


@asynccontextmanager
async def engine(port: int = 0, *flags: str) -> AsyncIterator[tuple[Child, str]]:
    """A local Vertex in a process of its own, and its address: it wants a script from the Control service."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "vertex_emulator", "--mind", "script", "--port", str(port), *flags),
        stderr=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    child = Child(process)
    async with ended(child):
        assert process.stdout is not None
        line = (await asyncio.wait_for(process.stdout.readline(), 60)).decode()
        yield child, line.split()[-1]


@asynccontextmanager
async def ended(child: Child) -> AsyncIterator[None]:
    """Leave nothing running."""
    reading = asyncio.ensure_future(child.read())
    try:
        yield
    finally:
        if child.process.returncode is None:
            child.process.kill()
        await child.process.wait()
        await reading


async def eventually(true: Callable[[], bool], *, seconds: float = 10) -> None:
    """Wait for something that can only be looked at, such as what the kernel says of a process."""
    async with asyncio.timeout(seconds):
        while not true():  # noqa: ASYNC110 - nobody tells when it changes
            await asyncio.sleep(0.01)


async def stalled(upstream: Emulator, count: int) -> None:
    """Wait until so many calls are open and none of them gets on: everybody's buffers are full."""
    await upstream.wait_until(lambda upstream: len(upstream.open_calls) == count)
    before, still = -1, 0
    async with asyncio.timeout(30):
        while still < 5:
            await asyncio.sleep(0.02)
            now = sum(call.pieces_sent for call in upstream.open_calls)
            still = still + 1 if now == before and now else 0
            before = now
