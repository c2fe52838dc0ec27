"""The memory of counts is bounded, and once all of it is taken nobody may more than before."""

import pytest

from service.admission import counts
from service.admission.counts import Counts

NOW = 1_700_000_000.0


def test_callers_beyond_the_last_cell_share_counts_and_none_may_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counts, "_CELLS", 64)
    found = Counts(2)
    callers = [f"caller-{number}" for number in range(1_000)]
    for number, caller in enumerate(callers):
        found.join(number % 2)
        found.add(caller, NOW, counts.More(requests=1, tokens=5))
    used = [found.used(caller, NOW) for caller in callers]
    assert all(one.requests_in_minute >= 1 and one.tokens_today >= 5 for one in used)
    assert sum(one.requests_in_minute for one in used) > 1_000  # they do share
    assert len(found._cells) <= 64
