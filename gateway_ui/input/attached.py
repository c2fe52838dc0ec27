"""A file that goes along with a question, and how files and their sizes are told to people."""

import math
from dataclasses import dataclass

from tokenwire.cli.meter import size
from tokenwire.v1.content_pb2 import Part


@dataclass(frozen=True, slots=True)
class Attachment:
    """A file that can be sent."""

    name: str
    """As its owner calls it. The part has no room for it, so the page keeps it."""
    part: Part
    note: str = ""
    """What was done to it, in words for a person; empty: it is sent as it came."""
    place: int = 0
    """Which of the files of its question it is, from 0 on."""

    @property
    def size(self) -> int:
        """How many bytes are sent."""
        return len(self.part.inline_data.data)


def at_least(count: int) -> str:
    """As `size`, but rounded up: what is too large mustn't read as if it just fitted."""
    return size(math.ceil(count / 100_000) * 100_000 if count >= 1_000_000 else count)


def at_most(count: int) -> str:
    """As `size`, but rounded down: what is said to fit has to."""
    return size(count // 100_000 * 100_000 if count >= 1_000_000 else count)


def short(name: str) -> str:
    """A file's name, cut in the middle where it is long."""
    return name if len(name) <= 80 else f"{name[:60]}…{name[-19:]}"
