"""A schema means the same however it was written: what fits it fits what providers are given for it."""

import time
from typing import Any

import jsonschema  # type: ignore[import-untyped] # it has none
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from service.contract import schema_rules
from service.generation import json_schema
from service.generation.json_schema import Word
from service.providers.chat_completions import schemas

Json = Any

NAMES = ("a", "b")
NODE = {"type": "object", "properties": {"next": {"anyOf": [{"$ref": "#/$defs/Node"}, {"type": "null"}]}}}


def pet(kind: str) -> Json:
    """As Pydantic has one of a union that is told apart by its kind."""
    return {"type": "object", "properties": {"kind": {"type": "string", "const": kind}}, "required": ["kind"]}


@pytest.mark.parametrize(
    ("written", "normal"),
    [
        ({"type": "STRING"}, {"type": "string"}),
        ({"type": ["string", "null"]}, {"type": "string", "nullable": True}),
        (
            {"type": ["Integer", "string"], "title": "T"},
            {"title": "T", "anyOf": [{"type": "integer"}, {"type": "string"}]},
        ),
        (
            {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None},
            {"type": "string", "nullable": True},
        ),
        (
            {"anyOf": [{"type": "string"}, {"type": "integer"}, {"type": "null"}]},
            {"anyOf": [{"type": "string"}, {"type": "integer"}], "nullable": True},
        ),
        ({"type": "string", "const": "cat"}, {"type": "string", "enum": ["cat"]}),
        ({"type": ["string", "null"], "enum": ["a", None]}, {"type": "string", "enum": ["a"], "nullable": True}),
        ({"type": ["string", "null"], "enum": ["a"]}, {"type": "string", "enum": ["a"]}),
        ({"$schema": "x", "type": "string"}, {"type": "string"}),
        (
            {"type": "integer", "exclusiveMinimum": 0, "exclusiveMaximum": 9.5, "minimum": -1},
            {"type": "integer", "minimum": 1, "maximum": 9},
        ),
        ({"type": "number", "exclusiveMinimum": 0}, {"type": "number", "exclusiveMinimum": 0}),
        ({"type": "array", "items": {}, "uniqueItems": False}, {"type": "array", "items": {}}),
        (
            {"oneOf": [{"type": "string"}, {"type": "integer"}, {"type": "null"}]},
            {"anyOf": [{"type": "string"}, {"type": "integer"}], "nullable": True},
        ),
        (
            {"oneOf": [{"type": "number"}, {"type": "integer"}, {"type": "null"}]},
            {"oneOf": [{"type": "number"}, {"type": "integer"}, {"type": "null"}]},
        ),
        (
            {
                "oneOf": [{"$ref": "#/$defs/Cat"}, {"$ref": "#/$defs/Dog"}],
                "discriminator": {"propertyName": "kind", "mapping": {"cat": "#/$defs/Cat", "dog": "#/$defs/Dog"}},
                "$defs": {"Cat": pet("cat"), "Dog": pet("dog")},
            },
            {"anyOf": [json_schema.normal(pet("cat")), json_schema.normal(pet("dog"))]},
        ),
        (
            {
                "type": "array",
                "items": {"$ref": "#/definitions/P", "description": "one"},
                "definitions": {"P": {"type": "string", "description": "any"}},
            },
            {"type": "array", "items": {"type": "string", "description": "one"}},
        ),
        (
            {"type": "object", "properties": {"type": {"type": ["integer", "null"]}}},
            {"type": "object", "properties": {"type": {"type": "integer", "nullable": True}}},
        ),
        (
            {"$ref": "#/$defs/Node", "$defs": {"Node": NODE}},
            {
                "type": "object",
                "properties": {"next": {"$ref": "#/$defs/Node", "nullable": True}},
                "$defs": {
                    "Node": {"type": "object", "properties": {"next": {"$ref": "#/$defs/Node", "nullable": True}}}
                },
            },
        ),
    ],
)
def test_a_schema_has_one_form_however_it_is_written(written: Json, normal: Json) -> None:
    assert json_schema.normal(written) == normal


def node(child: str) -> Json:
    return {"type": "object", "properties": {"child": {"$ref": child}}}


def test_definitions_of_one_name_stay_apart_and_odd_names_lead_somewhere() -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"$ref": "#/$defs/N"}, "b": {"$ref": "#/definitions/N"}, "c": {"$ref": "#/$defs/x~1N"}},
        "$defs": {"N": node("#/$defs/N"), "x/N": node("#/$defs/x~1N")},
        "definitions": {"N": {"type": "object", "properties": {"other": {"$ref": "#/definitions/N"}}}},
    }
    assert not list(schema_rules.mistakes(schema, ""))
    made = json_schema.normal(schema)
    assert len(made["$defs"]) == 3
    for name, one in made["properties"].items():
        (inner,) = one["properties"].values()
        kept = made["$defs"][inner["$ref"].removeprefix("#/$defs/")]
        assert kept["properties"].keys() == one["properties"].keys(), name


def test_what_a_schema_defines_stays_where_it_is_when_it_may_be_null() -> None:
    inner = {"type": "object", "properties": {"child": {"$ref": "#/$defs/N"}}}
    schema = {"anyOf": [{"$ref": "#/$defs/N"}, {"type": "string"}, {"type": "null"}], "$defs": {"N": inner}}
    written = schemas.written(json_schema.normal(schema))
    assert set(written) == {"anyOf", "$defs"}
    assert fits(written, None)
    assert fits(written, {"child": {"child": {}}})
    assert not fits(written, {"child": {"child": 1}})


def test_what_goes_beyond_the_form_is_told_with_its_place() -> None:
    schema = json_schema.normal(
        {
            "type": "object",
            "additionalProperties": {"type": "integer", "enum": [1]},
            "properties": {
                "me": {"$ref": "#"},
                "a": {"anyOf": [{"type": "string"}, {"type": "number", "const": 1}]},
                "b": {"type": "array", "items": {"title": "Any"}, "prefixItems": [{"type": "string"}]},
                "c": {"oneOf": [{"type": "integer"}, {"type": "number", "multipleOf": 0.5}]},
            },
        }
    )
    assert list(json_schema.words(schema, "x")) == [
        ("x.additionalProperties", Word.ADDITIONAL_PROPERTIES),
        ("x.properties.me.$ref", Word.RECURSION),
        ("x.properties.a.anyOf[1].const", Word.OTHER_ENUM),
        ("x.properties.b.prefixItems", Word.TUPLES),
        ("x.properties.b.items", Word.ANYTHING),
        ("x.properties.c.oneOf", Word.ONE_OF),
        ("x.properties.c.oneOf[1].multipleOf", Word.FINER_LIMITS),
        ("x.additionalProperties.enum", Word.OTHER_ENUM),
    ]


# ---- any schema, any value -------------------------------------------------------------------------------------------

KINDS = ("string", "number", "integer", "boolean")

PLAIN: st.SearchStrategy[Json] = st.one_of(
    st.builds(lambda kind: {"type": kind}, st.sampled_from(KINDS)),
    st.builds(lambda kinds: {"type": kinds}, st.lists(st.sampled_from(KINDS), min_size=1, max_size=2, unique=True)),
    st.builds(lambda kind: {"type": [kind, "null"]}, st.sampled_from(KINDS)),
    st.builds(
        lambda kinds, choices: {"type": kinds, "enum": choices},
        st.sampled_from(["string", "integer", ["string", "null"], ["integer", "string", "null"]]),
        st.lists(st.sampled_from(["a", "b", 1, 2, True]), min_size=1, max_size=2, unique_by=str).flatmap(
            lambda some: st.sampled_from([some, [*some, None]])
        ),
    ),
    st.builds(lambda value: {"type": "string", "const": value}, st.sampled_from(["a", "b"])),
    st.builds(
        lambda key, some: {"const": some[0]} if key == "const" else {"enum": some},
        st.sampled_from(["const", "enum"]),
        st.lists(st.sampled_from([None, "a", "b", 1, 2, 1.5, True]), min_size=1, max_size=3, unique_by=str),
    ),
    st.sampled_from(
        [
            {"type": "null"},
            {"type": ["null"]},
            {"type": ["null", "string"], "enum": [None]},
            {"type": "null", "enum": ["a"]},
            {"type": "string", "examples": ["a"], "$comment": "c"},
        ]
    ),
    st.builds(
        lambda kinds, limits: {"type": kinds, **limits},
        st.sampled_from(["integer", "number", ["integer", "string"], ["number", "null"]]),
        st.fixed_dictionaries(
            {},
            optional={
                "exclusiveMinimum": st.sampled_from([-1, 0, 0.5]),
                "exclusiveMaximum": st.sampled_from([1, 1.5, 2]),
                "minimum": st.sampled_from([0, 1]),
                "multipleOf": st.sampled_from([0.5, 1]),
            },
        ),
    ),
    st.sampled_from([{}, {"title": "T"}]),
)
LEAVES = PLAIN | st.sampled_from(["#", "#/$defs/A", "#/$defs/B", "#/definitions/C", "#/$defs/B/items"]).map(
    lambda name: {"$ref": name, "title": "T"}
)


def objects(inner: st.SearchStrategy[Json]) -> st.SearchStrategy[Json]:
    return st.builds(
        lambda properties, required, more: {
            "type": "object",
            "properties": properties,
            "required": [name for name in required if name in properties],
            **({} if more is None else {"additionalProperties": more}),
        },
        st.dictionaries(st.sampled_from(NAMES), inner, max_size=2),
        st.lists(st.sampled_from(NAMES), unique=True, max_size=2),
        st.none() | st.booleans() | inner,
    )


def arrays(inner: st.SearchStrategy[Json]) -> st.SearchStrategy[Json]:
    return st.builds(
        lambda items, most, more: {"type": "array", "items": items, "maxItems": most, **more},
        inner,
        st.integers(0, 2),
        st.fixed_dictionaries(
            {}, optional={"uniqueItems": st.booleans(), "prefixItems": st.lists(inner, min_size=1, max_size=2)}
        ),
    )


def options(inner: st.SearchStrategy[Json]) -> st.SearchStrategy[Json]:
    null = st.sampled_from([[], [{"type": "null"}]])
    return st.builds(
        lambda key, some, more: {key: [*some, *more]},
        st.sampled_from(["anyOf", "oneOf"]),
        st.lists(inner, min_size=1, max_size=3),
        null,
    )


def together(inner: st.SearchStrategy[Json]) -> st.SearchStrategy[Json]:
    added = st.sampled_from([{"required": ["a"]}, {"minimum": 1}, {"minLength": 1}, {"enum": ["a", 1, None]}])
    more = st.fixed_dictionaries({}, optional={"title": st.just("T"), "type": st.sampled_from(["object", "string"])})
    return st.builds(
        lambda some, others, beside: {"allOf": [*some, *others], **beside},
        st.lists(inner, min_size=1, max_size=2),
        st.lists(added, max_size=1),
        more,
    )


SMALL = (
    together(PLAIN | objects(PLAIN)) | PLAIN | arrays(PLAIN) | options(PLAIN | objects(PLAIN)) | options(options(PLAIN))
)
SCHEMAS = st.recursive(
    LEAVES, lambda inner: objects(inner) | arrays(inner) | options(inner) | together(inner), max_leaves=6
)
WHOLE = st.builds(
    lambda root, a, b, c: root | {"$defs": {"A": a, "B": b}, "definitions": {"C": c}},
    objects(SCHEMAS),
    objects(SCHEMAS),
    arrays(SCHEMAS),
    objects(SCHEMAS),
)
VALUES = st.recursive(
    st.sampled_from([None, True, False, 0, 1, 1.5, 2, "a", "b", ""]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from([*NAMES, "c"]), inner, max_size=2),
    max_leaves=6,
)


def fits(schema: Json, value: Json) -> bool:
    return bool(jsonschema.Draft202012Validator(schema).is_valid(value))


NULLABLE = [{"type": ["integer", "null"]}, {"type": ["string", "null"]}]
OF_A_KIND = [{"type": "object", "properties": {"a": {"type": kind}}} for kind in ("string", "integer")]


@example({"oneOf": NULLABLE}, [None, 1, "a"])
@example({"oneOf": [*NULLABLE[:1], {"type": "null"}]}, [None, 1])
@example({"oneOf": OF_A_KIND}, [{}, {"a": "b"}, {"a": 1}])
@example({"oneOf": [{**one, "required": ["a"]} for one in OF_A_KIND]}, [{}, {"a": "b"}, {"a": 1}])
@example({"oneOf": [{"type": ["integer", "boolean"], "enum": [1, True]}, {"type": "integer", "enum": [1]}]}, [1, True])
@example({"type": "integer", "exclusiveMinimum": 0, "exclusiveMaximum": 2}, [0, 1, 2])
@given(WHOLE | SMALL, st.lists(VALUES, min_size=1, max_size=8))
def test_the_same_values_fit_what_a_provider_is_given(schema: Json, values: list[Json]) -> None:
    assume(not list(schema_rules.mistakes(schema, "")))  # only its size may be wrong
    given_to_openai = schemas.written(json_schema.normal(schema))
    for value in values:
        assert fits(given_to_openai, value) == fits(schema, value), (value, given_to_openai)


def test_a_reference_may_name_any_place_of_a_schema() -> None:
    """As zod-to-json-schema writes what it meets twice."""
    schema = {
        "type": "object",
        "properties": {
            "a/b": {"type": "array", "items": {"anyOf": [{"type": "string"}, {"type": "integer"}]}},
            "b": {"$ref": "#/properties/a~1b/items/anyOf/1"},
            "c": {"$ref": "#/properties/b"},
        },
    }
    assert not list(schema_rules.mistakes(schema, ""))
    properties = json_schema.normal(schema)["properties"]
    assert properties["b"] == properties["c"] == {"type": "integer"}


@pytest.mark.parametrize(
    "reference",
    [
        *("", "#/", "/properties/a", "#/properties", "#/properties/b", "#/default", "#/items", "#/type"),
        *("#/anyOf", "#/anyOf/1", "#/anyOf/-1", "#/anyOf/x", "#/anyOf/0/type", "http://a#/properties/a"),
        *(1, None, {}),
    ],
)
def test_a_reference_to_what_is_no_schema_is_refused(reference: Any) -> None:
    schema = {"type": "object", "properties": {"a": {"$ref": reference}}, "default": {}, "anyOf": [{"type": "object"}]}
    (mistake,) = schema_rules.mistakes(schema, "")
    assert mistake.field == ".properties.a.$ref"


def test_a_union_of_thousands_is_looked_through_at_once() -> None:
    options = [{"type": "string", "const": str(number)} for number in range(1900)]
    made = json_schema.normal({"oneOf": options})
    assert len(made["anyOf"]) == 1900
    begin = time.process_time()
    for _ in range(3):
        json_schema.normal({"oneOf": options})
    assert time.process_time() - begin < 3, "some 10 ms each; in pairs it would be seconds"


def test_names_count_as_what_they_are() -> None:
    """A few references to a long name would be hundreds of megabytes upstream."""
    schema = {
        "type": "object",
        "properties": {str(number): {"$ref": "#/$defs/D"} for number in range(10)},
        "$defs": {"D": {"type": "object", "properties": {"x" * 200_000: {"type": "string"}}}},
    }
    with pytest.raises(json_schema.TooLargeError):
        json_schema.normal(schema)


def test_what_openapi_says_of_a_union_is_left_out_wherever_it_stands() -> None:
    schema = {"type": "object", "properties": {"discriminator": {"type": "string", "discriminator": {"a": "b"}}}}
    assert json_schema.normal(schema) == {"type": "object", "properties": {"discriminator": {"type": "string"}}}


@given(WHOLE)
def test_a_schema_is_valid_unless_it_is_too_large(schema: Json) -> None:
    assert [one for one in schema_rules.mistakes(schema, "") if "once its references" not in one.description] == []


@given(WHOLE)
def test_what_has_the_form_keeps_it(schema: Json) -> None:
    assume(not list(schema_rules.mistakes(schema, "")))
    normal = json_schema.normal(schema)
    assume(Word.RECURSION not in [word for _, word in json_schema.words(normal)])  # that would be followed once more
    assert json_schema.normal(normal) == normal


@pytest.mark.parametrize(
    ("schema", "strict"),
    [
        (
            {
                "type": "object",
                "properties": {"a": {"type": "string"}},
                "required": ["a"],
                "additionalProperties": False,
            },
            True,
        ),
        ({"type": "object", "properties": {"a": {"type": "string"}}, "additionalProperties": False}, False),
        ({"type": "object", "properties": {}}, False),
        ({"type": "object", "properties": {}, "additionalProperties": {"type": "string"}}, False),
        ({"type": "array", "items": {"type": "string"}}, False),
        (
            {
                "type": "object",
                "properties": {"a": {"type": ["object", "null"]}},
                "required": ["a"],
                "additionalProperties": False,
            },
            False,
        ),
        *(
            ({"type": "object", "properties": {"a": one}, "required": ["a"], "additionalProperties": False}, held)
            for one, held in (
                ({"type": "string", "minLength": 1}, False),
                ({"type": "string", "format": "date"}, True),
                ({"type": "string", "format": "uri"}, False),
                ({"type": "string", "pattern": "^a+$"}, True),
                ({"type": "string", "pattern": "(?=a)"}, False),
                ({"$ref": "#"}, True),
                ({"$ref": "#", "description": "me"}, False),
                ({"type": "string", "enum": [str(number) for number in range(300)]}, False),
            )
        ),
    ],
)
def test_a_model_is_held_to_a_schema_that_allows_it(schema: Json, strict: bool) -> None:
    assert schemas.strict(schemas.written(json_schema.normal(schema))) is strict
