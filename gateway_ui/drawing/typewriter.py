"""Smooths text that comes in bursts: letter by letter, never far behind."""

# Letters that wait are shown within about so long, however fast they came.
_LAG_SECONDS = 1.0
# A reader that looked away for longer doesn't get all letters of that time at once.
_STEP_SECONDS = 0.1


class Typewriter:
    """Says how many letters to show. It hurries in proportion to what waits, so nothing is lost or put off."""

    def __init__(self, now: float, *, shown: int = 0) -> None:
        self._shown = float(shown)
        self._at = now

    def advance(self, available: int, now: float, *, seconds_per_letter: float) -> int:
        """Letters to show now, of those `available`; with 0 seconds per letter that is all of them."""
        step = min(now - self._at, _STEP_SECONDS)
        self._at = now
        if seconds_per_letter <= 0:
            self._shown = available
        else:
            speed = max(1 / seconds_per_letter, (available - self._shown) / _LAG_SECONDS)
            self._shown = min(available, self._shown + speed * step)
        return int(self._shown)
