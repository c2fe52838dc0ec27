"""Tools, thoughts, media, schemas: what of a request arrives, and what is refused by name before a model is asked."""

import urllib.parse
from typing import Any

import pytest
from google.protobuf import struct_pb2
from hypothesis import given
from hypothesis import strategies as st

from service.contract import decode
from service.contract.rules import Limits
from service.errors import InvalidRequest, Violation
from service.generation.capabilities import ModelCard
from service.generation.prompt import (
    Blob,
    File,
    Function,
    Prompt,
    Reasoning,
    Role,
    Sampling,
    ToolCall,
    ToolChoice,
    ToolMode,
    ToolResult,
    Tools,
    Turn,
)
from tokenwire.v1 import config_pb2, content_pb2
from tokenwire.v1 import generation_service_pb2 as pb

CARD = ModelCard(name="m", provider="gcp.vertex_ai")
LIMITS = Limits(prompt=10_000, inline=5_000)
USER, MODEL, TOOL = content_pb2.ROLE_USER, content_pb2.ROLE_MODEL, content_pb2.ROLE_TOOL
WEATHER: dict[str, Any] = {
    "name": "weather",
    "description": "The weather in a city.",
    "parameters": {"type": "OBJECT", "properties": {"city": {"type": "STRING"}}, "required": ["city"]},
}


TOOL_WEATHER: Any = {"function_declarations": [WEATHER]}


def struct(value: dict[str, Any]) -> struct_pb2.Struct:
    made = struct_pb2.Struct()
    made.update(value)
    return made


def request(**fields: Any) -> pb.GenerateRequest:
    return pb.GenerateRequest(**fields)


def parse(card: ModelCard = CARD, **fields: Any) -> Prompt:
    return decode.parse(request(**fields), cards=[card], limits=LIMITS)


def refused(card: ModelCard = CARD, **fields: Any) -> dict[str, str]:
    with pytest.raises(InvalidRequest) as caught:
        parse(card, **fields)
    return {violation.field: violation.description for violation in caught.value.violations}


def message(role: content_pb2.Role.ValueType, *parts: dict[str, Any]) -> content_pb2.Message:
    return content_pb2.Message(role=role, parts=[content_pb2.Part(**part) for part in parts])


def call(id: str = "1", name: str = "weather", **arguments: Any) -> dict[str, Any]:  # noqa: A002
    return {"tool_call": content_pb2.ToolCall(id=id, name=name, arguments=struct(arguments))}


def result(id: str = "1", name: str = "", **response: Any) -> dict[str, Any]:  # noqa: A002
    return {"tool_result": content_pb2.ToolResult(tool_call_id=id, name=name, response=struct(response))}


ASKED = message(USER, {"text": "Weather in Rome?"})


# ---- what arrives ----------------------------------------------------------------------------------------------------


def test_images_and_references_are_parts_of_a_turn() -> None:
    parts = (
        {"text": "What is this?"},
        {"inline_data": content_pb2.Blob(mime_type="image/png", data=b"png")},
        {"file_data": content_pb2.FileData(mime_type="application/pdf", file_uri="gs://bucket/report.pdf")},
    )
    assert parse(messages=[message(USER, *parts)]).turns == (
        Turn(
            Role.USER, ("What is this?", Blob("image/png", b"png"), File("application/pdf", "gs://bucket/report.pdf"))
        ),
    )


def test_a_round_of_tool_use_arrives_with_signatures_whole_numbers_and_the_functions_name() -> None:
    said = (
        {"reasoning": "Rome, then.", "reasoning_signature": b"s1"},
        {"text": "Let me see."},
        call(city="Rome", days=3, share=0.5) | {"reasoning_signature": b"s2"},
    )
    messages = [ASKED, message(MODEL, *said), message(TOOL, result(degrees=20, tags=["warm", None, True]))]
    assert parse(messages=messages).turns == (
        Turn(Role.USER, ("Weather in Rome?",)),
        Turn(
            Role.MODEL,
            (
                Reasoning("Rome, then.", b"s1"),
                "Let me see.",
                ToolCall(id="1", name="weather", arguments={"city": "Rome", "days": 3, "share": 0.5}, signature=b"s2"),
            ),
        ),
        Turn(
            Role.TOOL,
            (ToolResult(id="1", name="weather", response={"degrees": 20, "tags": ["warm", None, True]}),),
        ),
    )
    arguments = parse(messages=messages).turns[1].parts[2]
    assert isinstance(arguments, ToolCall)
    assert isinstance(arguments.arguments["days"], int)


def test_a_signed_text_is_followed_by_its_signature() -> None:
    messages = [ASKED, message(MODEL, {"text": "Warm.", "reasoning_signature": b"s"})]
    assert parse(messages=messages, prompt="And now?").turns[1].parts == ("Warm.", Reasoning("", b"s"))


def test_tools_and_the_choice_arrive() -> None:
    functions = [WEATHER, {"name": "now"}]
    prompt = parse(
        prompt="hi",
        tools=[{"function_declarations": functions}, {"google_search": {}}],
        tool_choice={"mode": config_pb2.ToolChoice.MODE_ANY, "allowed_function_names": ["now"]},
    )
    parameters = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    assert prompt.tools == Tools(
        functions=(Function("weather", "The weather in a city.", parameters), Function("now")),
        google_search=True,
        choice=ToolChoice(ToolMode.ANY, ("now",)),
    )


def test_every_other_field_arrives_and_false_is_not_unset() -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 1}}}
    config: dict[str, Any] = {
        "thinking_budget": 0,
        "include_thoughts": False,
        "response_mime_type": "application/json",
        "response_schema": struct(schema),
        "response_logprobs": True,
        "logprobs": 3,
    }
    prompt = parse(
        prompt="hi",
        config=config,
        labels={"team": "a-1", "empty": ""},
        safety_settings=[
            {"category": config_pb2.HARM_CATEGORY_HARASSMENT, "threshold": config_pb2.HARM_BLOCK_THRESHOLD_OFF},
            {"category": config_pb2.HARM_CATEGORY_HATE_SPEECH, "threshold": config_pb2.HARM_BLOCK_THRESHOLD_ONLY_HIGH},
        ],
    )
    assert prompt.sampling == Sampling(**(config | {"response_schema": schema}))
    assert prompt.labels == {"team": "a-1", "empty": ""}
    assert prompt.safety == {"HARM_CATEGORY_HARASSMENT": "OFF", "HARM_CATEGORY_HATE_SPEECH": "BLOCK_ONLY_HIGH"}


def test_every_field_of_config_arrives_under_its_own_name() -> None:
    assert set(config_pb2.GenerationConfig.DESCRIPTOR.fields_by_name) == set(Sampling.__dataclass_fields__)


def test_what_is_to_be_counted_is_parsed_as_a_request() -> None:
    counted = pb.CountTokensRequest(prompt="hi", system_instruction="s", tools=[TOOL_WEATHER])
    prompt = decode.parse_count(counted, cards=[CARD], limits=LIMITS)
    assert (prompt.turns, prompt.system_instruction) == ((Turn(Role.USER, ("hi",)),), "s")
    assert prompt.tools.functions[0].name == "weather"
    same = set(pb.CountTokensRequest.DESCRIPTOR.fields_by_name)
    assert same <= set(pb.GenerateRequest.DESCRIPTOR.fields_by_name)


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("messages", "path", "description"),
    [
        ([message(USER, {"reasoning": "hm"})], "messages[0].parts[0].reasoning", "is nothing that ROLE_USER says: "),
        ([message(USER, call())], "messages[0].parts[0].tool_call", "is nothing that ROLE_USER says: "),
        ([message(USER, result())], "messages[0].parts[0].tool_result", "is nothing that ROLE_USER says: "),
        (
            [message(USER, {"text": "a", "reasoning_signature": b"x"})],
            "messages[0].parts[0].reasoning_signature",
            "is nothing that ROLE_USER takes: leave it unset",
        ),
        ([ASKED, message(MODEL, {"reasoning": ""})], "messages[1].parts[0].reasoning", "is empty: text, or a"),
        (
            [ASKED, message(MODEL, {"text": "a"}), message(TOOL, result("7"))],
            "messages[2].parts[0].tool_result.tool_call_id",
            "is '7': the id of a call, one of the message before, which has none, is wanted",
        ),
        (
            [ASKED, message(MODEL, call("1")), message(TOOL, result("7"))],
            "messages[2].parts[0].tool_result.tool_call_id",
            "is '7': the id of a call, '1' is wanted",
        ),
        (
            [ASKED, message(MODEL, call("1"), call("2")), message(TOOL, result("1"))],
            "messages[2].parts",
            "lack a tool_result for the call '2': one for each call is wanted",
        ),
        (
            [ASKED, message(MODEL, call("1")), message(TOOL, result("1"), result("1"))],
            "messages[2].parts[1].tool_result.tool_call_id",
            "is '1', as before: one result is wanted",
        ),
        (
            [ASKED, message(MODEL, call("1"), call("1")), message(TOOL, result("1"))],
            "messages[1].parts[1].tool_call.id",
            "is '1', as of a call before: one of its own is wanted",
        ),
        (
            [ASKED, message(MODEL, call("1")), message(TOOL, result("1", name="other"))],
            "messages[2].parts[0].tool_result.name",
            "is 'other': 'weather' is wanted, as the call has it",
        ),
        ([ASKED, message(MODEL, call(""))], "messages[1].parts[0].tool_call.id", "is empty: the id that the call"),
        (
            [ASKED, message(MODEL, call("1", name=""))],
            "messages[1].parts[0].tool_call.name",
            "is empty: the name that the call came with is wanted",
        ),
        (
            [ASKED, message(MODEL, call("1")), message(USER, {"text": "Well?"})],
            "messages[2].role",
            "is ROLE_USER: ROLE_TOOL is wanted, its tool calls want their results",
        ),
        (
            [ASKED, message(MODEL, call("1", n=float("nan"))), message(TOOL, result("1"))],
            "messages[1].parts[0].tool_call.arguments",
            "holds NaN or an infinity: numbers that JSON knows are wanted",
        ),
        (
            [ASKED, message(MODEL, call("1")), message(TOOL, result("1", n=[float("inf")]))],
            "messages[2].parts[0].tool_result.response",
            "holds NaN or an infinity: numbers that JSON knows are wanted",
        ),
    ],
)
def test_a_conversation_with_tools_out_of_order_is_refused_by_place(
    messages: list[content_pb2.Message], path: str, description: str
) -> None:
    assert refused(messages=messages)[path].startswith(description)


def test_a_prompt_does_not_take_the_place_of_results() -> None:
    found = refused(messages=[ASKED, message(MODEL, call())], prompt="Well?")
    assert found == {"prompt": "is set, but the tool calls of messages[1] want their results first"}


@pytest.mark.parametrize(
    ("part", "field", "description"),
    [
        (
            {"inline_data": content_pb2.Blob(mime_type="image/tiff", data=b"x")},
            "inline_data.mime_type",
            (
                "is 'image/tiff': one of image/gif, image/heic, image/heif, image/jpeg, image/png, image/webp, "
                "audio/*, video/*, application/pdf, text/* is wanted"
            ),
        ),
        (
            {"inline_data": content_pb2.Blob(mime_type="png", data=b"x")},
            "inline_data.mime_type",
            "is 'png': one of image/gif",
        ),
        (
            {"inline_data": content_pb2.Blob(mime_type="audio/wav", data=b"x")},
            "inline_data.mime_type",
            "is 'audio/wav': 'seer' reads image, text, but no audio",
        ),
        (
            {"inline_data": content_pb2.Blob(mime_type="image/png")},
            "inline_data.data",
            "is empty: the bytes are wanted",
        ),
        (
            {"file_data": content_pb2.FileData(mime_type="image/png", file_uri="file:///etc/passwd")},
            "file_data.file_uri",
            "is 'file:///etc/passwd': gs://... is wanted by 'seer'",
        ),
        (
            {"file_data": content_pb2.FileData(mime_type="image/png", file_uri="x.png")},
            "file_data.file_uri",
            "is 'x.png': gs://... is wanted by 'seer'",
        ),
    ],
)
def test_what_the_model_cannot_read_is_refused(part: dict[str, Any], field: str, description: str) -> None:
    seer = ModelCard(
        name="seer", provider="p", input_kinds=frozenset({"text", "image"}), file_schemes=frozenset({"gs"})
    )
    found = refused(seer, messages=[message(USER, part)])
    assert found[f"messages[0].parts[0].{field}"].startswith(description)


def test_inline_data_has_a_limit_of_its_own() -> None:
    image = {"inline_data": content_pb2.Blob(mime_type="image/png", data=bytes(5_001))}
    assert refused(messages=[message(USER, image)]) == {
        "messages": "hold 5001 bytes of inline data, history included: at most 5000 are wanted"
    }
    allowed = {"inline_data": content_pb2.Blob(mime_type="image/png", data=bytes(5_000))}
    long = "x" * 9_000
    assert parse(messages=[message(USER, allowed, {"text": long})]).turns
    (said,) = refused(messages=[message(USER, allowed, {"text": "x" * 10_000})]).items()
    assert said[0] == "prompt"
    assert "bytes beside its inline data, history included: at most 10000 are wanted" in said[1]


@pytest.mark.parametrize(
    ("tools", "path", "description"),
    [
        ([{}], "tools[0]", "is empty: function_declarations or google_search is wanted"),
        ([{"function_declarations": [WEATHER], "google_search": {}}], "tools[0]", "holds both: "),
        ([{"function_declarations": [{"name": ""}]}], "tools[0].function_declarations[0].name", "is '': a letter"),
        ([{"function_declarations": [{"name": "a b"}]}], "tools[0].function_declarations[0].name", "is 'a b': "),
        (
            [{"function_declarations": [WEATHER]}, {"function_declarations": [WEATHER]}],
            "tools[1].function_declarations[0].name",
            "is 'weather', as of one before: a name of its own is wanted",
        ),
        (
            [{"function_declarations": [{"name": "f", "parameters": {"type": "string"}}]}],
            "tools[0].function_declarations[0].parameters.type",
            'is not "object": a schema of type object is wanted',
        ),
        (
            [{"function_declarations": [{"name": "f", "parameters": {"type": "object", "properties": {"a": 1}}}]}],
            "tools[0].function_declarations[0].parameters.properties.a",
            "is a number: a schema, which is an object, is wanted",
        ),
        (
            [{"function_declarations": [{"name": f"f{n}"} for n in range(129)]}],
            "tools",
            "declare 129 functions: at most 128 are wanted",
        ),
    ],
)
def test_a_tool_that_is_none_is_refused(tools: list[dict[str, Any]], path: str, description: str) -> None:
    assert refused(prompt="hi", tools=tools)[path].startswith(description)


@pytest.mark.parametrize(
    ("choice", "path", "description"),
    [
        (
            {"mode": 1, "allowed_function_names": ["weather"]},
            "tool_choice.allowed_function_names",
            "are set: a mode of MODE_ANY is wanted with them",
        ),
        (
            {"mode": 2, "allowed_function_names": ["other"]},
            "tool_choice.allowed_function_names[0]",
            "is 'other': a function that `tools` declares is wanted",
        ),
        ({"mode": 9}, "tool_choice.mode", "is 9: one of MODE_UNSPECIFIED, MODE_AUTO, MODE_ANY, MODE_NONE is wanted"),
    ],
)
def test_a_choice_that_does_not_fit_is_refused(choice: dict[str, Any], path: str, description: str) -> None:
    found = refused(prompt="hi", tools=[{"function_declarations": [WEATHER]}], tool_choice=choice)
    assert found[path] == description


def test_a_choice_without_functions_is_refused() -> None:
    wanted = "is set, but `tools` declares no function: declare one, or leave it unset"
    assert refused(prompt="hi", tool_choice={"mode": 1}) == {"tool_choice": wanted}


@pytest.mark.parametrize(
    ("schema", "path", "description"),
    [
        ({"type": "strange"}, ".type", "is 'strange': one of string, number, integer, boolean, array, object"),
        ({"type": "null"}, ".type", "is a schema that only null fits, which 'm' doesn't take"),
        ({"type": ["null"]}, ".type", "is a schema that only null fits"),
        ({"const": None}, ".type", "is a schema that only null fits"),
        ({"enum": []}, ".type", "is missing: one of string"),
        ({"enum": [1, "a"]}, ".anyOf[0].enum", "is a choice of other than texts, which 'm' doesn't take"),
        (
            {"allOf": [{"$ref": "#/$defs/A"}, {"minLength": 1}], "$defs": {"A": {"type": "string"}}},
            ".allOf",
            "is several",
        ),
        ({"allOf": {"type": "string"}}, ".allOf", "is an object: an array of schemas is wanted"),
        ({"type": "string", "examples": ["a"]}, ".examples", "is several examples, which 'm' doesn't take"),
        ({"type": "string", "examples": "a"}, ".examples", "is 'a': an array of values that JSON knows is wanted"),
        ({"type": "array", "items": {"$id": "x"}}, ".items.$id", "is no key of a schema here"),
        ({"type": ["string", ["number"]]}, ".type", "is an array: one of string"),
        ({"minLength": 1}, ".type", "is missing: one of string"),
        ({"title": "Any"}, "", "is a schema without a type, which anything fits, which 'm' doesn't take"),
        (
            {"type": "number", "exclusiveMinimum": 0},
            ".exclusiveMinimum",
            "is a limit that can't be reached, multiples, or",
        ),
        ({"type": "number", "multipleOf": 0}, ".multipleOf", "is 0: a number above 0 is wanted"),
        ({"type": "array", "prefixItems": []}, ".prefixItems", "is an array: an array of schemas is wanted"),
        (
            {"type": "array", "prefixItems": [{"type": "string"}]},
            ".prefixItems",
            "is a schema for each place in an array, which 'm' doesn't take",
        ),
        ({"oneOf": [{"type": "x"}]}, ".oneOf[0].type", "is 'x': one of"),
        (
            {"oneOf": [{"type": "integer"}, {"type": "number"}]},
            ".oneOf",
            "is several schemas of which two could fit at once, which 'm' doesn't take",
        ),
        (
            {"oneOf": [{"type": "string"}], "anyOf": [{"type": "string"}]},
            ".oneOf",
            "stands beside an anyOf: one of them is wanted",
        ),
        (
            {"type": "object", "additionalProperties": False},
            ".additionalProperties",
            "is what the schema says of other properties, which 'm' doesn't take",
        ),
        ({"type": "object", "additionalProperties": 1}, ".additionalProperties", "is 1: true, false or a schema is"),
        ({"type": "object", "patternProperties": {}}, ".patternProperties", "is no key of a schema here: one of $comm"),
        ({"type": "object", "properties": {"a": {"type": "object", "$defs": {}}}}, ".properties.a.$defs", "is no key"),
        ({"$ref": "#/x"}, ".$ref", "is '#/x': the place of a schema in this one, such as '#', is wanted"),
        ({"type": ["string", "string"]}, ".type", "is an array: one of string"),
        ({"type": "string", "const": "a", "enum": ["b"]}, ".const", "stands beside an enum: one of them is wanted"),
        (
            {"type": ["string", "integer"], "anyOf": [{"type": "string"}]},
            ".anyOf",
            "stands beside several types: one of them is wanted",
        ),
        ({"anyOf": [{"type": "string"}, {"type": "null", "x": 1}]}, ".anyOf[1].x", "is no key of a schema here"),
        (
            {"$ref": "#/$defs/B", "$defs": {"A": {"type": "string"}}},
            ".$ref",
            "is '#/$defs/B': the place of a schema in this one, such as '#', '#/$defs/A', is",
        ),
        (
            {"$ref": "#/$defs/A", "minLength": 1, "$defs": {"A": {"type": "string"}}},
            ".minLength",
            "stands beside a $ref: it is wanted where that leads to",
        ),
        ({"type": "object", "$defs": {"A": {"type": "x"}}}, ".$defs.A.type", "is 'x': one of"),
        (
            {"type": "object", "properties": {"next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}}},
            ".properties.next.$ref",
            "is a schema within itself, which 'm' doesn't take",
        ),
        ({"type": "array"}, ".items", "is missing: the schema of the array's items is wanted"),
        ({"type": "array", "items": {"type": "x"}}, ".items.type", "is 'x': one of"),
        ({"type": "object", "properties": ["a"]}, ".properties", "is an array: an object, the schema of each"),
        ({"anyOf": []}, ".anyOf", "is an array: an array of schemas is wanted"),
        ({"anyOf": [{"type": "string"}, {"type": "x"}]}, ".anyOf[1].type", "is 'x'"),
        ({"anyOf": [{"type": "null"}]}, ".type", "is a schema that only null fits"),
        (
            {"type": "string", "enum": [[1]]},
            ".enum",
            "is an array: an array of texts, or of numbers, true and false, is",
        ),
        (
            {"type": "string", "enum": [None]},
            ".enum",
            "is an array: an array of texts, or of numbers, true and false, is",
        ),
        ({"type": "string", "const": None}, ".const", "is null: a text, a number, true or false is wanted"),
        ({"type": "integer", "enum": [1, 2]}, ".enum", "is a choice of other than texts, which 'm' doesn't take"),
        (
            {"type": "array", "items": {"type": "integer", "const": 1}},
            ".items.const",
            "is a choice of other than texts, which 'm' doesn't take",
        ),
        ({"type": "string", "minLength": -1}, ".minLength", "is -1: a whole number from 0 to 2^53, is wanted"),
        (
            {"type": "array", "items": {"type": "string"}, "maxItems": 1e300},
            ".maxItems",
            "is 1e+300: a whole number from",
        ),
        ({"type": "number", "maximum": "high"}, ".maximum", "is 'high': a number is wanted"),
        ({"type": "number", "maximum": float("nan")}, ".maximum", "is nan: a number is wanted"),
        ({"type": "string", "nullable": 1}, ".nullable", "is 1: true or false is wanted"),
        (
            {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["b"]},
            ".required",
            "names 'b': one of `properties` is wanted",
        ),
    ],
)
def test_a_schema_that_gemini_would_not_take_whole_is_refused(
    schema: dict[str, Any], path: str, description: str
) -> None:
    config = {"response_mime_type": "application/json", "response_schema": struct(schema)}
    assert refused(prompt="hi", config=config)[f"config.response_schema{path}"].startswith(description)


def test_the_keys_of_a_schema_are_listed_once() -> None:
    properties = {name: {"type": "string", "example_of": "a"} for name in "abcdefgh"}
    schema = struct({"type": "object", "properties": properties})
    found = refused(prompt="hi", config={"response_mime_type": "application/json", "response_schema": schema})
    assert len(found) == len(properties)
    assert sum("one of" in description for description in found.values()) == 1


def test_a_schema_nested_without_end_is_refused() -> None:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(25):
        schema = {"type": "array", "items": schema}
    config = {"response_mime_type": "application/json", "response_schema": struct(schema)}
    (found,) = refused(prompt="hi", config=config).values()
    assert found == "is nested deeper than 20 schemas: fewer are wanted"


TOO_LARGE = (
    "is nested deeper than 20 schemas, or holds more than 2000 or 1000000 characters, "
    "once its references are followed: less is wanted"
)


def doubling() -> dict[str, Any]:
    definitions: dict[str, Any] = {"L0": {"type": "string"}}
    for level in range(12):
        pair = {"type": "object", "properties": {name: {"$ref": f"#/$defs/L{level}"} for name in "ab"}}
        definitions[f"L{level + 1}"] = pair
    return {"$ref": "#/$defs/L12", "$defs": definitions}


def chain() -> dict[str, Any]:
    links = {f"A{number}": {"$ref": f"#/$defs/A{number + 1}"} for number in range(1200)}
    return {"$ref": "#/$defs/A0", "$defs": {**links, "A1200": {"type": "string"}}}


def repeated(entry: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {f"p{number}": {"$ref": "#/$defs/E"} for number in range(900)},
        "$defs": {"E": entry},
    }


WIDE = Limits(prompt=2_000_000, inline=5_000)


@pytest.mark.parametrize(
    "schema",
    [
        doubling(),
        chain(),
        repeated({"type": "string", "description": "x" * 50_000}),
        repeated({"type": "string", "enum": [f"word {number}" for number in range(5_000)]}),
        repeated({"type": "object", "default": {f"key {number}": "x" for number in range(5_000)}}),
    ],
    ids=["doubling", "chain", "long", "many", "default"],
)
def test_a_schema_that_its_references_make_too_large_is_refused(schema: dict[str, Any]) -> None:
    config = {"response_mime_type": "application/json", "response_schema": struct(schema)}
    with pytest.raises(InvalidRequest) as caught:
        decode.parse(request(prompt="hi", config=config), cards=[CARD], limits=WIDE)
    assert [one.description for one in caught.value.violations] == [TOO_LARGE]


@pytest.mark.parametrize("kinds", [["array", "object", "string"], ["array", "object", "string", "number", "boolean"]])
def test_several_types_nested_are_no_more_than_their_schemas(kinds: list[str]) -> None:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(15):
        schema = {"type": kinds, "items": schema, "properties": {}}
    config = {"response_mime_type": "application/json", "response_schema": struct(schema)}
    made = parse(prompt="hi", config=config).sampling.response_schema
    assert len(str(made)) < 5_000


def test_a_schema_of_many_mistakes_tells_a_few_of_them_in_short() -> None:
    names = [f"{'n' * 60}{number}" for number in range(3_000)]
    schema = {"type": "string", "$defs": {name: {"$ref": "x"} for name in names}}
    config = {"response_mime_type": "application/json", "response_schema": struct(schema)}
    with pytest.raises(InvalidRequest) as caught:
        decode.parse(request(prompt="hi", config=config), cards=[CARD], limits=WIDE)
    assert 0 < len(caught.value.violations) <= 20
    assert len(str(caught.value)) < 8_000


def test_the_parameters_of_a_function_may_be_a_reference_to_an_object() -> None:
    pet = {"type": "object", "properties": {"name": {"type": "string"}}}
    schema = {"$ref": "#/$defs/Pet", "$defs": {"Pet": pet}}
    functions = [{"name": "feed", "parameters": struct(schema)}]
    prompt = parse(prompt="hi", tools=[{"function_declarations": functions}])
    assert prompt.tools.functions[0].parameters == pet
    functions = [{"name": "feed", "parameters": struct({"$ref": "#/$defs/A", "$defs": {"A": {"type": "string"}}})}]
    wrong = refused(prompt="hi", tools=[{"function_declarations": functions}])
    assert wrong == {
        "tools[0].function_declarations[0].parameters.type": 'is not "object": a schema of type object is wanted'
    }


@pytest.mark.parametrize(
    ("config", "path", "description"),
    [
        (
            {"thinking_budget": -2},
            "thinking_budget",
            "is -2: 0 or more, or -1 for as much as the model likes, is wanted",
        ),
        ({"response_mime_type": "text/html"}, "response_mime_type", "is 'text/html': one of text/plain, application/"),
        (
            {"response_schema": struct({"type": "string"})},
            "response_schema",
            "is set: a response_mime_type of application/json or text/x.enum is wanted with it",
        ),
        ({"logprobs": 2}, "logprobs", "is set: response_logprobs is wanted with it"),
        ({"response_logprobs": True, "logprobs": 21}, "logprobs", "is 21: 1 to 20 is wanted"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(config: dict[str, Any], path: str, description: str) -> None:
    assert refused(prompt="hi", config=config)[f"config.{path}"].startswith(description)


def test_safety_settings_name_a_category_and_a_threshold_once() -> None:
    harassment = config_pb2.HARM_CATEGORY_HARASSMENT
    off = config_pb2.HARM_BLOCK_THRESHOLD_OFF
    settings = [{"category": harassment}, {"category": harassment, "threshold": off}, {"threshold": off}]
    found = refused(prompt="hi", safety_settings=settings)
    assert set(found) == {
        "safety_settings[0].threshold",
        "safety_settings[1].category",
        "safety_settings[2].category",
    }
    assert found["safety_settings[0].threshold"].startswith("is 0: one of HARM_BLOCK_THRESHOLD_LOW_AND_ABOVE, ")
    assert found["safety_settings[1].category"] == "was set before: one setting for each is wanted"


def test_labels_are_as_google_cloud_has_them() -> None:
    assert refused(prompt="hi", labels={"Team": "a"})["labels"].startswith("hold the key 'Team': a lower-case letter")
    assert refused(prompt="hi", labels={"team": "A"})["labels.team"].startswith("is 'A': up to 63 lower-case")
    assert refused(prompt="hi", labels={f"l{n}": "" for n in range(65)})["labels"] == "hold 65: at most 64 are wanted"


# ---- what this model can't take --------------------------------------------------------------------------------------


LACKING: dict[str, tuple[str, dict[str, Any]]] = {
    "config.top_k": ("config.top_k", {"config": {"top_k": 3}}),
    "labels": ("labels", {"labels": {"a": "b"}}),
    "safety_settings": ("safety_settings", {"safety_settings": [{"category": 1, "threshold": 1}]}),
    "tools.google_search": ("tools.google_search", {"tools": [{"google_search": {}}]}),
}


@pytest.mark.parametrize("path", LACKING)
def test_a_field_that_the_provider_has_no_word_for_is_refused_by_name(path: str) -> None:
    field, fields = LACKING[path]
    card = ModelCard(name="m", provider="p", unsupported=frozenset({path}))
    assert refused(card, prompt="hi", **fields) == {field: "is nothing that 'm' takes: leave it unset"}
    assert parse(CARD, prompt="hi", **fields).turns


def test_thoughts_of_another_model_are_refused_where_they_would_be_lost() -> None:
    unsupported = frozenset({"messages.parts.reasoning", "messages.parts.reasoning_signature"})
    card = ModelCard(name="m", provider="p", unsupported=unsupported)
    messages = [ASKED, message(MODEL, {"reasoning": "hm"}, {"text": "a", "reasoning_signature": b"s"})]
    assert refused(card, messages=messages, prompt="b") == {
        "messages[1].parts[0].reasoning": "is nothing that 'm' takes: leave it out",
        "messages[1].parts[1].reasoning_signature": "is nothing that 'm' takes: leave it unset",
    }


def test_a_model_without_tools_or_thoughts_says_so() -> None:
    plain = ModelCard(name="m", provider="p", tools=False, thinking=False)
    fields: dict[str, Any] = {"tools": [{"function_declarations": [WEATHER]}], "config": {"thinking_budget": 0}}
    assert refused(plain, prompt="hi", **fields) == {
        "tools": "are nothing that 'm' can use: leave them unset",
        "config.thinking_budget": "is set, but 'm' doesn't think: leave it unset",
    }


def test_json_beside_tools_is_refused_where_the_model_refuses_it() -> None:
    fields: dict[str, Any] = {
        "tools": [{"function_declarations": [WEATHER]}],
        "config": {"response_mime_type": "application/json"},
    }
    old = ModelCard(name="m", provider="p", json_with_tools=False)
    assert refused(old, prompt="hi", **fields) == {
        "config.response_mime_type": "is 'application/json': 'm' takes that without `tools` only"
    }
    assert parse(CARD, prompt="hi", **fields).turns


def test_a_card_has_the_last_word_on_answers_and_stops() -> None:
    card = ModelCard(name="m", provider="p", answer_types=("text/plain", "application/json"), max_stop_sequences=1)
    found = refused(card, prompt="hi", config={"response_mime_type": "text/x.enum", "stop_sequences": ["a", "b"]})
    assert found == {
        "config.response_mime_type": "is 'text/x.enum': one of text/plain, application/json is wanted",
        "config.stop_sequences": "holds 2: at most 1 are wanted",
    }


def test_a_status_holds_what_grpc_lets_through_and_counts_the_rest() -> None:
    """Its clients begin to refuse those beyond 8 KB."""
    error = InvalidRequest([Violation(f"config.x{number}", "is wrong " * 20) for number in range(100)])
    assert len(error.text) + len(error.status().SerializeToString()) * 4 / 3 < 8000
    assert error.text.endswith(" more")
    alone = InvalidRequest([Violation("config.x", "is wrong " * 10_000)])
    assert len(alone.text) + len(alone.status().SerializeToString()) * 4 / 3 < 8000
    assert alone.text.startswith("config.x: is wrong")


@given(st.lists(st.builds(Violation, st.text(max_size=300), st.text("aé😀 ", max_size=3000)), min_size=1, max_size=8))
def test_no_status_is_too_large_whatever_stands_in_it(violations: list[Violation]) -> None:
    error = InvalidRequest(violations)
    written = urllib.parse.quote(error.text, safe=" ")  # more than gRPC
    assert len(written) + len(error.status().SerializeToString()) * 4 / 3 < 8000


@pytest.mark.parametrize("number", [2.0**53 + 2, 2.0**60, -(2.0**60), 1e300])
def test_a_whole_number_that_may_have_been_rounded_is_refused_by_its_place(number: float) -> None:
    why = "is a whole number beyond 2^53, which a Struct may have rounded: up to 2^53, or a text, is wanted"
    messages = [ASKED, message(MODEL, call(n=[{"x": number}])), message(TOOL, result(n=number))]
    assert refused(messages=messages, prompt="") == {
        "messages[1].parts[0].tool_call.arguments.n[0].x": why,
        "messages[2].parts[0].tool_result.response.n": why,
    }
    schema = {"type": "object", "properties": {"n": {"type": "integer", "maximum": number, "default": number}}}
    function = {"name": "f", "parameters": struct(schema)}
    assert refused(
        prompt="hi",
        tools=[{"function_declarations": [function]}],
        config={"response_mime_type": "application/json", "response_schema": struct(schema)},
    ) == {
        f"{place}.properties.n.{key}": why
        for place in ("config.response_schema", "tools[0].function_declarations[0].parameters")
        for key in ("maximum", "default")
    }


@given(st.integers(-(2**53), 2**53))
def test_every_other_whole_number_is_one_again(number: int) -> None:
    parsed = parse(messages=[ASKED, message(MODEL, call(n=number)), message(TOOL, result(n=number))])
    (said,), (told,) = parsed.turns[1].parts, parsed.turns[2].parts
    assert isinstance(said, ToolCall)
    assert isinstance(told, ToolResult)
    for held in (said.arguments["n"], told.response["n"]):
        assert (held, type(held)) == (number, int)
