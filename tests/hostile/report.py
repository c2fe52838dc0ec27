"""`python -m tests.hostile.report`: puts what build/hostile.json holds into the table of docs/hostile.md."""

import json
import re
import sys
from datetime import UTC, datetime
from pathlib import Path

FILE = Path(__file__).parents[2] / "build" / "hostile.json"
PAGE = Path(__file__).parents[2] / "docs" / "hostile.md"

_ROW = re.compile(r"^\| (?P<name>[^|]+) \| (?P<what>[^|]+) \| [\d.,]+ \| [\d.,]+ \|$")


def page(old: str, figures: dict[str, dict[str, float]], date: str) -> str:
    """The page with new figures. Raises KeyError for an attack that has no row."""
    left = {name.removeprefix("laborious: "): found for name, found in figures.items()}
    sections = [_section(one, left, date) for one in re.split(r"(?m)^(?=## )", old)]
    if left:
        raise KeyError(f"docs/hostile.md has no row for {', '.join(sorted(left))}")
    return "".join(sections)


def _section(old: str, left: dict[str, dict[str, float]], date: str) -> str:
    """One with new figures, which are taken out of `left`, and the day of them."""
    lines = []
    for line in old.splitlines():
        row = _ROW.match(line)
        found = left.pop(row["name"], None) if row is not None else None
        if row is not None and found is not None:
            told = f"{found['probe_p50_ms']:g} | {found['probe_max_ms']:g}"
            lines.append(f"| {row['name']} | {row['what']} | {told} |")
        else:
            lines.append(line)
    new = "\n".join(lines) + "\n"
    return new if new == old else re.sub(r"(?<=two cores, )\d{4}-\d\d-\d\d", date, new)


if __name__ == "__main__":
    if not FILE.exists():
        sys.exit(f"{FILE} is not there: run make soak")
    PAGE.write_text(page(PAGE.read_text(), json.loads(FILE.read_text()), datetime.now(UTC).date().isoformat()))
