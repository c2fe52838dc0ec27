"""How a caller wants the answer delivered."""

from dataclasses import dataclass

from tokenwire.v1 import generation_service_pb2 as pb

from .values import seconds

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


def delivery(request: pb.GenerateRequest) -> Delivery:
    """How the answer to this request is to be delivered; `parse` has found its fields valid."""
    merge = None
    if request.HasField("coalesce"):
        merge = Coalesce(
            max_delay=seconds(request.coalesce.max_delay) if request.coalesce.HasField("max_delay") else 0.0,
            max_bytes=request.coalesce.max_bytes if request.coalesce.HasField("max_bytes") else MAX_BYTES,
        )
    return Delivery(
        first_chunk_timeout=seconds(request.first_chunk_timeout) if request.HasField("first_chunk_timeout") else None,
        idle_timeout=seconds(request.idle_timeout) if request.HasField("idle_timeout") else None,
        coalesce=merge,
    )
