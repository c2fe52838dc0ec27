"""How a caller wants the answer delivered."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

MAX_DELAY_SECONDS = 1.0
MAX_BYTES = 65536


@dataclass(frozen=True, slots=True)
class Coalesce:
    """How pieces may be merged."""

    max_delay: float = 0.0
    """Seconds that a piece may be held back; 0 merges only what waits for a slow reader."""
    max_bytes: int = MAX_BYTES
    """UTF-8 text held back at most."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """How the caller wants the answer delivered. Seconds; None is no limit but the deadline."""

    first_chunk_timeout: float | None = None
    idle_timeout: float | None = None
    coalesce: Coalesce | None = None
    """None: every piece is sent as it comes."""


def wants_failed(metadata: Iterable[tuple[str, Any]]) -> bool:
    """Whether a caller wants to be told by a message, too, that its stream has failed."""
    return any(key == "tokenwire-failed" and value == "in-stream" for key, value in metadata)
