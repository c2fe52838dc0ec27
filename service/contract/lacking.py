"""What the chosen model can't take of a request: its needs by their fields, and each that the model lacks in words.

`capabilities.needs` gives the same needs of a prompt; a property test holds the two equal. No I/O.
"""

from collections.abc import Iterable, Iterator

from tokenwire.v1 import content_pb2
from tokenwire.v1 import generation_service_pb2 as pb

from ..errors import Violation
from ..generation.capabilities import (
    FIELDS,
    PLAIN_TEXT,
    AnswersIn,
    AnswersInFormWithTools,
    Follows,
    ModelCard,
    Need,
    Reads,
    StopsAt,
    TakesType,
    UsesField,
    Writes,
    follows,
    reads,
)
from ..generation.json_schema import Word
from .values import quote

_USES = {path: UsesField(path) for path in FIELDS}

Place = tuple[str, str, Need]
"""A need of the request behind its path and the text that stands there, "" for what isn't text."""


def lacking(needs: Iterable[Place], card: ModelCard) -> Iterator[Violation]:
    for path, held, need in needs:
        if card.lacks(need):
            yield Violation(path, _refusal(held, need, card))


def needs_of_request(request: pb.GenerateRequest) -> Iterator[Place]:
    """What the request needs beside what its messages do, as `capabilities.needs` has it for the same as a prompt."""
    config = request.config
    used = [field.name for field, _ in request.ListFields()]
    used += [f"config.{field.name}" for field, _ in config.ListFields()]
    if request.tools and any(tool.HasField("google_search") for tool in request.tools):
        used.append("tools.google_search")
    for path in used:
        if path in FIELDS:
            yield path, "", _USES[path]
    if config.stop_sequences:
        yield "config.stop_sequences", "", StopsAt(len(config.stop_sequences))
    if config.HasField("response_mime_type"):
        wanted = config.response_mime_type
        yield "config.response_mime_type", wanted, AnswersIn(wanted)
        if request.tools and wanted != PLAIN_TEXT:
            yield "config.response_mime_type", wanted, AnswersInFormWithTools()


def needs_of_part(part: content_pb2.Part, kind: str, path: str) -> Iterator[Place]:
    if kind != "text" and (kind != "reasoning" or part.reasoning):
        yield f"{path}.{kind}", "", _USES[f"messages.parts.{kind}"]
    if part.reasoning_signature:
        yield f"{path}.reasoning_signature", "", _USES["messages.parts.reasoning_signature"]
    if kind in ("inline_data", "file_data"):
        mime_type = getattr(part, kind).mime_type
        needs = reads(mime_type, linked=kind == "file_data")
        yield from ((f"{path}.{kind}.mime_type", mime_type, need) for need in needs)
    if uri := part.file_data.file_uri:
        yield f"{path}.file_data.file_uri", uri, follows(uri)


def _refusal(held: str, need: Need, card: ModelCard) -> str:  # noqa: C901, PLR0911 - one for each need
    name = quote(card.name)
    match need:
        case UsesField("tools") if "tools" not in card.unsupported:
            return f"are nothing that {name} can use: leave them unset"
        case UsesField(field) if field not in card.unsupported:
            return f"is set, but {name} doesn't think: leave it unset"
        case UsesField(field):
            whole_part = field.startswith("messages.parts.") and field != "messages.parts.reasoning_signature"
            how = "out" if whole_part else "unset"
            return f"is nothing that {name} takes: leave it {how}"
        case Reads(kind):
            return f"is {quote(held)}: {name} reads {', '.join(sorted(card.input_kinds or ()))}, but no {kind}"
        case TakesType(_, linked):
            types, how = (card.linked_types, "by address") if linked else (card.inline_types, "inline")
            return f"is {quote(held)}: {name} takes {', '.join(sorted(types or ())) or 'nothing'} {how}"
        case Follows():
            schemes = " or ".join(f"{one}://..." for one in sorted(card.file_schemes or ())) or "inline_data"
            return f"is {quote(held)}: {schemes} is wanted by {name}"
        case AnswersIn():
            return f"is {quote(held)}: one of {', '.join(card.answer_types)} is wanted"
        case AnswersInFormWithTools():
            return f"is {quote(held)}: {name} takes that without `tools` only"
        case Writes(word):
            return f"is {_WRITES[word]}, which {name} doesn't take"
        case StopsAt(count):
            return f"holds {count}: at most {card.max_stop_sequences} are wanted"


_WRITES = {
    Word.ADDITIONAL_PROPERTIES: "what the schema says of other properties",
    Word.OTHER_ENUM: "a choice of other than texts",
    Word.RECURSION: "a schema within itself",
    Word.ANYTHING: "a schema without a type, which anything fits",
    Word.ONE_OF: "several schemas of which two could fit at once",
    Word.TUPLES: "a schema for each place in an array",
    Word.FINER_LIMITS: "a limit that can't be reached, multiples, or items that differ",
    Word.NULL: "a schema that only null fits",
    Word.ALL_OF: "several schemas that have to fit at once",
    Word.EXAMPLES: "several examples",
}
