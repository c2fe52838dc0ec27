"""What is measured: each scenario's parameters, full and quick, and how it is run against one peer."""

import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.figures import Result
from bench.processes import BenchError, Process, environment, started, tree
from bench.targets import few

CONNECTIONS = 16
"""That a scenario's callers share; as many as there are streams where those are fewer."""

INTERVAL = 0.05
"""Seconds between two chunks of a stream: 20 a second, about what Gemini does."""

_LOAD_SECONDS = 180
_LEAD_SECONDS = 1.0  # that a load client may take to start

# A server that delivers less than this part of what is asked is behind; its errors are then told and not fatal.
_SATURATED_BELOW = 0.9


@dataclass(frozen=True, slots=True)
class Peer:
    """What is compared."""

    name: str
    kind: str
    """How it is spoken to: one of `bench.load`'s kinds."""
    text: str
    """For people."""
    command: tuple[str, ...]
    """Behind `python`; UPSTREAM stands for the upstream's address."""
    extra: Mapping[str, str] = field(default_factory=dict)
    """Further environment variables."""
    threads: int = 0
    """The streams that it can answer at once; 0 is no such limit."""
    token: str = ""
    """What its callers have to show."""
    aside: bool = False
    """Whether it runs only where it is named."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much of everything."""

    chunks_one: int
    chunks_hundred: int
    chunks_five_hundred: int
    chunks_flat: int
    chunks_burst: int
    requests: int
    rounds: int
    held: int
    streams: tuple[int, int] = (100, 500)
    running: int = 50
    arrivals: int = 100
    spread: float = 1.0
    """Seconds over which streams begin, so that their beginning isn't what is measured."""


FULL = Size(
    chunks_one=100,
    chunks_hundred=80,
    chunks_five_hundred=60,
    chunks_flat=8000,
    chunks_burst=70,
    requests=800,
    rounds=150,
    held=500,
)
QUICK = Size(
    chunks_one=30,
    chunks_hundred=40,
    chunks_five_hundred=20,
    chunks_flat=2000,
    chunks_burst=50,
    requests=160,
    rounds=30,
    held=500,
    spread=0.5,
)


@dataclass(frozen=True, slots=True)
class Bench:
    """The running parts."""

    size: Size
    upstream: Process
    peers: Mapping[str, tuple[Peer, Process]]

    def one(self, name: str) -> Result:
        """One stream at 20 chunks a second."""
        return self._streams(name, 1, self.size.chunks_one, spread=0)

    def hundred(self, name: str) -> Result:
        """A hundred of them."""
        return self._streams(name, self.size.streams[0], self.size.chunks_hundred, spread=self.size.spread)

    def five_hundred(self, name: str) -> Result:
        """Five hundred of them."""
        return self._streams(name, self.size.streams[1], self.size.chunks_five_hundred, spread=self.size.spread)

    def flat(self, name: str) -> Result:
        """One stream as fast as it goes."""
        return self._streams(name, 1, self.size.chunks_flat, spread=0, interval=0)

    def burst(self, name: str) -> Result:
        """A hundred arrivals in one moment on top of fifty running streams, from a second load client."""
        begin = time.monotonic() + _LEAD_SECONDS
        at = begin + self.size.spread + 0.5
        running = self._told(name, self.size.running, self.size.chunks_burst, spread=self.size.spread, begin=begin)
        arriving = self._told(name, self.size.arrivals, 20, spread=0, begin=at)
        with loading(arriving) as second:
            result = load(running | {"look_at": (at, at + 1)})
            text, _ = second.communicate(timeout=_LOAD_SECONDS)
        arrived = finished(second.returncode, text)
        result["errors"] |= arrived["errors"]
        result["arrivals_first_ms"] = arrived.get("first_ms")
        return self._checked(name, "burst", result)

    def requests(self, name: str) -> Result:
        """Answers of one chunk."""
        wanted = {
            "what": "requests",
            "requests": self.size.requests,
            "callers": CONNECTIONS,
            "connections": CONNECTIONS,
        }
        return self._checked(name, "requests", load(wanted | self._who(name)))

    def memory(self, name: str) -> Result:
        """Open streams that wait for upstream."""
        peer = self.peers[name][0]
        count = min(self.size.held, peer.threads) if peer.threads else self.size.held
        wanted = {
            "what": "memory",
            "streams": count,
            "connections": min(count, CONNECTIONS),
            "spread": self.size.spread,
            "seconds": 30,
            "upstream_address": self.upstream.address,
        }
        return self._checked(name, "memory", load(wanted | self._who(name)))

    def first(self, names: Sequence[str]) -> dict[str, Result]:
        """One caller, each peer and the upstream itself in turn."""
        targets = {name: self._target(name) for name in ("direct", *names)}
        result = load({"what": "first", "rounds": self.size.rounds, "targets": targets})
        if result["errors"]:
            raise BenchError(f"first: {few(result['errors'])}")
        return {name: {"first_ms": found} for name, found in result["first_ms"].items()}

    def warm(self, name: str) -> Result:
        """A few requests on every connection; may end with errors."""
        wanted = {"what": "requests", "requests": 64, "callers": CONNECTIONS, "connections": CONNECTIONS}
        # Its processes aren't looked at: one that only greets while the others start is about to end.
        return load(wanted | {"target": self._target(name), "server": []})

    def _streams(self, name: str, count: int, chunks: int, *, spread: float, interval: float = INTERVAL) -> Result:
        what = "flat out" if interval == 0 else f"{count} streams"
        return self._checked(name, what, load(self._told(name, count, chunks, spread=spread, interval=interval)))

    def _told(
        self, name: str, count: int, chunks: int, *, spread: float, interval: float = INTERVAL, begin: float = 0.0
    ) -> dict[str, Any]:
        wanted = {
            "what": "streams",
            "streams": count,
            "chunks": chunks,
            "interval": interval,
            "spread": spread,
            "connections": CONNECTIONS,
            "begin": begin,
            "look_at": None,
        }
        return wanted | self._who(name)

    def _who(self, name: str) -> dict[str, Any]:
        pids = self.upstream.tree
        server = pids if name == "direct" else self.peers[name][1].tree
        return {"target": self._target(name), "server": server, "upstream": pids}

    def _target(self, name: str) -> dict[str, str]:
        if name == "direct":
            return {"kind": "vertex", "address": self.upstream.address}
        peer, process = self.peers[name]
        return {"kind": peer.kind, "address": process.address, "token": peer.token}

    def _checked(self, name: str, what: str, result: Result) -> Result:
        """Raise BenchError for errors, unless the peer is behind anyway; then it is marked."""
        asked, given = result.get("asked_per_second"), result.get("chunks_per_second")
        result["saturated"] = bool(asked and given and given < _SATURATED_BELOW * asked)
        if result["errors"] and not result["saturated"]:
            said = "" if name == "direct" else self.peers[name][1].said()[-2000:]
            raise BenchError(f"{name}, {what}: {few(result['errors'])}\n{said}")
        return result

    def start(self, command: Sequence[str]) -> Result:
        """A fresh server from its start to SERVING; then, where it has workers, one of them is killed."""
        bare = _import_seconds()
        begin = time.monotonic()
        with started("tokenwire", *command) as process:
            result = load({"what": "serving", "address": process.address, "connections": CONNECTIONS})
            if result["errors"]:
                raise BenchError(f"start: {few(result['errors'])}\n{process.said()[-2000:]}")
            served = {
                "errors": {},
                "import_seconds": bare,
                "answering_seconds": result["answering"] - begin,
                "serving_seconds": result["serving"] - begin,
            }
            if len(found := workers(process)) < 2:
                return served
            wanted = {
                "what": "kill",
                "address": process.address,
                "connections": CONNECTIONS,
                "root": process.popen.pid,
                "victim": found[-1],
            }
            return served | load(wanted)


def _import_seconds() -> float:
    command = (sys.executable, "-c", "from langchain_google_vertexai import ChatVertexAI")
    begin = time.monotonic()
    subprocess.run(command, check=True, env=environment(), stderr=subprocess.DEVNULL)
    return time.monotonic() - begin


def load(told: dict[str, Any]) -> dict[str, Any]:
    """Run a load client to its end."""
    with loading(told) as popen:
        text, _ = popen.communicate(timeout=_LOAD_SECONDS)
    return finished(popen.returncode, text)


class loading:  # noqa: N801 - a context manager, used like a function
    """A load client that has been told what to do; killed on leaving if it still runs."""

    def __init__(self, told: dict[str, Any]) -> None:
        command = (sys.executable, "-m", "bench.load")
        pipe = subprocess.PIPE
        self._popen = subprocess.Popen(command, stdin=pipe, stdout=pipe, env=environment(), start_new_session=True)
        assert self._popen.stdin is not None
        self._popen.stdin.write(json.dumps(told).encode())
        self._popen.stdin.close()
        self._popen.stdin = None  # `communicate` would write to it again

    def __enter__(self) -> "subprocess.Popen[bytes]":
        return self._popen

    def __exit__(self, *_: object) -> None:
        if self._popen.poll() is None:
            self._popen.kill()
        self._popen.wait()
        assert self._popen.stdout is not None
        self._popen.stdout.close()


def finished(returncode: int, text: bytes) -> dict[str, Any]:
    if returncode:
        raise BenchError(f"the load client ended with {returncode}; what it said is above")
    result: dict[str, Any] = json.loads(text)
    return result


def workers(process: Process) -> list[int]:
    """The server's worker processes; empty if it does all by itself."""
    return tree(process.popen.pid)[1:]
