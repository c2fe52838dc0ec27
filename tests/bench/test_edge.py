"""The figures of Envoy can be taken: tiny runs with all parts real. No time is judged."""

import re

import pytest

from bench.edge.__main__ import main
from bench.edge.rolling import rolled
from bench.script import STAMP, Script


def test_what_envoy_adds_is_told_for_both_ways(capsys: pytest.CaptureFixture[str]) -> None:
    main(["added", "--quick"])
    told = capsys.readouterr().out
    assert re.search(r"^service +p50 [\d.]+ ms; p99 [\d.]+ ms$", told, re.MULTILINE)
    for way in ("gRPC", "events"):
        assert re.search(rf"^Envoy, {way} +p50 [\d.]+ ms, added -?[\d.]+, at most 0\.3; p99 ", told, re.MULTILINE)


def test_readers_that_stall_hold_their_streams_while_others_read(capsys: pytest.CaptureFixture[str]) -> None:
    main(["readers", "--quick"])
    told = capsys.readouterr().out
    assert re.search(r"^6 readers: gap p99 .+ ms; beside 2 that stall [\d.]+ ms$", told, re.MULTILINE)
    assert re.search(r" x, at most 1\.2 x; 2 streams are still held", told)
    assert re.search(r"^memory of Envoy, beside them: \d+ MB$", told, re.MULTILINE)


@pytest.mark.soak
async def test_replicas_are_restarted_while_calls_go_on() -> None:
    outcome = await rolled(restarts=2, streams=4, a_second=10, stream_seconds=1)
    assert not outcome.failed
    assert (outcome.doubled, outcome.lost) == (0, 0)
    assert outcome.streams > 4
    assert outcome.short > 20


def test_a_stamped_script_is_found_as_it_was_written() -> None:
    script = Script(chunks=3, interval=0.05, stamped=True)
    assert Script.find(str(script).encode()) == script
    assert len(f"{2**63}") <= len(STAMP)


@pytest.mark.parametrize("what", [[], ["nothing"]])
def test_what_is_to_be_measured_has_to_be_said(what: list[str]) -> None:
    with pytest.raises(SystemExit):
        main(what)
