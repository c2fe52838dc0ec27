"""The audit says what was really looked up, and fails for nothing but a known vulnerability."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import audit

HOLE = {"id": "GHSA-1", "fix_versions": ["2.0"], "aliases": [], "description": "bad"}
GOOD = {"name": "good", "version": "1.0", "vulns": []}
BAD = {"name": "bad", "version": "1.0", "vulns": [HOLE, {**HOLE, "id": "GHSA-2", "fix_versions": []}]}
SKIPPED = {"name": "skipped", "skip_reason": "Dependency not found on PyPI and could not be audited"}


def said(*packages: dict[str, Any]) -> tuple[str, bool]:
    return audit.said(json.dumps({"dependencies": packages, "fixes": []}), "")


def test_a_known_vulnerability_is_told_with_its_remedy() -> None:
    told, found = said(GOOD, BAD)
    assert found
    assert told.splitlines() == [
        "2 dependencies audited, 2 known vulnerabilities",
        "bad 1.0: GHSA-1, mended in 2.0",
        "bad 1.0: GHSA-2, mended in no version yet",
    ]


def test_what_is_well_is_told_with_what_could_not_be_looked_up() -> None:
    assert said(GOOD, SKIPPED) == ("1 dependencies audited, no known vulnerabilities; not in the list: skipped", False)


@pytest.mark.parametrize("packages", [(), (SKIPPED,), (SKIPPED, SKIPPED)])
def test_nothing_looked_up_is_not_told_as_nothing_found(packages: tuple[dict[str, Any], ...]) -> None:
    told, found = said(*packages)
    assert told.startswith("Dependencies were not audited")
    assert not found


@given(st.text() | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(json.dumps), st.text())
def test_what_cannot_be_read_is_told_and_fails_nothing(answer: str, complaints: str) -> None:
    told, found = audit.said(answer, complaints)
    assert told.startswith("Dependencies were not audited: ")
    assert not found
