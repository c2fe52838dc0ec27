"""The memory of counts is bounded, and once all of it is taken nobody may more than before."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 1),
            st.sampled_from([0, 7, counts.MINUTE_SECONDS, counts.DAY_SECONDS]),
            st.integers(0, 99),
            st.booleans(),
        )
    )
)
def test_what_is_told_in_the_middle_of_an_answer_counts_as_anything_else(
    told: list[tuple[int, int, int, bool]],
) -> None:
    """`took` is a short way to add and to look, by any worker, over minutes and days."""
    short, long, now = Counts(2), Counts(2), NOW
    for worker, later, tokens, shortly in told:
        now += later
        for one in (short, long):
            one._mine = worker
        if shortly:
            today = short.took("a", now, tokens)
            assert today == short.used("a", now).tokens_today
        else:
            short.add("a", now, counts.More(requests=1, tokens=tokens))
        long.add("a", now, counts.More(requests=not shortly, tokens=tokens))
        assert short.used("a", now) == long.used("a", now)
