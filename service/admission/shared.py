"""What all workers of a server count in memory that they share."""

from typing import NamedTuple, Self

from .counts import Counts
from .identity import Identity
from .slots import Slots


class Shared(NamedTuple):
    """To be made before the workers are forked."""

    slots: Slots
    counts: Counts | None
    """None where nobody has to say who calls."""
    identity: Identity
    """As it was when the server started: for a worker that takes another's place while the files can't be used."""

    @classmethod
    def of(cls, *, slots: int, per_caller: int, workers: int = 1, identity: Identity | None = None) -> Self:
        """Of so many workers; `slots` and `per_caller` as `Slots` has them. Without `identity` anybody may call."""
        identity = identity or Identity()
        counts = Counts(workers) if identity.is_asked else None
        return cls(Slots(slots=slots, per_caller=per_caller, workers=workers), counts, identity)

    def join(self, worker: int) -> None:
        """Count as this worker from here on. What one of the same number had open, before it died, is given back."""
        self.slots.join(worker)
        if self.counts is not None:
            self.counts.join(worker)
            self.identity.refresh()
