"""Who is likely to call again at once: connections that have had more calls open, a moment ago, than they have now."""

from collections import Counter, deque


class Recent:
    """Knows how many calls each connection has open, and had within the last `seconds` of the loop's clock."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._open: Counter[str] = Counter()
        self._ended: deque[tuple[float, str, int]] = deque()
        """Calls that ended lately: when, of which connection, and how many it had open until then."""

    def opened(self, connection: str) -> None:
        """A call of this connection begins."""
        self._open[connection] += 1

    def ended(self, connection: str, now: float) -> None:
        """A call of this connection has ended."""
        self._ended.append((now, connection, self._open[connection]))
        self._open[connection] -= 1
        if not self._open[connection]:
            del self._open[connection]
        self._forget(now)

    def missed(self, now: float) -> set[str]:
        """Connections that have fewer calls open now than they had lately."""
        self._forget(now)
        return {connection for _, connection, count in self._ended if self._open[connection] < count}

    def _forget(self, now: float) -> None:
        while self._ended and self._ended[0][0] < now - self._seconds:
            self._ended.popleft()
