"""What Gemini is told, in the JSON form of Google's API, whichever client carries it. No I/O.

LangChain drops much of it: signatures of thoughts, the order of a turn's parts, ids of calls. So what isn't plain text
is written here.
"""

import base64
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any

from ...generation import json_schema
from ...generation.prompt import Blob, File, Part, Prompt, Reasoning, Role, Sampling, ToolCall, ToolResult, Tools

Json = Mapping[str, Any]

FILE_SCHEMES = frozenset({"gs", "https", "http"})
"""Of the URIs that Vertex AI follows."""

# Vertex AI gives calls no ids, our callers need them. Those that we made up are not sent back.
OWN_ID = "tokenwire-"

_ROLES = {Role.USER: "user", Role.MODEL: "model", Role.TOOL: "user"}


def needs_exactness(prompt: Prompt) -> bool:
    """Whether it holds what LangChain's own conversion would lose: the model's thoughts, and its calls of tools."""
    return any(_loses(part) for turn in prompt.turns for part in turn.parts)


def _loses(part: Part) -> bool:
    """Whether LangChain's own conversion would lose a piece of it."""
    match part:
        case str() | Blob() | File():
            return False
        case Reasoning() | ToolCall() | ToolResult():
            return True


def contents(prompt: Prompt) -> list[dict[str, Any]]:
    """The conversation, nothing lost. Bytes are in base64."""
    return [{"role": _ROLES[turn.role], "parts": list(_parts(turn.parts))} for turn in prompt.turns]


def _parts(parts: Sequence[Part]) -> Iterator[dict[str, Any]]:
    for place, part in enumerate(parts):
        following = parts[place + 1] if place + 1 < len(parts) else None
        if isinstance(part, str) and _only_signs(following):
            assert isinstance(following, Reasoning)
            yield {"text": part} | _signed(following.signature)
        elif not (_only_signs(part) and place and isinstance(parts[place - 1], str)):
            yield _part(part)


def _only_signs(part: Part | None) -> bool:
    """Whether it is but the signature of the text before it."""
    return isinstance(part, Reasoning) and not part.text


def _part(part: Part) -> dict[str, Any]:
    match part:
        case str():
            return {"text": part}
        case Reasoning():
            return {"text": part.text, "thought": bool(part.text)} | _signed(part.signature)
        case Blob():
            return {"inlineData": {"mimeType": part.mime_type, "data": _base64(part.data)}}
        case File():
            return {"fileData": {"mimeType": part.mime_type, "fileUri": part.uri}}
        case ToolCall():
            return {"functionCall": {"name": part.name, "args": part.arguments} | _id(part.id)} | _signed(
                part.signature
            )
        case ToolResult():
            return {"functionResponse": {"name": part.name, "response": part.response} | _id(part.id)}


def _signed(signature: bytes) -> dict[str, str]:
    return {"thoughtSignature": _base64(signature)} if signature else {}


def _id(id: str) -> dict[str, str]:  # noqa: A002 - that is what it is
    return {} if id.startswith(OWN_ID) else {"id": id}


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def media(part: Blob | File) -> dict[str, Any]:
    """A part as LangChain's libraries for Gemini take it. Not as its standard blocks: some of these are fetched."""
    match part:
        case File():
            return {"type": "media", "mime_type": part.mime_type, "file_uri": part.uri}
        case Blob():
            return {"type": "media", "mime_type": part.mime_type, "data": part.data}


def options(prompt: Prompt) -> dict[str, Any]:
    """What LangChain's libraries for Gemini take by the same names, as far as it is set."""
    given: dict[str, Any] = {one.name: getattr(prompt.sampling, one.name) for one in fields(Sampling)}
    given["stop"] = list(given.pop("stop_sequences")) or None
    given["safety_settings"] = dict(prompt.safety) or None
    given["labels"] = {**prompt.labels, **prompt.owner_labels} or None
    return {name: value for name, value in given.items() if value is not None}


def tools(wanted: Tools) -> list[dict[str, Any]]:
    """What the model may make use of, as the request's `tools`."""
    made: list[dict[str, Any]] = []
    if wanted.functions:
        declared = [
            {"name": one.name, "description": one.description} | _parameters(one.parameters) for one in wanted.functions
        ]
        made.append({"functionDeclarations": declared})
    if wanted.google_search:
        made.append({"googleSearch": {}})
    return made


def _parameters(parameters: Json | None) -> dict[str, Any]:
    return {} if parameters is None else {"parameters": json_schema.changed(parameters, _in_capitals)}


def _in_capitals(schema: dict[str, Any]) -> dict[str, Any]:
    return schema | {"type": schema["type"].upper()} if "type" in schema else schema


def json_with_tools(model: str) -> bool | None:
    """Whether this Gemini answers in JSON where it may also call tools: those before 3 refuse it."""
    return False if re.match(r"gemini-[12][.-]", model) else None
