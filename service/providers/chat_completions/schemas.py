"""JSON schemas as OpenAI takes them, and whether it can promise to keep to one. No I/O.

Source: https://platform.openai.com/docs/guides/structured-outputs
"""

from collections.abc import Iterator
from typing import Any

from ...generation import json_schema
from ...generation.json_schema import Schema

# What the model can be held to; with any other key it refuses to be.
_STRICT = frozenset(
    {
        *("type", "title", "description", "enum", "anyOf", "$ref", "$defs"),
        *("properties", "required", "additionalProperties", "items"),
        *("pattern", "format", "minimum", "maximum", "minItems", "maxItems"),
        *("exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
    }
)
_STRICT_FORMATS = frozenset(
    {"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid"},
)
_STRICT_DEPTH, _STRICT_PROPERTIES, _STRICT_CHOICES = 5, 100, 250

# What JSON Schema has no word for, and which says nothing of what fits.
_BESIDE = frozenset({"propertyOrdering", "example"})


def written(schema: Schema) -> dict[str, Any]:
    """The schema of a prompt in the words of JSON Schema itself."""
    made = json_schema.changed({key: value for key, value in schema.items() if key != "$defs"}, _written)
    if "$defs" in schema:  # which have to stay where they are, whatever the rest of it becomes
        made["$defs"] = {name: json_schema.changed(one, _written) for name, one in schema["$defs"].items()}
    return made


def strict(schema: Schema) -> bool:
    """Whether the model can be held to what `written` gave: objects whose properties are all told, and all required."""
    every = list(_every(schema))
    return (
        schema.get("type") == "object"
        and "anyOf" not in schema
        and _strict(schema, 0)
        and sum(len(one.get("properties", ())) for one in every) <= _STRICT_PROPERTIES
        and sum(len(one.get("enum", ())) for one in every) <= _STRICT_CHOICES
    )


def _every(schema: Schema) -> Iterator[Schema]:
    """The schema, and all in it."""
    yield schema
    for _, one in json_schema.parts(schema):
        yield from _every(one)


def _written(made: dict[str, Any]) -> dict[str, Any]:
    return json_schema.with_null({key: value for key, value in made.items() if key not in _BESIDE})


def _strict(schema: Schema, depth: int) -> bool:
    if not schema.keys() <= _STRICT or depth > _STRICT_DEPTH or ("$ref" in schema and len(schema) > 1):
        return False
    if json_schema.is_anything(schema):
        return False
    if schema.get("format", "date") not in _STRICT_FORMATS or "(?" in schema.get("pattern", ""):
        return False
    kinds = schema.get("type", ())
    if "object" in ([kinds] if isinstance(kinds, str) else kinds):
        properties = schema.get("properties", {})
        if schema.get("additionalProperties") is not False or set(schema.get("required", ())) != properties.keys():
            return False
    return all(_strict(one, depth + 1) for _, one in json_schema.parts(schema))
