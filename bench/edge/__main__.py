"""`python -m bench.edge`: what Envoy adds to a chunk, and what readers behind it that have stopped reading cost others.

python -m bench.edge added     # two minutes
python -m bench.edge readers   # four minutes
"""

import argparse
import statistics
import sys
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.edge.running import edge, service
from bench.figures import Spread
from bench.processes import BenchError, started
from bench.scenarios import load
from bench.targets import few
from bench.watching import free_port

ADDED = {"p50": 0.3, "p99": 2.0}
"""What Envoy may add to a chunk, in ms."""
LIMIT = 1.2
"""Times the gap without stalled readers."""


@dataclass(frozen=True, slots=True)
class Size:
    """How much of everything."""

    rounds: int = 5
    streams: int = 20
    chunks: int = 100
    readers: int = 400
    reader_chunks: int = 20
    reader_interval: float = 0.5
    stalled: int = 100
    stalled_chunks: int = 1_000
    """More than finds room anywhere."""


QUICK = Size(
    rounds=1,
    streams=3,
    chunks=10,
    readers=6,
    reader_chunks=6,
    reader_interval=0.05,
    stalled=2,
    stalled_chunks=1_000,
)


def asked(told: dict[str, Any]) -> dict[str, Any]:
    result = load({"what": "stamped", **told})
    if result["errors"]:
        raise BenchError(few(result["errors"]))
    return result


def added(size: Size) -> bool:
    """How late chunks come by each way, in turn. Gives whether what Envoy adds is within its limits."""
    found: dict[str, list[Mapping[str, float]]] = {"service": [], "Envoy, gRPC": [], "Envoy, events": []}
    with (
        started("upstream", "-m", "bench.upstream") as upstream,
        service(upstream.address) as replica,
        edge(replica.address) as envoy,
    ):
        healthy(envoy.address)
        ways = (("service", "grpc", replica), ("Envoy, gRPC", "grpc", envoy), ("Envoy, events", "sse", envoy))
        for number in range(size.rounds + 1):
            for name, kind, process in ways:
                told = {"kind": kind, "address": process.address, "streams": size.streams, "spread": 0.5}
                result = asked(told | {"chunks": size.chunks, "interval": 0.05})
                if number:  # the first round is there to have everything loaded
                    found[name].append(result["late_ms"])
    ok = True
    for name, rounds in found.items():
        line = []
        for part, limit in ADDED.items():
            late = [one[part] for one in rounds]
            line.append(f"{part} {Spread.of(late).told(2)} ms")
            if name != "service":
                more = [one - alone[part] for one, alone in zip(late, found["service"], strict=True)]
                line[-1] += f", added {Spread.of(more).told(2)}, at most {limit:g}"
                ok &= statistics.median(more) <= limit
        print(f"{name:14} {'; '.join(line)}", flush=True)
    return ok


def healthy(address: str) -> None:
    """Wait until Envoy answers for the replica."""
    for _ in range(200):
        try:
            with urllib.request.urlopen(f"http://{address}/v1/models", timeout=5):
                return
        except OSError:
            continue
    raise BenchError("Envoy finds no healthy replica")


def readers(size: Size) -> bool:
    """Readers of server-sent events alone, and beside some that stall, in turn. Gives whether the gap holds."""
    results: dict[bool, list[dict[str, Any]]] = {False: [], True: []}
    port = free_port()
    with (
        started("upstream", "-m", "bench.upstream") as upstream,
        service(upstream.address, "--slots", "2000", "--metrics-port", str(port)) as replica,
        edge(replica.address) as envoy,
    ):
        healthy(envoy.address)
        for number in range(2 * size.rounds + 1):
            stalled = bool(number % 2)
            told = {"kind": "sse", "address": envoy.address, "streams": size.readers, "spread": 1.0}
            told |= {"chunks": size.reader_chunks, "interval": size.reader_interval}
            if stalled:
                told |= {"stalled": size.stalled, "stalled_chunks": size.stalled_chunks}
            told |= {"memory": {"Envoy": envoy.tree, "the service": replica.tree}, "metrics": f"127.0.0.1:{port}"}
            results[stalled].append(asked(told))
    alone, beside = (
        Spread.of([1e3 * size.reader_interval + one["gap_over_ms"]["p99"] for one in results[stalled]])
        for stalled in (False, True)
    )
    print(f"{size.readers} readers: gap p99 {alone.told(1)} ms; beside {size.stalled} that stall {beside.told(1)} ms")
    times = beside.median / alone.median
    held = Spread.of([one["held"] for one in results[True]])
    print(f"{times:.2f} x, at most {LIMIT} x; {held.told(0)} streams are still held by those that stall")
    for stalled, name in ((False, "alone"), (True, "beside them")):
        for process in ("Envoy", "the service"):
            used = Spread.of([one["memory"][process] for one in results[stalled]])
            print(f"memory of {process}, {name}: {used.told(0)} MB")
    return times <= LIMIT


def main(argv: Sequence[str] | None = None) -> int:
    """Run it; gives 1 where a limit isn't held."""
    parser = argparse.ArgumentParser(prog="python -m bench.edge", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("what", choices=("added", "readers"))
    parser.add_argument("--quick", action="store_true", help="a tiny run, to see that it works")
    told = parser.parse_args(argv)
    size = QUICK if told.quick else Size()
    return int(not (added(size) if told.what == "added" else readers(size)))


if __name__ == "__main__":
    sys.exit(main())
