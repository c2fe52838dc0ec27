"""What is wrong with a request: each mistake by its field, what it holds, and what is wanted. No I/O.

Everything that can be known before the model is asked: ranges, who may say what when, and what the chosen model can
take. What its `ModelCard` doesn't tell is left to the model's provider.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf import struct_pb2

from tokenwire.v1 import config_pb2, content_pb2
from tokenwire.v1 import generation_service_pb2 as pb

from ..errors import Violation
from ..generation import json_schema
from ..generation.capabilities import IMAGES, PLAIN_TEXT, ModelCard, Writes, kind_of
from ..generation.json_values import finite
from . import schema_rules
from .delivery import MAX_BYTES, MAX_DELAY_SECONDS
from .lacking import lacking, needs_of_part, needs_of_request
from .values import maybe_rounded, plain, quote, seconds

MAX_REQUEST_ID_CHARACTERS = 128
MAX_FUNCTIONS = 128
MAX_LABELS = 64  # Google Cloud's own limit for a resource

# LangChain takes 50 us for each message and 20 us for each part, and nobody else is served meanwhile.
MAX_MESSAGES = 1000
MAX_PARTS = 1000  # in all messages together

# By field: the test that its value has to pass (NaN passes none), and the same in words.
_RANGES: dict[str, tuple[Callable[[float], bool], str]] = {
    "temperature": (lambda value: 0 <= value <= 2, "0 to 2"),
    "top_p": (lambda value: 0 < value <= 1, "above 0, up to 1"),
    "top_k": (lambda value: 1 <= value <= 1000, "1 to 1000"),
    "max_output_tokens": (lambda value: value >= 1, "1 or more"),
    "presence_penalty": (lambda value: -2 <= value < 2, "-2 or more, but less than 2"),
    "frequency_penalty": (lambda value: -2 <= value < 2, "-2 or more, but less than 2"),
    "thinking_budget": (lambda value: value >= -1, "0 or more, or -1 for as much as the model likes,"),
    "logprobs": (lambda value: 1 <= value <= 20, "1 to 20"),
}

_PRINTABLE_ASCII = re.compile(r"[ -~]*")
_FUNCTION_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")
_LABEL_KEY = re.compile(r"[a-z][a-z0-9_-]{0,62}")
_LABEL_VALUE = re.compile(r"[a-z0-9_-]{0,63}")

_USER, _MODEL, _TOOL = content_pb2.ROLE_USER, content_pb2.ROLE_MODEL, content_pb2.ROLE_TOOL

_SAYS: dict[int, frozenset[str]] = {
    _USER: frozenset({"text", "inline_data", "file_data"}),
    _MODEL: frozenset({"text", "tool_call", "reasoning"}),
    _TOOL: frozenset({"tool_result"}),
}
"""The kinds of parts that each role's messages hold."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bytes that a request may have at most."""

    prompt: int
    """Of all but its inline data."""
    inline: int
    """Of its inline data together."""


def too_much(request: pb.GenerateRequest, limits: Limits) -> Iterator[Violation]:
    """Mistakes of size, to be looked for before anything looks at each piece of the request."""
    if len(request.messages) > MAX_MESSAGES:
        yield Violation("messages", f"holds {len(request.messages)}: at most {MAX_MESSAGES} are wanted")
    elif (parts := sum(len(message.parts) for message in request.messages)) > MAX_PARTS:
        yield Violation("messages", f"hold {parts} parts in all: at most {MAX_PARTS} are wanted")
    size = request.ByteSize()
    if size <= min(limits.prompt, limits.inline):
        return
    inline = sum(len(part.inline_data.data) for message in request.messages for part in message.parts)
    if inline > limits.inline:
        yield Violation(
            "messages", f"hold {inline} bytes of inline data, history included: at most {limits.inline} are wanted"
        )
    if size - inline > limits.prompt:
        beside = " beside its inline data" if inline else ""
        yield Violation(
            "prompt",
            f"the request has {size - inline} bytes{beside}, history included: at most {limits.prompt} are wanted",
        )


def of(request: pb.GenerateRequest, card: ModelCard) -> Iterator[Violation]:
    """All others, one by one, of a request to this model."""
    yield from lacking(needs_of_request(request), card)
    yield from _messages(request, card)
    yield from _config(request.config, card)
    yield from _tools(request, card)
    yield from _safety(request.safety_settings)
    yield from _labels(request.labels)
    yield from _request_id(request.request_id)
    yield from _delivery(request)


# ---- the conversation ------------------------------------------------------------------------------------------------


def _messages(request: pb.GenerateRequest, card: ModelCard) -> Iterator[Violation]:
    expected = _USER
    calls: dict[str, str] = {}
    for index, message in enumerate(request.messages):
        path = f"messages[{index}]"
        if message.role != expected:
            why = "its tool calls want their results" if expected == _TOOL else "users and models take turns"
            yield Violation(f"{path}.role", f"is {_role(message.role)}: {_role(expected)} is wanted, {why}")
        if not message.parts:
            yield Violation(f"{path}.parts", "is empty: at least one part is wanted")
        for place, part in enumerate(message.parts):
            yield from _part(part, message.role, f"{path}.parts[{place}]", card)
        if message.role == _TOOL:
            yield from _results(message, path, calls)
        calls = {}
        if message.role == _MODEL:
            yield from _calls(message, path, calls)
        expected = _MODEL if message.role != _MODEL else _TOOL if calls else _USER
    if request.messages:
        yield from _last(request, expected)


def _last(request: pb.GenerateRequest, expected: int) -> Iterator[Violation]:
    """Whether `prompt`, or none, may follow the messages, behind which this role is expected."""
    last = len(request.messages) - 1
    if request.prompt and expected == _MODEL:
        yield Violation(
            f"messages[{last}].role",
            f"is {_role(request.messages[last].role)}: ROLE_MODEL is wanted, since `prompt` is the user's next message",
        )
    elif request.prompt and expected == _TOOL:
        yield Violation("prompt", f"is set, but the tool calls of messages[{last}] want their results first")
    elif not request.prompt and expected != _MODEL:
        yield Violation("prompt", "is empty: it is wanted, since `messages` ends with a model's message")


def _part(part: content_pb2.Part, role: int, path: str, card: ModelCard) -> Iterator[Violation]:
    kind = part.WhichOneof("data")
    wanted = _SAYS.get(role, _SAYS[_USER])
    if kind is None:
        yield Violation(path, f"is empty: {_one_of(wanted)} is wanted")
    elif kind not in wanted:
        yield Violation(f"{path}.{kind}", f"is nothing that {_role(role)} says: {_one_of(wanted)} is wanted")
    elif kind == "text" and not part.text:
        yield Violation(f"{path}.text", "is empty: text is wanted")
    elif kind == "reasoning" and not (part.reasoning or part.reasoning_signature):
        yield Violation(f"{path}.reasoning", "is empty: text, or a reasoning_signature, is wanted")
    elif kind == "inline_data":
        yield from _data(part.inline_data.mime_type, "data", part.inline_data.data, f"{path}.inline_data")
    elif kind == "file_data":
        yield from _data(part.file_data.mime_type, "file_uri", part.file_data.file_uri, f"{path}.file_data")
    if kind in wanted and (kind != "text" or part.reasoning_signature):
        yield from lacking(needs_of_part(part, kind, path), card)
    if part.reasoning_signature and role != _MODEL:
        yield Violation(f"{path}.reasoning_signature", f"is nothing that {_role(role)} takes: leave it unset")


def _data(mime_type: str, field: str, data: str | bytes, path: str) -> Iterator[Violation]:
    if not mime_type:
        yield Violation(f"{path}.mime_type", 'is empty: a media type such as "image/png" is wanted')
    elif not kind_of(mime_type):
        yield Violation(
            f"{path}.mime_type",
            f"is {quote(mime_type)}: one of {', '.join(sorted(IMAGES))}, audio/*, video/*, application/pdf, text/* "
            "is wanted",
        )
    if not data:
        yield Violation(
            f"{path}.{field}", "is empty: the bytes are wanted" if field == "data" else "is empty: it is wanted"
        )


def _calls(message: content_pb2.Message, path: str, calls: dict[str, str]) -> Iterator[Violation]:
    """Adds to `calls` the names of the functions that it calls, by the calls' ids."""
    for place, part in enumerate(message.parts):
        if part.WhichOneof("data") != "tool_call":
            continue
        call, where = part.tool_call, f"{path}.parts[{place}].tool_call"
        if not call.id:
            yield Violation(f"{where}.id", "is empty: the id that the call came with is wanted")
        elif call.id in calls:
            yield Violation(f"{where}.id", f"is {quote(call.id)}, as of a call before: one of its own is wanted")
        if not call.name:  # whatever name the model made up, it goes back as it came
            yield Violation(f"{where}.name", "is empty: the name that the call came with is wanted")
        yield from _numbers(call.arguments, f"{where}.arguments")
        calls[call.id] = call.name


def _results(message: content_pb2.Message, path: str, calls: dict[str, str]) -> Iterator[Violation]:
    open_calls = dict(calls)
    for place, part in enumerate(message.parts):
        result = part.tool_result
        if part.WhichOneof("data") != "tool_result":
            continue
        where = f"{path}.parts[{place}].tool_result"
        if result.tool_call_id not in calls:
            known = ", ".join(map(quote, calls)) or "one of the message before, which has none,"
            yield Violation(
                f"{where}.tool_call_id", f"is {quote(result.tool_call_id)}: the id of a call, {known} is wanted"
            )
        elif result.tool_call_id not in open_calls:
            yield Violation(
                f"{where}.tool_call_id", f"is {quote(result.tool_call_id)}, as before: one result is wanted"
            )
        elif result.name not in ("", name := open_calls[result.tool_call_id]):
            yield Violation(f"{where}.name", f"is {quote(result.name)}: {quote(name)} is wanted, as the call has it")
        open_calls.pop(result.tool_call_id, None)
        yield from _numbers(result.response, f"{where}.response")
    for call in open_calls:
        yield Violation(f"{path}.parts", f"lack a tool_result for the call {quote(call)}: one for each call is wanted")


def _numbers(struct: struct_pb2.Struct, path: str) -> Iterator[Violation]:
    held = plain(struct)
    if not finite(held):
        yield Violation(path, "holds NaN or an infinity: numbers that JSON knows are wanted")
    else:
        yield from _rounded(held, path)


def _rounded(held: Mapping[str, Any], path: str) -> Iterator[Violation]:
    for place in maybe_rounded(held, path):
        yield Violation(
            place, "is a whole number beyond 2^53, which a Struct may have rounded: up to 2^53, or a text, is wanted"
        )


# ---- how to answer ---------------------------------------------------------------------------------------------------


def _config(config: config_pb2.GenerationConfig, card: ModelCard) -> Iterator[Violation]:
    given = {field.name: value for field, value in config.ListFields()}
    for name, (inside, wanted) in _RANGES.items():
        if name in given and not inside(given[name]):
            yield Violation(f"config.{name}", f"is {given[name]:g}: {wanted} is wanted")
    for index, sequence in enumerate(config.stop_sequences):
        if not sequence:
            yield Violation(f"config.stop_sequences[{index}]", "is empty: text is wanted")
    yield from _form(config, card)
    if "logprobs" in given and not config.response_logprobs:
        yield Violation("config.logprobs", "is set: response_logprobs is wanted with it")


def _form(config: config_pb2.GenerationConfig, card: ModelCard) -> Iterator[Violation]:
    if not config.HasField("response_schema"):
        return
    if config.response_mime_type in ("", PLAIN_TEXT):
        types = " or ".join(one for one in card.answer_types if one != PLAIN_TEXT)
        yield Violation("config.response_schema", f"is set: a response_mime_type of {types} is wanted with it")
    yield from _schema(plain(config.response_schema), "config.response_schema", card)


def _schema(schema: Mapping[str, Any], path: str, card: ModelCard) -> Iterator[Violation]:
    found = list(schema_rules.mistakes(schema, path)) or list(_rounded(schema, path))
    yield from found
    if not found:
        words = json_schema.words(json_schema.normal(schema), path)
        yield from lacking(((place[:200], "", Writes(word)) for place, word in words), card)


def _tools(request: pb.GenerateRequest, card: ModelCard) -> Iterator[Violation]:
    names: set[str] = set()
    for index, tool in enumerate(request.tools):
        path = f"tools[{index}]"
        if bool(tool.function_declarations) == tool.HasField("google_search"):
            said = "holds both" if tool.function_declarations else "is empty"
            yield Violation(path, f"{said}: function_declarations or google_search is wanted")
        for place, function in enumerate(tool.function_declarations):
            yield from _function(function, f"{path}.function_declarations[{place}]", names, card)
            names.add(function.name)
    if len(names) > MAX_FUNCTIONS:
        yield Violation("tools", f"declare {len(names)} functions: at most {MAX_FUNCTIONS} are wanted")
    if request.HasField("tool_choice"):
        yield from _choice(request.tool_choice, names)


def _function(
    function: config_pb2.FunctionDeclaration, path: str, before: set[str], card: ModelCard
) -> Iterator[Violation]:
    if not _FUNCTION_NAME.fullmatch(function.name):
        wanted = "a letter or an underscore, then letters, digits, underscores, dots and dashes, 64 at most,"
        yield Violation(f"{path}.name", f"is {quote(function.name)}: {wanted} is wanted")
    elif function.name in before:
        yield Violation(f"{path}.name", f"is {quote(function.name)}, as of one before: a name of its own is wanted")
    if not function.HasField("parameters"):
        return
    parameters = plain(function.parameters)
    found = []
    if "$ref" in parameters or str(parameters.get("type", "")).lower() == "object":
        found = list(_schema(parameters, f"{path}.parameters", card))
        yield from found
    if not found and _type(parameters) != "object":
        yield Violation(f"{path}.parameters.type", 'is not "object": a schema of type object is wanted')


def _type(schema: Mapping[str, Any]) -> str:
    if "$ref" in schema:
        schema = json_schema.normal(schema)
    return str(schema.get("type", "")).lower()


def _choice(choice: config_pb2.ToolChoice, declared: set[str]) -> Iterator[Violation]:
    modes = config_pb2.ToolChoice.Mode
    if not declared:
        yield Violation("tool_choice", "is set, but `tools` declares no function: declare one, or leave it unset")
        return
    if choice.mode not in modes.values():
        yield Violation("tool_choice.mode", f"is {choice.mode}: one of {', '.join(modes.keys())} is wanted")
    if choice.allowed_function_names and choice.mode != config_pb2.ToolChoice.MODE_ANY:
        yield Violation("tool_choice.allowed_function_names", "are set: a mode of MODE_ANY is wanted with them")
    for index, name in enumerate(choice.allowed_function_names):
        if name not in declared:
            path = f"tool_choice.allowed_function_names[{index}]"
            yield Violation(path, f"is {quote(name)}: a function that `tools` declares is wanted")


def _safety(settings: Sequence[config_pb2.SafetySetting]) -> Iterator[Violation]:
    seen: set[int] = set()
    for index, one in enumerate(settings):
        for field, kind in (("category", config_pb2.HarmCategory), ("threshold", config_pb2.HarmBlockThreshold)):
            value = getattr(one, field)
            wanted: Any = kind
            if value == 0 or value not in wanted.values():
                names = ", ".join(wanted.keys()[1:])
                yield Violation(f"safety_settings[{index}].{field}", f"is {value}: one of {names} is wanted")
        if one.category in seen:
            yield Violation(f"safety_settings[{index}].category", "was set before: one setting for each is wanted")
        seen.add(one.category)


def _labels(labels: Iterable[str]) -> Iterator[Violation]:
    items: Any = labels
    if len(items) > MAX_LABELS:
        yield Violation("labels", f"hold {len(items)}: at most {MAX_LABELS} are wanted")
    for key, value in items.items():
        if not _LABEL_KEY.fullmatch(key):
            wanted = "a lower-case letter, then up to 62 lower-case letters, digits, dashes or underscores"
            yield Violation("labels", f"hold the key {quote(key)}: {wanted} is wanted")
        elif not _LABEL_VALUE.fullmatch(value):
            wanted = "up to 63 lower-case letters, digits, dashes or underscores are wanted"
            yield Violation(f"labels.{key}", f"is {quote(value)}: {wanted}")


def good_request_id(request_id: str) -> bool:
    """Whether it is short and printable ASCII, as it must be to be logged and echoed."""
    return not list(_request_id(request_id))


def _request_id(request_id: str) -> Iterator[Violation]:
    if len(request_id) > MAX_REQUEST_ID_CHARACTERS:
        yield Violation(
            "request_id", f"has {len(request_id)} characters: at most {MAX_REQUEST_ID_CHARACTERS} are wanted"
        )
    elif not _PRINTABLE_ASCII.fullmatch(request_id):
        yield Violation("request_id", f"is {quote(request_id)}: printable ASCII is wanted")


def _delivery(request: pb.GenerateRequest) -> Iterator[Violation]:
    for name in ("first_chunk_timeout", "idle_timeout"):
        if request.HasField(name) and not seconds(getattr(request, name)) > 0:
            yield Violation(name, f"is {seconds(getattr(request, name)):g} s: more than 0 is wanted")
    merge = request.coalesce
    if merge.HasField("max_delay") and not 0 <= seconds(merge.max_delay) <= MAX_DELAY_SECONDS:
        held = f"is {seconds(merge.max_delay):g} s: 0 to {MAX_DELAY_SECONDS:g} s is wanted"
        yield Violation("coalesce.max_delay", held)
    if merge.HasField("max_bytes") and not 1 <= merge.max_bytes <= MAX_BYTES:
        yield Violation("coalesce.max_bytes", f"is {merge.max_bytes}: 1 to {MAX_BYTES} is wanted")


# ---- words -----------------------------------------------------------------------------------------------------------


def _role(number: int) -> str:
    known = content_pb2.Role.values()
    return content_pb2.Role.Name(content_pb2.Role.ValueType(number)) if number in known else str(number)


def _one_of(names: Iterable[str]) -> str:
    return " or ".join(sorted(names))
