"""All of Gemini, through the wire: each field reaches upstream, each event comes back, by gRPC and by HTTP."""

from collections.abc import Sequence
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf import json_format, struct_pb2
from google.rpc.error_details_pb2 import BadRequest

from service.generation import json_schema
from tests.conftest import detail, failure
from tests.providers.conftest import Open, Upstream
from tokenwire.v1 import config_pb2, content_pb2
from tokenwire.v1 import generation_service_pb2 as pb
from vertex_emulator.protos import prediction_pb2 as google
from vertex_emulator.script import (
    answer,
    blocked,
    citation,
    citations,
    end,
    function_call,
    grounding,
    logprobs,
    part,
    response,
    safety,
    text,
    thought,
    tokens,
    usage,
)

USER, MODEL, TOOL = content_pb2.ROLE_USER, content_pb2.ROLE_MODEL, content_pb2.ROLE_TOOL
CITY: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string", "description": "Its name."}, "days": {"type": "integer"}},
    "required": ["city"],
}


def struct(value: dict[str, Any]) -> struct_pb2.Struct:
    made = struct_pb2.Struct()
    made.update(value)
    return made


@pytest.fixture(params=["vertex", "genai"])
async def gemini(request: pytest.FixtureRequest, open_provider: Open) -> Upstream:
    return await open_provider(request.param)


def kinds(messages: Sequence[pb.GenerateResponse]) -> list[str]:
    return [str(message.WhichOneof("event")) for message in messages]


def told(message: Any) -> dict[str, Any]:
    """A message as JSON, with the names of its fields."""
    found: dict[str, Any] = json_format.MessageToDict(message, preserving_proto_field_name=True)
    return found


# ---- the request -----------------------------------------------------------------------------------------------------


async def test_what_is_unset_is_not_sent(gemini: Upstream) -> None:
    request = await gemini.request()
    config = request.generation_config
    config.ClearField("candidate_count")
    assert config == google.GenerationConfig()
    assert not request.tools
    assert not request.safety_settings
    assert not request.labels
    assert not request.HasField("tool_config")
    assert not request.HasField("system_instruction")


async def test_every_field_of_config_reaches_upstream(gemini: Upstream) -> None:
    sent = {
        "temperature": 0.5,
        "top_p": 0.25,
        "top_k": 7,
        "max_output_tokens": 11,
        "stop_sequences": ["END"],
        "seed": 0,
        "presence_penalty": -0.5,
        "frequency_penalty": 0.25,
        "thinking_budget": 0,
        "include_thoughts": False,
        "response_mime_type": "application/json",
        "response_logprobs": True,
        "logprobs": 2,
    }
    config = told((await gemini.request(config=sent)).generation_config)
    thinking = config.pop("thinking_config")
    assert thinking == {"thinking_budget": 0, "include_thoughts": False}
    assert config == {
        name: value for name, value in sent.items() if name not in ("thinking_budget", "include_thoughts")
    } | {"candidate_count": 1}


async def test_a_response_schema_reaches_upstream_whole(gemini: Upstream) -> None:
    schema = {
        "type": "OBJECT",
        "title": "Match",
        "description": "A match.",
        "properties": {
            "runs": {"type": "integer", "minimum": 1, "maximum": 9.5},
            "teams": {"type": "array", "items": {"type": "string", "enum": ["a", "b"]}, "minItems": 2, "maxItems": 2},
            "when": {"type": "string", "format": "date-time", "nullable": True, "pattern": "^2"},
            "score": {"anyOf": [{"type": "integer"}, {"type": "string", "maxLength": 3}]},
        },
        "required": ["runs"],
        "propertyOrdering": ["teams", "runs"],
    }
    config = {"response_mime_type": "application/json", "response_schema": struct(schema)}
    sent = (await gemini.request(config=config)).generation_config
    arrived = sent.response_schema if gemini.provider == "vertex" else sent.response_json_schema
    expected = schema if gemini.provider == "vertex" else json_schema.changed(schema, json_schema.with_null)
    assert lower(json_format.MessageToDict(arrived)) == lower(expected)


def lower(schema: Any) -> Any:
    """A schema in which a type's case, and whether a count came as text, make no difference."""
    if isinstance(schema, dict):
        return {name: str(value).lower() if name == "type" else lower(value) for name, value in schema.items()}
    if isinstance(schema, list):
        return [lower(one) for one in schema]
    return float(schema) if str(schema).replace(".", "").isdigit() else schema


async def test_an_enum_is_an_answer_of_vertex_ai_by_grpc(open_provider: Open) -> None:
    gemini = await open_provider("vertex")
    schema = struct({"type": "string", "enum": ["red", "blue"]})
    config = {"response_mime_type": "text/x.enum", "response_schema": schema}
    sent = (await gemini.request(config=config)).generation_config
    assert sent.response_mime_type == "text/x.enum"
    assert list(sent.response_schema.enum) == ["red", "blue"]


async def test_tools_and_the_choice_reach_upstream(gemini: Upstream) -> None:
    functions = [
        {"name": "weather", "description": "The weather.", "parameters": struct(CITY)},
        {"name": "now", "description": "The time."},
    ]
    request = await gemini.request(
        tools=[{"function_declarations": functions}, {"google_search": {}}],
        tool_choice={"mode": config_pb2.ToolChoice.MODE_ANY, "allowed_function_names": ["now"]},
    )
    declared = [one for tool in request.tools for one in tool.function_declarations]
    assert [(one.name, one.description) for one in declared] == [("weather", "The weather."), ("now", "The time.")]
    assert lower(json_format.MessageToDict(declared[0].parameters)) == CITY
    assert not declared[1].HasField("parameters")
    assert any(tool.HasField("google_search") for tool in request.tools)
    calling = request.tool_config.function_calling_config
    assert calling.mode == google.FunctionCallingConfig.ANY
    assert list(calling.allowed_function_names) == ["now"]


@pytest.mark.parametrize("mode", ["AUTO", "NONE", "ANY"])
async def test_every_mode_of_choice_reaches_upstream(gemini: Upstream, mode: str) -> None:
    request = await gemini.request(
        tools=[{"function_declarations": [{"name": "now"}]}],
        tool_choice={"mode": config_pb2.ToolChoice.Mode.Value(f"MODE_{mode}")},
    )
    assert request.tool_config.function_calling_config.mode == google.FunctionCallingConfig.Mode.Value(mode)


async def test_safety_settings_and_labels_reach_upstream(gemini: Upstream) -> None:
    request = await gemini.request(
        safety_settings=[
            {"category": category, "threshold": threshold}
            for category, threshold in zip(config_pb2.HarmCategory.values()[1:], [1, 2, 4, 5], strict=True)
        ],
        labels={"team": "sports"},
    )
    assert {
        (google.HarmCategory.Name(one.category), google.SafetySetting.HarmBlockThreshold.Name(one.threshold))
        for one in request.safety_settings
    } == {
        ("HARM_CATEGORY_HATE_SPEECH", "BLOCK_LOW_AND_ABOVE"),
        ("HARM_CATEGORY_DANGEROUS_CONTENT", "BLOCK_MEDIUM_AND_ABOVE"),
        ("HARM_CATEGORY_HARASSMENT", "BLOCK_NONE"),
        ("HARM_CATEGORY_SEXUALLY_EXPLICIT", "OFF"),
    }
    assert dict(request.labels) == {"team": "sports"}


async def test_media_reach_upstream_as_they_are_and_nothing_is_fetched(gemini: Upstream) -> None:
    parts: list[Any] = [
        {"text": "What is this?"},
        {"inline_data": {"mime_type": "image/png", "data": b"\x89PNG\0"}},
        {"inline_data": {"mime_type": "audio/wav", "data": b"RIFF"}},
        {"file_data": {"mime_type": "application/pdf", "file_uri": "gs://bucket/none.pdf"}},
        {"file_data": {"mime_type": "image/jpeg", "file_uri": "https://127.0.0.1:1/none.jpg"}},
    ]
    request = await gemini.request(prompt="", messages=[{"role": USER, "parts": parts}])
    (content,) = request.contents
    assert [one.WhichOneof("data") for one in content.parts] == [
        "text",
        "inline_data",
        "inline_data",
        "file_data",
        "file_data",
    ]
    assert content.parts[1].inline_data == google.Blob(mime_type="image/png", data=b"\x89PNG\0")
    assert content.parts[2].inline_data == google.Blob(mime_type="audio/wav", data=b"RIFF")
    assert content.parts[3].file_data.file_uri == "gs://bucket/none.pdf"
    assert content.parts[4].file_data == google.FileData(
        mime_type="image/jpeg", file_uri="https://127.0.0.1:1/none.jpg"
    )


async def test_thoughts_and_tool_use_come_back_in_a_later_turn_as_they_went(gemini: Upstream) -> None:
    """What upstream says is sent back by the caller part by part, and reaches upstream again as it was."""
    gemini.emulator.script.play(
        answer(
            thought("Rome, "),
            thought("then.", signature=b"s1"),
            "Let me ",
            "see.",
            function_call("weather", {"city": "Rome", "days": 3}, signature=b"s2"),
            function_call("now", call_id="theirs"),
        )
    )
    messages = await gemini.ask(config={"include_thoughts": True})
    assert kinds(messages) == [
        "started",
        "reasoning",
        "reasoning",
        "text",
        "text",
        "tool_call",
        "tool_call",
        "completed",
    ]
    first, second = (message.tool_call.tool_call for message in messages if message.HasField("tool_call"))
    assert (first.name, json_format.MessageToDict(first.arguments)) == ("weather", {"city": "Rome", "days": 3.0})
    assert first.id != second.id == "theirs"
    said = [
        {"reasoning": "Rome, then.", "reasoning_signature": messages[2].reasoning.signature},
        {"text": "Let me see."},
        {"tool_call": first, "reasoning_signature": messages[5].tool_call.reasoning_signature},
        {"tool_call": second},
    ]
    results = [
        {"tool_result": {"tool_call_id": first.id, "response": struct({"degrees": 20})}},
        {"tool_result": {"tool_call_id": "theirs", "response": struct({"hour": 12})}},
    ]
    question = {"role": USER, "parts": [{"text": "Weather?"}]}
    request = await gemini.request(
        prompt="",
        messages=[question, {"role": MODEL, "parts": said}, {"role": TOOL, "parts": results}],
        tools=[{"function_declarations": [{"name": "weather", "parameters": struct(CITY)}, {"name": "now"}]}],
    )
    asked, model, tool = request.contents
    assert [(one.role) for one in (asked, model, tool)] == ["user", "model", "user"]
    thoughts, words, call, other = model.parts
    assert (thoughts.text, thoughts.thought, thoughts.thought_signature) == ("Rome, then.", True, b"s1")
    assert (words.text, words.thought, words.thought_signature) == ("Let me see.", False, b"")
    assert (call.function_call.name, call.function_call.id, call.thought_signature) == ("weather", "", b"s2")
    assert json_format.MessageToDict(call.function_call.args) == {"city": "Rome", "days": 3.0}
    assert (other.function_call.name, other.function_call.id) == ("now", "theirs")
    assert [(one.function_response.name, one.function_response.id) for one in tool.parts] == [
        ("weather", ""),
        ("now", "theirs"),
    ]
    assert json_format.MessageToDict(tool.parts[0].function_response.response) == {"degrees": 20.0}


async def test_the_signature_of_a_text_comes_back_on_that_text(gemini: Upstream) -> None:
    gemini.emulator.script.play(answer("Wa", text("rm.", signature=b"s")))
    messages = await gemini.ask()
    assert kinds(messages) == ["started", "text", "text", "reasoning", "completed"]
    assert messages[3].reasoning == pb.Reasoning(signature=b"s")
    question = {"role": USER, "parts": [{"text": "Weather?"}]}
    said = [{"text": "Warm."}, {"reasoning": "", "reasoning_signature": b"s"}]
    request = await gemini.request(prompt="And now?", messages=[question, {"role": MODEL, "parts": said}])
    (back,) = request.contents[1].parts
    assert (back.text, back.thought, back.thought_signature) == ("Warm.", False, b"s")


# ---- the answer ------------------------------------------------------------------------------------------------------


async def test_the_whole_usage_comes_back(gemini: Upstream) -> None:
    gemini.emulator.script.play(answer("a", "b", usage=usage(40, 9, thoughts=5, cached=30)))
    assert (await gemini.ask())[-1].completed.usage == pb.Usage(
        exact=True, input_tokens=40, output_tokens=9, reasoning_tokens=5, cached_tokens=30, total_tokens=54
    )


@pytest.mark.parametrize("told", [0, 1, 2])
async def test_the_models_version_comes_back_whichever_message_has_it(gemini: Upstream, told: int) -> None:
    messages = [google.GenerateContentResponse() for _ in range(3)]
    for message, piece in zip(messages, "abc", strict=True):
        message.candidates.add().content.parts.add(text=piece)
    messages[-1].candidates[0].finish_reason = google.Candidate.STOP
    messages[told].model_version = "gemini-1"
    gemini.emulator.script.play(answer(*map(response, messages), end()))
    assert (await gemini.ask())[-1].completed.model_version == "gemini-1"


WHOLE = {"promptTokenCount": 4, "candidatesTokenCount": 9, "thoughtsTokenCount": 2, "totalTokenCount": 15}
EXACT = pb.Usage(exact=True, input_tokens=4, output_tokens=9, reasoning_tokens=2, total_tokens=15)


@pytest.mark.parametrize(
    ("counted", "expected"),
    [
        ([WHOLE, {"promptTokenCount": 5}], EXACT),
        ([WHOLE, {"promptTokenCount": 5, "totalTokenCount": 5}], EXACT),
        ([WHOLE, {"candidatesTokenCount": -9}], pb.Usage()),  # nobody knows what they are now
        ([WHOLE, {"candidatesTokenCount": -9}, WHOLE], EXACT),
        ([WHOLE, {"promptTokenCount": 0}], EXACT),
        ([{"promptTokenCount": 4, "totalTokenCount": 4}, WHOLE], EXACT),
        ([{"promptTokenCount": 5, "candidatesTokenCount": 1, "totalTokenCount": 6}, WHOLE], EXACT),
        ([WHOLE, {"promptTokenCount": 5}, WHOLE | {"promptTokenCount": 0}], EXACT),
        ([{"promptTokenCount": 5}, {"candidatesTokenCount": -1}], pb.Usage()),
        ([{"candidatesTokenCount": -1}], pb.Usage()),
    ],
)
@pytest.mark.parametrize("plain", [True, False])
async def test_figures_that_lack_some_take_the_place_of_none_that_do_not(
    gemini: Upstream, counted: list[dict[str, int]], expected: pb.Usage, plain: bool
) -> None:
    messages = [
        json_format.ParseDict(
            {"candidates": [{"content": {"parts": [{"text": "a"}] * (1 if plain else 2)}}], "usageMetadata": one},
            google.GenerateContentResponse(),
        )
        for one in counted
    ]
    messages[-1].candidates[0].finish_reason = google.Candidate.STOP
    gemini.emulator.script.play(answer(*map(response, messages), end()))
    assert (await gemini.ask())[-1].completed.usage == expected


async def test_grounding_comes_back(gemini: Upstream) -> None:
    said = "Rome is warm."
    sources = (("https://a.example/1", "One"), ("https://b.example/2", "Two"))
    gemini.emulator.script.play(
        answer(
            said,
            grounding(*sources, queries=["weather rome"], supports=[("warm", [0, 1])], answer_so_far=said),
        )
    )
    messages = await gemini.ask(tools=[{"google_search": {}}])
    (found,) = [message.grounding for message in messages if message.HasField("grounding")]
    assert found == pb.Grounding(
        sources=[pb.Grounding.Source(uri=uri, title=title) for uri, title in sources],
        supports=[pb.Grounding.Support(text="warm", source_indices=[0, 1], start_index=8, end_index=12)],
        search_queries=["weather rome"],
    )


async def test_words_that_come_behind_their_sources_still_point_to_them(gemini: Upstream) -> None:
    said = "Rome is warm."
    page = ("https://a.example/1", "One")
    gemini.emulator.script.play(answer(said, grounding(page), grounding(supports=[("warm", [0])], answer_so_far=said)))
    _, found = [message.grounding for message in await gemini.ask() if message.HasField("grounding")]
    assert found == pb.Grounding(
        sources=[pb.Grounding.Source(uri=page[0], title=page[1])],
        supports=[pb.Grounding.Support(text="warm", source_indices=[0], start_index=8, end_index=12)],
    )


async def test_words_that_come_before_their_sources_are_told_with_them(gemini: Upstream) -> None:
    said = "Rome is warm."
    pages = [(f"https://a.example/{name}", name) for name in ("One", "Two")]
    early = grounding(supports=[("Rome", [0]), ("warm", [0, 1])], answer_so_far=said)
    gemini.emulator.script.play(answer(said, early, grounding(pages[0]), early, grounding(pages[1]), usage=usage(1, 2)))
    found = [message.grounding for message in await gemini.ask() if message.HasField("grounding")]
    told = [
        (support.text, [one.sources[place].title for place in support.source_indices])
        for one in found
        for support in one.supports
    ]
    assert told == [("Rome", ["One"]), ("Rome", ["One"]), ("warm", ["One", "Two"])]


async def test_words_whose_sources_never_come_are_told_all_the_same(gemini: Upstream) -> None:
    said = "Rome is warm."
    gemini.emulator.script.play(answer(said, grounding(supports=[("warm", [0])], answer_so_far=said)))
    (found,) = [message.grounding for message in await gemini.ask() if message.HasField("grounding")]
    assert found == pb.Grounding(supports=[pb.Grounding.Support(text="warm", start_index=8, end_index=12)])


async def test_a_place_in_one_of_several_parts_is_told_as_one_in_the_text(gemini: Upstream) -> None:
    """https://github.com/laravel/ai/pull/1013"""
    parts = [{"text": "Laravel is in São Paulo. "}, {"text": "It ships queues."}]
    support = {"segment": {"partIndex": 1, "endIndex": 16, "text": "It ships queues."}, "groundingChunkIndices": [0]}
    sources = {"groundingChunks": [{"web": {"uri": "u", "title": "t"}}], "groundingSupports": [support]}
    said = {"candidates": [{"content": {"parts": parts}}]}
    rest = {"candidates": [{"groundingMetadata": sources, "finishReason": "STOP"}]}
    messages = [json_format.ParseDict(one, google.GenerateContentResponse()) for one in (said, rest)]
    gemini.emulator.script.play(answer(*map(response, messages), end()))
    (found,) = [message.grounding for message in await gemini.ask() if message.HasField("grounding")]
    assert list(found.supports) == [
        pb.Grounding.Support(text="It ships queues.", source_indices=[0], start_index=26, end_index=42)
    ]


async def test_citations_come_back_with_their_places(gemini: Upstream) -> None:
    quotation = citation(3, 9, "https://a.example/book", title="A Book", license="CC-BY-4.0")
    gemini.emulator.script.play(answer("To be or not", citations(quotation)))
    messages = await gemini.ask()
    (found,) = [message.grounding for message in messages if message.HasField("grounding")]
    assert found == pb.Grounding(
        sources=[pb.Grounding.Source(uri="https://a.example/book", title="A Book", license="CC-BY-4.0")],
        supports=[pb.Grounding.Support(source_indices=[0], start_index=3, end_index=9)],
    )


async def test_log_probabilities_come_back_behind_their_text(gemini: Upstream) -> None:
    gemini.emulator.script.play(answer(logprobs(("Ye", -0.25, {"Ye": -0.25, "No": -1.5}), ("s", -0.5))))
    messages = await gemini.ask(config={"response_logprobs": True, "logprobs": 2})
    assert kinds(messages) == ["started", "text", "logprobs", "completed"]
    assert messages[1].text == "Yes"
    first, second = messages[2].logprobs.tokens
    assert (first.token, first.log_probability) == ("Ye", -0.25)
    assert [(one.token, one.log_probability) for one in first.alternatives] == [("Ye", -0.25), ("No", -1.5)]
    assert (second.token, second.log_probability, len(second.alternatives)) == ("s", -0.5, 0)


async def test_safety_ratings_come_back(gemini: Upstream) -> None:
    ratings = [safety("HARASSMENT", "HIGH", blocked=True), safety("HATE_SPEECH", "LOW")]
    gemini.emulator.script.play(answer("a", finish="SAFETY", safety_ratings=ratings))
    completed = (await gemini.ask())[-1].completed
    assert completed.finish_reason == pb.FINISH_REASON_SAFETY
    assert list(completed.safety_ratings) == [
        pb.SafetyRating(category=config_pb2.HARM_CATEGORY_HARASSMENT, probability="HIGH", blocked=True),
        pb.SafetyRating(category=config_pb2.HARM_CATEGORY_HATE_SPEECH, probability="LOW"),
    ]


FINISHES = [name for name, number in google.Candidate.FinishReason.items() if number]


@pytest.mark.parametrize("finish", FINISHES)
async def test_every_finish_reason_comes_back_with_googles_own_word(gemini: Upstream, finish: str) -> None:
    gemini.emulator.script.play(answer("a", finish=finish))
    completed = (await gemini.ask())[-1].completed
    assert completed.upstream_finish_reason == finish
    name = f"FINISH_REASON_{finish}"
    known = name if name in pb.FinishReason.keys() else "FINISH_REASON_OTHER"  # noqa: SIM118 - an enum, no dictionary
    assert pb.FinishReason.Name(completed.finish_reason) == known


async def test_a_blocked_prompt_comes_back_with_its_reason(gemini: Upstream) -> None:
    gemini.emulator.script.play(answer(blocked("BLOCKLIST")))
    messages = await gemini.ask()
    assert kinds(messages) == ["started", "completed"]
    completed = messages[-1].completed
    assert completed.finish_reason == pb.FINISH_REASON_PROMPT_BLOCKED
    assert completed.upstream_finish_reason == "BLOCKLIST"


async def test_several_parts_of_one_message_come_back_in_their_order(gemini: Upstream) -> None:
    parts = [google.Part(text="hm", thought=True), google.Part(text="a"), google.Part(text="b")]
    message = google.GenerateContentResponse()
    message.candidates.add().content.parts.extend(parts)
    gemini.emulator.script.play(answer(*[part(one) for one in parts[:1]], "a", "b"))
    assert [kind for kind in kinds(await gemini.ask()) if kind in ("reasoning", "text")] == [
        "reasoning",
        "text",
        "text",
    ]


@pytest.mark.filterwarnings("ignore:.*fixed sampling:UserWarning")
async def test_what_the_library_would_drop_is_refused_by_name(open_provider: Open) -> None:
    gemini = await open_provider("genai", line="gemini=genai:gemini-3.6-flash")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await gemini.ask(config={"temperature": 0.5, "top_k": 3, "seed": 1})
    assert failure(caught.value) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    fields = [one.field for one in detail(caught.value, BadRequest).field_violations]
    assert fields == ["config.temperature", "config.top_k"]
    assert not gemini.emulator.calls


# ---- beside Generate -------------------------------------------------------------------------------------------------


async def test_tokens_are_counted_by_upstream_with_all_that_counts(gemini: Upstream) -> None:
    gemini.emulator.script.play(answer(tokens(42), method="CountTokens"))
    counted = await gemini.served.stub.CountTokens(
        pb.CountTokensRequest(
            prompt="And this?",
            messages=[
                content_pb2.Message(role=USER, parts=[content_pb2.Part(text="a")]),
                content_pb2.Message(role=MODEL, parts=[content_pb2.Part(text="b")]),
            ],
            system_instruction="Be brief.",
            tools=[config_pb2.Tool(function_declarations=[config_pb2.FunctionDeclaration(name="now")])],
        )
    )
    assert counted == pb.CountTokensResponse(total_tokens=42, model="gemini")
    request = gemini.call.request
    assert isinstance(request, google.CountTokensRequest)
    assert [one.parts[0].text for one in request.contents] == ["a", "b", "And this?"]
    assert request.system_instruction.parts[0].text == "Be brief."
    assert request.tools[0].function_declarations[0].name == "now"


async def test_the_model_is_listed_with_what_it_takes(gemini: Upstream) -> None:
    (listed,) = (await gemini.served.stub.ListModels(pb.ListModelsRequest())).models
    assert listed == pb.Model(
        name="gemini",
        default=True,
        provider="gcp.vertex_ai",
        max_input_tokens=1_048_576,
        max_output_tokens=65_536,
        input_kinds=["audio", "image", "pdf", "text", "video"],
        thinking=True,
        tools=True,
    )


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"partialArgs": [{"jsonPath": "$.city", "stringValue": "Ro"}]}, "partialArgs"),
        ({"partialArgs": [{"jsonPath": "$.city", "stringValue": "Ro"}], "args": {"city": "Rome"}}, "partialArgs"),
        ({"willContinue": True}, "willContinue"),
    ],
)
async def test_a_call_in_pieces_is_refused_by_the_name_of_what_says_so(
    gemini: Upstream, more: dict[str, Any], named: str
) -> None:
    said = {
        "candidates": [{"content": {"parts": [{"functionCall": {"name": "weather", **more}}]}, "finishReason": "STOP"}]
    }
    message = json_format.ParseDict(said, google.GenerateContentResponse())
    gemini.emulator.script.play(answer(response(message), end()))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await gemini.ask()
    assert failure(caught.value) == (grpc.StatusCode.INTERNAL, "UPSTREAM_FAULT")
    assert named in str(caught.value.details())


async def test_calls_under_one_id_get_ids_of_their_own(gemini: Upstream) -> None:
    calls = [function_call("f", {"n": number}, call_id="call-a") for number in range(2)]
    gemini.emulator.script.play(answer(*calls))
    messages = await gemini.ask(tools=[{"function_declarations": [{"name": "f"}]}])
    first, second = [message.tool_call.tool_call.id for message in messages if message.HasField("tool_call")]
    assert first == "call-a"
    assert second not in ("", first)
