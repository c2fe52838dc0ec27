"""From results to figures: medians, spreads, ratios within one repeat, and issue 4's targets. Pure."""

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

Result = dict[str, Any]
"""What one run of one scenario against one peer gave, with "scenario", "peer" and "repeat" in it."""


def percentile(values: Sequence[float], part: float) -> float:
    """The smallest value that at least `part` percent of the values don't exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * part / 100) - 1)]


@dataclass(frozen=True, slots=True)
class Spread:
    """A figure over all repeats."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        return cls(statistics.median(values), min(values), max(values))

    def told(self, digits: int) -> str:
        """As people read it: the median, and in brackets from where to where the repeats went."""
        if self.low == self.high:
            return f"{self.median:,.{digits}f}"
        return f"{self.median:,.{digits}f} ({self.low:,.{digits}f}-{self.high:,.{digits}f})"


class Results:
    """Every result of a run."""

    def __init__(self, results: Iterable[Result], *, cores: int) -> None:
        self.all = list(results)
        self.two_workers = "tokenwire" if cores == 2 else "tokenwire-2"
        """The peer that has two workers: on two cores the default one has."""

    def repeats(self, scenario: str, peer: str) -> dict[int, Result]:
        """By repeat."""
        return {
            result["repeat"]: result
            for result in self.all
            if result["scenario"] == scenario and result["peer"] == peer and not result.get("failed")
        }

    def values(self, scenario: str, peer: str, *path: str) -> dict[int, float]:
        """One figure, by repeat; empty where it wasn't measured."""
        found = {}
        for repeat, result in self.repeats(scenario, peer).items():
            value: Any = result
            for name in path:
                value = value.get(name) if isinstance(value, dict) else None
            if value is not None:
                found[repeat] = float(value)
        return found

    def spread(self, scenario: str, peer: str, *path: str) -> Spread | None:
        """One figure over all repeats; None where it wasn't measured."""
        values = self.values(scenario, peer, *path)
        return Spread.of(list(values.values())) if values else None


def together(one: dict[int, float], other: dict[int, float], how: Callable[[float, float], float]) -> Spread | None:
    """Two figures of the same repeats combined: what drifts from repeat to repeat drifts for both."""
    values = [how(one[repeat], other[repeat]) for repeat in one if repeat in other]
    return Spread.of(values) if values else None


def ratio(one: dict[int, float], other: dict[int, float]) -> Spread | None:
    """None where nothing was measured to compare with: a tiny run may not take a page of memory more."""
    return together(one, {repeat: value for repeat, value in other.items() if value}, lambda a, b: a / b)


def difference(one: dict[int, float], other: dict[int, float]) -> Spread | None:
    return together(one, other, lambda a, b: a - b)


@dataclass(frozen=True, slots=True)
class Target:
    """A figure to reach."""

    name: str
    limit: float
    unit: str
    """"x" for ratios."""
    digits: int
    value: Spread | None
    """None: not measured in this run."""

    @property
    def reached(self) -> str:
        if self.value is None:
            return "not measured"
        if self.value.median > self.limit:
            return "not reached"
        return "reached" if self.value.high <= self.limit else "reached in the median"

    @property
    def wanted(self) -> str:
        return f"at most {self.limit:g} {self.unit}"

    @property
    def measured(self) -> str:
        return "-" if self.value is None else f"{self.value.told(self.digits)} {self.unit}"


def targets(results: Results) -> list[Target]:
    """Every figure of issue 4's table."""
    chunk = {
        (scenario, peer): results.values(scenario, peer, "us_per_chunk")
        for scenario in ("one", "hundred", "five_hundred")
        for peer in ("raw", "plain", "article", "tokenwire", "tokenwire-1", "full-1", results.two_workers)
    }
    ours = chunk["hundred", "tokenwire"]
    request = {peer: results.values("requests", peer, "us_per_request") for peer in ("raw", "tokenwire", "known-1")}
    first = {
        (peer, part): results.values("first", peer, "first_ms", part)
        for peer in ("raw", "tokenwire")
        for part in ("p50", "p99")
    }
    kb = {repeat: value / 1024 for repeat, value in results.values("memory", "tokenwire", "bytes_per_stream").items()}
    return [
        Target("CPU per chunk against raw, 100 streams x 20/s", 1.5, "x", 2, ratio(ours, chunk["hundred", "raw"])),
        Target("CPU per chunk against plain", 0.45, "x", 2, ratio(ours, chunk["hundred", "plain"])),
        Target("CPU per chunk against the article", 0.3, "x", 2, ratio(ours, chunk["hundred", "article"])),
        Target("CPU per request against raw, one chunk each", 1.8, "x", 2, ratio(request["tokenwire"], request["raw"])),
        Target(
            "the same with callers known and held to quotas, one worker as raw has",
            1.85,
            "x",
            2,
            ratio(request["known-1"], request["raw"]),
        ),
        Target(
            "CPU per chunk with all on, against one worker without",
            1.05,
            "x",
            2,
            ratio(chunk["hundred", "full-1"], chunk["hundred", "tokenwire-1"]),
        ),
        Target(
            "CPU per chunk with all on against raw, one worker each",
            1.25,
            "x",
            2,
            ratio(chunk["hundred", "full-1"], chunk["hundred", "raw"]),
        ),
        Target(
            "time to first chunk over raw, p50",
            0.7,
            "ms",
            2,
            difference(first["tokenwire", "p50"], first["raw", "p50"]),
        ),
        Target(
            "time to first chunk over raw, p99", 2, "ms", 2, difference(first["tokenwire", "p99"], first["raw", "p99"])
        ),
        Target(
            "running streams' chunk gap p99 in the burst, over the scripted gap",
            60,
            "ms",
            0,
            results.spread("burst", "tokenwire", "look_at_gap_over_ms", "p99"),
        ),
        Target(
            "CPU per chunk at 500 streams against 1",
            1.2,
            "x",
            2,
            ratio(chunk["five_hundred", "tokenwire"], chunk["one", "tokenwire"]),
        ),
        Target("memory per open stream", 64, "KB", 0, Spread.of(list(kb.values())) if kb else None),
        Target(
            "CPU per chunk, 2 workers against 1",
            1.05,
            "x",
            2,
            ratio(chunk["hundred", results.two_workers], chunk["hundred", "tokenwire-1"]),
        ),
        Target(
            "every worker SERVING, against one bare import",
            1.15,
            "x",
            2,
            ratio(
                results.values("start", "tokenwire", "serving_seconds"),
                results.values("start", "tokenwire", "import_seconds"),
            ),
        ),
        Target(
            "a killed worker is replaced after", 1, "s", 2, results.spread("start", "tokenwire", "replaced_seconds")
        ),
        Target(
            "streams of other workers that the kill touched",
            0,
            "streams",
            0,
            results.spread("start", "tokenwire", "touched_streams"),
        ),
    ]
