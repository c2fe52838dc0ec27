"""`make bench`: tokenwire beside a raw pass-through, plain ChatVertexAI, and what articles show. In one go.

python -m bench                 # everything, a quarter of an hour; writes docs/benchmark.md and docs/benchmark.svg
python -m bench --quick         # a look, a minute or two; writes no page
"""

import argparse
import json
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from bench import report
from bench.figures import Result, Results
from bench.processes import BenchError, cores, output_of, started
from bench.scenarios import FULL, QUICK, Bench, Peer, Size
from bench.targets import few
from bench.watching import Watcher, free_port, watching
from service.admission import api_keys

KEPT = Path("build/bench.json")

SERVICE = ("-m", "service", "--emulator", "UPSTREAM", "--port", "0")

KNOWN = (*SERVICE, "--api-keys", "FOLDER/keys", "--callers", "FOLDER/callers.toml")

PEERS = (
    Peer("raw", "vertex", "raw pass-through on grpc.aio", ("-m", "bench.peers.raw", "UPSTREAM")),
    Peer("plain", "tokenwire", "plain ChatVertexAI.astream on grpc.aio", ("-m", "bench.peers.plain", "UPSTREAM")),
    Peer(
        "article",
        "http",
        "FastAPI StreamingResponse over ChatVertexAI.stream",
        ("-m", "bench.peers.article", "UPSTREAM"),
        threads=40,
    ),
    Peer("tokenwire", "tokenwire", "tokenwire, every default on", SERVICE),
    Peer("tokenwire-1", "tokenwire", "tokenwire, one worker", SERVICE, {"TOKENWIRE_WORKERS": "1"}),
    Peer(
        "known-1", "tokenwire", "the same, callers known by a key and held to quotas", KNOWN, {"TOKENWIRE_WORKERS": "1"}
    ),
    Peer(
        "full-1",
        "tokenwire",
        "the same with metrics and 1 % of traces as well",
        (*KNOWN, "--metrics-port", "METRICS"),
        {
            "TOKENWIRE_WORKERS": "1",
            "OTEL_EXPORTER_OTLP_ENDPOINT": "COLLECTOR",
            "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
            "OTEL_TRACES_SAMPLER_ARG": "0.01",
        },
    ),
    Peer(
        "envoy",
        "vertex",
        "Envoy that passes upstream's call through, one thread",
        ("-m", "bench.peers.envoy", "UPSTREAM"),
    ),
    Peer(
        "edge-1",
        "tokenwire",
        "tokenwire, one worker, behind Envoy, one thread",
        ("-m", "bench.peers.behind_envoy", "UPSTREAM"),
    ),
    Peer("tokenwire-2", "tokenwire", "tokenwire, two workers", SERVICE, {"TOKENWIRE_WORKERS": "2"}),
    Peer(
        "raw-tuned",
        "vertex",
        "raw, on uvloop and under SCHED_BATCH as tokenwire runs",
        ("-m", "bench.peers.raw", "UPSTREAM", "tuned"),
        aside=True,
    ),
)

# Quotas that are counted, and never used up.
CALLERS = """
[callers.app]
api_keys = ["app"]
streams = 100_000
requests_per_minute = 100_000_000
tokens_per_minute = 100_000_000_000
tokens_per_day = 100_000_000_000
"""

# Memory comes first: what later scenarios leave behind in a process would hide what a stream takes.
SCENARIOS = ("memory", "one", "hundred", "five_hundred", "flat", "burst", "requests", "first", "start")

LONG = ("five_hundred", "start")
"""What --quick leaves out."""

# Where what the upstream and the load client do by themselves says something about the figures.
WITH_DIRECT = ("hundred", "burst")

_READY_SECONDS = 120
_WARM_SECONDS = 15  # one of several workers may be ready a moment later than another


@dataclass(slots=True)
class Run:
    """What is to be done, and what came of it."""

    peers: Sequence[Peer]
    scenarios: Sequence[str]
    repeats: int
    size: Size
    results: list[Result] = field(default_factory=list)

    def all(self) -> None:
        """Start everything, run everything, end everything."""
        with ExitStack() as stack:
            say("starting the upstream and " + ", ".join(peer.name for peer in self.peers))
            upstream = stack.enter_context(started("upstream", "-m", "bench.upstream"))
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tokenwire-bench-")))
            watcher = stack.enter_context(watching())
            running = {}
            for peer in map(partial(with_files, folder=folder, watcher=watcher), self.peers):
                process = stack.enter_context(started(peer.name, *at(peer.command, upstream.address), extra=peer.extra))
                running[peer.name] = (peer, process)
            bench = Bench(self.size, upstream, running)
            for name in running:
                warm(bench, name)
            for repeat in range(self.repeats):
                for scenario in self.scenarios:
                    if scenario != "memory" or repeat == 0:
                        self._scenario(bench, scenario, repeat)

    def _scenario(self, bench: Bench, scenario: str, repeat: int) -> None:
        names = list(bench.peers)
        names = names[repeat % len(names) :] + names[: repeat % len(names)]
        if scenario == "first":
            for name, result in bench.first(names).items():
                self._keep(scenario, name, repeat, result)
            return
        if scenario == "start":
            if "tokenwire" in names:
                command = at(SERVICE, bench.upstream.address)
                self._keep(scenario, "tokenwire", repeat, bench.start(command))
            return
        if scenario in WITH_DIRECT:
            names.append("direct")
        for name in names:
            self._keep(scenario, name, repeat, getattr(bench, scenario)(name))

    def _keep(self, scenario: str, name: str, repeat: int, result: Result) -> None:
        self.results.append({"scenario": scenario, "peer": name, "repeat": repeat} | result)
        behind = ", behind what was asked" if result.get("saturated") else ""
        say(f"{repeat + 1}/{self.repeats} {scenario:12} {name:12} {report.short(result)}{behind}")


def with_files(peer: Peer, folder: Path, watcher: Watcher) -> Peer:
    """The same, where it wants files of callers, made in this folder with a key for the load client, and is watched."""
    if not any("FOLDER" in word for word in peer.command):
        return peer
    folder = folder / peer.name
    folder.mkdir()
    (folder / "callers.toml").write_text(CALLERS)
    _, secret = api_keys.new(str(folder / "keys"), "app")
    command = tuple(word.replace("FOLDER", str(folder)) for word in peer.command)
    if "METRICS" in command:
        watcher.metrics.append(port := free_port())
        command = tuple(str(port) if word == "METRICS" else word for word in command)
    extra = {name: value.replace("COLLECTOR", watcher.collector) for name, value in peer.extra.items()}
    return replace(peer, command=command, extra=extra, token=secret)


def at(command: Sequence[str], upstream: str) -> list[str]:
    return [upstream if word == "UPSTREAM" else word for word in command]


def warm(bench: Bench, name: str) -> None:
    """Wait until the peer is ready, and have it answer on every path once."""
    peer, process = bench.peers[name]
    give_up = time.monotonic() + _READY_SECONDS
    while peer.kind != "http" and "ready" not in process.said():
        if process.popen.poll() is not None:
            raise BenchError(f"{name} ended with {process.popen.returncode}:\n{process.said()[-2000:]}")
        if time.monotonic() > give_up:
            raise BenchError(f"{name} is not ready after {_READY_SECONDS} s:\n{process.said()[-2000:]}")
        time.sleep(0.05)
    give_up = time.monotonic() + _WARM_SECONDS
    while errors := bench.warm(name)["errors"]:
        if time.monotonic() > give_up:
            raise BenchError(f"{name} does not answer: {few(errors)}\n{process.said()[-2000:]}")
        time.sleep(0.2)


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def offered() -> list[Peer]:
    """The peers that can run here."""
    if "TOKENWIRE_WORKERS" not in output_of(sys.executable, "-m", "service", "--help"):
        say("the service has no TOKENWIRE_WORKERS yet: tokenwire-1 and tokenwire-2 are left out")
        return [peer for peer in PEERS if not peer.extra]
    if cores() == 2:
        say("two cores: the default has two workers, so tokenwire-2 is tokenwire")
        return [peer for peer in PEERS if peer.name != "tokenwire-2"]
    return list(PEERS)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure tokenwire beside its peers.")
    names = [peer.name for peer in PEERS]
    parser.add_argument("--quick", action="store_true", help="one short repeat, to see that all works")
    parser.add_argument("--peers", nargs="+", choices=names, default=[], metavar="PEER", help="; ".join(names))
    parser.add_argument(
        "--scenarios", nargs="+", choices=SCENARIOS, default=[], metavar="SCENARIO", help="; ".join(SCENARIOS)
    )
    parser.add_argument("--repeats", type=int, help="3; 1 with --quick")
    parser.add_argument("--report", action="store_true", help=f"write the page again from {KEPT}, without a run")
    return parser.parse_args(argv)


def measured(told: argparse.Namespace) -> dict[str, Any]:
    """Run as told; everything that the report needs."""
    peers = [peer for peer in offered() if (peer.name in told.peers if told.peers else not peer.aside)]
    wanted = told.scenarios or [name for name in SCENARIOS if not (told.quick and name in LONG)]
    scenarios = [name for name in SCENARIOS if name in wanted]
    begin = time.monotonic()
    run = Run(peers, scenarios, told.repeats or (1 if told.quick else 3), QUICK if told.quick else FULL)
    run.all()
    return {
        "about": report.about()
        | {
            "date": datetime.now(UTC).date().isoformat(),
            "minutes": round((time.monotonic() - begin) / 60, 1),
            "repeats": run.repeats,
            "complete": not (told.quick or told.peers or told.scenarios),
        },
        "peers": {peer.name: peer.text for peer in peers},
        "results": run.results,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run, print, write; returns the exit code."""
    told = arguments(argv)
    # As Ctrl-C does: whatever was started is ended on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        if told.report:
            kept = json.loads(KEPT.read_text())
        else:
            kept = measured(told)
            KEPT.parent.mkdir(exist_ok=True)
            KEPT.write_text(json.dumps(kept, indent=1))
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bench: interrupted; everything that it started has ended", file=sys.stderr)
        return 130
    results = Results(kept["results"], cores=kept["about"]["cores"])
    print(report.text(results, kept["peers"]))
    if kept["about"]["complete"]:
        report.write(results, kept["peers"], kept["about"])
        print(f"written: {report.PAGE}, {report.PLOT}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
