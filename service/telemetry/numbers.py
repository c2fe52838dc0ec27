"""Numbers that all workers of a server count together: counters, gauges and histograms in shared memory.

Each worker counts in a row of its own, and a reader adds all rows up: there is no lock that a dying worker could
keep, no file that it could leave behind, and what it had counted stays. What a label may be is said beforehand, so that
nothing a caller chooses can ever become one.
"""

import math
import mmap
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import ClassVar, NamedTuple

OTHER = "_OTHER"
"""In place of a label that isn't one of those that were said beforehand; OpenTelemetry's word for it."""

Labels = tuple[str, ...]


class Sample(NamedTuple):
    """What one row of labels stands at, over all workers."""

    labels: Labels
    value: float
    """The count, or where it stands; of a histogram the sum of all that was observed."""
    buckets: Sequence[tuple[float, float]] = ()
    """Of a histogram: each upper bound, with how many observations were no larger."""


class Reading(NamedTuple):
    """A gauge that is asked for when somebody looks."""

    name: str
    text: str
    labels: Labels = ()
    samples: Sequence[Sample] = ()


class Number:
    """What all kinds have in common. Only the event loop counts; any thread may look."""

    kind: ClassVar[str]

    def __init__(
        self, name: str, text: str, labels: Labels = (), values: Iterable[Labels] = ((),), *, cells: int = 1
    ) -> None:
        """`values`: all that the labels can be."""
        self.name = name
        self.text = text
        self.labels = labels
        known = dict.fromkeys([*values, *([(OTHER,) * len(labels)] if labels else [])])
        self._places = {one: place * cells for place, one in enumerate(known)}
        self._other = (len(known) - 1) * cells
        self._cells = cells
        self.use([memoryview(bytearray(self.size * 8)).cast("d")])

    @property
    def size(self) -> int:
        """How many numbers a row takes."""
        return len(self._places) * self._cells

    def use(self, rows: Sequence["memoryview[float]"]) -> None:
        """Begin anew in these rows, which other processes may share: in the first of them, unless told to `join`."""
        self._rows = rows
        self._row = rows[0]

    def join(self, row: int) -> None:
        """Count in this row from here on; what one before has counted there stays."""
        self._row = self._rows[row]

    def _place(self, labels: Labels) -> int:
        return self._places.get(labels, self._other)

    def _sum(self, cell: int) -> float:
        return math.fsum(row[cell] for row in self._rows)

    def samples(self) -> list[Sample]:
        """Where it stands. A label that was never said beforehand is only shown where it has come."""
        found = [Sample(labels, self._sum(place)) for labels, place in self._places.items()]
        return [one for one in found if one.value or OTHER not in one.labels]


def share(numbers: Iterable[Number], rows: int) -> None:
    """Have all of these begin anew in so many rows of memory that forked processes share: to be called before."""
    found = [*numbers]
    memory = [memoryview(mmap.mmap(-1, 8 * sum(one.size for one in found))).cast("d") for _ in range(rows)]
    begin = 0
    for one in found:
        one.use([row[begin : begin + one.size] for row in memory])
        begin += one.size


class Counter(Number):
    """Only ever grows."""

    kind = "counter"

    def add(self, *labels: str, by: float = 1) -> None:
        self._row[self._place(labels)] += by


class Gauge(Number):
    """Stands somewhere now. What a worker says of itself ends with it: one that takes its place begins at 0."""

    kind = "gauge"

    def join(self, row: int) -> None:
        super().join(row)
        for cell in range(len(self._row)):
            self._row[cell] = 0

    def add(self, *labels: str, by: float = 1) -> None:
        self._row[self._place(labels)] += by

    def set(self, value: float, *labels: str) -> None:
        self._row[self._place(labels)] = value


class Histogram(Number):
    """How often something was how large. Only what has been observed is shown."""

    kind = "histogram"

    def __init__(
        self,
        name: str,
        text: str,
        bounds: Sequence[float],
        labels: Labels = (),
        values: Iterable[Labels] = ((),),
    ) -> None:
        """`bounds` of the buckets, rising; one for all that is beyond them comes with them."""
        self._bounds = bounds
        super().__init__(name, text, labels, values, cells=len(bounds) + 2)

    def observe(self, value: float, *labels: str) -> None:
        place = self._place(labels)
        self._row[place + bisect_left(self._bounds, value)] += 1
        self._row[place + len(self._bounds) + 1] += value

    def samples(self) -> list[Sample]:
        found = []
        for labels, place in self._places.items():
            count, buckets = 0.0, []
            for step, bound in enumerate((*self._bounds, math.inf)):
                count += self._sum(place + step)
                buckets.append((bound, count))
            if count or not self.labels:
                found.append(Sample(labels, self._sum(place + len(self._bounds) + 1), buckets))
        return found
