"""What a model is asked."""

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


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
    models: frozenset[str] | None = None
    """The models that may answer, by their public names; None: any."""
    usage_seen: Callable[[int], object] | None = field(default=None, compare=False, repr=False)
    """Called with the tokens that the request has taken so far, whenever upstream tells before the answer has ended."""
    owner_labels: Mapping[str, str] = field(default_factory=dict)
    """As `labels`, from the server's owner: for providers that have them, and no reason for others to refuse."""
