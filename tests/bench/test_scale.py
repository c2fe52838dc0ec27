"""What open streams cost can be measured: a tiny run with all parts real. No time is judged."""

import re

import pytest

from bench.processes import BenchError
from bench.scale import INTERVAL, Step, connections_to, main, ramp


@pytest.mark.soak
def test_a_ramp_tells_each_step(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--quick"]) == 0
    told = capsys.readouterr().out
    assert re.search(r"^one worker, 1 repeats; \d+ MB without a stream$", told, re.MULTILINE)
    row = r"^\| (10|20) \| [\d.]+ \| [\d.]+ \| [\d,]+ \| -?\d+ \| .* \| (\d+) \| (\d+) % \|$"
    rows = re.findall(row, told, re.MULTILINE)
    assert [streams for streams, _, _ in rows] == ["10", "20"]
    assert all(int(connections) >= 1 for _, connections, _ in rows)
    assert all(80 <= int(delivered) <= 120 for _, _, delivered in rows)


@pytest.mark.soak
def test_streams_that_are_refused_are_no_figure() -> None:
    with pytest.raises(BenchError, match=r"SERVER_BUSY|RESOURCE_EXHAUSTED"):
        ramp([20], 2.0, "--slots", "1", "--queue", "0")


def test_of_repeats_the_median_counts_figure_by_figure() -> None:
    found = Step.median([Step(10, 0.1 * n, 1e3, 1e8, 1.0, 4.0 - n, 1, 1.0) for n in (1, 2, 3)])
    assert (found.streams, found.cores, found.gap_p99_ms) == (10, 0.2, 2.0)
    assert not found.is_behind
    # 0.2 of a core for ten streams of five chunks a second.
    assert f"| {found.cores * INTERVAL / 10 * 1e6:,.0f} |" in found.told()


def test_a_port_that_nobody_uses_has_no_connections() -> None:
    assert connections_to("127.0.0.1:1") == 0
