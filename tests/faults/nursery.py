"""Forks servers from one process that has imported everything, which takes 8 s of CPU: a server then starts in 0.3 s.

`python -m tests.faults.nursery` takes orders on standard input, a line of JSON each, and answers with one number:
`["start", FLAGS, LOOP, LOG]` with a process id, `["wait", ID]` with an exit code once that process has ended. Each
server is the program as it is (`service.__main__.main`), which also answers SIGUSR1 as the launcher's does. LOOP
"asyncio" hides uvloop from it; LOG is what it has for standard error.
"""

import asyncio
import ctypes
import gc
import json
import logging
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Literal, cast

from service.__main__ import main  # first: what libraries read when they are imported is set there

# isort: split
from service.providers import registry
from service.settings import Settings
from tests.faults.launcher import tell_tasks
from tests.faults.processes import ServerChild, ended, eventually

Loop = Literal["uvloop", "asyncio"]

_PR_SET_PDEATHSIG = 1


class Forked:
    """What a `ServerChild` needs of a process, for one that is not a child of this process."""

    def __init__(self, nursery: "Nursery", pid: int, stderr: asyncio.StreamReader) -> None:
        self._nursery = nursery
        self.pid = pid
        self.stderr = stderr
        self.returncode: int | None = None

    def send_signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        # Its workers too, which would drain for as long as the grace is.
        for pid in (self.pid, *children(self.pid)):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    async def wait(self) -> int:
        if self.returncode is None:
            self.returncode = await self._nursery.order("wait", self.pid)
        return self.returncode


class Nursery:
    """The process that has imported everything."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._lock = asyncio.Lock()

    async def order(self, *words: Any) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        async with self._lock:
            self._process.stdin.write(json.dumps(words).encode() + b"\n")
            return int(await self._process.stdout.readline())

    @asynccontextmanager
    async def server(
        self, upstream: str, *flags: str, loop: Loop = "uvloop", workers: int = 1
    ) -> AsyncIterator[ServerChild]:
        """A server, ready, on the local Vertex at `upstream`."""
        with tempfile.TemporaryDirectory() as folder:
            log = Path(folder) / "log"
            os.mkfifo(log)
            reader = asyncio.StreamReader()
            pipe = os.fdopen(os.open(log, os.O_RDONLY | os.O_NONBLOCK), "rb", buffering=0)
            await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
            every = ("--port", "0", "--emulator", upstream, "--workers", str(workers), *flags)
            forked = Forked(self, await self.order("start", every, loop, str(log)), reader)
            child = ServerChild(cast("asyncio.subprocess.Process", forked))
            async with ended(child):
                _, line = await child.said("listening on")
                child.address = line.partition("listening on ")[2].partition(";")[0]
                await child.said("ready after")
                if workers > 1:
                    await eventually(lambda: len(children(forked.pid)) == workers)  # and whoever greeted has gone
                yield child


def children(pid: int) -> list[int]:
    """The processes that this one has forked: a server's workers."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@asynccontextmanager
async def nursery() -> AsyncIterator[Nursery]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.faults.nursery"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    try:
        yield Nursery(process)
    finally:
        process.stdin.close()
        await process.wait()


def _start(flags: Sequence[str], loop: Loop, log: str) -> int:
    """Fork a server; gives its process id, and doesn't return in the server."""
    parent = os.getpid()
    if pid := os.fork():
        return pid
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    assert os.getppid() == parent
    os.dup2(os.open(os.devnull, os.O_RDWR), 0)
    os.dup2(0, 1)
    os.dup2(os.open(log, os.O_WRONLY), 2)
    if loop == "asyncio":
        sys.modules["uvloop"] = cast("Any", None)
    signal.signal(signal.SIGUSR1, tell_tasks)
    logging.getLogger("grpc._cython.cygrpc").addFilter(_tell_misuse)
    sys.exit(main(flags))


def _tell_misuse(record: logging.LogRecord) -> bool:
    """The server's log doesn't show what gRPC complains of, and an operation that it refuses is a bug of ours."""
    if record.exc_info and "grpc_call_error" in str(record.exc_info[1]):
        os.write(2, f"{record.exc_info[1]}\n".encode())
    return True


def _obey() -> None:
    registry.imported(Settings(emulator="127.0.0.1:1"))
    gc.collect()
    gc.freeze()
    for line in sys.stdin:
        match json.loads(line):
            case "start", flags, loop, log:
                answer = _start(flags, loop, log)
            case "wait", pid:
                answer = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        sys.stdout.write(f"{answer}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _obey()
