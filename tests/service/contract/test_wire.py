"""What is asked and what is answered, between protobuf and our own types."""

from typing import Any

import pytest

from service.contract import decode, delivery, encode
from service.contract.delivery import Coalesce
from service.contract.rules import Limits
from service.errors import InvalidRequest, ModelNotFound, UpstreamFault
from service.generation.capabilities import ModelCard
from service.generation.events import Event, Finished, FinishReason, SafetyRating, Started, Text, Usage
from service.generation.prompt import Prompt, Reasoning, Role, Sampling, ToolCall, Turn
from tokenwire.v1 import config_pb2, content_pb2
from tokenwire.v1 import generation_service_pb2 as pb

CARDS = tuple(ModelCard(name=name, provider="gcp.vertex_ai") for name in ("gemini-2.5-flash", "gemini-2.5-pro"))
LIMITS = Limits(prompt=1000, inline=5000)
USER, MODEL, TOOL = content_pb2.ROLE_USER, content_pb2.ROLE_MODEL, content_pb2.ROLE_TOOL


def message(role: content_pb2.Role.ValueType, *texts: str) -> content_pb2.Message:
    return content_pb2.Message(role=role, parts=[content_pb2.Part(text=text) for text in texts])


def parse(card: ModelCard | None = None, **fields: Any) -> Prompt:
    return decode.parse(pb.GenerateRequest(**fields), cards=[card] if card else CARDS, limits=LIMITS)


def refused(card: ModelCard | None = None, **fields: Any) -> dict[str, str]:
    with pytest.raises(InvalidRequest) as caught:
        parse(card, **fields)
    return {violation.field: violation.description for violation in caught.value.violations}


def test_a_prompt_alone_asks_the_default_model() -> None:
    assert parse(prompt="hi") == Prompt(model=CARDS[0].name, turns=(Turn(Role.USER, ("hi",)),))


def test_a_prompt_is_the_last_turn_of_the_conversation() -> None:
    prompt = parse(messages=[message(USER, "a", "b"), message(MODEL, "c")], prompt="d", system_instruction="be brief")
    assert prompt.turns == (
        Turn(Role.USER, ("a", "b")),
        Turn(Role.MODEL, ("c",)),
        Turn(Role.USER, ("d",)),
    )
    assert prompt.system_instruction == "be brief"


def test_messages_may_end_with_the_users_own() -> None:
    assert parse(messages=[message(USER, "a")]).turns == (Turn(Role.USER, ("a",)),)


def test_every_sampling_field_arrives_and_zero_is_not_unset() -> None:
    given: dict[str, Any] = {"temperature": 0.0, "top_p": 0.5, "top_k": 1, "max_output_tokens": 1, "seed": 0}
    given |= {"presence_penalty": 0.0, "frequency_penalty": -2.0}
    sampling = parse(prompt="hi", config={**given, "stop_sequences": ["x"]}).sampling
    assert sampling == Sampling(**given, stop_sequences=("x",))
    assert parse(prompt="hi").sampling == Sampling()


def test_a_model_on_offer_is_taken_and_another_is_not_found() -> None:
    assert parse(prompt="hi", model="gemini-2.5-pro").model == "gemini-2.5-pro"
    with pytest.raises(ModelNotFound) as caught:
        parse(prompt="hi", model="gpt")
    assert caught.value.text == "Model 'gpt' is not on offer: one of gemini-2.5-flash, gemini-2.5-pro is wanted"
    assert caught.value.metadata == {"model": "gpt", "offered": "gemini-2.5-flash,gemini-2.5-pro"}


def test_no_prompt_has_a_reason_of_its_own() -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse()
    assert caught.value.reason == "EMPTY_PROMPT"
    assert caught.value.violations[0].field == "prompt"


@pytest.mark.parametrize(
    ("field", "value", "description"),
    [
        ("temperature", -0.5, "is -0.5: 0 to 2 is wanted"),
        ("temperature", 2.5, "is 2.5: 0 to 2 is wanted"),
        ("temperature", float("nan"), "is nan: 0 to 2 is wanted"),
        ("top_p", 0.0, "is 0: above 0, up to 1 is wanted"),
        ("top_p", 1.5, "is 1.5: above 0, up to 1 is wanted"),
        ("top_k", 0, "is 0: 1 to 1000 is wanted"),
        ("top_k", 1001, "is 1001: 1 to 1000 is wanted"),
        ("max_output_tokens", 0, "is 0: 1 or more is wanted"),
        ("max_output_tokens", -1, "is -1: 1 or more is wanted"),
        ("presence_penalty", 2.0, "is 2: -2 or more, but less than 2 is wanted"),
        ("presence_penalty", -2.5, "is -2.5: -2 or more, but less than 2 is wanted"),
        ("frequency_penalty", float("inf"), "is inf: -2 or more, but less than 2 is wanted"),
        ("frequency_penalty", -3, "is -3: -2 or more, but less than 2 is wanted"),
    ],
)
def test_a_number_out_of_range_is_named_with_its_value_and_what_is_wanted(
    field: str, value: float, description: str
) -> None:
    assert refused(prompt="hi", config={field: value}) == {f"config.{field}": description}


def test_stop_sequences_are_few_and_not_empty() -> None:
    assert refused(prompt="hi", config={"stop_sequences": list("abcdef")}) == {
        "config.stop_sequences": "holds 6: at most 5 are wanted"
    }
    assert refused(prompt="hi", config={"stop_sequences": ["a", ""]}) == {
        "config.stop_sequences[1]": "is empty: text is wanted"
    }


@pytest.mark.parametrize(
    ("fields", "path", "description"),
    [
        ({"messages": [message(MODEL, "a")], "prompt": "b"}, "messages[0].role", "is ROLE_MODEL: ROLE_USER is wanted"),
        (
            {"messages": [message(USER, "a"), message(USER, "b")]},
            "messages[1].role",
            "is ROLE_USER: ROLE_MODEL is wanted",
        ),
        ({"messages": [message(USER, "a")], "prompt": "b"}, "messages[0].role", "is ROLE_USER: ROLE_MODEL is wanted"),
        ({"messages": [message(USER, "a"), message(MODEL, "b")]}, "prompt", "is empty: it is wanted"),
        ({"messages": [message(content_pb2.ROLE_UNSPECIFIED, "a")]}, "messages[0].role", "is ROLE_UNSPECIFIED"),
        ({"messages": [content_pb2.Message(role=99, parts=[])]}, "messages[0].role", "is 99: ROLE_USER"),  # type: ignore[arg-type] # an open enum
        ({"messages": [message(USER)]}, "messages[0].parts", "is empty: at least one part is wanted"),
        ({"messages": [message(USER, "a", "")]}, "messages[0].parts[1].text", "is empty: text is wanted"),
        (
            {"messages": [content_pb2.Message(role=USER, parts=[content_pb2.Part()])]},
            "messages[0].parts[0]",
            "is empty: file_data or inline_data or text is wanted",
        ),
        ({"messages": [message(TOOL, "a")]}, "messages[0].role", "is ROLE_TOOL: ROLE_USER is wanted"),
    ],
)
def test_a_conversation_out_of_order_is_refused_by_place(fields: dict[str, Any], path: str, description: str) -> None:
    assert refused(**fields)[path].startswith(description)


def part(**fields: Any) -> dict[str, Any]:
    return {"messages": [content_pb2.Message(role=USER, parts=[content_pb2.Part(**fields)])]}


def test_bytes_without_a_mime_type_are_refused() -> None:
    wanted = 'is empty: a media type such as "image/png" is wanted'
    assert refused(**part(inline_data={"data": b"x"})) == {"messages[0].parts[0].inline_data.mime_type": wanted}
    assert refused(**part(file_data={"file_uri": "gs://x"})) == {"messages[0].parts[0].file_data.mime_type": wanted}


def test_how_the_answer_is_to_be_delivered_arrives() -> None:
    unset = decode.delivery(pb.GenerateRequest(prompt="hi"))
    assert unset == delivery.Delivery(first_chunk_timeout=None, idle_timeout=None, coalesce=None)
    request = pb.GenerateRequest(coalesce=pb.Coalesce())
    request.first_chunk_timeout.FromMilliseconds(2500)
    request.idle_timeout.FromMilliseconds(1)
    assert decode.delivery(request) == delivery.Delivery(
        first_chunk_timeout=2.5, idle_timeout=0.001, coalesce=Coalesce(max_delay=0, max_bytes=65536)
    )
    request.coalesce.max_delay.FromMilliseconds(50)
    request.coalesce.max_bytes = 7
    assert decode.delivery(request).coalesce == Coalesce(max_delay=0.05, max_bytes=7)


@pytest.mark.parametrize(
    ("fields", "field", "description"),
    [
        ({"first_chunk_timeout": {}}, "first_chunk_timeout", "is 0 s: more than 0 is wanted"),
        ({"idle_timeout": {"seconds": -1}}, "idle_timeout", "is -1 s: more than 0 is wanted"),
        ({"coalesce": {"max_delay": {"seconds": 2}}}, "coalesce.max_delay", "is 2 s: 0 to 1 s is wanted"),
        ({"coalesce": {"max_delay": {"nanos": -1}}}, "coalesce.max_delay", "is -1e-09 s: 0 to 1 s is wanted"),
        ({"coalesce": {"max_bytes": 0}}, "coalesce.max_bytes", "is 0: 1 to 65536 is wanted"),
        ({"coalesce": {"max_bytes": 65537}}, "coalesce.max_bytes", "is 65537: 1 to 65536 is wanted"),
    ],
)
def test_a_delivery_out_of_range_is_refused(fields: dict[str, Any], field: str, description: str) -> None:
    assert refused(prompt="hi", **fields) == {field: description}


def test_a_prompt_over_the_limit_tells_its_size() -> None:
    assert refused(prompt="x" * 1000) == {
        "prompt": "the request has 1003 bytes, history included: at most 1000 are wanted"
    }


def test_a_request_id_is_short_printable_ascii() -> None:
    assert parse(prompt="hi", request_id="x" * 128).turns
    assert refused(prompt="hi", request_id="x" * 129) == {"request_id": "has 129 characters: at most 128 are wanted"}
    assert refused(prompt="hi", request_id="a\nb") == {"request_id": "is 'a\\nb': printable ASCII is wanted"}


def test_all_that_is_wrong_is_told_at_once() -> None:
    assert set(refused(prompt="hi", config={"temperature": 3, "top_k": 0}, labels={"A": "b"})) == {
        "config.temperature",
        "config.top_k",
        "labels",
    }


def test_an_answer_is_numbered_and_timed() -> None:
    seconds = iter([10.0, 10.25, 12.0])
    answer = encode.Answer(generation_id="g", request_id="r", clock=lambda: next(seconds))
    finished = Finished(
        reason=FinishReason.MAX_TOKENS,
        upstream_reason="MAX_TOKENS",
        usage=Usage(input_tokens=1, output_tokens=2, reasoning_tokens=3, cached_tokens=1, total_tokens=6),
        model_version="gemini-2.5-flash-001",
        safety_ratings=(SafetyRating(category="HARM_CATEGORY_HARASSMENT", probability="LOW", blocked=False),),
        attempts=2,
    )
    events: list[Event] = [Started("m"), Text("a"), Reasoning("b", b"s"), finished]
    messages = [answer.encode(event) for event in events]

    assert [message.sequence for message in messages] == [0, 1, 2, 3]
    assert messages[0].started == pb.Started(generation_id="g", model="m", request_id="r")
    assert messages[1].text == "a"
    assert messages[2].reasoning == pb.Reasoning(text="b", signature=b"s")
    completed = messages[3].completed
    assert completed.finish_reason == pb.FINISH_REASON_MAX_TOKENS
    assert completed.upstream_finish_reason == "MAX_TOKENS"
    assert completed.usage == pb.Usage(
        exact=True, input_tokens=1, output_tokens=2, reasoning_tokens=3, cached_tokens=1, total_tokens=6
    )
    assert completed.timing.first_chunk.ToMilliseconds() == 250
    assert completed.timing.total.ToMilliseconds() == 2000
    assert completed.timing.upstream_attempts == 2
    assert completed.model == "m"
    assert completed.model_version == "gemini-2.5-flash-001"
    assert completed.safety_ratings[0].category == config_pb2.HARM_CATEGORY_HARASSMENT


def test_usage_that_upstream_did_not_tell_is_marked_unknown() -> None:
    answer = encode.Answer(generation_id="g", request_id="")
    finished = Finished(reason=FinishReason.STOP, upstream_reason="STOP", usage=None)
    assert answer.encode(finished).completed.usage == pb.Usage(exact=False)


@pytest.mark.parametrize(
    ("said", "output", "exact"),
    [
        (Text("a"), 0, False),
        (ToolCall(id="a", name="f", arguments={}), 0, False),
        (Text("a"), 1, True),
        (Reasoning("a"), 0, True),
        (None, 0, True),
    ],
)
def test_usage_that_does_not_count_what_was_said_is_not_exact(said: Event | None, output: int, exact: bool) -> None:
    usage = Usage(input_tokens=7, output_tokens=output, total_tokens=7 + output)
    finished = Finished(reason=FinishReason.STOP, upstream_reason="STOP", usage=usage)
    answer = encode.Answer(generation_id="g", request_id="")
    last = [answer.encode(event) for event in (Started("m"), said, finished) if event is not None][-1]
    assert last.completed.usage.exact is exact
    assert last.completed.usage.input_tokens == 7 * exact


@pytest.mark.parametrize("reason", FinishReason)
def test_every_finish_reason_has_its_name_in_the_contract(reason: FinishReason) -> None:
    finished = Finished(reason=reason, upstream_reason="", usage=None)
    answer = encode.Answer(generation_id="g", request_id="")
    last = [answer.encode(event) for event in (Started("m"), Text("a"), finished)][-1]
    assert pb.FinishReason.Name(last.completed.finish_reason) == f"FINISH_REASON_{reason.name}"


@pytest.mark.parametrize("said", [Text("a"), Reasoning("a"), ToolCall(id="a", name="f", arguments={}), None])
def test_a_stop_behind_nothing_is_an_empty_answer(said: Event | None) -> None:
    finished = Finished(reason=FinishReason.STOP, upstream_reason="STOP", usage=None)
    answer = encode.Answer(generation_id="g", request_id="")
    last = [answer.encode(event) for event in (Started("m"), said, finished) if event is not None][-1]
    expected = pb.FINISH_REASON_EMPTY if said is None else pb.FINISH_REASON_STOP
    assert (last.completed.finish_reason, answer.finish) == (expected, pb.FinishReason.Name(expected)[14:])
    assert last.completed.upstream_finish_reason == "STOP"


@pytest.mark.parametrize("event", [Text("\ud83d"), Reasoning("\ude00"), Started("\ud83d")])
def test_half_a_character_is_upstreams_fault(event: Event) -> None:
    with pytest.raises(UpstreamFault):
        encode.Answer(generation_id="g", request_id="").encode(event)
