"""JSON schemas as libraries write them, and as they reach each provider."""

import json
import re
from collections.abc import Sequence
from typing import Any, Literal

import grpc
import grpc.aio
import pytest
from google.protobuf import json_format
from google.rpc.error_details_pb2 import BadRequest
from pydantic import BaseModel, ConfigDict, Field

from service.generation import json_schema
from tests.conftest import detail
from tests.providers.conftest import Open, Upstream
from tests.providers.test_gemini import lower
from tests.service.contract.test_whole_request import struct
from tokenwire.v1 import content_pb2


class Team(BaseModel):
    name: str
    founded: int | None = None


class Match(BaseModel):
    """A match."""

    home: Team
    guests: list[Team]
    ended: Literal["won", "lost", "drawn"] | None


class Node(BaseModel):
    model_config = ConfigDict(extra="forbid")
    size: Literal[1, 2]
    next: "Node | None"


TEAM = {
    "type": "object",
    "title": "Team",
    "properties": {
        "name": {"type": "string", "title": "Name"},
        "founded": {"type": "integer", "title": "Founded", "nullable": True},
    },
    "required": ["name"],
}
MATCH = {
    "type": "object",
    "title": "Match",
    "description": "A match.",
    "properties": {
        "home": TEAM,
        "guests": {"type": "array", "title": "Guests", "items": TEAM},
        "ended": {"type": "string", "title": "Ended", "enum": ["won", "lost", "drawn"], "nullable": True},
    },
    "required": ["home", "guests", "ended"],
}


def config(schema: dict[str, Any]) -> dict[str, Any]:
    return {"response_mime_type": "application/json", "response_schema": struct(schema)}


def declared(schema: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"function_declarations": [{"name": "note", "parameters": struct(schema)}]}]


@pytest.fixture(params=["vertex", "genai"])
async def gemini(request: pytest.FixtureRequest, open_provider: Open) -> Upstream:
    return await open_provider(request.param)


@pytest.fixture(params=["vertex", "genai", "openai", "azure"])
async def upstream(request: pytest.FixtureRequest, open_provider: Open) -> Upstream:
    return await open_provider(request.param)


async def test_gemini_gets_a_schema_of_pydantics_without_references_and_with_null_in_its_own_words(
    gemini: Upstream,
) -> None:
    sent = (await gemini.request(config=config(Match.model_json_schema()))).generation_config
    arrived = sent.response_schema if gemini.provider == "vertex" else sent.response_json_schema
    # The one has Google's own words, the other JSON Schema's.
    expected = MATCH if gemini.provider == "vertex" else json_schema.changed(MATCH, json_schema.with_null)
    assert lower(json_format.MessageToDict(arrived)) == lower(expected)


async def test_gemini_gets_the_parameters_of_a_function_the_same_way(gemini: Upstream) -> None:
    request = await gemini.request(tools=declared(Match.model_json_schema()))
    (function,) = request.tools[0].function_declarations
    arrived = function.parameters if function.HasField("parameters") else function.parameters_json_schema
    assert lower(json_format.MessageToDict(arrived)) == lower(MATCH)


@pytest.mark.parametrize("provider", ["openai", "azure"])
async def test_openai_gets_a_schema_in_json_schemas_own_words_and_keeps_to_it_where_it_can(
    open_provider: Open, provider: str
) -> None:
    upstream = await open_provider(provider)
    await upstream.ask(config=config(Node.model_json_schema()), tools=declared(Match.model_json_schema()))
    body = json.loads(upstream.call.body or b"")
    form = body["response_format"]["json_schema"]
    node = {
        "type": "object",
        "title": "Node",
        "additionalProperties": False,
        "properties": {
            "size": {"type": "integer", "title": "Size", "enum": [1, 2]},
            "next": {"anyOf": [{"$ref": "#/$defs/Node"}, {"type": "null"}]},
        },
        "required": ["size", "next"],
    }
    assert form == {"name": "answer", "strict": True, "schema": node | {"$defs": {"Node": node}}}
    (function,) = [tool["function"] for tool in body["tools"]]
    assert "strict" not in function
    founded = function["parameters"]["properties"]["home"]["properties"]["founded"]
    assert founded == {"type": ["integer", "null"], "title": "Founded"}
    ended = function["parameters"]["properties"]["ended"]
    assert ended == {"type": ["string", "null"], "title": "Ended", "enum": ["won", "lost", "drawn", None]}


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int = Field(gt=0, le=9)


class Dog(BaseModel):
    kind: Literal["dog"]
    kilos: float = Field(gt=0)


class Pets(BaseModel):
    first: Cat | Dog = Field(discriminator="kind")
    others: list[Any]
    home: tuple[float, float]


async def test_openai_gets_what_goes_beyond_gemini_as_pydantic_writes_it(open_provider: Open) -> None:
    upstream = await open_provider("openai")
    await upstream.ask(config=config(Pets.model_json_schema()))
    properties = json.loads(upstream.call.body or b"")["response_format"]["json_schema"]["schema"]["properties"]
    cat, dog = properties["first"]["anyOf"]
    assert cat["properties"]["lives"] == {"type": "integer", "title": "Lives", "minimum": 1, "maximum": 9}
    assert dog["properties"]["kilos"] == {"type": "number", "title": "Kilos", "exclusiveMinimum": 0}
    assert properties["others"] == {"type": "array", "title": "Others", "items": {}}
    assert [one["type"] for one in properties["home"]["prefixItems"]] == ["number", "number"]


class Loose(BaseModel):
    """What Pydantic writes without a type, or as only null."""

    letter: Literal["a", None]  # noqa: PYI061 - the other way of writing it has a type
    either: Literal[1, "a"]
    nothing: None
    name: str = Field(examples=["Ann", "Bob"])


async def test_openai_gets_choices_of_no_type_null_examples_and_what_has_to_fit_at_once(open_provider: Open) -> None:
    upstream = await open_provider("openai")
    schema = Loose.model_json_schema() | {"$id": "https://example.org/loose", "$comment": "c"}
    schema["properties"]["both"] = {"allOf": [{"type": "string"}, {"minLength": 2}, {"pattern": "^a"}]}
    schema["properties"]["one"] = {"allOf": [{"type": "string"}], "description": "d"}
    await upstream.ask(config=config(schema), tools=declared(schema))
    body = json.loads(upstream.call.body or b"")
    written = body["response_format"]["json_schema"]["schema"]
    assert written == body["tools"][0]["function"]["parameters"]
    assert written["properties"] == {
        "letter": {"type": ["string", "null"], "title": "Letter", "enum": ["a", None]},
        "either": {
            "title": "Either",
            "anyOf": [{"type": "integer", "enum": [1]}, {"type": "string", "enum": ["a"]}],
        },
        "nothing": {"type": "null", "title": "Nothing"},
        "name": {"type": "string", "title": "Name", "examples": ["Ann", "Bob"]},
        "both": {"allOf": [{"type": "string"}, {"minLength": 2}, {"pattern": "^a"}]},
        "one": {"type": "string", "description": "d"},
    }


async def refused(gemini: Upstream, made: type[BaseModel]) -> set[str]:
    """The places in the properties of its schema that are refused."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await gemini.ask(config=config(made.model_json_schema()))
    return {one.field.removeprefix("config.response_schema.properties.") for one in _violations(caught.value)}


async def test_gemini_says_what_of_those_it_does_not_take(gemini: Upstream) -> None:
    assert await refused(gemini, Loose) == {
        "either.anyOf[0].enum",
        "nothing.type",
        "name.examples",
    }


async def test_gemini_takes_a_union_and_says_what_else_it_does_not(gemini: Upstream) -> None:
    await gemini.ask(config=config(Cat.model_json_schema()))
    assert await refused(gemini, Pets) == {
        "first.anyOf[1].properties.kilos.exclusiveMinimum",
        "others.items",
        "home.prefixItems",
    }


def _violations(error: grpc.aio.AioRpcError) -> Sequence[BadRequest.FieldViolation]:
    return list(detail(error, BadRequest).field_violations)


async def test_what_gemini_has_no_word_for_is_refused_by_its_path(gemini: Upstream) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await gemini.ask(config=config(Node.model_json_schema()))
    assert {one.field for one in _violations(caught.value)} == {
        "config.response_schema.additionalProperties",
        "config.response_schema.properties.next.$ref",
        "config.response_schema.properties.size.enum",
    }


@pytest.mark.parametrize("kind", ["integer", ["integer", "null"], ["integer", "string"]])
async def test_a_number_as_the_only_value_is_refused_by_the_name_that_the_caller_wrote(
    gemini: Upstream, kind: Any
) -> None:
    for key, value in (("const", 3), ("enum", [3])):
        schema = {"type": "object", "properties": {"n": {"type": kind, key: value}}}
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await gemini.ask(config=config(schema))
        (wrong,) = [one.field for one in _violations(caught.value)]
        assert wrong.startswith("config.response_schema.properties.n")
        assert wrong.endswith(f".{key}")


@pytest.mark.parametrize("value", [{}, [], {"a": {}}, [{}], 0, "", False, 2**53])
async def test_a_default_arrives_as_the_value_that_it_is(gemini: Upstream, value: Any) -> None:
    """Also an empty object, of which Google's library for gRPC makes null."""
    inner = {"type": "string", "default": value, "example": value}
    schema = {"type": "object", "properties": {"n": inner}, "default": value}
    form = (await gemini.request(config=config(schema))).generation_config
    (function,) = (await gemini.request(tools=declared(schema))).tools[0].function_declarations
    arrived = form.response_schema if gemini.provider == "vertex" else form.response_json_schema
    for one in (arrived, function.parameters):
        told = json_format.MessageToDict(one)
        assert (told["default"], told["properties"]["n"]["default"]) == (value, value)
        assert told["properties"]["n"]["example"] == value


LIMITS = {"minimum": 1e15, "maximum": 2.0**53, "default": 2.0**53}


async def test_whole_numbers_leave_as_such(upstream: Upstream) -> None:
    """They come as doubles. Where JSON leaves, they stand there with neither a point nor an exponent."""
    numbers = {"most": 2.0**53, "least": -(2.0**53), "round": 1e15, "list": [3.0]}
    call = content_pb2.ToolCall(id="1", name="note", arguments=struct(numbers))
    await upstream.ask(
        prompt="",
        messages=[
            {"role": content_pb2.ROLE_USER, "parts": [{"text": "a"}]},
            {"role": content_pb2.ROLE_MODEL, "parts": [{"tool_call": call}]},
            {
                "role": content_pb2.ROLE_TOOL,
                "parts": [{"tool_result": {"tool_call_id": "1", "response": struct(numbers)}}],
            },
        ],
        tools=declared({"type": "object", "properties": {"n": {"type": "string", "maxLength": 1e15}}}),
    )
    sent = (upstream.call.body or b"").decode().replace("\\", "")
    for name, value in (("most", 2**53), ("least", -(2**53)), ("round", 10**15)):
        assert re.findall(rf'"{name}": ?([^,}}]+)', sent) == [str(value)] * 2 * (upstream.provider != "vertex")
    await upstream.ask(
        config=config({"type": "object", "properties": {"n": {"type": "integer", **LIMITS}}}),
    )
    sent = (upstream.call.body or b"").decode()
    for name, limit in LIMITS.items():
        assert re.findall(rf'"{name}": ?([^,}}]+)', sent) == [str(int(limit))] * (upstream.provider != "vertex")
