"""Keeps what was drawn lately, within a bound in bytes: an answer may be a word or a book."""

import sys
import threading
from collections.abc import Callable
from functools import update_wrapper
from typing import Generic, TypeVar

Drawn = TypeVar("Drawn", bound=str | tuple[str, ...])


class Kept(Generic[Drawn]):
    """A function of strings that remembers its latest results. For several threads.

    What was asked for the longest time ago goes first, once arguments and results together take more than `most` bytes.
    """

    def __init__(self, function: Callable[..., Drawn], most: int) -> None:
        self._function = function
        self._most = most
        self._results: dict[tuple[str, ...], Drawn] = {}
        """The latest last."""
        self._lock = threading.Lock()
        self.bytes = 0
        """So many are taken by arguments and results."""
        update_wrapper(self, function)

    def __call__(self, *texts: str) -> Drawn:
        with self._lock:
            if texts in self._results:
                self._results[texts] = result = self._results.pop(texts)
                return result
        result = self._function(*texts)
        size = _size(texts) + _size(result)
        with self._lock:
            if texts not in self._results and size <= self._most:
                self._results[texts] = result
                self.bytes += size
                while self.bytes > self._most:
                    oldest = next(iter(self._results))
                    self.bytes -= _size(oldest) + _size(self._results.pop(oldest))
        return result


def kept(most: int) -> Callable[[Callable[..., Drawn]], Kept[Drawn]]:
    """Decorate a function of strings that is called again and again with the same: see Kept."""
    return lambda function: Kept(function, most)


def _size(value: str | tuple[str, ...]) -> int:
    return sys.getsizeof(value) + (sum(map(sys.getsizeof, value)) if isinstance(value, tuple) else 0)
