"""The words of tools' calls and results, and of titles, as people read and write them."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.struct_pb2 import Struct

from tokenwire.v1.content_pb2 import ToolCall

_ARGUMENTS_LENGTH = 80
"""Characters of a call's arguments that tell it from another."""


def one_line(text: str) -> str:
    """Give a text without line breaks, and without space at its ends."""
    return " ".join(text.split())


def pretty(value: Struct) -> str:
    """Give a JSON object as people read it."""
    return json.dumps(_whole(MessageToDict(value)), ensure_ascii=False, indent=2, sort_keys=True)


def numbered(names: Iterable[str]) -> list[str]:
    """Give names of tools so that each can be told from the others: "weather (1 of 2)" where one is there twice."""
    all_ = list(names)
    number = Counter[str]()
    told = []
    for name in all_:
        number[name] += 1
        count = all_.count(name)
        told.append(f"{name} ({number[name]} of {count})" if count > 1 else name)
    return told


def result_names(calls: Sequence[ToolCall]) -> list[str]:
    """Say whose result each call waits for; what it was called with, where that tells calls of one tool apart."""
    names = [call.name for call in calls]
    return [
        f"Result of {name}{_called_with(call) if names.count(call.name) > 1 else ''}"
        for name, call in zip(numbered(names), calls, strict=True)
    ]


def _called_with(call: ToolCall) -> str:
    arguments = json.dumps(_whole(MessageToDict(call.arguments)), ensure_ascii=False, sort_keys=True)
    return f": {one_line(arguments)[:_ARGUMENTS_LENGTH]}"


def _whole(value: Any) -> Any:
    """Write 2 for 2.0: protobuf knows no whole numbers, but people do."""
    match value:
        case dict():
            return {key: _whole(one) for key, one in value.items()}
        case list():
            return [_whole(one) for one in value]
        case float() if value.is_integer():
            return int(value)
        case _:
            return value
