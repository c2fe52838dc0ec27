"""JSON values, as a protobuf Struct holds them."""

from typing import Any

from google.protobuf import duration_pb2, struct_pb2

# JavaScript's limit, too: beyond it a double has no place for every whole number.
_WHOLE = float(1 << 53)


def plain(struct: struct_pb2.Struct) -> dict[str, Any]:
    """The JSON object that it holds. A Struct knows doubles only, so a whole number becomes one again."""
    # Not json_format: that raises for the NaN that a caller may send.
    return {name: _value(value) for name, value in struct.fields.items()}


def _value(value: struct_pb2.Value) -> Any:
    match value.WhichOneof("kind"):
        case "number_value":
            number = value.number_value
            return int(number) if number.is_integer() and abs(number) < _WHOLE else number
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


def seconds(duration: duration_pb2.Duration) -> float:
    """In seconds, whatever it holds. Not ToTimedelta: that raises for what a caller may send."""
    return duration.seconds + duration.nanos / 1e9
