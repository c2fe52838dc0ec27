"""`python -m bench.scale`: what open streams cost one worker, from few to many. Five minutes.

Streams of five chunks a second, as Gemini's larger models write, from one load client, with the scripted upstream
beside it. Each repeat starts a server anew and goes up all steps, since a process keeps memory that it once had. Writes
nothing; docs/scale.md tells what the figures mean.
"""

import argparse
import math
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.__main__ import SERVICE, at, warm
from bench.processes import BenchError, Process, memory_bytes, started
from bench.scenarios import CONNECTIONS, QUICK, Bench, Peer, finished, loading
from bench.targets import few, now

INTERVAL = 0.2
"""Seconds between two chunks of a stream."""

_LEAD_SECONDS = 2.0
_LOAD_SECONDS = 180
_BEHIND = 0.9
"""A server that delivers less than this part of what is asked is behind."""
_ESTABLISHED = "01"


@dataclass(frozen=True, slots=True)
class Step:
    """What so many streams cost, of one server."""

    streams: int
    cores: float
    """Of the server's process."""
    bytes_more: float
    """For each stream: by how much the server's memory is larger than before the first of all."""
    bytes_idle: float
    """What it took then."""
    gap_p50_ms: float
    gap_p99_ms: float
    """Between two chunks at the caller, beyond INTERVAL."""
    connections: float
    """To upstream."""
    delivered: float
    """Chunks a second, in parts of what upstream was asked for."""

    @property
    def is_behind(self) -> bool:
        return self.delivered < _BEHIND

    def told(self) -> str:
        """A row of the table."""
        return (
            f"| {self.streams:,} | {self.cores:.2f} | {self.cores / self.streams * 1e3:.2f} | "
            f"{self.cores * INTERVAL / self.streams / self.delivered * 1e6:,.0f} | {self.bytes_more / 1024:.0f} | "
            f"{self.gap_p50_ms:.1f} | {self.gap_p99_ms:.1f} | {self.connections:.0f} | {self.delivered * 100:.0f} % |"
        )

    @classmethod
    def median(cls, steps: Sequence["Step"]) -> "Step":
        """Of repeats, figure by figure."""
        return cls(*(statistics.median(getattr(step, name) for step in steps) for name in cls.__slots__))


HEAD = (
    "| open streams | CPU, cores | CPU a stream, 1/1000 core | CPU a chunk, us | memory a stream, KB "
    "| gap p50, ms more | gap p99, ms more | connections upstream | delivered |\n"
    "|---:|---:|---:|---:|---:|---:|---:|---:|---:|"
)


def connections_to(address: str) -> int:
    """How many connections of this machine lead there."""
    port = f"{int(address.rpartition(':')[2]):04X}"
    # gRPC's are of IPv6, with the other's address within.
    lines = [line for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    return sum(
        remote.rpartition(":")[2] == port and state == _ESTABLISHED
        for _, _, remote, state, *_ in (line.split() for line in lines)
    )


def step(bench: Bench, streams: int, seconds: float, idle: int) -> Step:
    """So many streams for so long, once all have begun. `idle`: the server's memory in bytes without any."""
    peer, process = bench.peers["tokenwire"]
    spread = max(1.0, streams / 200)
    begin = now() + _LEAD_SECONDS
    told: dict[str, Any] = {
        "what": "streams",
        "streams": streams,
        "chunks": math.ceil((spread + seconds) / INTERVAL),
        "interval": INTERVAL,
        "spread": spread,
        "connections": CONNECTIONS,
        "begin": begin,
        "look_at": None,
        "target": {"kind": peer.kind, "address": process.address, "token": ""},
        "server": process.tree,
        "upstream": bench.upstream.tree,
    }
    with loading(told) as client:
        time.sleep(max(0.0, begin + spread + seconds / 2 - now()))  # they all run
        connections, memory = connections_to(bench.upstream.address), memory_bytes(process.tree)
        text, _ = client.communicate(timeout=_LOAD_SECONDS)
    result = finished(client.returncode, text)
    if result["errors"]:
        raise BenchError(f"{streams} streams: {few(result['errors'])}\n{process.said()[-2000:]}")
    return Step(
        streams=streams,
        cores=result["cores"]["server"],
        bytes_more=(memory - idle) / streams,
        bytes_idle=idle,
        gap_p50_ms=result["gap_over_ms"]["p50"],
        gap_p99_ms=result["gap_over_ms"]["p99"],
        connections=connections,
        delivered=result["chunks_per_second"] * INTERVAL / streams,
    )


def ramp(counts: Sequence[int], seconds: float, *flags: str) -> list[Step]:
    """All steps, with one server."""
    most = str(max(counts) + 64)  # and whatever has ended, but not yet for the server
    command = (*SERVICE, "--workers", "1", "--slots", most, *flags)
    with (
        started("upstream", "-m", "bench.upstream") as upstream,
        started("tokenwire", *at(command, upstream.address)) as process,
    ):
        bench = _bench(upstream, process)
        warm(bench, "tokenwire")
        idle = memory_bytes(process.tree)
        return [step(bench, count, seconds, idle) for count in counts]


def _bench(upstream: Process, process: Process) -> Bench:
    peers: Mapping[str, tuple[Peer, Process]] = {
        "tokenwire": (Peer("tokenwire", "tokenwire", "tokenwire", SERVICE), process)
    }
    return Bench(QUICK, upstream, peers)


def measured(counts: Sequence[int], seconds: float, repeats: int, *flags: str) -> list[Step]:
    """The median of each step."""
    ramps = []
    for number in range(repeats):
        ramps.append(ramp(counts, seconds, *flags))
        print(f"repeat {number + 1} of {repeats}", file=sys.stderr, flush=True)
    return [Step.median(steps) for steps in zip(*ramps, strict=True)]


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m bench.scale", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--streams", type=int, nargs="+", default=[100, 200, 400, 800], help="(default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=12.0, help="that each step lasts (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="each with a server of its own (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="to see that it works: 10 and 20 streams, 3 s, once")
    told = parser.parse_args(argv)
    if told.quick:
        told.streams, told.seconds, told.repeats = [10, 20], 3.0, 1
    steps = measured(told.streams, told.seconds, told.repeats)
    print(f"one worker, {told.repeats} repeats; {steps[0].bytes_idle / 1e6:.0f} MB without a stream\n\n{HEAD}")
    for one in steps:
        print(one.told())
    if behind := [f"{one.streams:,}" for one in steps if one.is_behind]:
        print(f"\nBehind what was asked: {', '.join(behind)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
