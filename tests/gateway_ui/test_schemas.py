import json
from typing import Any

import pytest
from google.protobuf.message import DecodeError
from hypothesis import example, given
from hypothesis import strategies as st

from gateway_ui.input.pasted import PastedError
from gateway_ui.input.schemas import read_schema
from gateway_ui.input.tools import read_tools
from service.contract import rules, schema_rules
from service.contract.values import plain
from service.errors import Violation
from service.generation.capabilities import ModelCard
from service.generation.json_schema import Word
from tokenwire import function, struct, user
from tokenwire.v1.config_pb2 import GenerationConfig, Tool
from tokenwire.v1.generation_service_pb2 import GenerateRequest

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
        (
            [GEMINI | {"parametersJsonSchema": CITY}],
            "[0].parametersJsonSchema stands beside another word for parameters;",
        ),
        ({"functionDeclarations": [GEMINI], "googleSearch": {}}, "googleSearch can't be used here; must be left out"),
        ({"type": "function", "function": GEMINI, "name": "f"}, "name can't be used here; must be left out"),
        ([{"name": f"f{number}"} for number in range(129)], "it declares 129 functions; must be at most 128"),
        (
            [{"name": "f", "parameters": {"$ref": "#/$defs/a", "$defs": {"a": {"type": "string"}}}}],
            "[0].parameters.type must be 'object', as parameters are given by their names",
        ),
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
        (
            {"type": "string", "minLength": 2**53},
            "minLength is 9.0072e+15; must be a whole number, 0 or more and below 2^53",
        ),
        ({"type": "number", "multipleOf": 0}, "multipleOf is 0; must be a number above 0"),
        ({"type": "array"}, "items is missing; must be the schema of the array's items"),
        ({"type": "string", "enum": [{}]}, "enum[0] is an object; must be text, a number, true, false or null"),
        ({"type": "string", "enum": [None]}, "enum is null alone; must have a value of the type"),
        ({"type": "string", "const": None}, "const is null; must be of the type"),
        ({"const": "a", "enum": ["a"]}, "const stands beside enum; must be one of them"),
        ({"type": ["string", "STRING"]}, "type names a type more than once; must name each once"),
        ({"$ref": "#/$defs/a"}, "$ref is '#/$defs/a'; must be the place of a schema in this one"),
        ({"$ref": "#", "type": "object"}, "type stands beside a $ref; must stand where that leads to"),
        (
            {"type": "object", "properties": {"a": {"type": "string", "$id": "a"}}},
            "properties.a.$id stands within another schema; must be at the top",
        ),
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
        ('{"type": "number", "minimum": NaN}', "minimum is NaN; must be a number"),
        ('{"type": "number", "minimum": -Infinity}', "minimum is a number out of range; must be from -2^53 to 2^53"),
        ('{"type": "number", "minimum": 1e400}', "minimum is a number out of range; must be from -2^53 to 2^53"),
        ('{"type": "string", "maxLength": 1e400}', "maxLength is a number out of range; must be from -2^53 to 2^53"),
        (f'{{"type": "integer", "enum": [1, {"9" * 400}]}}', "enum[1] is a number out of range; must be from"),
        (f'{{"type": "integer", "default": {"9" * 5000}}}', "default is a number out of range; must be from"),
        ('{"type": "integer", "default": 9007199254740993}', "default is a number out of range; must be from"),
        ('{"type": "string", "\\ud800": 1}', "\\ud800 is a key with half a character; must have its other half, too"),
        (
            '{"type": "string", "title": "\\ud800"}',
            "title is text with half a character; must have its other half, too",
        ),
        ('{"type": "string", "type": "number"}', "type is there more than once; must be there once"),
        ('{"type": "array", "default": ' + "[" * 500 + "]" * 500 + "}", "default[0][0]"),
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


# ---- whatever is pasted ----------------------------------------------------------------------------------------------

EVERYTHING = ModelCard(
    name="m", provider="p", thinking=True, tools=True, json_with_tools=True, schema_words=frozenset(Word)
)
"""A model that takes whatever the service does."""


def refused(**fields: Any) -> list[Violation]:
    """What the service says of a request with these fields, once it has come over the wire."""
    request = GenerateRequest(messages=[user("x")], **fields)
    return list(rules.of(GenerateRequest.FromString(request.SerializeToString()), EVERYTHING))


def said(error: PastedError) -> bool:
    assert 0 < len(str(error).encode()) < 5000
    return False


def pasted_as_schema(text: str) -> bool:
    """Whether it is taken. Then the service takes it, too; else it is said in words that a page can show."""
    try:
        schema = struct(read_schema(text))
    except PastedError as error:
        return said(error)
    assert refused(config=GenerationConfig(response_mime_type="application/json", response_schema=schema)) == []
    return True


def pasted_as_tools(text: str) -> bool:
    try:
        declared = read_tools(text)
    except PastedError as error:
        return said(error)
    assert refused(tools=[Tool(function_declarations=declared)] if declared else []) == []
    return True


ODD_NUMBERS = (
    "1e400",
    "-1e400",
    "9" * 400,
    "9" * 5000,
    "NaN",
    "Infinity",
    "-Infinity",
    "1e-400",
    "-0.0",
    "1e16",
    "1.5",
)
NUMBERS = st.sampled_from((*ODD_NUMBERS, *(str(2**53 + more) for more in (-1, 0, 1)), "0", "3", "-1"))
HALVES = st.sampled_from(['"\\ud800"', '"\ud800"', '"a\\udc00"', '"\\ud83d\\ude00"', '"\\u0000"'])
WORDS = ("string", "OBJECT", "array", "number", "integer", "null", "function", "#", "#/$defs/a", "#/items", "a", "b")
TEXTS = st.sampled_from(WORDS).map(json.dumps) | HALVES | st.text(max_size=4).map(json.dumps)
PASTED_KEYS = (
    st.sampled_from(
        (
            *schema_rules._KEYS,
            "name",
            "parameters",
            "parametersJsonSchema",
            "function",
            "functionDeclarations",
            "strict",
        )
    ).map(json.dumps)
    | TEXTS
)


def an_object(pairs: list[tuple[str, str]]) -> str:
    return "{" + ", ".join(f"{key}: {value}" for key, value in pairs) + "}"


JSON = st.recursive(
    NUMBERS | TEXTS | st.sampled_from(["true", "null"]),
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda one: f"[{', '.join(one)}]")
        | st.lists(st.tuples(PASTED_KEYS, inner), max_size=4).map(an_object)
    ),
    max_leaves=12,
)
AROUND = st.sampled_from([("[", "]"), ('{"items": ', "}"), ('{"type": "object", "properties": {"a": ', "}}")])


@given(JSON | st.text(st.characters(exclude_categories=())), AROUND, st.sampled_from([0, 0, 0, 1, 10, 25, 50, 900]))
@example("1", ("[", "]"), 100_000)
def test_whatever_is_pasted_is_taken_by_the_service_too_or_refused_in_words(
    text: str, around: tuple[str, str], times: int
) -> None:
    pasted = around[0] * times + text + around[1] * times
    pasted_as_schema(pasted)
    pasted_as_tools(pasted)


def plausible(values: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Texts that look like schemas, with such values in them."""
    limits = st.dictionaries(
        st.sampled_from(["minLength", "maximum", "multipleOf", "default", "title", "enum", "nullable", "const"]),
        values | st.sampled_from(["true", "null", "[1]", "[null]", '["a", "a"]']),
        max_size=2,
    )
    types = st.sampled_from(['"string"', '["integer", "null"]', '"Boolean"', '"array"'])
    leaves = st.builds(
        lambda type_, limits: an_object([('"type"', type_), *((f'"{key}"', value) for key, value in limits.items())]),
        types,
        limits,
    )
    references = st.sampled_from(['{"$ref": "#/$defs/a"}', '{"$ref": "#"}', '{"$ref": "#/properties/a"}', "{}"])
    return st.recursive(
        leaves | references,
        lambda inner: (
            inner.map(lambda one: f'{{"type": "array", "items": {one}}}')
            | st.builds(
                lambda a, b: f'{{"type": "object", "properties": {{"a": {a}, "b": {b}}}, "required": ["a"]}}',
                inner,
                inner,
            )
            | st.builds(
                lambda key, every: f'{{"{key}": [{", ".join(every)}]}}',
                st.sampled_from(["anyOf", "oneOf", "allOf", "prefixItems"]),
                st.lists(inner, max_size=3),
            )
        ),
        max_leaves=5,
    )


ODD = plausible(NUMBERS | TEXTS)
PLAIN = plausible(st.sampled_from(["0", "3", "-1", "1.5", '"a"', '"string"']))


def whole(first: str, second: str) -> str:
    return f'{{"type": "object", "properties": {{"a": {first}}}, "$defs": {{"a": {second}}}}}'


@given(ODD, ODD)
def test_what_looks_like_a_schema_is_taken_by_the_service_too_or_refused_in_words(first: str, second: str) -> None:
    schema = whole(first, second)
    assert pasted_as_tools(f'[{{"name": "f", "parameters": {schema}}}]') == pasted_as_schema(schema)
    pasted_as_schema(first)


@given(PLAIN, PLAIN)
def test_what_looks_like_a_schema_is_refused_here_only_if_the_service_refuses_it(first: str, second: str) -> None:
    schema = whole(first, second)
    sent = GenerationConfig(response_mime_type="application/json", response_schema=struct(json.loads(schema)))
    assert pasted_as_schema(schema) == (refused(config=sent) == [])


def test_real_schemas_are_taken() -> None:
    tree = {"type": "object", "properties": {"below": {"type": "array", "items": {"$ref": "#/$defs/tree"}}}}
    recursive = {"$ref": "#/$defs/tree", "$defs": {"tree": tree}}
    for schema in (CITY, recursive):
        assert pasted_as_schema(json.dumps(schema))
        assert pasted_as_tools(json.dumps([{"name": "f", "parameters": schema}]))


@pytest.mark.parametrize(("begin", "end"), [('{"a": ', "}"), ("[", "]")])
def test_values_are_taken_as_deep_as_the_wire_takes_them(begin: str, end: str) -> None:
    def schema(depth: int) -> str:
        return f'{{"type": "string", "default": {begin * depth}1{end * depth}}}'

    deepest = max(depth for depth in range(60) if pasted_as_schema(schema(depth)))
    assert deepest > 20
    with pytest.raises(DecodeError):
        refused(config=GenerationConfig(response_schema=struct(json.loads(schema(deepest + 1)))))

    def tools(depth: int) -> str:
        parameters = schema(depth).replace("string", "object")
        return f'[{{"type": "function", "function": {{"name": "f", "parameters": {parameters}}}}}]'

    deepest = max(depth for depth in range(60) if pasted_as_tools(tools(depth)))
    parameters = json.loads(tools(deepest + 1))[0]["function"]["parameters"]
    with pytest.raises(DecodeError):
        refused(tools=[Tool(function_declarations=[function("f", "", parameters)])])


def chain(links: int) -> str:
    """Each property's schema refers to the next."""
    steps = {f"s{link}": {"$ref": f"#/$defs/s{link + 1}"} for link in range(links)}
    return json.dumps({"$ref": "#/$defs/s0", "$defs": {**steps, f"s{links}": {"type": "string"}}})


def doubling(times: int) -> str:
    """Each has the next one twice: once all references are followed, they are two to the power of `times`."""
    twice = {
        f"s{time}": {"anyOf": [{"$ref": f"#/$defs/s{time + 1}"}, {"$ref": f"#/$defs/s{time + 1}"}]}
        for time in range(times)
    }
    return json.dumps({"$ref": "#/$defs/s0", "$defs": {**twice, f"s{times}": {"type": "string"}}})


@pytest.mark.parametrize("write", [chain, doubling])
def test_a_schema_may_grow_by_its_references_as_far_as_the_service_lets_it(write: Any) -> None:
    most = max(size for size in range(1, 60) if pasted_as_schema(write(size)))
    too_large = json.loads(write(most + 1))
    assert refused(config=GenerationConfig(response_mime_type="application/json", response_schema=struct(too_large)))
    with pytest.raises(PastedError, match="it is too large, once its references are followed"):
        read_schema(write(most + 1))
