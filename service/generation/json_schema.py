"""JSON schemas in one form, however they were written: the same for every provider.

Libraries have their own ways: Pydantic writes references, and null as one of several schemas; Zod forbids additional
properties; others write lists of types. In a prompt a schema has OpenAPI's form, which Gemini takes: no references,
`nullable`, one type in lower case. What remains beyond that, where a schema has it, is one of `Word`.
Source: https://json-schema.org/draft/2020-12/json-schema-core
"""

import enum
import itertools
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

Schema = Mapping[str, Any]

MAX_DEPTH = 20
MAX_SCHEMAS = 2000
MAX_CHARACTERS = 1_000_000
"""Once all references are followed: a few of them may stand for millions."""
_MAX_REFERENCES = 50
"""That lead from one to the next."""

_MOST_TELLING = 10
"""Properties that are looked at for telling objects apart."""

ROOT = "#"
"""The whole schema, as a reference names it."""

_DEFINITIONS = ("$defs", "definitions")

_BY_NAME = (*_DEFINITIONS, "properties")
"""Keys whose values are schemas by their names."""

_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
"""Keys whose values are lists of schemas."""

_HOLDERS = frozenset({*_DEFINITIONS, *_LISTS, "properties", "items", "additionalProperties"})
"""Keys whose values hold schemas."""

_LEFT_OUT = frozenset({*_DEFINITIONS, "$schema", "$id", "$comment", "$ref", "discriminator"})
"""What the form doesn't have. Schemas of a union tell their difference themselves."""

_ABOUT = frozenset({"title", "description", "default", "example", "examples"})

_NULL: Mapping[str, Any] = {"type": "null"}

_OF_ARRAYS = frozenset({"items", "prefixItems", "minItems", "maxItems", "uniqueItems"})
_OF_OBJECTS = frozenset(
    {"properties", "required", "additionalProperties", "propertyOrdering", "minProperties", "maxProperties"}
)
_OF_STRINGS = frozenset({"minLength", "maxLength", "pattern", "format"})
_OF_NUMBERS = frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "format"})
_OWN: Mapping[str, frozenset[str]] = {
    "array": _OF_ARRAYS,
    "object": _OF_OBJECTS,
    "string": _OF_STRINGS,
    "number": _OF_NUMBERS,
    "integer": _OF_NUMBERS,
    "boolean": frozenset(),
}
"""By type: the keys that say something of its values, and nothing of others."""
_OF_TYPES = frozenset[str]().union(*_OWN.values())

_LONGEST_PATH = 200

_INDEX = re.compile(r"[0-9]{1,4}")

_PLAIN_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


class Word(enum.Enum):
    """What not every provider has a word for."""

    ADDITIONAL_PROPERTIES = enum.auto()
    """Whether an object may have other properties, and which."""
    OTHER_ENUM = enum.auto()
    """Values to choose from that aren't text."""
    RECURSION = enum.auto()
    """A schema that is a part of itself."""
    ANYTHING = enum.auto()
    """A schema of no type, which anything fits."""
    ONE_OF = enum.auto()
    """Schemas of which no two may fit, and two could."""
    TUPLES = enum.auto()
    """A schema for each place in an array."""
    FINER_LIMITS = enum.auto()
    """A limit that a number must not reach; multiples; arrays without equal items."""
    NULL = enum.auto()
    """A schema that nothing but null fits."""
    ALL_OF = enum.auto()
    """Schemas all of which have to fit at once."""
    EXAMPLES = enum.auto()
    """Several examples."""


_WORDS = {
    "$ref": Word.RECURSION,
    "additionalProperties": Word.ADDITIONAL_PROPERTIES,
    "oneOf": Word.ONE_OF,
    "prefixItems": Word.TUPLES,
    "exclusiveMinimum": Word.FINER_LIMITS,
    "exclusiveMaximum": Word.FINER_LIMITS,
    "multipleOf": Word.FINER_LIMITS,
    "uniqueItems": Word.FINER_LIMITS,
    "allOf": Word.ALL_OF,
    "examples": Word.EXAMPLES,
}


class _Only(list[Any]):
    """An `enum` that was written as a `const`: what is wrong with it is told of that."""


class TooLargeError(ValueError):
    """A schema that is nested too deep, or holds too many others, once its references are followed."""


def names(schema: Schema) -> Iterator[str]:
    """What a reference usually names: "#", "#/$defs/Pet"."""
    yield ROOT
    for group in _DEFINITIONS:
        if isinstance(held := schema.get(group), Mapping):
            yield from (f"#/{group}/{_escaped(name)}" for name in held)


def found(schema: Any, reference: Any) -> Schema | None:
    """The schema within `schema` that a reference names by its place; None if none stands there."""
    if not isinstance(reference, str) or reference.partition("/")[0] != ROOT:
        return None
    here, steps = schema, iter(reference.split("/")[1:])
    for step in steps:
        inner = here.get(step) if isinstance(here, Mapping) and step in _HOLDERS else None
        if step in _BY_NAME:
            name = next(steps, "").replace("~1", "/").replace("~0", "~")
            here = inner.get(name) if isinstance(inner, Mapping) else None
        elif step in _LISTS:
            index = next(steps, "")
            place = slice(int(index), int(index) + 1) if _INDEX.fullmatch(index) else slice(0)
            here = next(iter(inner[place]), None) if isinstance(inner, list) else None
        else:
            here = inner
    return here if isinstance(here, Mapping) else None


def normal(schema: Schema) -> dict[str, Any]:
    """The schema, one without mistakes, in the form of prompts. Raises TooLargeError."""
    return _Reader(schema).whole()


def words(schema: Schema, path: str = "") -> Iterator[tuple[str, Word]]:
    """What a schema in this form says beyond it, and where."""
    yield from ((f"{path}.{key}", word) for key, word in _WORDS.items() if key in schema)
    if is_anything(schema):
        yield path, Word.ANYTHING
    if is_null(schema):
        yield f"{path}.type", Word.NULL
    values = schema.get("enum", ())
    if not all(isinstance(one, str) for one in values):
        yield f"{path}.{'const' if isinstance(values, _Only) else 'enum'}", Word.OTHER_ENUM
    for name, one in parts(schema):
        if not name.startswith("$defs."):  # which stands elsewhere as well, up to where it is itself again
            yield from words(one, f"{path}.{name}"[:_LONGEST_PATH])


def parts(schema: Schema) -> Iterator[tuple[str, Schema]]:
    """The schemas right inside of it, and where they stand."""
    for group in ("properties", "$defs"):
        for name, one in schema.get(group, {}).items():
            yield f"{group}.{name}", one
    for group in _LISTS:
        for index, one in enumerate(schema.get(group, ())):
            yield f"{group}[{index}]", one
    for key in ("items", "additionalProperties"):
        if isinstance(one := schema.get(key), Mapping):
            yield key, one


def changed(schema: Schema, how: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, Any]:
    """A copy in which `how` has been done to it and to every schema in it, the inner ones first."""
    made = dict(schema)
    for group in ("properties", "$defs"):
        if group in made:
            made[group] = {name: changed(one, how) for name, one in made[group].items()}
    for group in _LISTS:
        if group in made:
            made[group] = [changed(one, how) for one in made[group]]
    for key in ("items", "additionalProperties"):
        if isinstance(made.get(key), Mapping):
            made[key] = changed(made[key], how)
    return how(made)


def with_null(schema: Schema) -> dict[str, Any]:
    """One schema, of those in it already done, with null as JSON Schema has it, which has no word `nullable`."""
    made = dict(schema)
    if not made.pop("nullable", False):
        return made
    if "type" not in made or "anyOf" in made:
        return {"anyOf": [made, {"type": "null"}]}
    made["type"] = [made["type"], "null"]
    if "enum" in made:
        made["enum"] = [*made["enum"], None]
    return made


def is_null(schema: Schema) -> bool:
    """Whether nothing but null fits."""
    return str(schema.get("type", "")).lower() == "null"


def is_anything(schema: Schema) -> bool:
    """Whether the schema says nothing of what fits."""
    return schema.keys() <= _ABOUT | {"nullable"}


class _Reader:
    """Follows the references of one schema."""

    def __init__(self, schema: Schema) -> None:
        self._schema = schema
        self._count = self._characters = 0
        self._recursive: dict[str, str] = {}
        """References to what they stand in, and the names under which that is kept."""

    def whole(self) -> dict[str, Any]:
        made = self._read(self._schema, (ROOT,), 0)
        kept: dict[str, Any] = {}
        while missing := [name for name in self._recursive if name not in kept]:
            kept |= {name: self._read(self._named(name), (name,), 0) for name in missing}
        if kept:
            made["$defs"] = {self._recursive[name]: one for name, one in kept.items()}
        return made

    def _named(self, name: str) -> Schema:
        schema = found(self._schema, name)
        assert schema is not None, "it has no mistakes"
        return schema

    def _again(self, name: str) -> str:
        """What refers to a definition that is kept, under its own name where no other has it."""
        if name == ROOT:
            return ROOT
        if name not in self._recursive:
            own = name.rpartition("/")[2]
            free = _PLAIN_NAME.fullmatch(own) and own not in self._recursive.values()
            self._recursive[name] = own if free else f"schema.{len(self._recursive)}"
        return f"#/$defs/{self._recursive[name]}"

    def _read(self, schema: Schema, inside: tuple[str, ...], depth: int) -> dict[str, Any]:
        """`inside` are the references that have been followed up to here."""
        self._count += 1
        self._characters += sum(_characters(value) for key, value in schema.items() if key not in _HOLDERS)
        self._characters += sum(map(len, schema.get("properties", ())))
        if self._count > MAX_SCHEMAS or self._characters > MAX_CHARACTERS:
            raise TooLargeError
        if depth > MAX_DEPTH or len(inside) > _MAX_REFERENCES:
            raise TooLargeError
        own = {key: value for key, value in schema.items() if key not in _LEFT_OUT}
        if own.get("default", ...) is None:  # as good as none, and lost in Google's libraries
            del own["default"]
        if (name := schema.get("$ref")) is None:
            return self._plain(own, inside, depth)
        if name in inside:
            return own | {"$ref": self._again(name)}
        return self._read(self._named(name), (*inside, name), depth) | own

    def _plain(self, made: dict[str, Any], inside: tuple[str, ...], depth: int) -> dict[str, Any]:
        _choose(made)
        if "properties" in made:
            made["properties"] = {name: self._read(one, inside, depth + 1) for name, one in made["properties"].items()}
        for key in ("items", "additionalProperties"):
            if isinstance(made.get(key), Mapping):
                made[key] = self._read(made[key], inside, depth + 1)
        if "prefixItems" in made:
            made["prefixItems"] = [self._read(one, inside, depth + 1) for one in made["prefixItems"]]
        if made.get("uniqueItems") is False:
            del made["uniqueItems"]
        if "allOf" in made:
            made["allOf"] = [self._read(one, inside, depth + 1) for one in made["allOf"]]
            if len(made["allOf"]) == 1 and made.keys() <= _ABOUT | {"allOf", "nullable"}:
                return {**made.pop("allOf")[0], **made}
        if "anyOf" in made or "oneOf" in made:
            made = self._choice(made, inside, depth)
        return _one_type(made) if "type" in made else made

    def _choice(self, made: dict[str, Any], inside: tuple[str, ...], depth: int) -> dict[str, Any]:
        """One of several as any of them, where no value fits two; null among them as `nullable`; one of one as that."""
        key = "oneOf" if "oneOf" in made else "anyOf"
        written = made.pop(key)
        every = [self._read(one, inside, depth + 1) for one in written]
        read = [one for one in every if not (is_null(one) and "enum" not in one)]
        nulls = len(every) - len(read)
        if key == "oneOf" and not _apart([*read, *[_NULL] * nulls]):
            return made | {"oneOf": [*read, *[_NULL] * nulls]}
        if not read:
            return {**made, **(_NULL if made.keys() <= _ABOUT else {"anyOf": [_NULL]})}
        null = {"nullable": True} if nulls and "type" not in made else {}
        if len(read) > 1 or not made.keys() <= _ABOUT:
            return made | {"anyOf": read} | null
        return read[0] | made | null


def _choose(made: dict[str, Any]) -> None:
    """One value as a choice of one, and the types of a choice that tells none."""
    if "const" in made:
        made["enum"] = _Only([made.pop("const")])
    if "enum" in made and not made.keys() & {"type", "anyOf", "oneOf", "allOf"}:
        made["type"] = list(dict.fromkeys(map(_type_of, made["enum"])))


def _apart(options: Sequence[Schema]) -> bool:
    """Whether it can be told that no value fits two of these schemas: by their types, values, or one property's."""
    kinds = Counter(one.get("type") for one in options)
    if None in kinds or kinds.keys() >= {"integer", "number"} or sum(map(_takes_null, options)) > 1:
        return False
    alike = [[one for one in options if one["type"] == kind] for kind, count in kinds.items() if count > 1]
    return all(_choose_apart(some) or _told_apart(some) for some in alike)


def _choose_apart(options: Sequence[Schema]) -> bool:
    """Whether each has values of its own to choose from. All of one type: in Python, true is 1."""
    values = [set(one.get("enum", ())) for one in options]
    return all(values) and sum(map(len, values)) == len(set[Any]().union(*values))


def _told_apart(options: Sequence[Schema]) -> bool:
    """Whether these objects have a property that all require, with values of its own in each."""
    common = set[str].intersection(*(set(one.get("required", ())) for one in options))
    for name in itertools.islice((one for one in options[0].get("properties", {}) if one in common), _MOST_TELLING):
        told = [one.get("properties", {}).get(name, {}) for one in options]
        if len({one.get("type") for one in told}) == 1 and _choose_apart(told) and not any(map(_takes_null, told)):
            return True
    return False


def _takes_null(schema: Schema) -> bool:
    return is_null(schema) or bool(schema.get("nullable"))


def _whole_limits(made: dict[str, Any]) -> dict[str, Any]:
    """Integers beyond a limit, as those from the next one on."""
    if made.get("type") == "integer":
        if "exclusiveMinimum" in made:
            least = math.floor(made.pop("exclusiveMinimum")) + 1
            made["minimum"] = max(made.get("minimum", least), least)
        if "exclusiveMaximum" in made:
            most = math.ceil(made.pop("exclusiveMaximum")) - 1
            made["maximum"] = min(made.get("maximum", most), most)
    return made


def _one_type(made: dict[str, Any]) -> dict[str, Any]:
    """One type, in lower case; several as one schema for each."""
    kinds = [made["type"]] if isinstance(made["type"], str) else made["type"]
    kinds = [kind.lower() for kind in kinds]
    others = [kind for kind in kinds if kind != "null"]
    if len(others) < len(kinds) and (not others or made.get("enum") == [None]):
        chosen = {key: made[key] for key in ("enum",) if None not in made.get(key, [None])}
        return {key: made[key] for key in made if key in _ABOUT or key == "allOf"} | {"type": "null"} | chosen
    null = {"nullable": True} if len(others) < len(kinds) and None in made.get("enum", [None]) else {}
    if "enum" in made:
        made["enum"] = type(made["enum"])(one for one in made["enum"] if one is not None)
    if len(others) == 1:
        return _whole_limits(made | {"type": others[0]} | null)
    about = {key: made.pop(key) for key in _ABOUT if key in made}
    options = [
        _whole_limits(
            {key: value for key, value in made.items() if key in _OWN[kind] or key not in _OF_TYPES} | {"type": kind}
        )
        for kind in others
    ]
    if "enum" in made:
        options = [
            one | {"enum": type(made["enum"])(value for value in made["enum"] if _is(value, one["type"]))}
            for one in options
        ]
        options = [one for one in options if one["enum"]] or options[:1]
    return about | (options[0] if len(options) == 1 else {"anyOf": options}) | null


def _type_of(value: Any) -> str:
    """The narrowest type of a value of an enum."""
    return (
        "null"
        if value is None
        else next(kind for kind in ("string", "boolean", "integer", "number") if _is(value, kind))
    )


def _is(value: Any, kind: str) -> bool:
    """Whether a value of an enum is of this type."""
    match value:
        case str():
            return kind == "string"
        case bool():
            return kind == "boolean"
        case None:
            return kind == "null"
        case _:
            return kind == "number" or (kind == "integer" and value == int(value))


def _characters(value: Any) -> int:
    """About how many a value takes."""
    match value:
        case str():
            return len(value)
        case Mapping():
            return sum(len(key) + _characters(one) for key, one in value.items())
        case list():
            return sum(map(_characters, value)) + len(value)
        case _:
            return 1


def _escaped(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")
