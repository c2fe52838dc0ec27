"""ChatVertexAI: how it is asked, and for what."""

from collections.abc import Sequence
from typing import Any

from google.cloud.aiplatform_v1beta1.types import (
    CountTokensRequest,
    FunctionCallingConfig,
    GenerateContentRequest,
    Schema,
    Tool,
)
from google.protobuf import json_format, struct_pb2
from langchain_core.messages import BaseMessage

from ...generation import json_schema
from ...generation.prompt import Prompt, ToolChoice, Tools
from .. import langchain_messages
from . import prompts, shortcuts
from .shortcuts import Chat, Slow

# By the key of a JSON schema: the same in Google's library.
_SPELLED = {field.json_name: field.name for field in Schema.pb().DESCRIPTOR.fields}


shortcuts.fit()  # compares now, before a worker is forked


def new_chat(name: str, project: str, location: str) -> Chat | Slow:
    """With shortcuts, where they fit."""
    if not shortcuts.fit():
        return shortcuts.new(Slow, name, project, location)
    chat = shortcuts.new(Chat, name, project, location)
    # What is made when it is first asked for and takes a while, made here, so that the first caller doesn't wait.
    _ = chat._empty, chat._made, chat._traced  # noqa: SLF001 - that is how
    return chat


def asked(prompt: Prompt) -> tuple[list[BaseMessage], dict[str, Any], Sequence[Any] | None]:
    """Messages and options as ChatVertexAI takes them, and the contents to be sent where its own would lose a part."""
    return langchain_messages.messages(prompt, prompts.media), request_options(prompt), _exact_contents(prompt)


def _exact_contents(prompt: Prompt) -> Sequence[Any] | None:
    """The conversation as protobuf messages, where ChatVertexAI's conversion would lose a part of it."""
    if not prompts.needs_exactness(prompt):
        return None
    raw = GenerateContentRequest.pb(GenerateContentRequest())
    json_format.ParseDict({"contents": prompts.contents(prompt)}, raw)
    contents: Sequence[Any] = raw.contents
    return contents


def replace_contents(request: Any, contents: Sequence[Any]) -> None:
    del request.contents[:]
    request.contents.extend(contents)


def count_request(chat: Chat | Slow, prompt: Prompt) -> CountTokensRequest:
    """What PredictionService.CountTokens is asked: all of the prompt that counts."""
    messages = langchain_messages.messages(prompt, prompts.media)
    request = chat._prepare_request_gemini(messages, tools=request_tools(prompt.tools) or None)  # noqa: SLF001 - its own
    asked = CountTokensRequest(
        endpoint=request.model,
        model=request.model,
        contents=request.contents,
        tools=request.tools,
    )
    if prompt.system_instruction:  # an empty one would be one
        asked.system_instruction = request.system_instruction
    if (exact := _exact_contents(prompt)) is not None:
        replace_contents(CountTokensRequest.pb(asked), exact)
    return asked


def request_options(prompt: Prompt) -> dict[str, Any]:
    """As ChatVertexAI takes them."""
    options = prompts.options(prompt)
    if prompt.sampling.response_schema is not None:
        options["response_schema"] = json_schema.changed(prompt.sampling.response_schema, _spelled)
    if prompt.tools:
        options["tools"] = request_tools(prompt.tools)
    if prompt.tools.choice is not None:
        options["tool_choice"] = _choice(prompt.tools.choice)
    return options


def _spelled(schema: dict[str, Any]) -> dict[str, Any]:
    """As Google's library spells a schema; ChatVertexAI does that to a part of it, and leaves alone what is done."""
    return {_SPELLED.get(key, key): _value(key, value) for key, value in schema.items()}


def _value(key: str, value: Any) -> Any:
    """Of a schema's key. What is any JSON goes as a message: else Google's library makes null of an empty object."""
    if key in ("default", "example"):
        return json_format.ParseDict(value, struct_pb2.Value())
    return value.upper() if key == "type" else value


def request_tools(tools: Tools) -> list[Tool]:
    made = []
    for one in prompts.tools(tools):
        raw = Tool.pb(Tool())
        json_format.ParseDict(one, raw)
        made.append(Tool.wrap(raw))
    return made


def _choice(choice: ToolChoice) -> dict[str, Any]:
    mode: Any = FunctionCallingConfig.Mode.__members__[choice.mode.name]
    return {"mode": mode, "allowed_function_names": list(choice.names)}
