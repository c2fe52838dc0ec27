"""The page of the fault matrix."""

import json
import re
from contextlib import nullcontext
from pathlib import Path

import pytest

from tests.faults import recorder, report
from tests.faults.recorder import hold
from tests.faults.rows import ROWS

ROOT = Path(__file__).parents[2]

# The rows that were asked for, in the order and words of their list, and what is to hold at most; None: yes or no.
ASKED: dict[str, dict[str, float | None]] = {
    "cancel before the first chunk; while reading; at 2 ms chunks; during a retry wait": {
        "cancel before the first chunk": 50,
        "cancel while reading": 50,
        "cancel at 2 ms chunks": 50,
        "cancel during a retry wait": 50,
    },
    "cancel by a caller that isn't reading": {"cancel without reading": 150},
    "the same with garbage collection off": {
        "cancel before the first chunk (garbage collection off)": 50,
        "cancel while reading (garbage collection off)": 50,
        "cancel at 2 ms chunks (garbage collection off)": 50,
        "cancel during a retry wait (garbage collection off)": 50,
        "cancel without reading (garbage collection off)": 150,
    },
    "caller killed; caller stopped (SIGSTOP)": {"caller killed": 100, "caller stopped": 3000},
    "1,000 cancels, then 10,000": {"1,000 cancels": 10, "10,000 cancels": 10},
    "upstream allows 10 streams, 100 cancels went before": {"upstream of ten streams": 200},
    "caller deadline 300 ms": {"caller deadline": 350},
    "INVALID_ARGUMENT, PERMISSION_DENIED from upstream": {
        "INVALID_ARGUMENT from upstream": 100,
        "PERMISSION_DENIED from upstream": 100,
    },
    "UNAVAILABLE once, before and after headers": {"away once": None},
    "error after k chunks": {"error after k chunks": None},
    "remaining time shorter than the asked delay": {"delay beyond the deadline": 100},
    "OK without a finish reason; blocked prompt; each finish reason; number 99": {"endings": 0},
    "upstream goes silent (packets dropped, not closed)": {"upstream silent": 1000},
    "upstream reset or killed": {"upstream reset": 100, "upstream killed": 100},
    "100 stalled readers on a fast upstream": {"stalled readers: memory": 0.5, "stalled readers: others' gaps": 1.2},
    "3 x overload": {"overload: refusals": 20, "overload: gaps": 1.5, "overload: health": 0},
    "2,500 calls at once": {"2,500 calls": 0},
    "SIGTERM under load": {"SIGTERM: streams": 0, "SIGTERM: health": 100},
    "a bug raising in any layer, a stray CancelledError": {"bug in any layer": 100},
    "retries in an outage": {"attempts in an outage": 1.1},
}


@pytest.mark.parametrize("fault", ASKED)
def test_each_row_that_was_asked_for_is_there_with_its_bound(fault: str) -> None:
    assert {key: ROWS[key].bound for key in ASKED[fault]} == ASKED[fault]


def test_figures_of_an_ordinary_run_are_not_published() -> None:
    figures = {"soak": {"count": 1, "p50": 1.5, "max": 2.0, "date": "2026-11-22", "strict": False}}
    with pytest.raises(report.NotStrict, match="strictly: soak;"):
        report.page(figures)


def test_figures_of_an_ordinary_run_are_forgotten_before_a_strict_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strict, loose = ({"count": 1, "p50": 1.5, "max": 2.0, "date": "2026-11-22", "strict": one} for one in (True, False))
    file = tmp_path / "faults.json"
    monkeypatch.setattr(recorder, "FILE", file)
    recorder.forget_loose()
    file.write_text(json.dumps({"soak": loose, "caller killed": strict}))
    recorder.forget_loose()
    assert json.loads(file.read_text()) == {"caller killed": strict}


def test_soak_runs_whatever_measures_a_row_before_it_writes_the_page() -> None:
    recipe = (ROOT / "Makefile").read_text().partition("\nsoak:")[2].partition("\n.PHONY")[0]
    steps = recipe.partition("tests.faults.report")[0].splitlines()
    ran = [ROOT / word for step in steps if "STRICT=1" in step for word in step.split() if word.startswith("tests/")]
    files = (
        file for file in (ROOT / "tests").rglob("*.py") if re.search(r"^ +record\(", file.read_text(), re.MULTILINE)
    )
    assert [file for file in files if not any(folder in file.parents for folder in ran)] == []


@pytest.mark.parametrize(
    ("key", "figures", "strict", "held"),
    [
        ("cancel while reading", [1, 50], True, True),
        ("cancel while reading", [1, 51], True, False),
        ("cancel while reading", [1, 499, 2499], False, True),
        ("cancel while reading", [1, 501, 502], False, False),
        ("cancel while reading", [1, 2, 2501], False, False),
        ("SIGTERM: streams", [0, 0, 1], False, False),
        ("caller deadline without a reason", [0, 9], False, True),
        ("caller deadline without a reason", [1], True, False),
        ("attempts in an outage", [1.11], False, False),
        ("away once", [1e9], True, True),
    ],
)
def test_a_figure_beyond_its_bound_fails_and_one_far_beyond_it_fails_anywhere(
    key: str, figures: list[float], *, strict: bool, held: bool
) -> None:
    with nullcontext() if held else pytest.raises(AssertionError, match="is wanted"):
        hold(ROWS[key], figures, strict=strict)


def test_the_page_has_every_row_and_says_what_is_missing() -> None:
    figures = {key: {"count": 2, "p50": 1.5, "max": 2.0, "date": "2026-11-22", "strict": True} for key in ROWS}
    page = report.page(figures)
    for row in ROWS.values():
        assert f"| {row.fault} | {row.gets} | {row.figure} |" in page
    assert "not yet" not in page
    del figures["soak"]
    assert report.page(figures).count("| not yet |") == 1
