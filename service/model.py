"""The seam between answering a call and asking a model: what is asked, what comes back, and one small protocol.

Nothing here knows gRPC, protobuf or LangChain. `FakeModel` stands beside the protocol for tests.
"""

import enum
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Protocol


class Role(enum.Enum):
    """Who speaks."""

    USER = "user"
    MODEL = "model"


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of the conversation."""

    role: Role
    parts: tuple[str, ...]
    """Its texts, in order; at least one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How to sample the answer. None is the model's own default, never zero. Ranges: tokenwire.v1.GenerationConfig."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    max_output_tokens: int | None = None
    stop_sequences: tuple[str, ...] = ()
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """What a model is asked: complete and validated."""

    model: str
    """Its public name; one that is on offer."""
    turns: tuple[Turn, ...]
    """Oldest first; the last is the user's."""
    system_instruction: str = ""
    sampling: Sampling = field(default_factory=Sampling)


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens, as upstream counted them for the whole answer."""

    input_tokens: int
    output_tokens: int
    """Without the thoughts."""
    reasoning_tokens: int = 0
    cached_tokens: int = 0
    """Those of the input that came from a cache."""
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
class Reasoning:
    """The next piece of the model's thoughts, or the signature that a later turn has to send back."""

    text: str
    signature: bytes = b""


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


Event = Started | Text | Reasoning | Finished


class Model(Protocol):
    """Something that answers prompts."""

    def stream(self, prompt: Prompt, *, deadline: float) -> AbstractAsyncContextManager[AsyncIterator[Event]]:
        """Ask, and stream the answer: `Started`, any number of pieces, `Finished` exactly once and last.

        Whoever leaves the context ends the call to the model, wherever the stream stands, before the exit returns.
        `deadline` is on the event loop's clock; upstream is told what remains of it. Errors: those of `service.errors`.
        """
        ...


class FakeModel:
    """A model that says what it is told to, for tests of everything above the seam.

    An exception among the events is raised in its place. `open` counts the streams that nobody has left yet.
    """

    def __init__(self, events: Sequence[Event | BaseException]) -> None:
        self.events = events
        self.asked: list[Prompt] = []
        self.open = 0

    @asynccontextmanager
    async def stream(self, prompt: Prompt, *, deadline: float) -> AsyncIterator[AsyncIterator[Event]]:  # noqa: ARG002 - as in Model
        self.asked.append(prompt)
        self.open += 1
        try:
            yield self._play()
        finally:
            self.open -= 1

    async def _play(self) -> AsyncIterator[Event]:
        for event in self.events:
            if isinstance(event, BaseException):
                raise event
            yield event
