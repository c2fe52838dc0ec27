"""A process that has imported ChatVertexAI once, and forks servers that run `service.__main__` as users start it.

The import costs 8 s of CPU, and these tests need many servers. They are real: each in a process group of its own, with
its own children, real signals and a real exit code. A test may change what is around them: namespaces, limits, user.
They also tell of their event loops as those of the launcher do, and of operations that gRPC refuses.
"""

import asyncio
import contextlib
import ctypes
import gc
import importlib
import json
import logging
import os
import resource
import shutil
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal, NoReturn, cast

import grpc.aio

from tests.faults.processes import BLOCKED, ServerChild, blamed, eventually

Loop = Literal["uvloop", "asyncio"]

_CLONE = {"mount": 0x00020000, "pid": 0x20000000, "net": 0x40000000}
_MS_RDONLY, _MS_REMOUNT, _MS_BIND, _MS_REC, _MS_PRIVATE = 1, 32, 4096, 16384, 1 << 18


class Refused(Exception):
    """The kernel doesn't allow what a test needs; the message says what."""


class ForkedServer(ServerChild):
    """A server that the fork server has forked, in a process group of its own."""

    def left(self) -> list[int]:
        """Those of its process group that haven't ended, whoever their parent is now."""
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                state, _, group = stat.read_text().rpartition(") ")[2].split()[:3]
                if int(group) == self.pid and state != "Z":
                    found.append(int(stat.parent.name))
        return found

    def group(self, number: signal.Signals) -> None:
        """A signal to its process group, as from a terminal."""
        with contextlib.suppress(ProcessLookupError):  # it has ended
            os.killpg(self.pid, number)

    def everybody(self, number: signal.Signals) -> None:
        """A signal to each process of the tree, one by one, as a service manager does it."""
        for pid in self.tree():
            with contextlib.suppress(ProcessLookupError):  # it was faster
                os.kill(pid, number)

    async def listens(self) -> None:
        """Wait until it listens; its workers may be a long way off."""
        _, line = await self.said("listening on")
        self.address = line.partition("listening on ")[2].partition(";")[0]

    async def ready(self) -> None:
        """Wait until it serves."""
        await self.listens()
        await self.said("ready after")

    async def ended(self) -> int:
        """Its exit code, once it and all of its group have ended."""
        code = await asyncio.wait_for(self.process.wait(), 30)
        await eventually(lambda: not self.left())
        return code


class _Process:
    """What `Child` needs of asyncio's Process, for one that is not this process's child."""

    def __init__(self, pid: int, told: asyncio.StreamReader, stderr: asyncio.StreamReader) -> None:
        self.pid, self.stderr = pid, stderr
        self.returncode: int | None = None
        self._told = told

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    async def wait(self) -> int:
        if self.returncode is None:
            self.returncode = int(await self._told.readline())
        return self.returncode


class ForkServer:
    """The test's side."""

    def __init__(self, line: socket.socket, pid: int, clock: Path | None) -> None:
        self._line = line
        self.pid = pid
        self._clock = clock

    def set_clock(self, seconds: int) -> None:
        """Have the wall clock of all its servers jump to so many seconds from the true time. Raises Refused."""
        if self._clock is None:
            raise Refused("there is no C compiler")
        # In place: it is mapped into the memory of those who look at it.
        with self._clock.open("r+b") as file:
            file.write(struct.pack("l", seconds))

    @asynccontextmanager
    async def started(self, *flags: str, **around: Any) -> AsyncIterator[ForkedServer]:
        """A server with these flags, killed in the end. `around` is what `_start` knows. Raises Refused.

        If it was ready, for how long its event loops were blocked is kept, in whatever way it has ended.
        """
        ends = [os.pipe(), os.pipe()]
        order = json.dumps({"flags": flags, "around": around}).encode()
        socket.send_fds(self._line, [order], [end for _, end in ends])
        for _, end in ends:
            os.close(end)
        stderr, told = [await _reader(end) for end, _ in ends]
        first = (await asyncio.wait_for(told.readline(), 60)).decode()
        if not first.strip().isdigit():
            raise Refused(first.strip())
        child = ForkedServer(_Process(int(first), told, stderr))  # type: ignore[arg-type]
        reading = asyncio.ensure_future(child.read())
        try:
            yield child
            # One that imports everything itself is run as users run it: nobody has put a watch in it.
            if "ready after" in child.words and not around.get("cold"):
                BLOCKED.extend(blamed(await child.blocked(around.get("loop", "uvloop"))))
        finally:
            child.group(signal.SIGKILL)
            await child.process.wait()
            await reading

    @asynccontextmanager
    async def serving(self, upstream: str, *flags: str, workers: int = 1, **around: Any) -> AsyncIterator[ForkedServer]:
        """A server, ready, on the local Vertex at `upstream`; as one process it can be watched."""
        where = ("--port", "0", "--emulator", upstream, "--workers", str(workers))
        async with self.started(*where, *flags, **around) as child:
            await child.ready()
            await eventually(lambda: len(child.workers()) == workers)  # and the one that greeted has gone
            yield child


async def _reader(end: int) -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(end, "rb", 0))
    return reader


def clock(folder: Path) -> Path | None:
    """A file that holds how far the wall clock is to jump, beside the library that looks at it; None: no C compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        return None
    source = Path(__file__).with_name("clock_jump.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", folder / "clock_jump.so", source, "-ldl"], check=True)
    (folder / "clock").write_bytes(struct.pack("l", 0))
    return folder / "clock"


@asynccontextmanager
async def opened(clock: Path | None = None) -> AsyncIterator[ForkServer]:
    """A fork server. It ends with this process, or with the block."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    preload = {"LD_PRELOAD": str(clock.with_name("clock_jump.so")), "CLOCK_JUMP": str(clock)} if clock else {}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.faults.forkserver", str(theirs.fileno())),
        pass_fds=[theirs.fileno()],
        env={**os.environ, **preload},
    )
    theirs.close()
    with ours:
        await asyncio.to_thread(ours.recv, 16)
        yield ForkServer(ours, process.pid, clock)
    await process.wait()


# ---- in the fork server


def _surround(
    *,
    pid_one: bool = False,
    read_only: Sequence[str] = (),
    hidden: Sequence[str] = (),
    user: int = 0,
    limits: Mapping[str, int] | None = None,
    handlers: Mapping[str, str] | None = None,
    environ: Mapping[str, str] | None = None,
) -> None:
    """Change what is around this process. Raises OSError.

    `read_only` are mount points, `hidden` are directories that become empty and read-only, `limits` are RLIMIT names.
    """
    os.environ.update(environ or {})
    if read_only or hidden:
        _call("unshare", _CLONE["mount"])
        _call("mount", None, b"/", None, _MS_REC | _MS_PRIVATE, None)
        for path in hidden:
            _call("mount", b"tmpfs", path.encode(), b"tmpfs", _MS_RDONLY, None)
        for path in read_only:
            _call("mount", path.encode(), path.encode(), None, _MS_BIND | _MS_REC, None)
            _call("mount", None, path.encode(), None, _MS_REMOUNT | _MS_BIND | _MS_RDONLY, None)
    if pid_one:
        _call("unshare", _CLONE["pid"])
    for name, value in (limits or {}).items():
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))
    if user:
        os.setgroups([])
        os.setgid(user)
        os.setuid(user)
    for number, action in (handlers or {}).items():
        signal.signal(signal.Signals[number], getattr(signal, action))


def _call(name: str, *arguments: Any) -> None:
    if getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments):
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")


def _start(
    flags: Sequence[str],
    stderr: int,
    told: int,
    *,
    cold: bool = False,
    collected: bool = True,
    loop: Loop = "uvloop",
    google: str = "",
    orphans: int = 0,
    **around: Any,
) -> int:
    """In a process of its own: fork the server, and tell of it.

    `cold` is one that imports everything itself. In one that isn't `collected`, the garbage collector is off. From one
    on the `loop` "asyncio", uvloop is hidden. `google` is where it finds a local Vertex under Google's address.
    `orphans` are processes beside it that end once they have lost their parent, and that process 1 has to bury.
    """
    try:
        _surround(**around)
    except OSError as error:
        os.write(told, f"{error.strerror}\n".encode())
        return 1
    pid = os.fork()
    if not pid:
        _serve(flags, stderr, cold=cold, collected=collected, loop=loop, google=google)
    os.close(stderr)
    for _ in range(orphans):
        if not (middle := os.fork()):
            os.fork()
            os._exit(0)
        os.waitpid(middle, 0)
    os.write(told, f"{pid}\n".encode())
    _, status = os.waitpid(pid, 0)
    os.write(told, f"{os.waitstatus_to_exitcode(status)}\n".encode())
    return 0


def _serve(flags: Sequence[str], stderr: int, *, cold: bool, collected: bool, loop: Loop, google: str) -> NoReturn:
    os.setsid()
    os.dup2(stderr, 2)
    if cold:
        os.execv(sys.executable, [sys.executable, "-m", "service", *flags])
    os.closerange(3, 1024)
    if not collected:
        gc.disable()
    if loop == "asyncio":
        sys.modules["uvloop"] = cast("Any", None)
    logging.getLogger("grpc._cython.cygrpc").addFilter(_tell_misuse)
    from service.__main__ import main  # noqa: PLC0415 - imported long since
    from tests.faults.launcher import prepare  # noqa: PLC0415 - the same

    prepare()
    if google:
        _play_google(google)
    code = 1
    try:
        code = main(flags)
    except SystemExit as error:
        code = int(error.code or 0)
    finally:
        sys.stderr.flush()
        os._exit(code)


def _play_google(address: str) -> None:
    """Have connections to Google go to a local Vertex. All else is as with Google: a server that is told of a local
    Vertex by its settings wants no credentials."""

    def channel(_host: str, _tls: object, *, options: Sequence[tuple[str, Any]]) -> grpc.aio.Channel:
        return grpc.aio.insecure_channel(address, options=[*options, ("grpc.enable_http_proxy", 0)])

    setattr(grpc.aio, "secure_channel", channel)  # noqa: B010 - mypy knows that it is another function


def _tell_misuse(record: logging.LogRecord) -> bool:
    """The server's log doesn't show what gRPC complains of, and an operation that it refuses is a bug of ours."""
    if record.exc_info and "grpc_call_error" in str(record.exc_info[1]):
        os.write(2, f"{record.exc_info[1]}\n".encode())
    return True


def _alone(run: Callable[[], int]) -> None:
    """Run it in a process of its own, which nobody needs to wait for."""
    if not os.fork():
        code = 1
        try:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            code = run()
        finally:
            os._exit(code)


def _main(line: socket.socket) -> None:
    # Here, since the first changes the environment.
    modules = "service.__main__", "service.runtime.process", "service.providers.gemini.over_grpc"
    for module in (*modules, "tests.faults.launcher"):
        importlib.import_module(module)
    line.send(b"ready")
    gc.collect()
    gc.freeze()  # each server collects before it forks
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        order, ends, _, _ = socket.recv_fds(line, 65536, 2)
        if not order:
            return
        wanted = json.loads(order)
        _alone(lambda wanted=wanted, ends=ends: _start(wanted["flags"], *ends, **wanted["around"]))  # type: ignore[misc]
        for end in ends:
            os.close(end)


if __name__ == "__main__":
    _main(socket.socket(fileno=int(sys.argv[1])))
