"""Values of requests: JSON as a protobuf Struct holds it, durations, and callers' own text in errors."""

import struct
from collections.abc import Iterator
from typing import Any

from google.protobuf import duration_pb2, struct_pb2

LARGEST_WHOLE = float(1 << 53)
"""JavaScript's limit, too: beyond it a double has no place for every whole number."""


_LONGEST_PATH = 200


def plain(held: struct_pb2.Struct) -> dict[str, Any]:
    """The JSON object that it holds. A Struct knows doubles only, so a whole number becomes one again."""
    # Not json_format: that raises for the NaN that a caller may send.
    return {name: _value(value) for name, value in held.fields.items()}


def _value(value: struct_pb2.Value) -> Any:
    match value.WhichOneof("kind"):
        case "number_value":
            number = value.number_value
            return int(number) if number.is_integer() and abs(number) <= LARGEST_WHOLE else number
        case "struct_value":
            return plain(value.struct_value)
        case "list_value":
            return [_value(one) for one in value.list_value.values]
        case "string_value":
            return value.string_value
        case "bool_value":
            return value.bool_value
        case _:
            return None


def maybe_rounded(value: Any, path: str) -> Iterator[str]:
    """Where `value`, of `plain`, holds whole numbers beyond that: each may stand for its neighbours too."""
    if isinstance(value, float) and abs(value) > LARGEST_WHOLE:
        yield path
    elif isinstance(value, dict):
        for name, one in value.items():
            yield from maybe_rounded(one, f"{path}.{name}"[:_LONGEST_PATH])
    elif isinstance(value, list):
        for index, one in enumerate(value):
            yield from maybe_rounded(one, f"{path}[{index}]"[:_LONGEST_PATH])


def decimal(number: float) -> float:
    """What the caller wrote: of a protobuf float, 0.699999988079071 to Python, the shortest decimal, 0.7."""
    for digits in range(6, 9):
        near = float(f"{number:.{digits}g}")
        if struct.unpack("f", struct.pack("f", near))[0] == number:
            return near
    return number


def seconds(duration: duration_pb2.Duration) -> float:
    """In seconds, whatever it holds. Not ToTimedelta: that raises for what a caller may send."""
    return duration.seconds + duration.nanos / 1e9


def quote(text: str, most: int = 80) -> str:
    """A caller's own short value, safe to print."""
    return ascii(text if len(text) <= most else text[:most] + "...")
