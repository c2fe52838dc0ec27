"""What a model on offer can take: the one check, for a request that names the model and for one that falls back on it.

A request is a set of needs, each of which a model meets or lacks. `needs` gives those of a prompt; those of a request
as it arrives, each with the field that it stands in, are in `contract/lacking.py`. A property test holds the two equal.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields

from .json_schema import Word, words
from .prompt import Blob, File, Part, Prompt, Reasoning, Sampling, ToolCall, ToolResult

PLAIN_TEXT = "text/plain"

IMAGES = frozenset(f"image/{name}" for name in ("png", "jpeg", "webp", "gif", "heic", "heif"))
"""Those that models read; there are many more kinds of images."""

_MIME_TYPE = re.compile(r"[a-z]+/[a-z0-9.+-]+")

FIELDS = frozenset(
    {
        "system_instruction",
        "tools",
        "tools.google_search",
        "tool_choice",
        "safety_settings",
        "labels",
        *(f"config.{one.name}" for one in fields(Sampling)),
        *(f"messages.parts.{kind}" for kind in ("inline_data", "file_data", "tool_call", "tool_result")),
        *(f"messages.parts.{kind}" for kind in ("reasoning", "reasoning_signature")),
    }
)
"""The fields of a request that a provider may have no word for, by their paths without an index.

What isn't here is for the server itself, as `coalesce` is, or is taken by every model, as text is.
"""


@dataclass(frozen=True, slots=True)
class UsesField:
    """The request sets a field."""

    path: str
    """One of FIELDS."""


@dataclass(frozen=True, slots=True)
class Reads:
    """The request holds media of this kind: "text", "image", "audio", "video" or "pdf"."""

    kind: str


@dataclass(frozen=True, slots=True)
class TakesType:
    """The request holds media of exactly this type."""

    mime_type: str
    linked: bool
    """Whether the request has the file's URI, and not its bytes."""


@dataclass(frozen=True, slots=True)
class Follows:
    """The request refers to a file by a URI of this scheme, "" for none, which the provider has to follow."""

    scheme: str


@dataclass(frozen=True, slots=True)
class AnswersIn:
    """The answer has to be of this media type."""

    mime_type: str


@dataclass(frozen=True, slots=True)
class AnswersInFormWithTools:
    """The answer has to be of another type than plain text, and there are tools beside."""


@dataclass(frozen=True, slots=True)
class StopsAt:
    """The answer ends at any of so many sequences."""

    count: int


@dataclass(frozen=True, slots=True)
class Writes:
    """A schema of the request says something that not every provider has a word for."""

    word: Word


Need = UsesField | Reads | TakesType | Follows | AnswersIn | AnswersInFormWithTools | StopsAt | Writes
"""Something of a request that not every model can do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """What a model on offer can take. None is unknown, and not refused: its provider will tell."""

    name: str
    """Its public name."""
    provider: str
    """Who runs it, in the words of OpenTelemetry's GenAI conventions."""
    unsupported: frozenset[str] = frozenset()
    """Of FIELDS, those that its provider has no word for, such as "config.top_k"."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """What else the server's owner wants callers to know."""
    max_input_tokens: int | None = None
    max_output_tokens: int | None = None
    input_kinds: frozenset[str] | None = None
    """Of "text", "image", "audio", "video" and "pdf"."""
    inline_types: frozenset[str] | None = None
    """Of media whose bytes are in the request, the types that its provider has a word for; "text/*" is all of text."""
    linked_types: frozenset[str] | None = None
    """The same for files that are named by their URI."""
    file_schemes: frozenset[str] | None = None
    """Of the URIs that its provider follows, such as "gs"."""
    answer_types: tuple[str, ...] = ("text/plain", "application/json", "text/x.enum")
    """Media types that an answer may have."""
    max_stop_sequences: int = 5
    schema_words: frozenset[Word] = frozenset()
    """What its provider takes in a JSON schema beyond what all take."""
    deprecated: bool = False
    """Whether its provider is about to take it away."""
    thinking: bool | None = None
    tools: bool | None = None
    json_with_tools: bool | None = None
    """Whether it answers in JSON where it may also call tools."""

    def lacks(self, need: Need) -> bool:  # noqa: PLR0911 - one for each need
        """Whether a request with this need must not be sent to the model."""
        match need:
            case UsesField():
                return (
                    need.path in self.unsupported
                    or (self.tools is False and need.path == "tools")
                    or (self.thinking is False and need.path in ("config.thinking_budget", "config.include_thoughts"))
                )
            case Reads():
                return self.input_kinds is not None and need.kind not in self.input_kinds
            case TakesType():
                taken = self.linked_types if need.linked else self.inline_types
                kind = kind_of(need.mime_type)
                if taken is None or (self.input_kinds is not None and kind not in self.input_kinds):
                    return False  # that it doesn't read this kind at all is said by `Reads`
                return need.mime_type not in taken and f"{kind}/*" not in taken
            case Follows():
                return self.file_schemes is not None and need.scheme not in self.file_schemes
            case AnswersIn():
                return need.mime_type not in self.answer_types
            case AnswersInFormWithTools():
                return self.json_with_tools is False
            case StopsAt():
                return need.count > self.max_stop_sequences
            case Writes():
                return need.word not in self.schema_words

    def takes(self, prompt: Prompt) -> bool:
        """Whether the model can be asked this, one that was validated for another model."""
        return not any(map(self.lacks, needs(prompt)))


def needs(prompt: Prompt) -> Iterator[Need]:
    """What the prompt needs of a model; the same need may come more than once."""
    sampling, tools = prompt.sampling, prompt.tools
    for one in fields(sampling):
        if getattr(sampling, one.name) not in (None, ()):
            yield UsesField(f"config.{one.name}")
    others = {
        "system_instruction": prompt.system_instruction,
        "tools": tools,
        "tools.google_search": tools.google_search,
        "tool_choice": tools.choice is not None,
        "safety_settings": prompt.safety,
        "labels": prompt.labels,
    }
    yield from (UsesField(path) for path, used in others.items() if used)
    if sampling.stop_sequences:
        yield StopsAt(len(sampling.stop_sequences))
    if sampling.response_mime_type is not None:
        yield AnswersIn(sampling.response_mime_type)
        if tools and sampling.response_mime_type != PLAIN_TEXT:
            yield AnswersInFormWithTools()
    for schema in (sampling.response_schema, *(function.parameters for function in tools.functions)):
        if schema is not None:
            yield from (Writes(word) for _, word in words(schema))
    for turn in prompt.turns:
        for part in turn.parts:
            yield from _of_part(part)


def _of_part(part: Part) -> Iterator[Need]:
    match part:
        case str():
            pass
        case Blob():
            yield UsesField("messages.parts.inline_data")
            yield from reads(part.mime_type, linked=False)
        case File():
            yield UsesField("messages.parts.file_data")
            yield from reads(part.mime_type, linked=True)
            yield follows(part.uri)
        case Reasoning():
            if part.text:
                yield UsesField("messages.parts.reasoning")
            yield from _signed(part.signature)
        case ToolCall():
            yield UsesField("messages.parts.tool_call")
            yield from _signed(part.signature)
        case ToolResult():
            yield UsesField("messages.parts.tool_result")


def _signed(signature: bytes) -> Iterator[Need]:
    if signature:
        yield UsesField("messages.parts.reasoning_signature")


def reads(mime_type: str, *, linked: bool) -> Iterator[Reads | TakesType]:
    """What media of this type need, `linked` by address; nothing where the type is none that any model reads."""
    if kind := kind_of(mime_type):
        yield Reads(kind)
        yield TakesType(mime_type, linked)


def follows(uri: str) -> Follows:
    """What a reference to a file needs."""
    scheme, found, _ = uri.partition("://")
    return Follows(scheme if found else "")


def kind_of(mime_type: str) -> str | None:
    """What a model calls data of this type: "image", "audio", "video", "pdf" or "text"; None for anything else."""
    if not _MIME_TYPE.fullmatch(mime_type):
        return None
    if mime_type == "application/pdf":
        return "pdf"
    first = mime_type.partition("/")[0]
    if first == "image":
        return "image" if mime_type in IMAGES else None
    return first if first in ("audio", "video", "text") else None
