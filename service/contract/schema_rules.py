"""JSON schemas as Gemini takes them: the subset of OpenAPI 3.0 that Google documents, and nothing else.

Providers' libraries drop the keys they don't know. Here each is told instead, by its path.
Source: https://cloud.google.com/vertex-ai/generative-ai/docs/reference/rest/v1beta1/Schema
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ..errors import Violation
from ..generation.json_values import finite

MAX_DEPTH = 20

TYPES = ("string", "number", "integer", "boolean", "array", "object")


def mistakes(schema: Any, path: str, depth: int = 0) -> Iterable[Violation]:
    """What is wrong with `schema`, JSON values as a Struct holds them, which stands at `path`."""
    if not isinstance(schema, Mapping):
        yield Violation(path, f"is {kind(schema)}: a schema, which is an object, is wanted")
        return
    if depth > MAX_DEPTH:
        yield Violation(path, f"is nested deeper than {MAX_DEPTH} schemas: fewer are wanted")
        return
    if "type" not in schema and "anyOf" not in schema:
        yield Violation(f"{path}.type", f"is missing: one of {', '.join(TYPES)} is wanted")
    for key, value in schema.items():
        yield from _key(key, value, f"{path}.{key}"[:200], depth)
    yield from _together(schema, path)


def _key(key: str, value: Any, path: str, depth: int) -> Iterable[Violation]:
    if key not in _KEYS:
        yield Violation(path, f"is no key of a schema here: one of {', '.join(sorted(_KEYS))} is wanted")
    elif key == "properties":
        yield from _properties(value, path, depth)
    elif key == "items":
        yield from mistakes(value, path, depth + 1)
    elif key == "anyOf":
        yield from _any_of(value, path, depth)
    else:
        fits, wanted = _KEYS[key]
        if not fits(value):
            yield Violation(path, f"is {_shown(value)}: {wanted} is wanted")


def _together(schema: Mapping[str, Any], path: str) -> Iterable[Violation]:
    """What the keys want of each other."""
    if str(schema.get("type", "")).lower() == "array" and "items" not in schema:
        yield Violation(f"{path}.items", "is missing: the schema of the array's items is wanted")
    properties, required = schema.get("properties"), schema.get("required")
    if isinstance(properties, Mapping) and isinstance(required, list):
        for name in required:
            if isinstance(name, str) and name not in properties:
                yield Violation(f"{path}.required", f"names {_shown(name)}: one of `properties` is wanted")


def kind(value: Any) -> str:
    """What a JSON value is, in words."""
    names = {bool: "true or false", str: "text", list: "an array", dict: "an object", type(None): "null"}
    return names.get(type(value), "a number")


def _properties(value: Any, path: str, depth: int) -> Iterable[Violation]:
    if not isinstance(value, Mapping):
        yield Violation(path, f"is {kind(value)}: an object, the schema of each property by its name, is wanted")
        return
    for name, one in value.items():
        yield from mistakes(one, f"{path}.{name}"[:200], depth + 1)


def _any_of(value: Any, path: str, depth: int) -> Iterable[Violation]:
    if not isinstance(value, list) or not value:
        yield Violation(path, f"is {_shown(value)}: an array of schemas is wanted")
        return
    for index, one in enumerate(value):
        yield from mistakes(one, f"{path}[{index}]", depth + 1)


def _is_type(value: Any) -> bool:
    return isinstance(value, str) and value.lower() in TYPES


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and finite(value)


def _is_count(value: Any) -> bool:
    return _is_number(value) and value >= 0 and value == int(value)


_KEYS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "type": (_is_type, f"one of {', '.join(TYPES)} (with `nullable` for what may be null)"),
    "format": (_is_text, "text"),
    "title": (_is_text, "text"),
    "description": (_is_text, "text"),
    "pattern": (_is_text, "text"),
    "nullable": (lambda value: isinstance(value, bool), "true or false"),
    "enum": (_is_texts, "an array of texts"),
    "required": (_is_texts, "an array of texts"),
    "propertyOrdering": (_is_texts, "an array of texts"),
    "minimum": (_is_number, "a number"),
    "maximum": (_is_number, "a number"),
    "minItems": (_is_count, "a whole number, 0 or more,"),
    "maxItems": (_is_count, "a whole number, 0 or more,"),
    "minLength": (_is_count, "a whole number, 0 or more,"),
    "maxLength": (_is_count, "a whole number, 0 or more,"),
    "minProperties": (_is_count, "a whole number, 0 or more,"),
    "maxProperties": (_is_count, "a whole number, 0 or more,"),
    "default": (finite, "a value that JSON knows"),
    "example": (finite, "a value that JSON knows"),
    # These have schemas in them.
    "properties": (lambda _: True, ""),
    "items": (lambda _: True, ""),
    "anyOf": (lambda _: True, ""),
}


def _shown(value: Any) -> str:
    """A caller's own short value, safe to print."""
    if isinstance(value, str):
        return ascii(value if len(value) <= 40 else value[:40] + "...")
    return f"{value:g}" if isinstance(value, int | float) and not isinstance(value, bool) else kind(value)
