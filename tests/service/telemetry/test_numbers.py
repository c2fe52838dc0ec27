"""Numbers that several processes count together."""

import math
import os
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.telemetry.numbers import OTHER, Counter, Gauge, Histogram, Number, Sample, share
from tests.marks import needs_fork

LABELS = ("a", "b")
KNOWN = [("x", "1"), ("x", "2"), ("y", "1")]


def shared(number: Any, rows: int) -> Any:
    share([Counter("other", "text"), number], rows)
    return number


def found(number: Number) -> dict[tuple[str, ...], Sample]:
    return {sample.labels: sample for sample in number.samples()}


@given(
    st.lists(
        st.tuples(
            st.integers(0, 2),
            st.one_of(st.sampled_from(KNOWN), st.tuples(st.text(max_size=3), st.text(max_size=3))),
            st.integers(0, 5),
        )
    )
)
def test_all_that_is_counted_in_any_row_is_there_and_only_under_labels_that_are_known(
    counts: list[tuple[int, tuple[str, str], int]],
) -> None:
    counter = shared(Counter("n", "text", LABELS, KNOWN), 3)
    wanted = dict.fromkeys(KNOWN, 0) | {(OTHER, OTHER): 0}
    for row, labels, count in counts:
        counter.join(row)
        counter.add(*labels, by=count)
        wanted[labels if labels in wanted else (OTHER, OTHER)] += count
    if not wanted[OTHER, OTHER]:
        del wanted[OTHER, OTHER]
    assert {labels: sample.value for labels, sample in found(counter).items()} == wanted


@given(st.lists(st.tuples(st.integers(0, 1), st.floats(0, 100))))
def test_a_bucket_holds_all_that_is_no_larger(observed: list[tuple[int, float]]) -> None:
    bounds = (0.5, 1.0, 10.0)
    histogram = shared(Histogram("n", "text", bounds), 2)
    for row, value in observed:
        histogram.join(row)
        histogram.observe(value)
    (sample,) = histogram.samples()
    assert sample.buckets == [(bound, sum(value <= bound for _, value in observed)) for bound in (*bounds, math.inf)]
    assert sample.value == pytest.approx(sum(value for _, value in observed))


def test_of_a_histogram_with_labels_only_what_came_is_shown() -> None:
    histogram = Histogram("n", "text", (1.0,), LABELS, KNOWN)
    assert not histogram.samples()
    histogram.observe(2, "x", "2")
    assert list(found(histogram)) == [("x", "2")]


def test_what_a_worker_said_of_itself_ends_with_it_and_what_it_counted_stays() -> None:
    counter, gauge = shared(Counter("n", "text"), 2), shared(Gauge("m", "text"), 2)
    for number in (counter, gauge):
        number.join(1)
        number.add(by=3)
    for number in (counter, gauge):
        number.join(1)
    assert (found(counter)[()].value, found(gauge)[()].value) == (3, 0)


@needs_fork
def test_processes_count_together() -> None:
    counter = shared(Counter("n", "text"), 3)
    for row in (1, 2):
        if not (child := os.fork()):
            counter.join(row)
            for _ in range(1000):
                counter.add()
            os._exit(0)
        os.waitpid(child, 0)
    counter.add()
    assert found(counter)[()].value == 2001
