import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway_ui.input.schemas import PastedError, read_schema, read_tools
from service.contract import schema_rules
from service.contract.values import plain
from tokenwire import function, struct

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = function("weather", "Tells it.", CITY)
GEMINI = {"name": "weather", "description": "Tells it.", "parameters": CITY}


@pytest.mark.parametrize(
    "pasted",
    [
        GEMINI,
        [GEMINI],
        {"functionDeclarations": [GEMINI]},
        [{"function_declarations": [GEMINI]}],
        [{"name": "weather", "description": "Tells it.", "parametersJsonSchema": CITY}],
        {"type": "function", "function": GEMINI},
        [{"type": "function", "function": {**GEMINI, "strict": True}}],
        [{"type": "function", **GEMINI, "strict": True}],  # OpenAI's newer form
    ],
)
def test_tools_are_taken_in_each_form(pasted: object) -> None:
    assert read_tools(json.dumps(pasted)) == [WEATHER]


def test_several_tools_and_none() -> None:
    assert read_tools('[{"name": "a"}, {"type": "function", "function": {"name": "b"}}]') == [
        function("a", ""),
        function("b", ""),
    ]
    assert read_tools("[]") == []


TYPES = "string, number, integer, boolean, array, object, null"
NAME = (
    "must begin with a letter or an underscore, and hold only letters, digits, underscores, dots and dashes, "
    "64 characters at most"
)


@pytest.mark.parametrize(
    ("pasted", "words"),
    [
        (
            [{"name": "f", "parameters": {"type": "object", "properties": {"city": {"type": "strin"}}}}],
            f"[0].parameters.properties.city.type is 'strin'; must be one of {TYPES}",
        ),
        (
            [{"type": "function", "function": {"name": "f", "parameters": {"type": "string"}}}],
            "[0].function.parameters.type must be 'object', as parameters are given by their names",
        ),
        ({"functionDeclarations": [{}]}, "functionDeclarations[0].name is missing"),
        ([{"name": "bad name!"}], f"[0].name is 'bad name!'; {NAME}"),
        ([{"name": 1}], f"[0].name is 1; {NAME}"),
        ([{"name": "f"}, {"name": "f"}], "[1].name is 'f', as another function's; must be its own"),
        ([{"name": "f", "describtion": ""}], "[0].describtion is not a key of a function; did you mean 'description'?"),
        ([{"name": "f", "description": 1}], "[0].description is a number; must be text"),
        ([{"name": "f", "parameters": []}], "[0].parameters is an array; must be a schema such as"),
        ([{"type": "function", "function": "f"}], "[0].function is text; must be a function such as"),
        ("f", "it is text; must be a function such as"),
        ([{}, {}], "[0].name is missing. [1].name is missing"),
    ],
)
def test_mistakes_of_tools_are_told_by_their_paths(pasted: object, words: str) -> None:
    with pytest.raises(PastedError) as caught:
        read_tools(json.dumps(pasted))
    assert str(caught.value).startswith(words)


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "strin"}, f"type is 'strin'; must be one of {TYPES}"),
        (
            {"type": "object", "properties": {"a": {"type": "array", "items": {"typ": "x"}}}},
            "properties.a.items.type is missing",
        ),
        ({"properties": {}}, f"type is missing; must be one of {TYPES}"),
        (
            {"type": "object", "properties": []},
            "properties is an array; must be an object with a schema for each name",
        ),
        ({"type": "object", "propertys": {}}, "propertys is not a key of a schema; did you mean 'properties'?"),
        ({"anyOf": [{"type": "string"}, {"type": 5}]}, f"anyOf[1].type is 5; must be one of {TYPES}"),
        ({"anyOf": []}, "anyOf is an array; must be an array of schemas, one at least"),
        ({"type": ["string", "nul"]}, f"type[1] is 'nul'; must be one of {TYPES}"),
        (
            {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a", "b"]},
            "required[1] is 'b'; must be one of the properties: 'a'",
        ),
        ({"type": "object", "required": "a"}, "required is 'a'; must be an array of text"),
        ({"type": "string", "minLength": -1}, "minLength is -1; must be a whole number, 0 or more"),
        ({"type": "string", "enum": "a"}, "enum is 'a'; must be an array"),
        ({"type": "number", "minimum": "a"}, "minimum is 'a'; must be a number"),
        ({"type": "string", "nullable": 1}, "nullable is 1; must be true or false"),
    ],
)
def test_mistakes_of_a_schema_are_told_by_their_paths(schema: Any, words: str) -> None:
    with pytest.raises(PastedError) as caught:
        read_schema(json.dumps(schema))
    assert str(caught.value).startswith(words)
    # The service says so as well, and at the same place.
    assert list(schema_rules.mistakes(plain(struct(schema)), ""))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{type: object}", "it is no JSON: Expecting property name enclosed in double quotes, line 1, column 2"),
        ("[1]", "it is an array; must be a JSON object, such as {...}"),
        ('{"type": "number", "minimum": NaN}', "NaN is not a number that JSON knows"),
        ("[" * 100_000, "it is nested too deep"),
        ('{"type": "array", "items": ' * 80 + "{}" + "}" * 80, "items.items."),
    ],
)
def test_what_is_no_schema_at_all_is_told(text: str, words: str) -> None:
    with pytest.raises(PastedError) as caught:
        read_schema(text)
    assert str(caught.value).startswith(words)


def test_only_the_first_mistakes_are_told() -> None:
    with pytest.raises(PastedError) as caught:
        read_schema(json.dumps({"type": "object", "properties": {f"p{number}": 1 for number in range(50)}}))
    assert str(caught.value).count(". ") == 4


VALUES = st.sampled_from(
    [None, True, 0, 1.5, -1, "string", "OBJECT", "null", "a", [], ["a"], ["string", "null"], [1], {}, {"type": "null"}]
)
KEYS = st.sampled_from([*schema_rules._KEYS, "typ", "not"])
SCHEMAS = st.recursive(
    st.dictionaries(KEYS, VALUES, max_size=3) | VALUES,
    lambda inner: st.dictionaries(
        KEYS,
        inner | st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
        max_size=3,
    ),
    max_leaves=6,
)


@given(SCHEMAS.filter(lambda one: isinstance(one, dict)))
def test_what_the_service_takes_is_never_refused_here(schema: Any) -> None:
    if not list(schema_rules.mistakes(plain(struct(schema)), "")):
        assert read_schema(json.dumps(schema)) == schema


def test_every_key_of_the_service_is_known_here() -> None:
    from gateway_ui.input.schemas import _KEYS  # noqa: PLC0415 - no name for others

    assert _KEYS.keys() == schema_rules._KEYS.keys()
