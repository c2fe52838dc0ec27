"""What all workers of a server count in memory that they share."""

from typing import NamedTuple, Self

from .counts import Counts
from .slots import Slots


class Shared(NamedTuple):
    """To be made before the workers are forked."""

    slots: Slots
    counts: Counts | None
    """None where nobody has to say who calls."""

    @classmethod
    def of(cls, *, slots: int, per_caller: int, workers: int = 1, counted: bool = False) -> Self:
        """Of so many workers; `slots` and `per_caller` as `Slots` has them; `counted`: callers say who they are."""
        return cls(Slots(slots=slots, per_caller=per_caller, workers=workers), Counts(workers) if counted else None)

    def join(self, worker: int) -> None:
        """Count as this worker from here on. What one of the same number had open, before it died, is given back."""
        self.slots.join(worker)
        if self.counts is not None:
            self.counts.join(worker)
