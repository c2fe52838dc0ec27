"""What all of LangChain's chat models share: a prompt as its messages, and a profile as our card."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage

from ..generation.capabilities import ModelCard
from ..generation.prompt import Blob, File, Part, Prompt, Reasoning, Role, ToolCall, ToolResult, Turn
from .offers import amended
from .spec import Offer, ProviderSpec

Media = Callable[[Blob | File], dict[str, Any]]
"""How a provider's library wants what isn't text."""


def messages(prompt: Prompt, media: Media) -> list[BaseMessage]:
    """The conversation. Thoughts are left out: no provider's library takes them back whole."""
    turns: list[BaseMessage] = [SystemMessage(prompt.system_instruction)] if prompt.system_instruction else []
    for turn in prompt.turns:
        turns.extend(_messages(turn, media))
    return turns


def _messages(turn: Turn, media: Media) -> list[BaseMessage]:
    if turn.role is Role.TOOL:
        return [
            ToolMessage(json.dumps(part.response), tool_call_id=part.id, name=part.name)
            for part in turn.parts
            if isinstance(part, ToolResult)
        ]
    if turn.role is Role.USER:
        return [HumanMessage(_content(turn.parts, media))]
    texts = [part for part in turn.parts if isinstance(part, str)]
    # As one text, which it was: some servers take no list of them.
    content = "".join(texts) if all(map(_is_said, turn.parts)) else _content(turn.parts, media)
    calls: list[Any] = [
        {"type": "tool_call", "id": part.id, "name": part.name, "args": part.arguments}
        for part in turn.parts
        if isinstance(part, ToolCall)
    ]
    return [AIMessage(content, tool_calls=calls)]


def _is_said(part: Part) -> bool:
    match part:
        case str() | Reasoning() | ToolCall() | ToolResult():
            return True
        case Blob() | File():
            return False


def _content(parts: Sequence[Part], media: Media) -> Any:
    """LangChain's two shapes: a string, or a list of typed blocks."""
    if len(parts) == 1 and isinstance(parts[0], str):
        return parts[0]
    return [block for part in parts if (block := _block(part, media)) is not None] or ""


def _block(part: Part, media: Media) -> dict[str, Any] | None:
    """As LangChain's content holds it; None for what stands elsewhere, or is left out."""
    match part:
        case str():
            return {"type": "text", "text": part}
        case Blob() | File():
            return media(part)
        case Reasoning() | ToolCall() | ToolResult():
            return None


def card(
    offer: Offer, spec: ProviderSpec, *, profile: Mapping[str, Any] | None, unsupported: frozenset[str], **more: Any
) -> ModelCard:
    """What LangChain knows of the model, and what the offer says of it."""
    told = profile or {}
    kinds = {kind for kind in ("text", "image", "audio", "video", "pdf") if told.get(f"{kind}_inputs")}
    if told.get("temperature") is False:
        unsupported |= {"config.temperature"}
    known = ModelCard(
        name=offer.name,
        provider=spec.telemetry_name,
        unsupported=unsupported,
        max_input_tokens=told.get("max_input_tokens"),
        max_output_tokens=told.get("max_output_tokens"),
        input_kinds=frozenset(kinds) or None,
        deprecated=told.get("status") == "deprecated",
        thinking=told.get("reasoning_output"),
        tools=told.get("tool_calling"),
        **more,
    )
    return amended(known, offer)
