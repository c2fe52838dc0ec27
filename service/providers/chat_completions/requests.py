"""A prompt as Chat Completions has it, where LangChain doesn't make it so by itself. No I/O."""

import base64
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from ... import errors
from ...errors import Violation
from ...generation.prompt import (
    Blob,
    File,
    Function,
    Part,
    Prompt,
    Reasoning,
    Role,
    Sampling,
    ToolCall,
    ToolMode,
    ToolResult,
    Tools,
)
from . import schemas, thought_details

IMAGES = frozenset({"image/gif", "image/jpeg", "image/png", "image/webp"})

_AUDIO = {
    "audio/mp3": "mp3",
    "audio/mpeg": "mp3",
    "audio/vnd.wave": "wav",
    "audio/wav": "wav",
    "audio/wave": "wav",
    "audio/x-wav": "wav",
}
"""By media type, OpenAI's own names of the two that it takes."""

INLINE = IMAGES | _AUDIO.keys() | {"application/pdf", "text/*"}

_CHOICES = {ToolMode.AUTO: "auto", ToolMode.ANY: "required", ToolMode.NONE: "none"}


def media(part: Blob | File) -> dict[str, Any]:
    """A part as one of the protocol's content blocks. Raises InvalidRequest for text that is no UTF-8."""
    match part:
        case File():  # passed on: OpenAI fetches it
            return {"type": "image_url", "image_url": {"url": part.uri}}
        case Blob():
            return _bytes(part)


def _bytes(part: Blob) -> dict[str, Any]:
    if part.mime_type.startswith("text/"):
        return {"type": "text", "text": _decoded(part)}
    data = base64.b64encode(part.data).decode("ascii")
    if part.mime_type in _AUDIO:
        return {"type": "input_audio", "input_audio": {"data": data, "format": _AUDIO[part.mime_type]}}
    address = f"data:{part.mime_type};base64,{data}"
    if part.mime_type in IMAGES:
        return {"type": "image_url", "image_url": {"url": address}}
    return {"type": "file", "file": {"filename": "file.pdf", "file_data": address}}


def _decoded(part: Blob) -> str:
    """Text as text: the protocol takes no such file. Raises InvalidRequest for what is no UTF-8."""
    try:
        return part.data.decode()
    except UnicodeDecodeError:
        wrong = Violation("messages.parts.inline_data.data", f"is no text in UTF-8, as {part.mime_type} has to be here")
        raise errors.InvalidRequest([wrong]) from None


def with_thoughts(messages: Sequence[Any], prompt: Prompt, way: str) -> list[Any]:
    """The messages that LangChain makes of the prompt, with the thoughts that it leaves out.

    `way` is the name of the field that holds a message's thoughts; or "google", for signed calls of tools. Raises
    InvalidRequest for signatures of anything else, or of somebody else.
    Source: https://ai.google.dev/gemini-api/docs/thought-signatures
    """
    turns = (turn.parts for turn in prompt.turns if turn.role is Role.MODEL)
    with_them = _WAYS.get(way) or partial(_with_words, way)
    return [with_them(one, next(turns)) if one["role"] == "assistant" else one for one in messages]


def _signable(parts: Sequence[Part]) -> tuple[list[Reasoning], list[ToolCall]]:
    """Of a turn of the model's, what may have a signature: its thoughts, and its calls of tools."""
    thoughts: list[Reasoning] = []
    calls: list[ToolCall] = []
    for part in parts:
        match part:
            case Reasoning():
                thoughts.append(part)
            case ToolCall():
                calls.append(part)
            case str() | Blob() | File() | ToolResult():
                pass
    return thoughts, calls


def _with_words(field: str, message: Mapping[str, Any], parts: Sequence[Part]) -> Mapping[str, Any]:
    thoughts, _ = _signable(parts)
    words = "".join(one.text for one in thoughts)
    return {**message, field: words} if words else message


def _with_signatures(message: Mapping[str, Any], parts: Sequence[Part]) -> Mapping[str, Any]:
    thoughts, made = _signable(parts)
    if any(one.signature for one in thoughts):
        wrong = "is nothing that this model takes but beside a tool_call: leave it unset"
        raise errors.InvalidRequest([Violation("messages.parts.reasoning_signature", wrong)])
    if not any(part.signature for part in made):
        return message
    signed = [
        {**call, "extra_content": {"google": {"thought_signature": base64.b64encode(part.signature).decode()}}}
        if part.signature
        else call
        for call, part in zip(message["tool_calls"], made, strict=True)
    ]
    return {**message, "tool_calls": signed}


def _with_details(message: Mapping[str, Any], parts: Sequence[Part]) -> Mapping[str, Any]:
    thoughts, made = _signable(parts)
    if any(one.signature for one in made):
        wrong = "is nothing that this model takes beside a tool_call: leave it unset"
        raise errors.InvalidRequest([Violation("messages.parts.reasoning_signature", wrong)])
    signatures = [one.signature for one in thoughts if one.signature]
    if not signatures:
        return _with_words("reasoning", message, parts)
    return {**message, thought_details.FIELD: [one for told in signatures for one in thought_details.back(told)]}


_WAYS = {"google": _with_signatures, thought_details.FIELD: _with_details}
"""Of the option thoughts_back, those that are more than the name of a field."""


def options(prompt: Prompt, *, strict: bool) -> dict[str, Any]:
    """What ChatOpenAI takes for this prompt, as far as it is set; `strict`: hold the model to schemas that allow it."""
    sampling = prompt.sampling
    given: dict[str, Any] = {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_tokens": sampling.max_output_tokens,
        "seed": sampling.seed,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "logprobs": sampling.response_logprobs,
        "top_logprobs": sampling.logprobs,
        "stop": list(sampling.stop_sequences) or None,
        # In the body itself: LangChain would take another way for it, with a client that isn't ours.
        "extra_body": _form(sampling, strict),
        **_tools(prompt.tools, strict),
    }
    return {name: value for name, value in given.items() if value is not None}


def _form(sampling: Sampling, strict: bool) -> dict[str, Any] | None:
    if sampling.response_mime_type in (None, "text/plain"):
        return None
    if sampling.response_schema is None:
        return {"response_format": {"type": "json_object"}}
    named = {"name": "answer", "schema": (schema := schemas.written(sampling.response_schema))}
    return {
        "response_format": {
            "type": "json_schema",
            "json_schema": named | _strict(strict and schemas.strict(schema)),
        }
    }


def _strict(held: bool) -> dict[str, bool]:
    return {"strict": True} if held else {}


def _tools(tools: Tools, strict: bool) -> dict[str, Any]:
    if not tools.functions:
        return {}
    made = [schemas.written(one.parameters or {"type": "object", "properties": {}}) for one in tools.functions]
    # All or none: some refuse a mixture.
    held = _strict(all(map(schemas.strict, made)) and strict)
    declared = [_function(one, parameters, held) for one, parameters in zip(tools.functions, made, strict=True)]
    if tools.choice is None:
        return {"tools": declared}
    if not tools.choice.names:
        return {"tools": declared, "tool_choice": _CHOICES[tools.choice.mode]}
    named: list[dict[str, Any]] = [{"type": "function", "function": {"name": name}} for name in tools.choice.names]
    allowed = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": named}}
    return {"tools": declared, "tool_choice": named[0] if len(named) == 1 else allowed}


def _function(one: Function, parameters: Mapping[str, Any], held: Mapping[str, bool]) -> dict[str, Any]:
    described = {"name": one.name, "description": one.description, "parameters": parameters}
    return {"type": "function", "function": {**described, **held}}
