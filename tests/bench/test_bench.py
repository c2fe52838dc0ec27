"""The benchmark works: its upstream says what it is asked to, and a tiny run yields figures. No time is judged."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from bench import report
from bench.__main__ import PEERS, Run, at
from bench.figures import Result, Results, Spread, percentile, ratio, targets
from bench.processes import BenchError, Process, started
from bench.scenarios import Size
from bench.script import METHOD, RELEASE, Script, piece, question
from vertex_emulator.protos import prediction_pb2 as vertex

TINY = Size(
    chunks_one=12,
    chunks_hundred=12,
    chunks_five_hundred=12,
    chunks_flat=50,
    chunks_burst=30,
    requests=32,
    rounds=3,
    held=8,
    streams=(4, 8),
    running=4,
    arrivals=4,
    spread=0.1,
)


@contextmanager
def upstream() -> Iterator[Process]:
    with started("upstream", "-m", "bench.upstream") as process:
        yield process


@pytest.fixture
async def ask() -> Any:
    with upstream() as process:
        async with grpc.aio.insecure_channel(process.address) as channel:
            yield channel.unary_stream(METHOD)


async def test_the_upstream_answers_what_the_prompt_says(ask: Any) -> None:
    script = Script(chunks=5, interval=0.001)
    answer = [vertex.GenerateContentResponse.FromString(data) async for data in ask(question(script))]
    texts = [message.candidates[0].content.parts[0].text for message in answer]
    assert texts == [piece(index) for index in range(5)]
    assert [message.candidates[0].finish_reason for message in answer] == [0, 0, 0, 0, vertex.Candidate.STOP]
    counts = [message.usage_metadata.candidates_token_count for message in answer]
    assert counts == sorted(set(counts))
    assert answer[-1].usage_metadata.total_token_count == 12 + counts[-1]


async def test_the_upstream_says_more_than_a_window_holds(ask: Any) -> None:
    answer = [data async for data in ask(question(Script(chunks=5000)))]
    assert len(answer) == 5000
    assert sum(map(len, answer)) > 5 * 65_535


async def test_the_upstream_holds_the_last_chunk_until_it_is_told(ask: Any) -> None:
    held = ask(question(Script(chunks=3, hold=True)))
    assert await held.read() is not grpc.aio.EOF
    assert await held.read() is not grpc.aio.EOF
    last = asyncio.ensure_future(held.read())
    assert len([data async for data in ask(question(Script(chunks=5)))]) == 5
    assert not last.done()
    assert [data async for data in ask(RELEASE)] == [b""]
    assert vertex.GenerateContentResponse.FromString(await last).candidates[0].finish_reason == vertex.Candidate.STOP
    assert await held.read() is grpc.aio.EOF


def test_a_request_without_a_script_is_refused() -> None:
    with pytest.raises(ValueError, match="holds no script"):
        Script.find(b"What is baseball?")


@pytest.mark.parametrize("script", [Script(chunks=7), Script(chunks=1, interval=0.05), Script(chunks=2, hold=True)])
def test_a_script_is_found_as_it_was_written(script: Script) -> None:
    assert Script.find(question(script)) == script


@pytest.mark.soak
def test_a_tiny_run_yields_figures() -> None:
    peers = [peer for peer in PEERS if peer.name in ("raw", "tokenwire", "known-1", "full-1", "envoy", "edge-1")]
    names = {peer.name: peer.text for peer in peers}
    run = Run(peers, ("memory", "hundred", "burst", "requests", "first"), 1, TINY)
    run.all()
    results = Results(run.results, cores=2)
    for peer in names:
        for scenario, figure in (("hundred", "us_per_chunk"), ("requests", "us_per_request")):
            spread = results.spread(scenario, peer, figure)
            assert spread is not None, (scenario, peer)
            assert spread.median > 0
        assert results.spread("first", peer, "first_ms", "p99") is not None
        assert results.spread("burst", peer, "look_at_gap_over_ms", "p99") is not None
        assert results.spread("memory", peer, "bytes_per_stream") is not None
    assert {one.name: one.reached for one in targets(results)}["CPU per chunk against plain"] == "not measured"
    told = report.text(results, names)
    assert "100 streams x 20/s" in told


def test_a_server_that_ends_at_once_is_told_with_its_words() -> None:
    with pytest.raises(BenchError, match=r"No module named bench\.nowhere"), started("none", "-m", "bench.nowhere"):
        pass


def test_the_page_is_written_from_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "PAGE", tmp_path / "benchmark.md")
    monkeypatch.setattr(report, "PLOT", tmp_path / "benchmark.svg")
    monkeypatch.setattr(report, "READMES", (readme := tmp_path / "README.md",))
    readme.write_text("".join(f"| {name} | 1 us | 2 us |\n" for name in ("floor", "ours", "plain", "article")))
    runs: list[Result] = [
        {"scenario": scenario, "peer": peer, "repeat": repeat, figure: cost * times + repeat, "errors": {}}
        for scenario, figure, times in (("hundred", "us_per_chunk", 1), ("requests", "us_per_request", 10))
        for peer, cost in (("raw", 100), ("tokenwire", 125), ("plain", 375), ("article", 500))
        for repeat in (0, 1, 2)
    ]
    about = {"date": "2026-01-02", "commit": "abc", "minutes": 1, "repeats": 3, "cores": 2}
    machine = {"cpu": "CPU", "system": "Linux", "python": "3.11", "packages": {"grpcio": "1"}}
    peers = {"raw": "the floor", "plain": "p", "article": "a", "tokenwire": "ours"}
    report.write(Results(runs, cores=2), peers, about | machine)
    page, plot = (tmp_path / "benchmark.md").read_text(), (tmp_path / "benchmark.svg").read_text()
    assert "1.25 (1.25-1.25) x | reached |" in page
    assert "0.34 (0.33-0.34) x | reached |" in page
    assert "126 (125-127)" in page
    assert ">126<" in plot
    assert readme.read_text().splitlines()[:2] == ["| floor | 101 us | 1,001 us |", "| ours | 126 us | 1,251 us |"]


def test_what_the_page_says_in_words_is_what_a_new_run_will_say() -> None:
    page = report.PAGE.read_text()
    for paragraph in report.PROSE.read_text().split("\n\n"):
        assert "$" in paragraph or paragraph.strip() in page


def test_ratios_are_taken_within_a_repeat() -> None:
    runs = [
        {"scenario": "hundred", "peer": peer, "repeat": repeat, "us_per_chunk": cost * (repeat + 1)}
        for peer, cost in (("raw", 10), ("tokenwire", 15))
        for repeat in (0, 1, 2)
    ]
    found = targets(Results(runs, cores=2))[0]
    assert found.value == Spread(1.5, 1.5, 1.5)
    assert found.reached == "reached"


def test_nothing_is_compared_with_what_measured_as_nothing() -> None:
    assert ratio({0: 0.0, 1: 3.0}, {0: 0.0, 1: 2.0}) == Spread(1.5, 1.5, 1.5)
    assert ratio({0: 4096.0}, {0: 0.0}) is None


def test_percentiles_are_values_that_were_seen() -> None:
    values = list(range(1, 101))
    assert [percentile(values, part) for part in (50, 99, 100)] == [50, 99, 100]
    assert percentile([3.0], 99) == 3.0


def test_the_upstreams_address_is_put_into_a_command() -> None:
    assert at(("-m", "x", "UPSTREAM"), "127.0.0.1:1") == ["-m", "x", "127.0.0.1:1"]
