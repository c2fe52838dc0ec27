"""The page on bad bytes is written from what was measured."""

import pytest

from tests.hostile.report import PAGE, page


def test_figures_take_their_place_in_the_table_and_nothing_else_changes() -> None:
    old = PAGE.read_text()
    new = page(old, {"TLS": {"probe_p50_ms": 1.5, "probe_max_ms": 2.25}}, "2030-01-02")
    assert "| TLS | closed | 1.5 | 2.25 |" in new
    assert "two cores, 2030-01-02)" in new
    changed = [pair for pair in zip(old.splitlines(), new.splitlines(), strict=True) if pair[0] != pair[1]]
    assert len(changed) == 2


def test_an_attack_without_a_row_is_named() -> None:
    with pytest.raises(KeyError, match="no row for nobody knows"):
        page(PAGE.read_text(), {"nobody knows": {"probe_p50_ms": 1, "probe_max_ms": 2}}, "2030-01-02")
