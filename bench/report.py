"""What came out, for people: the table in the terminal, docs/benchmark.md and its plot."""

import platform
import re
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from string import Template
from typing import Any

from bench.figures import Result, Results, Spread, ratio, targets
from bench.plot import Bar, Group, svg
from bench.processes import cores

PAGE = Path("docs/benchmark.md")
PLOT = Path("docs/benchmark.svg")
READMES = Path("README.md"), Path("README.ja.md")
PROSE = Path(__file__).with_name("benchmark.md.in")

_PACKAGES = ("grpcio", "protobuf", "langchain-core", "langchain-google-vertexai", "fastapi", "uvicorn")

LOADS = {
    "one": "1 stream x 20/s",
    "hundred": "100 streams x 20/s",
    "five_hundred": "500 streams x 20/s",
    "flat": "1 stream flat out",
}


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table."""

    name: str
    digits: int
    of: Callable[[Results, str], Spread | None]
    """A peer's figure."""


def _plain(scenario: str, *path: str) -> Callable[[Results, str], Spread | None]:
    return lambda results, peer: results.spread(scenario, peer, *path)


def _first(results: Results, peer: str, part: str) -> dict[int, float]:
    """What the peer adds to the first chunk, by repeat."""
    own = results.values("first", "direct", "first_ms", part)
    return {
        repeat: value - own[repeat]
        for repeat, value in results.values("first", peer, "first_ms", part).items()
        if repeat in own
    }


def _added(part: str) -> Callable[[Results, str], Spread | None]:
    def of(results: Results, peer: str) -> Spread | None:
        added = _first(results, peer, part)
        return Spread.of(list(added.values())) if added else None

    return of


def _kilobytes(results: Results, peer: str) -> Spread | None:
    values = results.values("memory", peer, "bytes_per_stream").values()
    return Spread.of([value / 1024 for value in values]) if values else None


ROWS = (
    *(Row(f"CPU per chunk, us: {text}", 0, _plain(name, "us_per_chunk")) for name, text in LOADS.items()),
    Row("CPU per request of one chunk, us", 0, _plain("requests", "us_per_request")),
    Row("added to the first chunk, ms: p50", 2, _added("p50")),
    Row("added to the first chunk, ms: p99", 2, _added("p99")),
    *(
        Row(
            f"first chunk of {count} streams, the script's own wait and all, ms: {part}",
            0,
            _plain(name, "first_ms", part),
        )
        for name, count in (("hundred", 100), ("five_hundred", 500))
        for part in ("p50", "p99")
    ),
    Row("chunk gap over the scripted, ms, p99: 1 stream", 1, _plain("one", "gap_over_ms", "p99")),
    Row("chunk gap over the scripted, ms, p99: 100 streams", 1, _plain("hundred", "gap_over_ms", "p99")),
    Row("chunk gap over the scripted, ms, p99: 500 streams", 0, _plain("five_hundred", "gap_over_ms", "p99")),
    Row(
        "chunk gap over the scripted, ms, p99: 50 streams, while 100 others begin",
        0,
        _plain("burst", "look_at_gap_over_ms", "p99"),
    ),
    Row("first chunk of these 100 others, ms, p99", 0, _plain("burst", "arrivals_first_ms", "p99")),
    Row("memory per open stream, KB", 0, _kilobytes),
    Row("delivered, chunks/s: 500 streams (10,000 asked)", 0, _plain("five_hundred", "chunks_per_second")),
    Row("delivered, chunks/s: 1 stream flat out", 0, _plain("flat", "chunks_per_second")),
)

COSTS = (*LOADS.items(), ("requests", "request of one chunk"))


def short(result: Result) -> str:
    """One result on a line, while a run goes on."""
    shown = {
        "us_per_chunk": "{:.0f} us/chunk",
        "us_per_request": "{:.0f} us/request",
        "chunks_per_second": "{:.0f} chunks/s",
        "bytes_per_stream": "{:.0f} bytes/stream",
        "import_seconds": "import {:.1f} s",
        "serving_seconds": "serving {:.1f} s",
        "replaced_seconds": "replaced {:.2f} s",
    }
    parts = [text.format(result[name]) for name, text in shown.items() if result.get(name) is not None]
    for name, text in (("first_ms", "first"), ("look_at_gap_over_ms", "gap in the burst +")):
        if result.get(name):
            parts.append(f"{text} p50 {result[name]['p50']:.1f} p99 {result[name]['p99']:.1f} ms")
    return ", ".join([*parts, *(f"{count} x {text}" for text, count in result.get("errors", {}).items())])


def text(results: Results, peers: Mapping[str, str]) -> str:
    """For the terminal."""
    parts = [_aligned(figures(results, peers)), _aligned(ratios(results, peers)), _aligned(reached(results))]
    return "\n" + "\n\n".join(parts) + "\n\n" + harness(results) + "\n"


def figures(results: Results, peers: Mapping[str, str]) -> list[list[str]]:
    """Every figure of every peer: the median, and in brackets from where to where the repeats went."""
    names = [*peers, "direct"]
    rows = [["figure", *peers, "upstream alone"]]
    for row in ROWS:
        found = [row.of(results, name) for name in names]
        if row.name.startswith("added"):
            found[-1] = None  # it is what is subtracted
        if any(found):
            rows.append([row.name, *("-" if spread is None else spread.told(row.digits) for spread in found)])
    return rows


def ratios(results: Results, peers: Mapping[str, str]) -> list[list[str]]:
    """What every peer takes in parts of what raw does, repeat by repeat."""
    measured: dict[str, Callable[[str], dict[int, float]]] = {
        **{f"CPU: {text}": partial(_cost, results, name) for name, text in COSTS},
        "added to the first chunk, p50": partial(_first, results, part="p50"),
        "memory per open stream": lambda peer: results.values("memory", peer, "bytes_per_stream"),
    }
    rows = [["against raw", *peers]]
    for name, of in measured.items():
        floor = of("raw")
        found = [ratio(of(peer), floor) for peer in peers]
        if any(found):
            rows.append([name, *("-" if spread is None else spread.told(2) for spread in found)])
    return rows


def _cost(results: Results, scenario: str, peer: str) -> dict[int, float]:
    return results.values(scenario, peer, "us_per_request" if scenario == "requests" else "us_per_chunk")


def reached(results: Results) -> list[list[str]]:
    """Issue 4's targets."""
    rows = [["figure to reach", "target", "measured", ""]]
    return rows + [[one.name, one.wanted, one.measured, one.reached] for one in targets(results)]


def harness(results: Results) -> str:
    """Whether the upstream or the load client could have been what was measured."""
    used = [result["cores"] for result in results.all if "cores" in result]
    if not used:
        return ""
    most = {name: max(one[name] for one in used) for name in ("upstream", "load")}
    return f"Busiest in any run: the upstream {most['upstream']:.2f} of a core, the load client {most['load']:.2f}."


def behind(results: Results, peers: Mapping[str, str]) -> str:
    """Who could not keep up, and where."""
    found: dict[str, list[str]] = {}
    for result in results.all:
        if result.get("saturated"):
            lines = found.setdefault(LOADS.get(result["scenario"]) or str(result["scenario"]), [])
            if result["peer"] not in lines and result["peer"] in peers:
                lines.append(result["peer"])
    told = [f"{load}: {', '.join(names)}" for load, names in found.items() if names]
    errors = sum(sum(result.get("errors", {}).values()) for result in results.all)
    end = f" {errors} streams broke there." if errors else " No stream broke or lost a chunk, there or elsewhere."
    return ("; ".join(told) if told else "nobody") + "." + end


def about() -> dict[str, Any]:
    """The machine and the versions."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
    commit = subprocess.run(("git", "rev-parse", "--short", "HEAD"), capture_output=True, text=True, check=False)
    return {
        "cpu": model,
        "cores": cores(),
        "system": f"Linux {platform.release().split('-')[0]}",
        "python": platform.python_version(),
        "packages": {name: version(name) for name in _PACKAGES},
        "commit": commit.stdout.strip() or "unknown",
    }


def write(results: Results, peers: Mapping[str, str], told: Mapping[str, Any]) -> None:
    """Write the page and the plot: prose from the template, figures from this run."""
    packages = ", ".join(f"{name} {number}" for name, number in told["packages"].items())
    PAGE.write_text(
        Template(PROSE.read_text()).substitute(
            date=told["date"],
            commit=told["commit"],
            minutes=told["minutes"],
            repeats=told["repeats"],
            cores=told["cores"],
            machine=f"{told['cores']} cores ({told['cpu']}), {told['system']}, Python {told['python']}",
            packages=packages,
            peers="\n".join(f"| {name} | {words} |" for name, words in peers.items()),
            figures=_markdown(figures(results, peers)),
            ratios=_markdown(ratios(results, peers)),
            targets=_markdown(reached(results)),
            behind=behind(results, peers),
            harness=harness(results),
        )
    )
    PLOT.write_text(plot(results, peers, told))
    for page in READMES:
        page.write_text(in_short(page.read_text(), PAGE.read_text()))


def in_short(readme: str, page: str) -> str:
    """The README with the few figures that it has of the page: those of a chunk and of a request, by peer."""
    (peers,) = re.findall(r"^\| figure \| (raw .*?) \|$", page, re.MULTILINE)

    def medians(row: str) -> dict[str, str]:
        (cells,) = re.findall(rf"^\| {re.escape(row)} \| (.*) \|$", page, re.MULTILINE)
        return dict(zip(peers.split(" | "), (cell.partition(" ")[0] for cell in cells.split(" | ")), strict=True))

    chunk, request = medians("CPU per chunk, us: 100 streams x 20/s"), medians("CPU per request of one chunk, us")
    wanted = iter(("raw", "tokenwire", "plain", "article"))

    def told(_: re.Match[str]) -> str:
        peer = next(wanted)
        return f" | {chunk[peer]} us | {request[peer]} us |"

    return re.sub(r" \| [\d,]+ us \| [\d,]+ us \|$", told, readme, flags=re.MULTILINE)


def plot(results: Results, peers: Mapping[str, str], told: Mapping[str, Any]) -> str:
    """CPU per chunk by peer and load."""
    groups = []
    for scenario, name in LOADS.items():
        bars = [Bar(peer, results.spread(scenario, peer, "us_per_chunk")) for peer in peers]
        groups.append(Group(name, [bar for bar in bars if bar.value is not None]))
    return svg(
        "Server CPU per chunk, microseconds",
        f"median of {told['repeats']} interleaved repeats, the line spans them; {told['cores']} cores, {told['date']}",
        groups,
    )


def _aligned(rows: list[list[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(cell.ljust(width) if not place else cell.rjust(width) for place, (cell, width) in enumerate(cells))
        for cells in (list(zip(row, widths, strict=True)) for row in rows)
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def _markdown(rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|---|" + "---:|" * (len(rows[0]) - 1), *lines[1:]])
