"""Processes: starting them, ending them, and what they cost. Linux only: the figures come from /proc and its clocks."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_START_SECONDS = 120
_STOP_SECONDS = 10

# Settings of whoever runs this must not change what is measured.
_OTHERS = ("TOKENWIRE_", "VERTEX_", "GOOGLE_", "GRPC_", "LANGCHAIN_", "LANGSMITH_", "OTEL_", "UVICORN_", "PYTHON")


class BenchError(RuntimeError):
    """A run that can't be trusted; the message says why."""


@dataclass(frozen=True, slots=True)
class Process:
    """A running server."""

    name: str
    popen: subprocess.Popen[bytes]
    address: str
    """Where it listens, host:port."""
    log: Path
    """What it has said so far."""

    @property
    def tree(self) -> list[int]:
        """The ids of the process and of all its descendants."""
        return tree(self.popen.pid)

    def said(self) -> str:
        return self.log.read_text(errors="replace")


def tree(root: int) -> list[int]:
    """A process and all its descendants, by id."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            # The name, in brackets, may hold anything; behind it stand the state and the parent.
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
            if state != "Z":
                children.setdefault(int(parent), []).append(int(path.parent.name))
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found


def cpu_seconds(pids: Sequence[int]) -> float:
    """The CPU time that these processes have used since they began, user and system, all threads."""
    # The kernel makes a process's CPU clock from its id like this (clock_getcpuclockid in the C library).
    return sum(time.clock_gettime_ns((~pid << 3) | 2) for pid in pids) / 1e9


def memory_bytes(pids: Sequence[int]) -> int:
    """Proportional set size: resident memory, where pages that several processes share are shared out among them."""
    total = 0
    for pid in pids:
        found = re.search(r"^Pss: +(\d+) kB$", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
        assert found is not None
        total += int(found[1]) * 1024
    return total


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's variables without any that would change what is measured."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_OTHERS)}
    return kept | dict(extra or {})


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0))


def output_of(*command: str) -> str:
    """What a command writes. Raises BenchError if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)
    if done.returncode:
        raise BenchError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr[-500:]}")
    return done.stdout


@contextlib.contextmanager
def started(name: str, *command: str, extra: Mapping[str, str] | None = None) -> Iterator[Process]:
    """`python COMMAND...`, from the moment it says where it listens; ended with all its children on leaving.

    It may not be ready yet. Raises BenchError if it ends or keeps silent.
    """
    with tempfile.TemporaryDirectory(prefix="tokenwire-bench-") as folder:
        log = Path(folder) / "log"
        with log.open("wb") as output:
            popen = subprocess.Popen(
                (sys.executable, *command),
                stdout=output,
                stderr=output,
                env=environment(extra),
                start_new_session=True,  # so that Ctrl-C reaches only us, and the whole group can be ended
            )
        try:
            yield Process(name, popen, _address(name, popen, log), log)
        finally:
            _end(popen)


def _address(name: str, popen: subprocess.Popen[bytes], log: Path) -> str:
    give_up = time.monotonic() + _START_SECONDS
    while time.monotonic() < give_up:
        text = log.read_text(errors="replace")
        if found := re.search(r"(?:listening on |running on )(?:http://)?([\w.]+:\d+)", text):
            return found[1]
        if popen.poll() is not None:
            raise BenchError(f"{name} ended with {popen.returncode} before it listened:\n{text[-2000:]}")
        time.sleep(0.02)
    raise BenchError(f"{name} did not say within {_START_SECONDS} s where it listens")


def _end(popen: subprocess.Popen[bytes]) -> None:
    popen.terminate()
    try:
        popen.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        print(f"process {popen.pid} did not end within {_STOP_SECONDS} s of SIGTERM: killed", file=sys.stderr)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(popen.pid, signal.SIGKILL)
        popen.wait()
