"""What is wrong with a pasted JSON schema, by its path: told before anything is asked.

The service has the last word, and knows what the chosen model takes. This finds what is wrong for every model: a test
holds it to the service's own rules, whatever was pasted.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from . import pasted
from .pasted import PastedError

TYPES = ("string", "number", "integer", "boolean", "array", "object", "null")

_AROUND_A_SCHEMA = 1
"""Messages that its Struct stands in, within a request."""

_MOST_DEPTH = 20
_MOST_SCHEMAS = 2000
_MOST_CHARACTERS = 1_000_000
_MOST_REFERENCES = 50
"""The service's own limits, once all references of a schema are followed: the last is how many lead to one another."""


def read_schema(text: str) -> dict[str, object]:
    """Give the JSON schema in a text. Raises PastedError with its mistakes by their paths."""
    schema = pasted.read(text)
    if not isinstance(schema, dict):
        raise PastedError(f"it is {pasted.kind(schema)}; must be a JSON object, such as {{...}}")
    pasted.refuse(pasted.value_mistakes(schema, "", _AROUND_A_SCHEMA))
    pasted.refuse(whole_mistakes(schema, ""))
    return schema


def whole_mistakes(schema: Any, path: str) -> Iterator[str]:
    """What is wrong with a schema that stands at this path."""
    right = True
    for mistake in _schema_mistakes(schema, path, 0, schema):
        right = False
        yield mistake
    if right and _Size(schema).is_too_large():
        most = f"{_MOST_DEPTH} deep, {_MOST_SCHEMAS:,} schemas and {_MOST_CHARACTERS:,} characters"
        yield f"{path or 'it'} is too large, once its references are followed; must be at most {most}"


def _schema_mistakes(schema: Any, path: str, depth: int, whole: Any, *, typed: bool = True) -> Iterator[str]:
    """`typed`: it has to tell a type, for itself or by its values. `whole`: what its references lead into."""
    if not isinstance(schema, dict):
        yield f'{path or "it"} is {pasted.kind(schema)}; must be a schema such as {{"type": "string"}}'
        return
    if depth > _MOST_DEPTH:
        yield f"{path[:60]}… is nested too deep; must be at most {_MOST_DEPTH} schemas within each other"
        return
    tells = schema.keys() & {"type", "anyOf", "oneOf", "allOf", "$ref", "const"} or schema.get("enum")
    if typed and not tells and not schema.keys() <= _SAYS_NOTHING:
        yield f"{pasted.at(path, 'type')} is missing; must be one of {', '.join(TYPES)}"
    for key, value in schema.items():
        yield from _key_mistakes(key, value, pasted.at(path, key), depth, whole)
    yield from _mistakes_together(schema, path)
    yield from _required_mistakes(schema, path)


def _key_mistakes(key: str, value: Any, path: str, depth: int, whole: Any) -> Iterator[str]:
    if key not in _KEYS:
        yield f"{path} is not a key of a schema{pasted.meant(key, _KEYS)}"
    elif key in _OF_THE_WHOLE and depth:
        yield f"{path} stands within another schema; must be at the top"
    elif key in _HOLDERS and not (key == "additionalProperties" and not isinstance(value, dict)):
        yield from _inner_mistakes(key, value, path, depth, whole)
    elif key == "type":
        yield from _type_mistakes(value, path)
    elif key == "$ref":
        if found(whole, value) is None:
            yield f"{path} is {pasted.shown(value)}; must be the place of a schema in this one, such as '#/$defs/name'"
    elif key == "enum" and isinstance(value, list):
        yield from _enum_mistakes(value, path)
    else:
        fits, wanted = _KEYS[key]
        if not fits(value):
            yield f"{path} is {pasted.shown(value)}; must be {wanted}"


def _inner_mistakes(key: str, value: Any, path: str, depth: int, whole: Any) -> Iterator[str]:
    if key in _BY_NAME:
        yield from _named_mistakes(value, path, depth, whole)
    elif key in _LISTS:
        # Of all that is to hold at once, each may add to what another is.
        yield from _listed_mistakes(value, path, depth, whole, typed=key != "allOf")
    else:
        yield from _schema_mistakes(value, path, depth + 1, whole)


def _named_mistakes(value: Any, path: str, depth: int, whole: Any) -> Iterator[str]:
    if not isinstance(value, dict):
        yield f"{path} is {pasted.kind(value)}; must be an object with a schema for each name"
        return
    for name, one in value.items():
        yield from _schema_mistakes(one, pasted.at(path, name), depth + 1, whole)


def _listed_mistakes(value: Any, path: str, depth: int, whole: Any, *, typed: bool) -> Iterator[str]:
    if not isinstance(value, list) or not value:
        yield f"{path} is {pasted.shown(value)}; must be an array of schemas, one at least"
        return
    for index, one in enumerate(value):
        yield from _schema_mistakes(one, pasted.at_index(path, index), depth + 1, whole, typed=typed)


def _type_mistakes(value: Any, path: str) -> Iterator[str]:
    several = isinstance(value, list)
    for index, one in enumerate(value if several else [value]):
        where = pasted.at_index(path, index) if several else path
        if not isinstance(one, str) or one.lower() not in TYPES:
            yield f"{where} is {pasted.shown(one)}; must be one of {', '.join(TYPES)}"
    if several and not value:
        yield f"{path} is an empty array; must be types"
    named = [one.lower() for one in value if isinstance(one, str)] if several else []
    if len(set(named)) < len(named):
        yield f"{path} names a type more than once; must name each once"


def _enum_mistakes(value: Iterable[Any], path: str) -> Iterator[str]:
    for index, one in enumerate(value):
        if not _is_choice(one):
            yield f"{pasted.at_index(path, index)} is {pasted.shown(one)}; must be {_CHOICE}"


def _mistakes_together(schema: Mapping[str, Any], path: str) -> Iterator[str]:
    """What the keys want of each other."""
    if "$ref" in schema:
        for key in sorted(schema.keys() - _BESIDE_REF):
            yield f"{pasted.at(path, key)} stands beside a $ref; must stand where that leads to"
    for one, other in (("oneOf", "anyOf"), ("const", "enum")):
        if one in schema and other in schema:
            yield f"{pasted.at(path, one)} stands beside {other}; must be one of them"
    types = _types(schema)
    if (choices := schema.keys() & {"anyOf", "oneOf"}) and len(types) > 1:
        yield f"{pasted.at(path, min(choices))} stands beside several types; must be one of them"
    if "array" in types and not schema.keys() & {"items", "prefixItems"}:
        yield f"{pasted.at(path, 'items')} is missing; must be the schema of the array's items"
    if "type" in schema and "null" not in types:
        if schema.get("const", ...) is None:
            yield f"{pasted.at(path, 'const')} is null; must be of the type"
        if schema.get("enum") == [None]:
            yield f"{pasted.at(path, 'enum')} is null alone; must have a value of the type"


def _types(schema: Mapping[str, Any]) -> list[str]:
    held = schema.get("type")
    return [str(one).lower() for one in (held if isinstance(held, list) else [held])]


def _required_mistakes(schema: Mapping[str, Any], path: str) -> Iterator[str]:
    required, properties = schema.get("required"), schema.get("properties")
    if isinstance(required, list) and isinstance(properties, dict):
        for index, name in enumerate(required):
            if isinstance(name, str) and name not in properties:
                known = ", ".join(map(pasted.shown, list(properties)[:6]))
                must = f"must be one of the properties: {known}" if known else "there are no properties"
                yield f"{pasted.at_index(pasted.at(path, 'required'), index)} is {pasted.shown(name)}; {must}"


def found(whole: Any, reference: Any) -> Mapping[str, Any] | None:
    """The schema that a reference names by its place in the whole; None if none stands there."""
    if not isinstance(reference, str) or reference.partition("/")[0] != _ROOT:
        return None
    here, steps = whole, iter(reference.split("/")[1:])
    for step in steps:
        inner = here.get(step) if isinstance(here, dict) and step in _HOLDERS else None
        if step in _BY_NAME:
            name = next(steps, "").replace("~1", "/").replace("~0", "~")
            here = inner.get(name) if isinstance(inner, dict) else None
        elif step in _LISTS:
            index = next(steps, "")
            place = int(index) if _INDEX.fullmatch(index) else len(inner or ())
            here = inner[place] if isinstance(inner, list) and place < len(inner) else None
        else:
            here = inner
    return here if isinstance(here, dict) else None


class _Size:
    """Counts what a schema without mistakes holds, once all its references are followed."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self._whole = schema
        self._schemas = self._characters = 0
        self._recursive: list[str] = []
        """References to what they stand in. Each of these is told once more by itself."""

    def is_too_large(self) -> bool:
        told = 0
        too_large = self._exceeds(self._whole, (_ROOT,), 0)
        while not too_large and told < len(self._recursive):
            reference = self._recursive[told]
            too_large = self._exceeds(found(self._whole, reference) or {}, (reference,), 0)
            told += 1
        return too_large

    def _exceeds(self, schema: Mapping[str, Any], inside: tuple[str, ...], depth: int) -> bool:
        """`inside` are the references that have been followed up to here."""
        self._schemas += 1
        self._characters += sum(_characters(value) for key, value in schema.items() if key not in _HOLDERS)
        self._characters += sum(map(len, schema.get("properties", ())))
        if self._schemas > _MOST_SCHEMAS or self._characters > _MOST_CHARACTERS:
            return True
        if depth > _MOST_DEPTH or len(inside) > _MOST_REFERENCES:
            return True
        if (reference := schema.get("$ref")) is None:
            return any(self._exceeds(one, inside, depth + 1) for one in _parts(schema))
        if reference not in inside:
            return self._exceeds(found(self._whole, reference) or {}, (*inside, reference), depth)
        if reference not in (_ROOT, *self._recursive):
            self._recursive.append(reference)
        return False


def _parts(schema: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The schemas right inside of it, but for those that only references lead to."""
    yield from schema.get("properties", {}).values()
    yield from (schema[key] for key in ("items", "additionalProperties") if isinstance(schema.get(key), dict))
    yield from (one for key in _LISTS for one in schema.get(key, ()))


def _characters(value: Any) -> int:
    """About how many a value takes."""
    match value:
        case str():
            return len(value)
        case dict():
            return sum(len(key) + _characters(one) for key, one in value.items())
        case list():
            return sum(map(_characters, value)) + len(value)
        case _:
            return 1


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return _is_number(value) and 0 <= value < pasted.LARGEST_WHOLE and value == int(value)


def _is_choice(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float)


def _is_switch(value: Any) -> bool:
    return isinstance(value, bool)


def _is_any(value: Any) -> bool:  # noqa: ARG001 - as the others
    return True


_TEXT = (_is_text, "text")
_NUMBER = (_is_number, "a number")
_COUNT = (_is_count, "a whole number, 0 or more and below 2^53")
_CHOICE = "text, a number, true, false or null"
_WITHIN = (_is_any, "")  # looked at by itself

_KEYS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(("format", "title", "description", "pattern", "$schema", "$id", "$comment"), _TEXT),
    **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"), _NUMBER),
    **dict.fromkeys(("minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties"), _COUNT),
    **dict.fromkeys(("nullable", "uniqueItems"), (_is_switch, "true or false")),
    **dict.fromkeys(("required", "propertyOrdering"), (_are_texts, "an array of text")),
    **dict.fromkeys(("type", "$ref", "properties", "items", "$defs", "definitions"), _WITHIN),
    **dict.fromkeys(("prefixItems", "anyOf", "oneOf", "allOf"), _WITHIN),
    **dict.fromkeys(("default", "example"), (_is_any, "")),
    **dict.fromkeys(("enum", "examples"), (lambda value: isinstance(value, list), "an array")),
    "const": (_is_choice, _CHOICE),
    "multipleOf": (lambda value: _is_number(value) and value > 0, "a number above 0"),
    "additionalProperties": (_is_switch, "true, false or a schema"),
    "discriminator": (lambda value: isinstance(value, dict), "an object"),
}

_SAYS_NOTHING = {"title", "description", "default", "example", "examples", "nullable"}

_OF_THE_WHOLE = {"$defs", "definitions", "$schema", "$id"}

_BESIDE_REF = {*_SAYS_NOTHING, *_OF_THE_WHOLE, "$ref", "$comment"}

_ROOT = "#"
_INDEX = re.compile(r"[0-9]{1,4}")
_BY_NAME = ("$defs", "definitions", "properties")
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_HOLDERS = {*_BY_NAME, *_LISTS, "items", "additionalProperties"}
"""Keys whose values hold schemas."""
