"""The seam between answering a call and asking a model: what is asked, what comes back, and one small protocol.

Nothing here knows gRPC, protobuf or LangChain. `FakeModel` stands beside the protocol for tests.
"""

import enum
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field, fields
from typing import Any, Protocol


class Role(enum.Enum):
    """Who speaks."""

    USER = "user"
    MODEL = "model"
    TOOL = "tool"


@dataclass(frozen=True, slots=True)
class Blob:
    """Bytes with their type: an image, audio, a document."""

    mime_type: str
    data: bytes


@dataclass(frozen=True, slots=True)
class File:
    """A reference that the model's provider follows, never we."""

    mime_type: str
    uri: str


@dataclass(frozen=True, slots=True)
class Reasoning:
    """A piece of the model's thoughts, with the signature that a later turn has to send back where there was one.

    With a signature and no text it signs the text before it.
    """

    text: str
    signature: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """The model asks for a function to be called."""

    id: str
    name: str
    arguments: Mapping[str, Any]
    """JSON values by parameter name."""
    signature: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolResult:
    """What a called function returned."""

    id: str
    """Of the call that it answers."""
    name: str
    response: Mapping[str, Any]
    """A JSON object."""


Part = str | Blob | File | Reasoning | ToolCall | ToolResult
"""A str is text, never empty."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of the conversation."""

    role: Role
    parts: tuple[Part, ...]
    """In order; at least one."""


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
    thinking_budget: int | None = None
    include_thoughts: bool | None = None
    response_mime_type: str | None = None
    response_schema: Mapping[str, Any] | None = None
    """A JSON schema whose types are in lower case."""
    response_logprobs: bool | None = None
    logprobs: int | None = None


@dataclass(frozen=True, slots=True)
class Function:
    """A function that the model may ask for."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] | None = None
    """A JSON schema of type object, its types in lower case; None where it takes none."""


class ToolMode(enum.Enum):
    """Whether tools are called, by the names of tokenwire.v1.ToolChoice.Mode."""

    AUTO = "auto"
    ANY = "any"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """Whether and which tools are called."""

    mode: ToolMode
    names: tuple[str, ...] = ()
    """With ANY: only these; empty: all."""


@dataclass(frozen=True, slots=True)
class Tools:
    """What the model may make use of."""

    functions: tuple[Function, ...] = ()
    google_search: bool = False
    choice: ToolChoice | None = None

    def __bool__(self) -> bool:
        return bool(self.functions) or self.google_search


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """What a model is asked: complete and validated."""

    model: str
    """Its public name; one that is on offer."""
    turns: tuple[Turn, ...]
    """Oldest first; the last is the user's or a tool's."""
    system_instruction: str = ""
    sampling: Sampling = field(default_factory=Sampling)
    tools: Tools = field(default_factory=Tools)
    safety: Mapping[str, str] = field(default_factory=dict)
    """Google's name of a threshold, such as BLOCK_NONE, by that of a category, such as HARM_CATEGORY_HARASSMENT."""
    labels: Mapping[str, str] = field(default_factory=dict)

    def uses(self) -> frozenset[str]:
        """The paths of the fields that it sets, as far as a provider may have no word for one."""
        of_config = {f"config.{one.name}" for one in fields(self.sampling)}
        set_there = {path for path in of_config if getattr(self.sampling, path[7:]) not in (None, ())}
        thoughts = any(isinstance(part, Reasoning) for turn in self.turns for part in turn.parts)
        others = {
            "tools": bool(self.tools),
            "tools.google_search": self.tools.google_search,
            "safety_settings": bool(self.safety),
            "labels": bool(self.labels),
            "messages.parts.reasoning": thoughts,
        }
        return frozenset(set_there | {path for path, used in others.items() if used})

    def kinds(self) -> frozenset[str]:
        """What kinds of files it holds: "image", "audio", "video", "pdf", "text"."""
        types = {part.mime_type for turn in self.turns for part in turn.parts if isinstance(part, Blob | File)}
        return frozenset("pdf" if one == "application/pdf" else one.partition("/")[0] for one in types)


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """What a model on offer can take. None is unknown, and not refused: its provider will tell."""

    name: str
    """Its public name."""
    provider: str
    """Who runs it, in the words of OpenTelemetry's GenAI conventions."""
    lacks: frozenset[str] = frozenset()
    """Fields of a request that its provider has no word for, by their paths, such as "config.top_k"."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """What else the server's owner wants callers to know."""
    max_input_tokens: int | None = None
    max_output_tokens: int | None = None
    input_kinds: frozenset[str] | None = None
    """Of "text", "image", "audio", "video" and "pdf"."""
    file_schemes: frozenset[str] | None = None
    """Of the URIs that its provider follows, such as "gs"."""
    answer_types: tuple[str, ...] = ("text/plain", "application/json", "text/x.enum")
    """Media types that an answer may have."""
    max_stop_sequences: int = 5
    thinking: bool | None = None
    tools: bool | None = None
    json_with_tools: bool | None = None
    """Whether it answers in JSON where it may also call tools."""

    def takes(self, prompt: Prompt) -> bool:
        """Whether the model can be asked this, one that was validated for another model."""
        used = prompt.uses()
        in_json = prompt.sampling.response_mime_type not in (None, "text/plain")
        files = {part.uri.partition("://")[0] for turn in prompt.turns for part in turn.parts if isinstance(part, File)}
        return not (
            used & self.lacks
            or (self.tools is False and "tools" in used)
            or (self.thinking is False and used & {"config.thinking_budget", "config.include_thoughts"})
            or (self.json_with_tools is False and "tools" in used and in_json)
            or (self.input_kinds is not None and not prompt.kinds() <= self.input_kinds)
            or (self.file_schemes is not None and not files <= self.file_schemes)
            or (prompt.sampling.response_mime_type or "text/plain") not in self.answer_types
            or len(prompt.sampling.stop_sequences) > self.max_stop_sequences
        )


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


class Model(Protocol):
    """Something that answers prompts."""

    @property
    def cards(self) -> Sequence[Card]:
        """The models on offer, the default first."""
        ...

    async def count_tokens(self, prompt: Prompt, *, deadline: float) -> int:
        """How many tokens the prompt would take as input. Raises as `stream` does; NotServed where nobody counts."""
        ...

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

    def __init__(
        self,
        events: Sequence[Event | BaseException],
        *,
        cards: Sequence[Card] = (Card(name="gemini-2.5-flash", provider="gcp.vertex_ai"),),
        tokens: int = 0,
    ) -> None:
        self.events = events
        self.cards = cards
        self.tokens = tokens
        """What every prompt counts."""
        self.asked: list[Prompt] = []
        self.open = 0

    async def count_tokens(self, prompt: Prompt, *, deadline: float) -> int:  # noqa: ARG002 - as in Model
        self.asked.append(prompt)
        return self.tokens

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
