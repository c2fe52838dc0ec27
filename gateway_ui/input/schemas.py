"""What is wrong with a pasted JSON schema or tool declaration, by its path: told before anything is asked.

The service has the last word, and knows what the chosen model takes. This finds what is wrong for every model: a test
holds it to the service's own rules, whatever was pasted.
"""

import difflib
import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from tokenwire import function
from tokenwire.v1.config_pb2 import FunctionDeclaration

TYPES = ("string", "number", "integer", "boolean", "array", "object", "null")

_MOST_MISTAKES = 5
"""That are told at once."""

_MOST_DEPTH = 20
_MOST_SCHEMAS = 2000
_MOST_CHARACTERS = 1_000_000
_MOST_REFERENCES = 50
"""The service's own limits, once all references of a schema are followed: the last is how many lead to one another."""

_MOST_FUNCTIONS = 128
"""The service's own limit."""

_MOST_NESTED = 100
"""Messages within each other that protobuf reads. In a Struct an object costs three of them, an array two."""
_AROUND_A_SCHEMA = 1
_AROUND_PARAMETERS = 2
"""Messages that such a Struct stands in, within a request."""
_WRAPPED = 13
"""What a declaration and all that it may be wrapped in would cost. It isn't sent."""

_LARGEST_WHOLE = 2**53
"""A Struct has doubles only: beyond this they leave whole numbers out."""

_LONGEST_KEY = 40
_LONGEST_PATH = 200
"""Characters of it that are told."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")

_DECLARATION_KEYS = ("name", "description", "parameters")

# OpenAI's word for whether the arguments have to fit; there is no such choice here.
_LEFT_OUT = {"strict"}

_SAME = {"parametersJsonSchema": "parameters", "parameters_json_schema": "parameters"}


class PastedError(ValueError):
    """What was pasted can't be used; each mistake is one of the words."""


def read_schema(text: str) -> dict[str, object]:
    """Give the JSON schema in a text. Raises PastedError with its mistakes by their paths."""
    schema = _read(text)
    if not isinstance(schema, dict):
        raise PastedError(f"it is {_kind(schema)}; must be a JSON object, such as {{...}}")
    _refuse(_value_mistakes(schema, "", _AROUND_A_SCHEMA))
    _refuse(_whole_mistakes(schema, ""))
    return schema


def read_tools(text: str) -> list[FunctionDeclaration]:
    """Give the functions that a text declares, in Gemini's form or in OpenAI's, one or a list of them.

    Raises PastedError with its mistakes by their paths.
    """
    pasted = _read(text)
    _refuse(_value_mistakes(pasted, "", -_WRAPPED))
    found = list(_declarations(pasted, ""))
    _refuse(_tool_mistakes(found))
    return [function(one["name"], one.get("description", ""), one.get("parameters")) for _, one in found]


def _refuse(mistakes: Iterator[str]) -> None:
    found = [*itertools.islice(mistakes, _MOST_MISTAKES)]
    if found:
        raise PastedError(". ".join(found))


# ---- JSON ------------------------------------------------------------------------------------------------------------


class _Object(dict[str, Any]):
    """A JSON object."""

    twice: Sequence[str] = ()
    """Keys that it has more than once. Of each, the last value is kept."""


def _read(text: str) -> Any:
    """Whatever JSON there is, also what Python takes for JSON and a Struct has no place for."""
    try:
        return json.loads(text, parse_int=_number, parse_constant=float, object_pairs_hook=_object)
    except RecursionError as error:
        raise PastedError("it is nested too deep; must be flatter") from error
    except json.JSONDecodeError as error:
        raise PastedError(f"it is no JSON: {error.msg}, line {error.lineno}, column {error.colno}") from error


def _number(digits: str) -> float:
    # Python reads no whole number of thousands of digits, and a double has room for none of these.
    return int(digits) if len(digits) < 20 else float(digits)


def _object(pairs: Sequence[tuple[str, Any]]) -> _Object:
    made = _Object(pairs)
    if len(made) < len(pairs):
        made.twice = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
    return made


def _value_mistakes(value: Any, path: str, nested: int) -> Iterator[str]:
    """What of a value can't be sent, or not as it stands there. `nested`: in so many messages."""
    if nested + isinstance(value, dict | list) > _MOST_NESTED:
        yield f"{path[:60]}… is nested too deep; must be flatter"
    elif isinstance(value, dict):
        for key in getattr(value, "twice", ()):
            yield f"{_at(path, key)} is there more than once; must be there once"
        for key, one in value.items():
            if not _is_sound(key):
                yield f"{_at(path, key)} is a key with half a character; must have its other half, too"
            yield from _value_mistakes(one, _at(path, key), nested + 3)
    elif isinstance(value, list):
        for index, one in enumerate(value):
            yield from _value_mistakes(one, _at_index(path, index), nested + 2)
    else:
        yield from _simple_mistakes(value, path or "it")


def _simple_mistakes(value: Any, path: str) -> Iterator[str]:
    match value:
        case str() if not _is_sound(value):
            yield f"{path} is text with half a character; must have its other half, too"
        case float() if math.isnan(value):
            yield f"{path} is NaN; must be a number"
        case int() | float() if abs(value) > _LARGEST_WHOLE:
            yield f"{path} is a number out of range; must be from -2^53 to 2^53"


def _is_sound(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # a surrogate without its other half
        return False
    return True


# ---- tools -----------------------------------------------------------------------------------------------------------


def _declarations(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Each declaration with its path, whatever it is wrapped in. Raises PastedError for what would be left out."""
    if isinstance(value, list):
        for index, one in enumerate(value):
            yield from _declarations(one, _at_index(path, index))
    elif isinstance(value, dict) and (wrapped := value.keys() & {"functionDeclarations", "function_declarations"}):
        key: str = min(wrapped)
        _alone(value, path, {key})
        yield from _declarations(value[key], _at(path, key))
    elif isinstance(value, dict) and value.get("type") == "function":
        rest = {key: one for key, one in value.items() if key != "type"}
        if "function" in value:
            _alone(rest, path, {"function", *_LEFT_OUT})
            path, rest = _at(path, "function"), value["function"]
        yield path, _renamed(rest, path)
    else:
        yield path, _renamed(value, path)


def _alone(value: Iterable[str], path: str, known: Collection[str]) -> None:
    for key in value:
        if key not in known:
            raise PastedError(f"{_at(path, key)} can't be used here; must be left out")


def _renamed(value: Any, path: str) -> Any:
    if not isinstance(value, dict):
        return value
    declared: dict[str, Any] = value
    made: dict[str, Any] = {}
    for key, one in declared.items():
        if (name := _SAME.get(key, key)) in made:
            raise PastedError(f"{_at(path, key)} stands beside another word for {name}; must be one of them")
        if name not in _LEFT_OUT:
            made[name] = one
    return made


def _tool_mistakes(found: Iterable[tuple[str, Any]]) -> Iterator[str]:
    names = set[str]()
    for path, declared in found:
        if not isinstance(declared, dict):
            wanted = '{"name": "...", "description": "...", "parameters": {...}}'
            yield f"{path or 'it'} is {_kind(declared)}; must be a function such as {wanted}"
            continue
        for key in declared:
            if key not in _DECLARATION_KEYS:
                yield f"{_at(path, key)} is not a key of a function{_meant(key, _DECLARATION_KEYS)}"
        yield from _name_mistakes(declared, path, names)
        if not isinstance(declared.get("description", ""), str):
            yield f"{_at(path, 'description')} is {_kind(declared['description'])}; must be text"
        if "parameters" in declared:
            yield from _parameter_mistakes(declared["parameters"], _at(path, "parameters"))
    if len(names) > _MOST_FUNCTIONS:
        yield f"it declares {len(names)} functions; must be at most {_MOST_FUNCTIONS}"


def _name_mistakes(declared: Mapping[str, Any], path: str, names: set[str]) -> Iterator[str]:
    name, where = declared.get("name"), _at(path, "name")
    if "name" not in declared:
        yield f"{where} is missing"
    elif not isinstance(name, str) or not _NAME.fullmatch(name):
        must = "begin with a letter or an underscore, and hold only letters, digits, underscores, dots and dashes"
        yield f"{where} is {_shown(name)}; must {must}, 64 characters at most"
    elif name in names:
        yield f"{where} is {_shown(name)}, as another function's; must be its own"
    else:
        names.add(name)


def _parameter_mistakes(parameters: Any, path: str) -> Iterator[str]:
    every = itertools.chain(_value_mistakes(parameters, path, _AROUND_PARAMETERS), _whole_mistakes(parameters, path))
    mistakes = [*itertools.islice(every, _MOST_MISTAKES)]
    yield from mistakes
    if not mistakes and not _is_object(parameters):
        yield f"{_at(path, 'type')} must be 'object', as parameters are given by their names"


def _is_object(parameters: Mapping[str, Any]) -> bool:
    followed, here = set[str](), parameters
    while "$ref" in here and here["$ref"] not in followed:
        followed.add(here["$ref"])
        here = _found(parameters, here["$ref"]) or {}
    return str(here.get("type", "")).lower() == "object"


# ---- schemas ---------------------------------------------------------------------------------------------------------


def _whole_mistakes(schema: Any, path: str) -> Iterator[str]:
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
        yield f'{path or "it"} is {_kind(schema)}; must be a schema such as {{"type": "string"}}'
        return
    if depth > _MOST_DEPTH:
        yield f"{path[:60]}… is nested too deep; must be at most {_MOST_DEPTH} schemas within each other"
        return
    tells = schema.keys() & {"type", "anyOf", "oneOf", "allOf", "$ref", "const"} or schema.get("enum")
    if typed and not tells and not schema.keys() <= _SAYS_NOTHING:
        yield f"{_at(path, 'type')} is missing; must be one of {', '.join(TYPES)}"
    for key, value in schema.items():
        yield from _key_mistakes(key, value, _at(path, key), depth, whole)
    yield from _mistakes_together(schema, path)
    yield from _required_mistakes(schema, path)


def _key_mistakes(key: str, value: Any, path: str, depth: int, whole: Any) -> Iterator[str]:
    if key not in _KEYS:
        yield f"{path} is not a key of a schema{_meant(key, _KEYS)}"
    elif key in _OF_THE_WHOLE and depth:
        yield f"{path} stands within another schema; must be at the top"
    elif key in _HOLDERS and not (key == "additionalProperties" and not isinstance(value, dict)):
        yield from _inner_mistakes(key, value, path, depth, whole)
    elif key == "type":
        yield from _type_mistakes(value, path)
    elif key == "$ref":
        if _found(whole, value) is None:
            yield f"{path} is {_shown(value)}; must be the place of a schema in this one, such as '#/$defs/name'"
    elif key == "enum" and isinstance(value, list):
        yield from _enum_mistakes(value, path)
    else:
        fits, wanted = _KEYS[key]
        if not fits(value):
            yield f"{path} is {_shown(value)}; must be {wanted}"


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
        yield f"{path} is {_kind(value)}; must be an object with a schema for each name"
        return
    for name, one in value.items():
        yield from _schema_mistakes(one, _at(path, name), depth + 1, whole)


def _listed_mistakes(value: Any, path: str, depth: int, whole: Any, *, typed: bool) -> Iterator[str]:
    if not isinstance(value, list) or not value:
        yield f"{path} is {_shown(value)}; must be an array of schemas, one at least"
        return
    for index, one in enumerate(value):
        yield from _schema_mistakes(one, _at_index(path, index), depth + 1, whole, typed=typed)


def _type_mistakes(value: Any, path: str) -> Iterator[str]:
    several = isinstance(value, list)
    for index, one in enumerate(value if several else [value]):
        where = _at_index(path, index) if several else path
        if not isinstance(one, str) or one.lower() not in TYPES:
            yield f"{where} is {_shown(one)}; must be one of {', '.join(TYPES)}"
    if several and not value:
        yield f"{path} is an empty array; must be types"
    named = [one.lower() for one in value if isinstance(one, str)] if several else []
    if len(set(named)) < len(named):
        yield f"{path} names a type more than once; must name each once"


def _enum_mistakes(value: Iterable[Any], path: str) -> Iterator[str]:
    for index, one in enumerate(value):
        if not _is_choice(one):
            yield f"{_at_index(path, index)} is {_shown(one)}; must be {_CHOICE}"


def _mistakes_together(schema: Mapping[str, Any], path: str) -> Iterator[str]:
    """What the keys want of each other."""
    if "$ref" in schema:
        for key in sorted(schema.keys() - _BESIDE_REF):
            yield f"{_at(path, key)} stands beside a $ref; must stand where that leads to"
    for one, other in (("oneOf", "anyOf"), ("const", "enum")):
        if one in schema and other in schema:
            yield f"{_at(path, one)} stands beside {other}; must be one of them"
    types = _types(schema)
    if (choices := schema.keys() & {"anyOf", "oneOf"}) and len(types) > 1:
        yield f"{_at(path, min(choices))} stands beside several types; must be one of them"
    if "array" in types and not schema.keys() & {"items", "prefixItems"}:
        yield f"{_at(path, 'items')} is missing; must be the schema of the array's items"
    if "type" in schema and "null" not in types:
        if schema.get("const", ...) is None:
            yield f"{_at(path, 'const')} is null; must be of the type"
        if schema.get("enum") == [None]:
            yield f"{_at(path, 'enum')} is null alone; must have a value of the type"


def _types(schema: Mapping[str, Any]) -> list[str]:
    held = schema.get("type")
    return [str(one).lower() for one in (held if isinstance(held, list) else [held])]


def _required_mistakes(schema: Mapping[str, Any], path: str) -> Iterator[str]:
    required, properties = schema.get("required"), schema.get("properties")
    if isinstance(required, list) and isinstance(properties, dict):
        for index, name in enumerate(required):
            if isinstance(name, str) and name not in properties:
                known = ", ".join(map(_shown, list(properties)[:6]))
                must = f"must be one of the properties: {known}" if known else "there are no properties"
                yield f"{_at_index(_at(path, 'required'), index)} is {_shown(name)}; {must}"


def _found(whole: Any, reference: Any) -> Mapping[str, Any] | None:
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
            too_large = self._exceeds(_found(self._whole, reference) or {}, (reference,), 0)
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
            return self._exceeds(_found(self._whole, reference) or {}, (*inside, reference), depth)
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
    return _is_number(value) and 0 <= value < _LARGEST_WHOLE and value == int(value)


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


# ---- words -----------------------------------------------------------------------------------------------------------


def _at(path: str, key: str) -> str:
    key = key if len(key) <= _LONGEST_KEY else f"{key[: _LONGEST_KEY - 1]}…"
    key = key.encode(errors="backslashreplace").decode()  # nobody can be told of half a character
    return _cut(f"{path}.{key}" if path else key)


def _at_index(path: str, index: int) -> str:
    return _cut(f"{path}[{index}]")


def _cut(path: str) -> str:
    half = _LONGEST_PATH // 2
    return path if len(path) <= _LONGEST_PATH else f"{path[:half]}…{path[-half + 1 :]}"


def _meant(key: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(key, list(known), 1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _kind(value: Any) -> str:
    names = {bool: "true or false", str: "text", list: "an array", dict: "an object", type(None): "null"}
    return next((name for kind, name in names.items() if isinstance(value, kind)), "a number")


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return repr(value if len(value) <= 40 else f"{value[:39]}…")
    return f"{value:g}" if _is_number(value) else _kind(value)
