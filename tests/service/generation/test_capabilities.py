"""What a model can't take is one check: refused when the model is asked, and no fallback for a request to another."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from google.protobuf import struct_pb2
from hypothesis import given, settings
from hypothesis import strategies as st

from service.contract import decode, rules
from service.errors import InvalidRequest, UpstreamUnavailable
from service.generation.capabilities import FIELDS, ModelCard
from service.generation.events import Event, Started
from service.generation.json_schema import Word
from service.generation.prompt import Prompt
from service.providers.retry import Policy, Retrying
from tokenwire.v1 import config_pb2, content_pb2
from tokenwire.v1 import generation_service_pb2 as pb

LIMITS = rules.Limits(prompt=100_000, inline=100_000)
TYPES = ("text/plain", "application/json", "text/x.enum")
FIRST = ModelCard(name="first", provider="p", answer_types=TYPES, max_stop_sequences=9, schema_words=frozenset(Word))
"""It takes everything, and is away."""

USER, MODEL, TOOL = content_pb2.ROLE_USER, content_pb2.ROLE_MODEL, content_pb2.ROLE_TOOL


class Away:
    """Two models, of which the first is away; keeps who was asked."""

    def __init__(self, second: ModelCard) -> None:
        self.cards = [FIRST, second]
        self.asked: list[str] = []

    async def count_tokens(self, prompt: Prompt, *, deadline: float) -> int:
        raise NotImplementedError

    @asynccontextmanager
    async def stream(self, prompt: Prompt, *, deadline: float) -> AsyncIterator[AsyncIterator[Event]]:
        del deadline
        self.asked.append(prompt.model)

        async def events() -> AsyncIterator[Event]:
            if prompt.model == "first":
                raise UpstreamUnavailable("away")
            yield Started(prompt.model)

        yield events()


def parsed(request: pb.GenerateRequest, card: ModelCard) -> Prompt:
    return decode.parse(request, cards=[card], limits=LIMITS)


def refused(request: pb.GenerateRequest, card: ModelCard) -> list[str]:
    """The fields that are refused when the model is asked for."""
    try:
        parsed(request, card)
    except InvalidRequest as error:
        return [one.field for one in error.violations]
    return []


async def falls_back(request: pb.GenerateRequest, card: ModelCard) -> bool:
    """Whether the model of the card is asked for a request to the first."""
    models = Away(card)
    try:
        async with Retrying(models, Policy(max_attempts=1, fallback=card.name)).stream(
            parsed(request, FIRST), deadline=1e12
        ) as events:
            _ = [event async for event in events]
    except UpstreamUnavailable:
        assert models.asked == ["first"]
    return card.name in models.asked


def message(role: content_pb2.Role.ValueType, *parts: dict[str, Any]) -> content_pb2.Message:
    return content_pb2.Message(role=role, parts=[content_pb2.Part(**part) for part in parts])


async def test_a_signed_call_of_a_tool_is_nothing_for_a_model_that_takes_no_thoughts() -> None:
    card = ModelCard(name="second", provider="p", unsupported=frozenset({"messages.parts.reasoning_signature"}))
    call = content_pb2.ToolCall(id="1", name="weather")
    for signature in (b"", b"s"):
        asked = [
            message(USER, {"text": "Weather?"}),
            message(MODEL, {"tool_call": call, "reasoning_signature": signature}),
            message(TOOL, {"tool_result": content_pb2.ToolResult(tool_call_id="1")}),
        ]
        request = pb.GenerateRequest(messages=asked)
        assert refused(request, card) == (["messages[1].parts[0].reasoning_signature"] if signature else [])
        assert await falls_back(request, card) == (not signature)


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("system_instruction", {"system_instruction": "Be brief."}),
        ("tool_choice", {"tools": [{"function_declarations": [{"name": "f"}]}], "tool_choice": {"mode": 1}}),
        (
            "messages.parts.inline_data",
            {"messages": [message(USER, {"inline_data": content_pb2.Blob(mime_type="image/png", data=b"x")})]},
        ),
    ],
)
async def test_no_field_slips_through_to_the_fallback(path: str, fields: dict[str, Any]) -> None:
    request = pb.GenerateRequest(prompt="" if "messages" in fields else "hi", **fields)
    card = ModelCard(name="second", provider="p", unsupported=frozenset({path}))
    assert refused(request, card)
    assert not await falls_back(request, card)


# ---- any request, any card -------------------------------------------------------------------------------------------


def some(**of: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Any of these."""
    return st.fixed_dictionaries({}, optional=of)


KINDS = ("image/png", "audio/wav", "video/mp4", "application/pdf", "text/plain", "text/markdown")
URIS = ("gs://b/x", "https://h/x", "x.png", "gs", "https")
SIGNATURE = st.sampled_from([b"", b"s"])

ASKED = st.one_of(
    st.just({"text": "hi"}),
    st.builds(lambda kind: {"inline_data": content_pb2.Blob(mime_type=kind, data=b"x")}, st.sampled_from(KINDS)),
    st.builds(
        lambda kind, uri: {"file_data": content_pb2.FileData(mime_type=kind, file_uri=uri)},
        st.sampled_from(KINDS),
        st.sampled_from(URIS),
    ),
)
SAID = st.one_of(
    st.builds(lambda signature: {"text": "ho", "reasoning_signature": signature}, SIGNATURE),
    st.builds(lambda signature: {"reasoning": "hm", "reasoning_signature": signature}, SIGNATURE),
    st.just({"reasoning": "", "reasoning_signature": b"s"}),
    st.builds(lambda signature: {"tool_call": None, "reasoning_signature": signature}, SIGNATURE),
)


def struct(value: dict[str, Any]) -> struct_pb2.Struct:
    made = struct_pb2.Struct()
    made.update(value)
    return made


SCHEMAS = st.sampled_from(
    [
        struct({"type": "object"}),
        struct({"type": "object", "additionalProperties": False}),
        struct({"type": "object", "properties": {"a": {"type": ["integer", "null"], "enum": [1, None]}}}),
        struct({"type": "object", "properties": {"a": {"$ref": "#"}}}),
        struct({"$ref": "#/$defs/A", "$defs": {"A": {"type": "object"}, "B": {"$ref": "#/$defs/B"}}}),
    ]
)
CONFIG = some(
    temperature=st.just(0.0),
    top_p=st.just(0.5),
    top_k=st.just(3),
    max_output_tokens=st.just(7),
    stop_sequences=st.lists(st.just("x"), max_size=9),
    seed=st.just(0),
    presence_penalty=st.just(0.0),
    frequency_penalty=st.just(0.0),
    thinking_budget=st.just(0),
    include_thoughts=st.booleans(),
    response_mime_type=st.sampled_from(TYPES),
    response_schema=SCHEMAS,
    response_logprobs=st.booleans(),
    logprobs=st.just(1),
)
FUNCTION = {"function_declarations": [{"name": "f"}]}


@st.composite
def requests(draw: st.DrawFn) -> pb.GenerateRequest:
    messages = []
    for turn in range(draw(st.integers(0, 2))):
        messages.append(message(USER, *draw(st.lists(ASKED, min_size=1, max_size=2))))
        parts = draw(st.lists(SAID, min_size=1, max_size=3))
        calls = [f"{turn}.{place}" for place, part in enumerate(parts) if "tool_call" in part]
        named = iter(calls)
        said = [
            part | {"tool_call": content_pb2.ToolCall(id=next(named), name="f")} if "tool_call" in part else part
            for part in parts
        ]
        messages.append(message(MODEL, *said))
        if calls:
            results = [{"tool_result": content_pb2.ToolResult(tool_call_id=call)} for call in calls]
            messages += [message(TOOL, *results), message(MODEL, {"text": "Well."})]
    config = draw(CONFIG)
    if config.get("response_mime_type", TYPES[0]) == TYPES[0]:
        config.pop("response_schema", None)
    if not config.get("response_logprobs"):
        config.pop("logprobs", None)
    tools: list[Any] = draw(st.lists(st.sampled_from([FUNCTION, {"google_search": {}}]), max_size=2, unique_by=str))
    if draw(st.booleans()):
        declared = {"function_declarations": [{"name": "g", "parameters": draw(SCHEMAS)}]}
        tools.append(declared)
    others = draw(
        some(
            config=st.just(config),
            system_instruction=st.just("Be brief."),
            labels=st.just({"a": "b"}),
            safety_settings=st.just([{"category": 1, "threshold": 1}]),
            coalesce=st.just({"max_bytes": 10}),
            request_id=st.just("r"),
            **({"tool_choice": st.just({"mode": config_pb2.ToolChoice.MODE_ANY})} if FUNCTION in tools else {}),
        )
    )
    return pb.GenerateRequest(prompt="hi", messages=messages, tools=tools, **others)


LACKS = {
    "unsupported": st.frozensets(st.sampled_from(sorted(FIELDS)), min_size=1, max_size=2)
    | st.just(frozenset({"messages.parts.reasoning"}))
    | st.just(frozenset({"messages.parts.reasoning_signature"})),
    "input_kinds": st.frozensets(st.sampled_from(["text", "image", "audio", "video", "pdf"]), min_size=1),
    "file_schemes": st.frozensets(st.sampled_from(["gs", "https"])),
    "answer_types": st.sampled_from([TYPES[:2], TYPES[:1], ("application/json", "text/plain")]),
    "max_stop_sequences": st.integers(0, 5),
    "schema_words": st.frozensets(st.sampled_from(Word)),
    "thinking": st.booleans(),
    "tools": st.booleans(),
    "json_with_tools": st.booleans(),
}
# One thing that it lacks tells more than many: whatever else it can't take would hide a mistake.
CARDS = st.one_of(
    *(st.fixed_dictionaries({name: values}) for name, values in LACKS.items()),
    st.fixed_dictionaries({}, optional=LACKS),
).map(lambda said: replace(FIRST, name="second", **said))


@settings(max_examples=400)
@given(requests(), CARDS)
async def test_a_model_is_a_fallback_exactly_where_it_could_be_asked(
    request: pb.GenerateRequest, card: ModelCard
) -> None:
    assert await falls_back(request, card) == (not refused(request, card))


OF_THE_SERVER = {
    "prompt",
    "messages",
    "model",
    "config",
    "request_id",
    "first_chunk_timeout",
    "idle_timeout",
    "coalesce",
}
"""What of a request is no matter of the model's, or is told by its pieces."""


def test_every_field_of_a_request_is_one_that_a_model_may_lack_or_the_servers_own() -> None:
    fields = set(pb.GenerateRequest.DESCRIPTOR.fields_by_name) - OF_THE_SERVER
    fields |= {f"config.{name}" for name in config_pb2.GenerationConfig.DESCRIPTOR.fields_by_name}
    parts = set(content_pb2.Part.DESCRIPTOR.fields_by_name) - {"text"}
    assert fields | {f"messages.parts.{name}" for name in parts} | {"tools.google_search"} == FIELDS
