"""The page of the fault matrix."""

from tests.faults import report
from tests.faults.rows import ROWS


def test_the_page_has_every_row_and_says_what_is_missing() -> None:
    figures = {key: {"count": 2, "p50": 1.5, "max": 2.0, "date": "2026-11-22", "strict": True} for key in ROWS}
    page = report.page(figures)
    for row in ROWS.values():
        assert f"| {row.fault} | {row.gets} | {row.figure} |" in page
    assert "not yet" not in page
    del figures["soak"]
    assert report.page(figures).count("| not yet |") == 1
