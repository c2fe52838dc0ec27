"""A conversation as a file: JSON that loses nothing, and Markdown to read."""

import json
from collections.abc import Iterator

from google.protobuf.json_format import MessageToDict
from google.protobuf.struct_pb2 import Struct

from tokenwire.endings import finish
from tokenwire.v1.content_pb2 import ROLE_TOOL, Part

from .conversation import Conversation, Exchange, pretty


def as_json(conversation: Conversation) -> str:
    """Give all of it: messages, settings and ends as protobuf's JSON, and when each chunk came."""
    return json.dumps({"exchanges": [_record(one) for one in conversation.path()]}, ensure_ascii=False, indent=2)


def as_markdown(conversation: Conversation) -> str:
    """Give what was said, for reading; bytes are only named."""
    return "\n\n".join(block for one in conversation.path() for block in _blocks(one)) + "\n"


def _record(exchange: Exchange) -> dict[str, object]:
    return {
        "asked": MessageToDict(exchange.asked),
        "messages": [MessageToDict(exchange.question), MessageToDict(exchange.turn.message)],
        "grounding": [MessageToDict(one) for one in exchange.groundings],
        "completed": None if exchange.meter.completed is None else MessageToDict(exchange.meter.completed),
        "problem": exchange.problem,
        "chunks": [
            {"kind": piece.kind, "after": round(piece.after, 6), "characters": len(piece.text)}
            for piece in exchange.pieces
        ],
    }


def _blocks(exchange: Exchange) -> Iterator[str]:
    yield "## Results" if exchange.question.role == ROLE_TOOL else "## Question"
    yield from map(_part, exchange.question.parts)
    yield f"## Answer{f' of {exchange.model}' if exchange.model else ''}"
    yield from map(_part, exchange.turn.message.parts)
    sources = [source for one in exchange.groundings for source in one.sources]
    if sources:
        yield "Sources:"
        yield "\n".join(f"{number}. {source.title} <{source.uri}>" for number, source in enumerate(sources, 1))
    if exchange.problem:
        yield f"**{exchange.problem}**"
    if exchange.meter.completed is not None:
        yield f"*{' · '.join([finish(exchange.meter.completed), *exchange.meter.figures()])}*"


def _part(part: Part) -> str:
    match part.WhichOneof("data"):
        case "reasoning":
            return f"<details><summary>Thoughts</summary>\n\n{part.reasoning}\n\n</details>"
        case "inline_data":
            return f"*{part.inline_data.mime_type}, {len(part.inline_data.data)} bytes*"
        case "file_data":
            return f"*{part.file_data.mime_type}, {part.file_data.file_uri}*"
        case "tool_call":
            return f"Calls `{part.tool_call.name}`:\n\n{_fenced(part.tool_call.arguments)}"
        case "tool_result":
            return f"Result of `{part.tool_result.name}`:\n\n{_fenced(part.tool_result.response)}"
        case _:
            return part.text


def _fenced(value: Struct) -> str:
    return f"```json\n{pretty(value)}\n```"
