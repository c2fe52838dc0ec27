"""What is wrong with a pasted JSON schema or tool declaration, by its path: told before anything is asked.

The service has the last word, and knows what the chosen model takes. This finds what is wrong for every model.
"""

import difflib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from tokenwire import function
from tokenwire.v1.config_pb2 import FunctionDeclaration

TYPES = ("string", "number", "integer", "boolean", "array", "object", "null")

_MOST_MISTAKES = 5
"""That are told at once."""

_MOST_DEPTH = 64

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
    _refuse(_schema_mistakes(schema, "", 0))
    return schema


def read_tools(text: str) -> list[FunctionDeclaration]:
    """Give the functions that a text declares, in Gemini's form or in OpenAI's, one or a list of them.

    Raises PastedError with its mistakes by their paths.
    """
    found = list(_declarations(_read(text), ""))
    _refuse(_tool_mistakes(found))
    made = []
    for path, declared in found:
        assert isinstance(declared, dict)
        try:
            made.append(function(declared["name"], declared.get("description", ""), declared.get("parameters")))
        except ValueError as error:
            raise PastedError(f"{_at(path, 'parameters')}: {error}") from error
    return made


def _read(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_no_number)
    except RecursionError as error:
        raise PastedError("it is nested too deep") from error
    except json.JSONDecodeError as error:
        raise PastedError(f"it is no JSON: {error.msg}, line {error.lineno}, column {error.colno}") from error
    except ValueError as error:
        raise PastedError(str(error)) from error


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is not a number that JSON knows")


def _refuse(mistakes: Iterator[str]) -> None:
    found = [mistake for _, mistake in zip(range(_MOST_MISTAKES), mistakes, strict=False)]
    if found:
        raise PastedError(". ".join(found))


# ---- tools -----------------------------------------------------------------------------------------------------------


def _declarations(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Each declaration with its path, whatever it is wrapped in."""
    if isinstance(value, list):
        for index, one in enumerate(value):
            yield from _declarations(one, f"{path}[{index}]")
    elif isinstance(value, dict) and (wrapped := value.keys() & {"functionDeclarations", "function_declarations"}):
        (key, *_) = wrapped
        yield from _declarations(value[key], _at(path, key))
    elif isinstance(value, dict) and value.get("type") == "function":
        inside = value.get("function")
        rest = {key: one for key, one in value.items() if key != "type"}
        yield (_at(path, "function"), _renamed(inside)) if "function" in value else (path, _renamed(rest))
    else:
        yield path, _renamed(value)


def _renamed(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {_SAME.get(key, key): one for key, one in value.items() if key not in _LEFT_OUT}


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
    mistakes = list(_schema_mistakes(parameters, path, 0))
    yield from mistakes
    if not mistakes and "$ref" not in parameters and str(parameters.get("type", "")).lower() != "object":
        yield f"{_at(path, 'type')} must be 'object', as parameters are given by their names"


# ---- schemas ---------------------------------------------------------------------------------------------------------


def _schema_mistakes(schema: Any, path: str, depth: int, *, typed: bool = True) -> Iterator[str]:
    """`typed`: it has to tell a type, for itself or by its values."""
    if not isinstance(schema, dict):
        yield f'{path or "it"} is {_kind(schema)}; must be a schema such as {{"type": "string"}}'
        return
    if depth > _MOST_DEPTH:
        yield f"{path[:60]}… is nested too deep"
        return
    tells = schema.keys() & {"type", "anyOf", "oneOf", "allOf", "$ref", "const"} or schema.get("enum")
    if typed and not tells and not schema.keys() <= _SAYS_NOTHING:
        yield f"{_at(path, 'type')} is missing; must be one of {', '.join(TYPES)}"
    for key, value in schema.items():
        yield from _key_mistakes(key, value, _at(path, key), depth)
    yield from _required_mistakes(schema, path)


def _key_mistakes(key: str, value: Any, path: str, depth: int) -> Iterator[str]:
    if key not in _KEYS:
        yield f"{path} is not a key of a schema{_meant(key, _KEYS)}"
    elif key == "type":
        yield from _type_mistakes(value, path)
    elif key in ("properties", "$defs", "definitions"):
        yield from _named_mistakes(value, path, depth)
    elif key == "items" or (key == "additionalProperties" and isinstance(value, dict)):
        yield from _schema_mistakes(value, path, depth + 1)
    elif key in ("anyOf", "oneOf", "allOf", "prefixItems"):
        # Of all that is to hold at once, each may add to what another is.
        yield from _listed_mistakes(value, path, depth, typed=key != "allOf")
    else:
        fits, wanted = _KEYS[key]
        if not fits(value):
            yield f"{path} is {_shown(value)}; must be {wanted}"


def _named_mistakes(value: Any, path: str, depth: int) -> Iterator[str]:
    if not isinstance(value, dict):
        yield f"{path} is {_kind(value)}; must be an object with a schema for each name"
        return
    for name, one in value.items():
        yield from _schema_mistakes(one, _at(path, name), depth + 1)


def _listed_mistakes(value: Any, path: str, depth: int, *, typed: bool) -> Iterator[str]:
    if not isinstance(value, list) or not value:
        yield f"{path} is {_shown(value)}; must be an array of schemas, one at least"
        return
    for index, one in enumerate(value):
        yield from _schema_mistakes(one, f"{path}[{index}]", depth + 1, typed=typed)


def _type_mistakes(value: Any, path: str) -> Iterator[str]:
    several = isinstance(value, list)
    for index, one in enumerate(value if several else [value]):
        where = f"{path}[{index}]" if several else path
        if not isinstance(one, str) or one.lower() not in TYPES:
            yield f"{where} is {_shown(one)}; must be one of {', '.join(TYPES)}"
    if several and not value:
        yield f"{path} is an empty array; must be types"


def _required_mistakes(schema: Mapping[str, Any], path: str) -> Iterator[str]:
    required, properties = schema.get("required"), schema.get("properties")
    if isinstance(required, list) and isinstance(properties, dict):
        for index, name in enumerate(required):
            if isinstance(name, str) and name not in properties:
                known = ", ".join(map(_shown, list(properties)[:6]))
                must = f"must be one of the properties: {known}" if known else "there are no properties"
                yield f"{_at(path, 'required')}[{index}] is {_shown(name)}; {must}"


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return _is_number(value) and value >= 0 and value == int(value)


def _is_switch(value: Any) -> bool:
    return isinstance(value, bool)


def _is_any(value: Any) -> bool:  # noqa: ARG001 - as the others
    return True


_TEXT = (_is_text, "text")
_NUMBER = (_is_number, "a number")
_COUNT = (_is_count, "a whole number, 0 or more")
_WITHIN = (_is_any, "")  # schemas, each looked at by itself

_KEYS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(("format", "title", "description", "pattern", "$ref", "$schema", "$id", "$comment"), _TEXT),
    **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"), _NUMBER),
    **dict.fromkeys(("minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties"), _COUNT),
    **dict.fromkeys(("nullable", "uniqueItems"), (_is_switch, "true or false")),
    **dict.fromkeys(("required", "propertyOrdering"), (_are_texts, "an array of text")),
    **dict.fromkeys(("type", "properties", "items", "$defs", "definitions"), _WITHIN),
    **dict.fromkeys(("prefixItems", "anyOf", "oneOf", "allOf"), _WITHIN),
    **dict.fromkeys(("default", "example", "const"), (_is_any, "")),
    **dict.fromkeys(("enum", "examples"), (lambda value: isinstance(value, list), "an array")),
    "additionalProperties": (_is_switch, "true, false or a schema"),
    "discriminator": (lambda value: isinstance(value, dict), "an object"),
}

_SAYS_NOTHING = {"title", "description", "default", "example", "examples", "nullable"}


# ---- words -----------------------------------------------------------------------------------------------------------


def _at(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _meant(key: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(key, list(known), 1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _kind(value: Any) -> str:
    names = {bool: "true or false", str: "text", list: "an array", dict: "an object", type(None): "null"}
    return names.get(type(value), "a number")


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return repr(value if len(value) <= 40 else f"{value[:39]}…")
    return f"{value:g}" if _is_number(value) else _kind(value)
