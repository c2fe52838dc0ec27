"""JSON schemas as models take them: the subset of OpenAPI 3.0 that Google documents, and other ways to write it.

Providers' libraries drop the keys they don't know. Here each is told instead, by its path. What only some models take
is told by `capabilities`.
Source: https://cloud.google.com/vertex-ai/generative-ai/docs/reference/rest/v1beta1/Schema
"""

import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ..errors import Violation
from ..generation import json_schema
from ..generation.json_schema import MAX_CHARACTERS, MAX_DEPTH, MAX_SCHEMAS
from ..generation.json_values import finite
from .values import quote

_MOST_MISTAKES = 20
"""That are looked for in one schema: no status holds more."""

_TOO_MANY = 2**53
"""The first count that a JSON number can't tell from the next."""

_NO_KEY = "no key of a schema here"

TYPES = ("string", "number", "integer", "boolean", "array", "object")


def mistakes(schema: Any, path: str) -> Iterable[Violation]:
    """What is wrong with `schema`, JSON values as a Struct holds them, which stands at `path`."""
    found = list(itertools.islice(_mistakes(schema, path, 0, schema), _MOST_MISTAKES))
    yield from _once(found)
    if not found:
        try:
            json_schema.normal(schema)
        except json_schema.TooLargeError:
            most = f"deeper than {MAX_DEPTH} schemas, or holds more than {MAX_SCHEMAS} or {MAX_CHARACTERS} characters"
            yield Violation(path, f"is nested {most}, once its references are followed: less is wanted")


def _once(found: Iterable[Violation]) -> Iterable[Violation]:
    """With the list of all keys in the first mistake that has it: a status holds little more."""
    said = set[str]()
    for one in found:
        again = one.description in said and _NO_KEY in one.description
        yield Violation(one.field, f"is {_NO_KEY}") if again else one
        said.add(one.description)


def _mistakes(schema: Any, path: str, depth: int, whole: Any, *, typed: bool = True) -> Iterable[Violation]:
    """`typed`: it has to tell a type, for itself or by its values."""
    if not isinstance(schema, Mapping):
        yield Violation(path, f"is {kind(schema)}: a schema, which is an object, is wanted")
        return
    if depth > MAX_DEPTH:
        yield Violation(path, f"is nested deeper than {MAX_DEPTH} schemas: fewer are wanted")
        return
    tells = schema.keys() & {"type", "anyOf", "oneOf", "allOf", "$ref", "const"} or schema.get("enum")
    if typed and not tells and not json_schema.is_anything(schema):
        yield Violation(f"{path}.type", f"is missing: one of {', '.join(TYPES)} is wanted")
    for key, value in schema.items():
        yield from _key(key, value, f"{path}.{key}"[:200], depth, whole)
    yield from _together(schema, path)


def _key(key: str, value: Any, path: str, depth: int, whole: Any) -> Iterable[Violation]:
    if key not in _KEYS or (key in _OF_THE_WHOLE and depth):
        keys = sorted(_KEYS.keys() - (_OF_THE_WHOLE if depth else frozenset()))
        yield Violation(path, f"is {_NO_KEY}: one of {', '.join(keys)} is wanted")
    elif key in ("properties", "$defs", "definitions"):
        yield from _properties(value, path, depth, whole)
    elif key == "items" or (key == "additionalProperties" and isinstance(value, Mapping)):
        yield from _mistakes(value, path, depth + 1, whole)
    elif key in ("prefixItems", "anyOf", "oneOf"):
        yield from _schemas(value, path, depth, whole)
    elif key == "allOf":  # of which each may add to what another is
        yield from _schemas(value, path, depth, whole, typed=False)
    elif key == "$ref":
        if json_schema.found(whole, value) is None:
            known = ", ".join(map(_shown, itertools.islice(json_schema.names(whole), 5)))
            yield Violation(path, f"is {_shown(value)}: the place of a schema in this one, such as {known}, is wanted")
    else:
        fits, wanted = _KEYS[key]
        if not fits(value):
            yield Violation(path, f"is {_shown(value)}: {wanted} is wanted")


def _together(schema: Mapping[str, Any], path: str) -> Iterable[Violation]:
    """What the keys want of each other."""
    if "$ref" in schema:
        for key in sorted(schema.keys() - _BESIDE_REF):
            yield Violation(f"{path}.{key}"[:200], "stands beside a $ref: it is wanted where that leads to")
    yield from _choices_together(schema, path)
    if "anyOf" in schema and "oneOf" in schema:
        yield Violation(f"{path}.oneOf", "stands beside an anyOf: one of them is wanted")
    if schema.keys() & {"anyOf", "oneOf"} and len(_types(schema)) > 1:
        key = "anyOf" if "anyOf" in schema else "oneOf"
        yield Violation(f"{path}.{key}", "stands beside several types: one of them is wanted")
    if "array" in _types(schema) and not schema.keys() & {"items", "prefixItems"}:
        yield Violation(f"{path}.items", "is missing: the schema of the array's items is wanted")
    properties, required = schema.get("properties"), schema.get("required")
    if isinstance(properties, Mapping) and isinstance(required, list):
        for name in required:
            if isinstance(name, str) and name not in properties:
                yield Violation(f"{path}.required", f"names {_shown(name)}: one of `properties` is wanted")


def _choices_together(schema: Mapping[str, Any], path: str) -> Iterable[Violation]:
    if "type" in schema and "null" not in _types(schema):
        if schema.get("const", ...) is None:
            yield Violation(f"{path}.const", f"is null: {_CHOICE} is wanted")
        if (choices := schema.get("enum")) and choices == [None]:
            yield Violation(f"{path}.enum", f"is an array: {_CHOICES} is wanted")
    if "const" in schema and "enum" in schema:
        yield Violation(f"{path}.const", "stands beside an enum: one of them is wanted")


def _types(schema: Mapping[str, Any]) -> list[str]:
    held = schema.get("type")
    return [str(one).lower() for one in (held if isinstance(held, list) else [held])]


def kind(value: Any) -> str:
    """What a JSON value is, in words."""
    names = {bool: "true or false", str: "text", list: "an array", dict: "an object", type(None): "null"}
    return names.get(type(value), "a number")


def _properties(value: Any, path: str, depth: int, whole: Any) -> Iterable[Violation]:
    if not isinstance(value, Mapping):
        yield Violation(path, f"is {kind(value)}: an object, the schema of each property by its name, is wanted")
        return
    for name, one in value.items():
        yield from _mistakes(one, f"{path}.{name}"[:200], depth + 1, whole)


def _schemas(value: Any, path: str, depth: int, whole: Any, *, typed: bool = True) -> Iterable[Violation]:
    if not isinstance(value, list) or not value:
        yield Violation(path, f"is {_shown(value)}: an array of schemas is wanted")
        return
    for index, one in enumerate(value):
        yield from _mistakes(one, f"{path}[{index}]", depth + 1, whole, typed=typed)


def _is_type(value: Any) -> bool:
    if not isinstance(value, list):
        return isinstance(value, str) and value.lower() in (*TYPES, "null")
    kinds = [one.lower() for one in value if isinstance(one, str)]
    unlike = len(set(kinds)) == len(value)
    return unlike and set(kinds) <= {*TYPES, "null"} and kinds != []


def _is_choice(value: Any) -> bool:
    return _is_text(value) or isinstance(value, bool) or _is_number(value)


def _are_choices(value: Any) -> bool:
    if not isinstance(value, list):
        return False
    return all(one is None or _is_choice(one) for one in value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and finite(value)


def _is_count(value: Any) -> bool:
    return _is_number(value) and 0 <= value < _TOO_MANY and value == int(value)


_CHOICE = "a text, a number, true or false"
_CHOICES = "an array of texts, or of numbers, true and false,"

_KEYS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "type": (_is_type, f"one of {', '.join(TYPES)}, null (with `nullable` for what may be null)"),
    "const": (lambda value: value is None or _is_choice(value), _CHOICE),
    "format": (_is_text, "text"),
    "title": (_is_text, "text"),
    "description": (_is_text, "text"),
    "pattern": (_is_text, "text"),
    "nullable": (lambda value: isinstance(value, bool), "true or false"),
    "enum": (_are_choices, _CHOICES),
    "required": (_is_texts, "an array of texts"),
    "propertyOrdering": (_is_texts, "an array of texts"),
    "minimum": (_is_number, "a number"),
    "maximum": (_is_number, "a number"),
    "exclusiveMinimum": (_is_number, "a number"),
    "exclusiveMaximum": (_is_number, "a number"),
    "multipleOf": (lambda value: _is_number(value) and value > 0, "a number above 0"),
    "uniqueItems": (lambda value: isinstance(value, bool), "true or false"),
    "minItems": (_is_count, "a whole number from 0 to 2^53,"),
    "maxItems": (_is_count, "a whole number from 0 to 2^53,"),
    "minLength": (_is_count, "a whole number from 0 to 2^53,"),
    "maxLength": (_is_count, "a whole number from 0 to 2^53,"),
    "minProperties": (_is_count, "a whole number from 0 to 2^53,"),
    "maxProperties": (_is_count, "a whole number from 0 to 2^53,"),
    "default": (finite, "a value that JSON knows"),
    "example": (finite, "a value that JSON knows"),
    "examples": (lambda value: isinstance(value, list) and finite(value), "an array of values that JSON knows"),
    # These have schemas in them.
    "properties": (lambda _: True, ""),
    "items": (lambda _: True, ""),
    "prefixItems": (lambda _: True, ""),
    "anyOf": (lambda _: True, ""),
    "oneOf": (lambda _: True, ""),
    "allOf": (lambda _: True, ""),
    "additionalProperties": (lambda value: isinstance(value, bool), "true, false or a schema"),
    "$defs": (lambda _: True, ""),
    "definitions": (lambda _: True, ""),
    # This names one.
    "$ref": (lambda _: True, ""),
    "$schema": (_is_text, "text"),
    "$id": (_is_text, "text"),
    "$comment": (_is_text, "text"),
    "discriminator": (lambda value: isinstance(value, Mapping), "an object"),
}

_OF_THE_WHOLE = frozenset({"$defs", "definitions", "$schema", "$id"})

_BESIDE_REF = _OF_THE_WHOLE | {
    *("$ref", "$comment", "title", "description", "default", "example", "examples", "nullable")
}


def _shown(value: Any) -> str:
    """A caller's own short value, safe to print."""
    if isinstance(value, str):
        return quote(value, 40)
    return f"{value:g}" if isinstance(value, int | float) and not isinstance(value, bool) else kind(value)
