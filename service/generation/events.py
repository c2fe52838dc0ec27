"""What an answer is made of: one event for each piece, and its end."""

import enum
from dataclasses import dataclass

from .prompt import Reasoning, ToolCall


class FinishReason(enum.Enum):
    """Why an answer ended, by the names of tokenwire.v1.FinishReason."""

    STOP = enum.auto()
    MAX_TOKENS = enum.auto()
    SAFETY = enum.auto()
    RECITATION = enum.auto()
    BLOCKLIST = enum.auto()
    PROHIBITED_CONTENT = enum.auto()
    SPII = enum.auto()
    MALFORMED_FUNCTION_CALL = enum.auto()
    PROMPT_BLOCKED = enum.auto()
    OTHER = enum.auto()
    MODEL_ARMOR = enum.auto()
    EMPTY = enum.auto()
    """Made by us of a STOP behind nothing at all, which could not be told from an answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens, as upstream counted them for the whole answer."""

    input_tokens: int
    output_tokens: int
    """Without the thoughts."""
    reasoning_tokens: int = 0
    cached_tokens: int = 0
    """Tokens of the input that came from a cache."""
    total_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SafetyRating:
    """How probably a piece of content is harmful."""

    category: str
    """Google's own name, such as HARM_CATEGORY_HARASSMENT."""
    probability: str
    """Google's own word, such as NEGLIGIBLE."""
    blocked: bool


@dataclass(frozen=True, slots=True)
class Started:
    """The model has begun to answer: its first chunk is here."""

    model: str
    """The public name of the model that answers."""


@dataclass(frozen=True, slots=True)
class Text:
    """The next piece of the answer; never empty."""

    text: str


@dataclass(frozen=True, slots=True)
class Source:
    """A page, a document or a work that the answer rests on."""

    uri: str
    title: str = ""
    license: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Support:
    """A piece of the answer and its sources."""

    text: str
    sources: tuple[int, ...]
    """Indices into those of the same event."""
    start: int | None = None
    end: int | None = None
    """Bytes of UTF-8 into the answer's text; None where they aren't told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grounding:
    """What the answer rests on."""

    sources: tuple[Source, ...] = ()
    supports: tuple[Support, ...] = ()
    queries: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token with the natural logarithm of its probability."""

    token: str
    log_probability: float
    alternatives: tuple["TokenLogprob", ...] = ()
    """What else might have stood here, the most probable first."""


@dataclass(frozen=True, slots=True)
class Logprobs:
    """How probable the tokens of the preceding piece were."""

    tokens: tuple[TokenLogprob, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """The answer is complete."""

    reason: FinishReason
    upstream_reason: str
    """Upstream's own word for it, such as "STOP"; for a blocked prompt the block reason."""
    usage: Usage | None
    """None where upstream told none."""
    model_version: str = ""
    safety_ratings: tuple[SafetyRating, ...] = ()
    attempts: int = 1
    """How often upstream was asked."""


Event = Started | Text | Reasoning | ToolCall | Grounding | Logprobs | Finished
