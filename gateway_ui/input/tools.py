"""What is wrong with pasted tool declarations, by its path: told before anything is asked.

As `schemas.py` has it for a schema, which the parameters of each function are.
"""

import itertools
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from tokenwire import function
from tokenwire.v1.config_pb2 import FunctionDeclaration

from . import pasted, schemas
from .pasted import PastedError

_MOST_FUNCTIONS = 128
"""The service's own limit."""

_AROUND_PARAMETERS = 2
"""Messages that such a Struct stands in, within a request."""
_WRAPPED = 13
"""What a declaration and all that it may be wrapped in would cost. It isn't sent."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")

_DECLARATION_KEYS = ("name", "description", "parameters")

# OpenAI's word for whether the arguments have to fit; there is no such choice here.
_LEFT_OUT = {"strict"}

_SAME = {"parametersJsonSchema": "parameters", "parameters_json_schema": "parameters"}


def read_tools(text: str) -> list[FunctionDeclaration]:
    """Give the functions that a text declares, in Gemini's form or in OpenAI's, one or a list of them.

    Raises PastedError with its mistakes by their paths.
    """
    told = pasted.read(text)
    pasted.refuse(pasted.value_mistakes(told, "", -_WRAPPED))
    found = list(_declarations(told, ""))
    pasted.refuse(_tool_mistakes(found))
    return [function(one["name"], one.get("description", ""), one.get("parameters")) for _, one in found]


def _declarations(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Each declaration with its path, whatever it is wrapped in. Raises PastedError for what would be left out."""
    if isinstance(value, list):
        for index, one in enumerate(value):
            yield from _declarations(one, pasted.at_index(path, index))
    elif isinstance(value, dict) and (wrapped := value.keys() & {"functionDeclarations", "function_declarations"}):
        key: str = min(wrapped)
        _alone(value, path, {key})
        yield from _declarations(value[key], pasted.at(path, key))
    elif isinstance(value, dict) and value.get("type") == "function":
        rest = {key: one for key, one in value.items() if key != "type"}
        if "function" in value:
            _alone(rest, path, {"function", *_LEFT_OUT})
            path, rest = pasted.at(path, "function"), value["function"]
        yield path, _renamed(rest, path)
    else:
        yield path, _renamed(value, path)


def _alone(value: Iterable[str], path: str, known: Collection[str]) -> None:
    for key in value:
        if key not in known:
            raise PastedError(f"{pasted.at(path, key)} can't be used here; must be left out")


def _renamed(value: Any, path: str) -> Any:
    if not isinstance(value, dict):
        return value
    declared: dict[str, Any] = value
    made: dict[str, Any] = {}
    for key, one in declared.items():
        if (name := _SAME.get(key, key)) in made:
            raise PastedError(f"{pasted.at(path, key)} stands beside another word for {name}; must be one of them")
        if name not in _LEFT_OUT:
            made[name] = one
    return made


def _tool_mistakes(found: Iterable[tuple[str, Any]]) -> Iterator[str]:
    names = set[str]()
    for path, declared in found:
        if not isinstance(declared, dict):
            wanted = '{"name": "...", "description": "...", "parameters": {...}}'
            yield f"{path or 'it'} is {pasted.kind(declared)}; must be a function such as {wanted}"
            continue
        for key in declared:
            if key not in _DECLARATION_KEYS:
                yield f"{pasted.at(path, key)} is not a key of a function{pasted.meant(key, _DECLARATION_KEYS)}"
        yield from _name_mistakes(declared, path, names)
        if not isinstance(declared.get("description", ""), str):
            yield f"{pasted.at(path, 'description')} is {pasted.kind(declared['description'])}; must be text"
        if "parameters" in declared:
            yield from _parameter_mistakes(declared["parameters"], pasted.at(path, "parameters"))
    if len(names) > _MOST_FUNCTIONS:
        yield f"it declares {len(names)} functions; must be at most {_MOST_FUNCTIONS}"


def _name_mistakes(declared: Mapping[str, Any], path: str, names: set[str]) -> Iterator[str]:
    name, where = declared.get("name"), pasted.at(path, "name")
    if "name" not in declared:
        yield f"{where} is missing"
    elif not isinstance(name, str) or not _NAME.fullmatch(name):
        must = "begin with a letter or an underscore, and hold only letters, digits, underscores, dots and dashes"
        yield f"{where} is {pasted.shown(name)}; must {must}, 64 characters at most"
    elif name in names:
        yield f"{where} is {pasted.shown(name)}, as another function's; must be its own"
    else:
        names.add(name)


def _parameter_mistakes(parameters: Any, path: str) -> Iterator[str]:
    every = itertools.chain(
        pasted.value_mistakes(parameters, path, _AROUND_PARAMETERS), schemas.whole_mistakes(parameters, path)
    )
    mistakes = [*itertools.islice(every, pasted.MOST_MISTAKES)]
    yield from mistakes
    if not mistakes and not _is_object(parameters):
        yield f"{pasted.at(path, 'type')} must be 'object', as parameters are given by their names"


def _is_object(parameters: Mapping[str, Any]) -> bool:
    followed, here = set[str](), parameters
    while "$ref" in here and here["$ref"] not in followed:
        followed.add(here["$ref"])
        here = schemas.found(parameters, here["$ref"]) or {}
    return str(here.get("type", "")).lower() == "object"
