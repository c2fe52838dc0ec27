"""What the upstream is asked to answer, told in the prompt, and the answer that it gives."""

import re
from dataclasses import dataclass
from typing import Self

from google.protobuf.timestamp_pb2 import Timestamp

from vertex_emulator.protos import prediction_pb2 as vertex

METHOD = "/google.cloud.aiplatform.v1beta1.PredictionService/StreamGenerateContent"
RELEASE = b"release every stream that is held"
MODEL = "projects/local/locations/us-central1/publishers/google/models/gemini-2.5-flash"

# About four tokens each, as Gemini's smaller chunks are.
_PIECES = (
    " and the ball flies",
    " over the third base",
    ", while the crowd",
    " rises from its seats",
    " to see it land.",
)

_LARGE_CHARACTERS = 15_000
"""A frame of HTTP/2 has 16,384 bytes at most, and the upstream sends a chunk in one."""

STAMP = "0" * 20
"""In place of a piece: the upstream puts there when it sent it, in nanoseconds of `time.monotonic_ns`."""

_TOKENS_PER_PIECE = 4
_PROMPT_TOKENS = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """One answer."""

    chunks: int
    interval: float = 0.0
    """Seconds between two chunks; 0 is as fast as they can be written."""
    hold: bool = False
    """Whether the last chunk waits until the upstream is told to release it."""
    stamped: bool = False
    """Whether each chunk says when it was sent, in place of words."""
    large: bool = False
    """Whether each chunk has 15 KB of text: then the buffers on the way to a caller that doesn't read are soon full."""

    def __str__(self) -> str:
        more = f"{' hold' if self.hold else ''}{' stamped' if self.stamped else ''}"
        more += " large" if self.large else ""
        return f"chunks={self.chunks} interval={self.interval:g}{more}"

    @classmethod
    def find(cls, request: bytes) -> Self:
        """Read it from a request's bytes, wherever the prompt is in them. Raises ValueError if there is none."""
        found = re.search(rb"chunks=(\d+) interval=([\d.e-]+)( hold)?( stamped)?( large)?", request)
        if found is None:
            raise ValueError(f"the prompt holds no script such as {cls(chunks=100, interval=0.05)}")
        hold, stamped, large = (part is not None for part in found.groups()[2:])
        return cls(chunks=int(found[1]), interval=float(found[2]), hold=hold, stamped=stamped, large=large)

    @property
    def text(self) -> str:
        """The whole answer, unless it is stamped."""
        return "".join(large(index) if self.large else piece(index) for index in range(self.chunks))


def piece(index: int) -> str:
    """The text of the chunk with this index."""
    return _PIECES[index % len(_PIECES)]


def large(index: int) -> str:
    """The same, 15 KB long."""
    words = piece(index)
    return (words * (_LARGE_CHARACTERS // len(words) + 1))[:_LARGE_CHARACTERS]


def chunk(index: int, *, last: bool, text: str = "") -> bytes:
    """A chunk as Vertex sends it: usage is cumulative, the finish reason comes with the last.

    `text`: in place of this chunk's own.
    """
    part = vertex.Part(text=text or piece(index))
    candidate = vertex.Candidate(content=vertex.Content(role="model", parts=[part]))
    if last:
        candidate.finish_reason = vertex.Candidate.STOP
    output = (index + 1) * _TOKENS_PER_PIECE
    return vertex.GenerateContentResponse(
        candidates=[candidate],
        usage_metadata=vertex.GenerateContentResponse.UsageMetadata(
            prompt_token_count=_PROMPT_TOKENS,
            candidates_token_count=output,
            total_token_count=_PROMPT_TOKENS + output,
        ),
        model_version="gemini-2.5-flash",
        create_time=Timestamp(seconds=1_790_000_000, nanos=123_456_000),
        response_id="u5qhaIjOCt2Hn9kP7bXd4QY",
    ).SerializeToString()


def question(script: Script) -> bytes:
    """The request that asks Vertex itself for this answer."""
    part = vertex.Part(text=f"Tell me about baseball. {script}")
    content = vertex.Content(role="user", parts=[part])
    return vertex.GenerateContentRequest(model=MODEL, contents=[content]).SerializeToString()
