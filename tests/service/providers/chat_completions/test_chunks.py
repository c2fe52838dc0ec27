"""Chat Completions as its many servers speak it: what is told, and what can't be."""

import copy
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service import errors
from service.contract import encode
from service.generation.events import (
    Event,
    Finished,
    FinishReason,
    Grounding,
    Logprobs,
    Source,
    Support,
    Text,
    TokenLogprob,
    Usage,
)
from service.generation.prompt import Reasoning, ToolCall
from service.providers.chat_completions.chunks import Answer, usage
from tokenwire.v1 import content_pb2
from tokenwire.v1 import generation_service_pb2 as pb

Json = dict[str, Any]


def chunk(finish: Any = None, **delta: Any) -> Json:
    return {
        "id": "c",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "m-1",
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
    }


def piece(index: Any = None, identity: Any = None, name: Any = None, arguments: Any = None) -> Json:
    """Of a call; None: not told."""
    function = {key: value for key, value in (("name", name), ("arguments", arguments)) if value is not None}
    told = {"index": index, "id": identity, "function": function}
    return {key: value for key, value in told.items() if value is not None}


def heard(*chunks: Any, functions: Sequence[str] = (), back: str = "") -> list[Event]:
    answer = Answer(functions, back=back, logprobs=True)
    events = []
    for one in chunks:
        answer.look_at(one)
        events += answer.events()
    return [*events, *answer.end()]


def calls(*pieces: Json, finish: str = "tool_calls", functions: Sequence[str] = ()) -> list[tuple[str, str, Any]]:
    """Of calls that come in these pieces: id, "" for one of ours, name and arguments."""
    events = heard(*(chunk(tool_calls=[one]) for one in pieces), chunk(finish), functions=functions)
    found = [event for event in events if isinstance(event, ToolCall)]
    return [(call.id if not call.id.startswith("call_") else "", call.name, call.arguments) for call in found]


def told(events: Sequence[Event]) -> list[pb.GenerateResponse]:
    """As callers get them."""
    answer = encode.Answer(generation_id="g", request_id="r")
    return [pb.GenerateResponse.FromString(answer.encode(event).SerializeToString()) for event in events]


# ---- calls of tools, put together from pieces ------------------------------------------------------------------------

ROME = '{"city":"Rome"}'
CITY = {"city": "Rome"}


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        ([piece(0, "a", "w", '{"city"'), piece(0, None, None, ':"Rome"}')], [("a", "w", CITY)]),
        ([piece(0, "a", "w", '{"city"'), piece(0, "a", "w", ':"Rome"}')], [("a", "w", CITY)]),
        ([piece(0, None, "w", '{"city"'), piece(0, None, "w", ':"Rome"}')], [("", "w", CITY)]),
        ([piece(0, "", "w", ROME)], [("", "w", CITY)]),
        ([piece(0, None, "w", ""), piece(0, "a", None, ROME)], [("a", "w", CITY)]),
        ([piece(0, "a", "w", ROME), piece(0, "b", "w", ROME)], [("a", "w", CITY), ("b", "w", CITY)]),
        ([piece(None, "a", "w", ROME), piece(None, "b", "v", "{}")], [("a", "w", CITY), ("b", "v", {})]),
        ([piece(None, None, "w", ROME), piece(None, None, "w", ROME)], [("", "w", CITY), ("", "w", CITY)]),
        ([piece(None, None, "w"), piece(None, None, "v")], [("", "w", {}), ("", "v", {})]),
        (
            [piece(0, "a", "w", ""), piece(1, "b", "v", ""), piece(0, None, None, ROME), piece(1, None, None, "{}")],
            [("a", "w", CITY), ("b", "v", {})],
        ),
        ([piece(0, "a", "w", CITY)], [("a", "w", CITY)]),
        ([piece(0, "a", "w", ""), piece(0, "a", "v", "")], [("a", "w", {}), ("", "v", {})]),
        ([piece(0, "a", "w", ""), piece(0, "b", None, ROME)], [("a", "w", CITY)]),
        ([piece(0, "a", "w", {}), piece(0, None, None, ROME)], [("a", "w", CITY)]),
        ([piece(0, "a", "w", "{}"), piece(0, None, None, ROME)], [("a", "w", CITY)]),
        ([piece(0, "a", "w", "null")], [("a", "w", {})]),
        ([piece(0, "", "", "")], []),
        ([piece(0, "a", "w", CITY), piece(0, "a", "w", CITY)], [("a", "w", CITY)]),
        ([piece(0, "same", "w", ROME), piece(1, "same", "v", "{}")], [("same", "w", CITY), ("", "v", {})]),
        # One id for two calls: each gets one of its own, which is what its result is sent back under.
        ([piece(0, "e", "w", "{}"), piece(1, "e", "w", ROME)], [("e", "w", {}), ("", "w", CITY)]),
        (
            [piece(0, "e", "w", ROME), piece(1, "e", "w", '{"city":"Oslo"}')],
            [("e", "w", CITY), ("", "w", {"city": "Oslo"})],
        ),
        # It may be but one, that is announced under an index of its own.
        ([piece(0, "e", "w", ""), piece(1, "e", "w", ROME)], [("e", "w", CITY)]),
        ([piece(0, "e", "w", None), piece(1, "e", "w", "{}")], [("e", "w", {})]),
        ([piece(0, "e", "w", ""), piece(1, "e", "w", "")], [("e", "w", {}), ("", "w", {})]),
        ([piece(0, "e", "w", {}), piece(1, "e", "w", {})], [("e", "w", {}), ("", "w", {})]),
        (
            [
                *(piece(0, "e", "w", ""), piece(1, "e", "w", "")),
                *(piece(0, None, None, ROME), piece(1, None, None, '{"city":"Oslo"}')),
            ],
            [("e", "w", CITY), ("", "w", {"city": "Oslo"})],
        ),
        ([piece(0, "e", "w", '{"city"'), piece(1, "e", "w", ':"Rome"}')], [("e", "w", CITY)]),
        ([piece(0, "", "w", {}), piece(0, "", "w", {})], [("", "w", {}), ("", "w", {})]),
        ([piece("0", "a", "w", '{"city"'), piece("0", None, None, ':"Rome"}')], [("a", "w", CITY)]),
        (
            [
                piece("0", "a", "w", ""),
                piece(1.0, "b", "v", ""),
                piece("0", None, None, ROME),
                piece(1, arguments="{}"),
            ],
            [("a", "w", CITY), ("b", "v", {})],
        ),
        ([piece(0, "a", "w", '{"city":"\ud83d'), piece(0, None, None, '\ude00"}')], [("a", "w", {"city": "😀"})]),
        # The whole once more behind its pieces: https://github.com/lidge-jun/opencodex/issues/361
        ([piece(0, "a", "w", ""), piece(0, None, None, ROME), piece(0, None, None, ROME)], [("a", "w", CITY)]),
        (
            [piece(0, "a", "w", '{"city"'), *[piece(0, None, None, one) for one in (':"Rome"}', ROME)]],
            [("a", "w", CITY)],
        ),
        ([piece(0, "a", "w", ROME * 3)], [("a", "w", CITY)]),
        # An id of its own for each piece, be it the last, which is empty.
        (
            [piece(0, "a", "w", '{"city"'), piece(0, "b", None, ':"Rome"}'), piece(0, "c", None, "")],
            [("a", "w", CITY)],
        ),
        ([piece(0, "a", "w", ROME), piece(0, "a", "w", ROME)], [("a", "w", CITY)]),
        # A beginning that is counted otherwise than the rest: https://github.com/agno-agi/agno/pull/8880
        (
            [
                *(piece(0, "a", "w", ""), piece(0, None, None, ROME), piece(0, "b", "v", "")),
                *(piece(1, None, None, '{"city"'), piece(1, None, None, ':"Rome"}')),
            ],
            [("a", "w", CITY), ("b", "v", CITY)],
        ),
    ],
)
def test_calls_are_put_together_whatever_tells_their_pieces_apart(pieces: list[Json], expected: object) -> None:
    assert calls(*pieces) == expected


@given(st.lists(st.integers(0, len(ROME)), max_size=4), st.sampled_from(["w", "v", "", None]), st.booleans())
def test_a_new_id_behind_a_whole_call_is_never_a_part_of_it(cuts: list[int], name: str | None, same: bool) -> None:
    ends = [0, *sorted(cuts), len(ROME)]
    first, *rest = [ROME[start:end] for start, end in itertools.pairwise(ends)]
    pieces = [piece(0, "a", "w", first), *(piece(0, None, None, one) for one in rest)]
    other = piece(0 if same else 1, "b", name, ROME)
    if name:
        assert calls(*pieces, other) == [("a", "w", CITY), ("b", name, CITY)]
    else:
        with pytest.raises(errors.UpstreamFault):
            calls(*pieces, other)


def test_a_name_in_pieces_is_one_name_only_if_that_was_declared() -> None:
    pieces = [piece(0, None, "get_"), piece(0, None, "weather", ROME)]
    assert calls(*pieces, functions=["get_weather"]) == [("", "get_weather", CITY)]
    assert [name for _, name, _ in calls(*pieces)] == ["get_", "weather"]


@pytest.mark.parametrize("finish", ["stop", "tool_calls", "function_call", "eos", "whatever"])
def test_whole_calls_are_told_behind_any_reason_but_a_cut(finish: str) -> None:
    assert calls(piece(0, "a", "w", ROME), finish=finish) == [("a", "w", CITY)]


@pytest.mark.parametrize("finish", ["length", "content_filter"])
def test_a_call_that_may_lack_its_end_is_not_told(finish: str) -> None:
    assert calls(piece(0, "a", "w", ROME), finish=finish) == []


@pytest.mark.parametrize("finish", ["tool_calls", "tool_use", "function_call"])
def test_an_answer_that_ends_with_calls_and_has_none_is_no_clean_stop(finish: str) -> None:
    ending = heard(chunk(content="a", tool_calls=[]), chunk(finish), functions=["w"])[-1]
    assert isinstance(ending, Finished)
    assert (ending.reason, ending.upstream_reason) == (FinishReason.MALFORMED_FUNCTION_CALL, finish)
    plain = heard(chunk(content="a"), chunk(finish))[-1]  # nobody could have called anything
    assert isinstance(plain, Finished)
    assert plain.reason is FinishReason.STOP


@pytest.mark.parametrize(
    ("finish", "native", "reason", "word"),
    [
        ("stop", "MALFORMED_FUNCTION_CALL", FinishReason.MALFORMED_FUNCTION_CALL, "MALFORMED_FUNCTION_CALL"),
        ("stop", "RECITATION", FinishReason.RECITATION, "RECITATION"),
        ("stop", "STOP", FinishReason.STOP, "STOP"),
        ("stop", "completed", FinishReason.STOP, "stop"),
        ("stop", 7, FinishReason.STOP, "stop"),
        ("length", "STOP", FinishReason.MAX_TOKENS, "length"),
    ],
)
def test_the_models_own_word_for_its_end_counts_where_openais_says_stop(
    finish: str, native: object, reason: FinishReason, word: str
) -> None:
    ended = chunk(finish)
    ended["choices"][0]["native_finish_reason"] = native
    ending = heard(chunk(content="a"), ended)[-1]
    assert isinstance(ending, Finished)
    assert (ending.reason, ending.upstream_reason) == (reason, word)


@pytest.mark.parametrize("word", ["error", "abort", "insufficient_system_resource", "network_error"])
def test_a_model_that_gave_up_says_by_which_word(word: str) -> None:
    with pytest.raises(errors.UpstreamCut) as caught:
        heard(chunk(content="a"), chunk(word))
    assert caught.value.metadata == {"upstream_reason": word.upper()}


def test_a_call_in_the_old_form_is_told() -> None:
    parts = [chunk(function_call={"name": "w", "arguments": '{"city"'}), chunk(function_call={"arguments": ':"Rome"}'})]
    (call, ending) = heard(*parts, chunk("function_call"))
    assert isinstance(call, ToolCall)
    assert (call.name, call.arguments) == ("w", CITY)
    assert isinstance(ending, Finished)


@pytest.mark.parametrize(
    "pieces",
    [
        [piece(0, "a", None, ROME)],
        [piece(0, "a", "w", '{"city"')],
        [piece(0, "a", "w", "[]")],
        [piece(0, "a", "w", 3)],
        [piece(0, "a", 3, ROME)],
        [piece(0, 3, "w", ROME)],
        [piece(0, "a", "w", ROME), piece(0, "a", None, CITY)],
        [{"index": 0, "id": "a", "type": "custom", "custom": {"name": "w", "input": "x"}}],
        [{"index": 0, "id": "a", "function": "w"}],
        [piece(0, "a", "\ud83d", ROME)],
        [piece(0, "\ud83d", "w", ROME)],
        [piece(0, "a", "w", ROME), piece(1, None, None, "{}")],
        [piece(0, "a", "w", ROME + "{}")],
        # A new id behind a whole call is a new call, which lacks its name.
        [piece(0, "a", "w", ROME), piece(0, "b", None, ROME)],
        [piece(0, "a", "w", ROME), piece(0, "b", None, ""), piece(0, None, None, ROME)],
        [piece(0, "a", "w", CITY), piece(0, "b", None, CITY)],
        [piece(0, "a", "w", ROME), piece(0, "b", "", "{}")],
    ],
)
def test_a_call_that_cannot_be_told_is_upstreams_fault(pieces: list[Json]) -> None:
    with pytest.raises(errors.UpstreamFault):
        calls(*pieces)


def test_a_name_is_told_without_control_tokens_that_a_server_lets_through() -> None:
    """https://github.com/vllm-project/vllm/issues/32587"""
    leaked = piece(0, "a", "query<|channel|>commentary", "{}")
    assert calls(leaked, functions=["query"]) == [("a", "query", {})]
    assert calls(leaked, functions=["other"]) == [("a", "query<|channel|>commentary", {})]


@pytest.mark.parametrize("places", [(0, 1), (1, 0)])
def test_what_a_chunk_says_twice_of_one_choice_is_all_told(places: tuple[int, int]) -> None:
    """https://github.com/ai-dynamo/dynamo/pull/15054"""
    choices = [
        {"index": 0, "delta": {"tool_calls": [piece(0, None, None, '"Rome"}')]}, "finish_reason": None},
        {"index": 0, "delta": {"content": None}, "finish_reason": None},
    ]
    both = {"choices": [choices[place] for place in places]}
    begun = chunk(tool_calls=[piece(0, "a", "w", '{"city":')])
    (call, _) = heard(begun, both, chunk("tool_calls"))
    assert isinstance(call, ToolCall)
    assert call.arguments == CITY


def test_a_whole_message_behind_words_and_a_refusal_says_neither_again() -> None:
    message = {"content": "ab", "refusal": "no"}
    end = {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
    said = heard(chunk(content="ab"), chunk(refusal="no"), end)
    assert said[:-1] == [Text("ab"), Text("no")]


def test_another_answer_that_is_not_counted_is_left_out() -> None:
    both = {
        "choices": [{"delta": {"content": "a"}}, {"delta": {"content": "b"}}, {"index": 0, "delta": {"content": "c"}}]
    }
    assert heard(both, chunk("stop"))[:-1] == [Text("a")]


def test_pages_are_told_that_stand_beside_the_delta() -> None:
    """https://github.com/BerriAI/litellm/pull/23662"""
    said = chunk(content="a")
    said["choices"][0]["annotations"] = [CITED]
    grounding = Grounding(sources=(Source("u", ""),), supports=(Support(text="", sources=(0,)),))
    assert heard(said, chunk("stop"))[:-1] == [Text("a"), grounding]


def test_no_call_is_told_where_another_cannot_be() -> None:
    answer = Answer()
    answer.look_at(chunk("tool_calls", tool_calls=[piece(0, "a", "w", ROME), piece(1, "b", "v", "[")]))
    with pytest.raises(errors.UpstreamFault):
        next(answer.end())


def nested(depth: int) -> Json:
    return {} if depth == 0 else {"a": nested(depth - 1)}


@pytest.mark.parametrize(
    "arguments",
    ['{"a":NaN}', '{"a":-Infinity}', '{"a":1e999}', '{"a":9007199254740993}', '{"a":"\\ud83d"}', '{"\\ud83d":1}']
    + [pytest.param(json.dumps(nested(depth)), id=f"{depth} deep") for depth in (40, 400)]
    + [pytest.param("[" * 100_000, id="too deep to be read")],
)
def test_arguments_that_the_contract_would_change_are_upstreams_fault(arguments: str) -> None:
    with pytest.raises(errors.UpstreamFault):
        told(heard(chunk(tool_calls=[piece(0, "a", "w", arguments)]), chunk("stop")))


@pytest.mark.parametrize("arguments", [{"a": 2**53}, {"a": 2**60}, {"a": [1.5, None, True, "x"]}, nested(31)])
def test_arguments_for_which_there_is_a_place_are_told_unchanged(arguments: Json) -> None:
    message, _ = told(heard(chunk(tool_calls=[piece(0, "a", "w", json.dumps(arguments))]), chunk("stop")))
    part = content_pb2.Part(tool_call=message.tool_call.tool_call)
    sent_back = pb.GenerateRequest(messages=[content_pb2.Message(parts=[part])])
    pb.GenerateRequest.FromString(sent_back.SerializeToString())
    struct: Any = message.tool_call.tool_call.arguments
    assert _plain(struct) == arguments


def _plain(struct: Any) -> Any:
    from service.contract import values  # noqa: PLC0415 - only here

    return values.plain(struct)


# ---- what is said ----------------------------------------------------------------------------------------------------


def test_half_a_character_waits_for_its_other_half() -> None:
    events = heard(chunk(content="a\ud83d"), chunk(content="\ude00b"), chunk("stop"))
    assert events[:-1] == [Text("a"), Text("😀b")]


@pytest.mark.parametrize(
    "chunks",
    [
        [chunk(content="\ud83d"), chunk("stop")],
        [chunk(content="\ud83d"), chunk(content="a"), chunk("stop")],
        [chunk(content="\ude00"), chunk("stop")],  # noqa: PT014
        [chunk(reasoning_content="\ude00"), chunk("stop")],
    ],
)
def test_half_a_character_alone_is_upstreams_fault(chunks: list[Json]) -> None:
    with pytest.raises(errors.UpstreamFault):
        heard(*chunks)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], [Text("a"), Text("b")]),
        ([{"type": "output_text", "text": {"value": "a"}}, "b", None], [Text("a"), Text("b")]),
        ({"type": "text", "text": "a"}, [Text("a")]),
        (
            [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, {"type": "text", "text": "a"}],
            [Reasoning("hm"), Text("a")],
        ),
        ([{"type": "reasoning", "reasoning": "hm"}], [Reasoning("hm")]),
        ([], []),
        ("", []),
    ],
)
def test_content_in_typed_parts_is_its_words(content: Any, expected: list[Event]) -> None:
    assert heard(chunk(content=content), chunk("stop"))[:-1] == expected


@pytest.mark.parametrize(
    "delta",
    [
        {"content": 3},  # it may have been written in other ways (https://github.com/cloudflare/ai/issues/651)
        {"content": 0},
        {"content": True},
        {"content": [3]},
        {"content": [{"type": "image_url", "image_url": {"url": "u"}}]},
        {"content": [{"type": "text", "text": 3}]},
        {"refusal": ["no"]},
        {"reasoning_content": {"a": 1}},
        {"images": [{"type": "image_url"}]},
        {"audio": {"data": "AA=="}},
        {"tool_calls": {"index": 0}},
        {"tool_calls": [3]},
    ],
)
def test_words_that_are_no_text_are_upstreams_fault_and_never_told_as_a_structure(delta: Json) -> None:
    with pytest.raises(errors.UpstreamFault):
        heard(chunk(**delta), chunk("stop"))


@pytest.mark.parametrize(
    "odd",
    [
        None,
        {},
        {"choices": None},
        {"choices": []},
        {"choices": [None]},
        {"choices": {}},
        {"choices": ""},
        {"choices": [{}]},
        {"choices": [{"index": 0}]},
        {"choices": [{"index": None, "delta": None}]},
        {"choices": [{"delta": {"content": None, "role": 3, "tool_calls": None, "refusal": None}}]},
        {"choices": [{"delta": {}, "logprobs": None}]},
        {"choices": [{"index": 1, "delta": {"content": "another"}, "finish_reason": "length"}]},
        {"choices": [{"delta": {"tool_calls": [None], "annotations": [None, 3, {}]}}]},
        {"model": 3, "usage": 3, "id": None, "created": "x", "system_fingerprint": [], "citations": 3},
        {"usage": {"completion_tokens": None}},
        {"x_groq": 3},
    ],
)
def test_a_chunk_that_says_nothing_costs_nothing(odd: Any) -> None:
    good = [chunk(content="a"), chunk("stop")]
    for place in range(len(good) + 1):
        assert heard(*good[:place], odd, *good[place:]) == heard(*good)


@given(
    st.sampled_from([None, "", False, 0, 0.0, [], {}]),
    st.sampled_from(
        [
            *("annotations", "tool_calls", "function_call", "refusal", "reasoning_content", "reasoning", "thinking"),
            *("reasoning_details", "audio", "images", "role", "citations", "context", "logprobs", "finish_reason"),
            *("message", "text", "native_finish_reason", "usage", "error", "search_results", "id", "name", "arguments"),
            *("custom", "index", "function", "top_logprobs"),
        ]
    ),
    st.booleans(),
)
def test_a_value_that_says_nothing_says_nothing_wherever_it_stands(empty: Any, name: str, last: bool) -> None:
    good = [chunk(content="a"), chunk("stop")]
    for place in range(3):
        told = copy.deepcopy(good)
        one = told[-1 if last else 0]
        holder = (one, one["choices"][0], one["choices"][0]["delta"])[place]
        holder.setdefault(name, empty)
        assert heard(*told) == heard(*good), (place, told)


@given(
    st.sampled_from([None, "", False, 0, [], {}]),
    st.sampled_from(["id", "name", "arguments", "function", "custom", "extra_content", "index", "type"]),
)
def test_a_piece_of_a_call_that_says_nothing_says_nothing(empty: Any, name: str) -> None:
    more: Json = {"index": 0, "function": {"arguments": ""}}
    (more["function"] if name in ("name", "arguments") else more)[name] = empty
    assert calls(piece(0, "a", "w", '{"city"'), more, piece(0, None, None, ':"Rome"}')) == [("a", "w", CITY)]


@pytest.mark.parametrize(
    "odd", [3, "x", [], True, {"choices": {"a": 1}}, {"choices": [3]}, {"choices": [{"delta": "x"}]}]
)
def test_a_chunk_that_is_none_is_upstreams_fault(odd: Any) -> None:
    with pytest.raises(errors.UpstreamFault):
        heard(chunk(content="a"), odd, chunk("stop"))


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_thoughts_are_told_apart_whatever_they_are_called(name: str) -> None:
    events = heard(chunk(**{name: "hm"}), chunk(content="yes"), chunk("stop"))
    assert events[:-1] == [Reasoning("hm"), Text("yes")]


def test_thoughts_that_are_told_twice_are_told_once() -> None:
    both = {"reasoning": "hm", "reasoning_content": "hm", "reasoning_details": [{"text": "hm"}]}
    assert heard(chunk(**both), chunk("stop"))[:-1] == [Reasoning("hm")]
    assert heard(chunk(reasoning_details=[{"text": "hm"}]), chunk("stop"))[:-1] == [Reasoning("hm")]


def test_thoughts_that_differ_by_their_names_are_all_told_in_order() -> None:
    both = {"reasoning": "then that", "reasoning_content": "first this, "}
    assert heard(chunk(**both), chunk("stop"))[:-1] == [Reasoning("first this, then that")]


@pytest.mark.parametrize("second", [1, 1.0, "1", 2, "2"])
@pytest.mark.parametrize("first", [0, 0.0, "0", None])
def test_a_second_answer_is_never_mixed_in_however_it_is_counted(first: Any, second: Any) -> None:
    said = [
        {"choices": [{"index": index, "delta": {"content": text}, "finish_reason": end}]}
        for index, text, end in ((first, "a", None), (second, "x", "length"), (first, "b", "stop"))
    ]
    together = [{"choices": [one["choices"][0] for one in said]}]
    assert heard(*said)[:-1] == [Text("a"), Text("b")]
    if first is not None:
        assert heard(*together)[:-1] == [Text("a"), Text("b")]


def test_a_whole_message_in_place_of_a_delta_is_taken_and_not_told_twice() -> None:
    message = {"choices": [{"message": {"role": "assistant", "content": "ab"}, "finish_reason": "stop"}]}
    assert heard(message)[0] == Text("ab")
    assert heard(chunk(content="a"), chunk(content="b"), message)[:-1] == [Text("a"), Text("b")]
    with pytest.raises(errors.UpstreamFault):
        heard(chunk(content="a"), message)


def test_a_name_said_with_each_piece_costs_no_look_at_all_the_pieces_before(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = []
    loads = json.loads

    def look(text: str) -> Any:
        looks.append(len(text))
        return loads(text)

    monkeypatch.setattr(json, "loads", look)
    pieces = ['{"text":"', *["word "] * 1000, '"}']
    said = heard(*(chunk(tool_calls=[piece(0, None, "w", one)]) for one in pieces), chunk("stop"))
    assert [len(call.arguments["text"]) for call in said if isinstance(call, ToolCall)] == [5000]
    assert len(looks) < 10


def test_pages_that_the_answer_rests_on_are_told_once() -> None:
    cited = [{"type": "url_citation", "url_citation": {"url": "u", "title": "t", "start_index": 0, "end_index": 1}}]
    pages = {**chunk(content="b"), "citations": ["u", {"url": "v"}]}
    events = heard(chunk(content="a", annotations=cited), pages, {**pages, "choices": []}, chunk("stop"))
    assert [event for event in events if isinstance(event, Grounding)] == [
        Grounding(sources=(Source("u", "t"),), supports=(Support(text="a", sources=(0,), start=0, end=1),)),
        Grounding(sources=(Source("u"), Source("v"))),
    ]


@pytest.mark.parametrize(
    ("start", "end", "place"),
    [
        (0, 2, ("Aé", 0, 3)),
        (2, 4, ("世b", 3, 7)),
        (2, 5, None),  # is it one character, or two?
        (5, 6, None),
        (2, 7, None),
        (2, 2, None),
        (3, 2, None),
        (-1, 2, None),
        (0.5, 2, None),
        (None, 2, None),
        ("0", 2, None),
        (0, True, None),
    ],
)
def test_places_of_citations_are_told_in_bytes_where_they_are_certain(start: Any, end: Any, place: Any) -> None:
    cited = [{"type": "url_citation", "url_citation": {"url": "u", "start_index": start, "end_index": end}}]
    said = heard(chunk(content="Aé"), chunk(content="世b😀c"), chunk("stop", annotations=cited))
    (grounding,) = [event for event in said if isinstance(event, Grounding)]
    text, begins, ends = place or ("", None, None)
    assert grounding.supports == (Support(text=text, sources=(0,), start=begins, end=ends),)


SOURCES: list[tuple[Any, Source]] = [
    ("u", Source("u")),
    ({"url": "u", "title": "t"}, Source("u", "t")),
    ({"uri": "u"}, Source("u")),
    ({"type": "url_citation", "url": "u", "title": "t"}, Source("u", "t")),
    ({"type": "url_citation", "url_citation": {"url": "u"}}, Source("u")),
    ({"type": "file_citation", "file_citation": {"file_id": "f", "filename": "n"}}, Source("f", "n")),
    ({"type": "file_citation", "file_id": "f", "index": 3}, Source("f")),
    ({"content": "c", "title": "t", "url": None, "filepath": "f.pdf", "chunk_id": "0"}, Source("f.pdf", "t")),
]


@pytest.mark.parametrize(("cited", "source"), SOURCES)
@pytest.mark.parametrize("several", [True, False])
@pytest.mark.parametrize("name", ["citations", "search_results", "annotations", "context"])
@pytest.mark.parametrize("place", ["chunk", "choice", "delta", "message", "empty delta"])
def test_what_the_answer_rests_on_is_told_wherever_it_stands(
    place: str, name: str, cited: Any, source: Source, *, several: bool
) -> None:
    told = [cited] if several else cited
    held = {"context": {"citations": told}} if name == "context" else {name: told}
    said = chunk(content="a")
    choice = said["choices"][0]
    match place:
        case "chunk":
            said |= held
        case "message":
            choice["message"] = held
        case "choice":
            choice |= held
        case _:
            choice["delta"] |= held
    if place == "empty delta":
        del choice["delta"]["content"]
        events = heard(chunk(content="a"), said, said, chunk("stop"))
    else:
        events = heard(said, chunk("stop"))
    assert [event.sources for event in events if isinstance(event, Grounding)] == [(source,)]
    assert [event for event in events if isinstance(event, Text)] == [Text("a")]


def test_pages_with_titles_take_the_place_of_bare_ones() -> None:
    found = {**chunk(content="a"), "citations": ["u"], "search_results": [{"title": "t", "url": "u"}]}
    assert Grounding(sources=(Source("u", "t"),)) in heard(found, chunk("stop"))


@pytest.mark.parametrize(
    "message",
    [
        {"role": "assistant", "content": "ab", "refusal": None, "tool_calls": [piece(None, None, "w", ROME)]},
        {"content": "", "reasoning_content": "hm"},
        {"content": [{"type": "text", "text": "ab"}]},
    ],
)
def test_what_a_whole_message_says_again_is_not_told_again(message: Json) -> None:
    parts = [chunk(reasoning_content="hm"), chunk(content="ab"), chunk(tool_calls=[piece(None, None, "w", ROME)])]
    end = {"choices": [{"message": message, "finish_reason": "tool_calls"}]}
    texts = [event.text for event in heard(*parts, end) if isinstance(event, Text | Reasoning)]
    assert texts == ["hm", "ab"]
    assert len([event for event in heard(*parts, end) if isinstance(event, ToolCall)]) == 1


def test_log_probabilities_are_told_with_what_else_might_have_stood_there() -> None:
    token = {"token": "a", "logprob": -1, "bytes": [97], "top_logprobs": [{"token": "b\ud83d", "logprob": -2.5}]}
    said = chunk(content="a")
    said["choices"][0]["logprobs"] = {"content": [token], "refusal": None}
    assert Logprobs((TokenLogprob("a", -1.0, (TokenLogprob("b?", -2.5),)),)) in heard(said, chunk("stop"))


@pytest.mark.parametrize("token", [{"token": 3, "logprob": -1}, {"token": "a", "logprob": "x"}, 3])
def test_a_log_probability_that_is_none_is_upstreams_fault(token: Any) -> None:
    said = chunk(content="a")
    said["choices"][0]["logprobs"] = {"content": [token]}
    with pytest.raises(errors.UpstreamFault):
        heard(said, chunk("stop"))


@pytest.mark.parametrize("unknown", [{"token": "x"}, {"token": "x", "logprob": None, "top_logprobs": []}, None])
def test_a_token_whose_probability_nobody_tells_costs_nothing_else(unknown: Any) -> None:
    """https://github.com/xorbitsai/inference/pull/5252"""
    said = chunk(content="a")
    said["choices"][0]["logprobs"] = {"content": [unknown]}
    assert [type(event) for event in heard(said, chunk("stop"))] == [Text, Finished]
    known = {"token": "a", "logprob": -1, "top_logprobs": [unknown, {"token": "b", "logprob": -2}]}
    said["choices"][0]["logprobs"] = {"content": [unknown, known]}
    assert Logprobs((TokenLogprob("a", -1.0, (TokenLogprob("b", -2.0),)),)) in heard(said, chunk("stop"))


# ---- how it ends -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("finish", "reason"),
    [
        ("stop", FinishReason.STOP),
        ("tool_calls", FinishReason.STOP),
        ("length", FinishReason.MAX_TOKENS),
        ("model_length", FinishReason.MAX_TOKENS),
        ("model_context_window_exceeded", FinishReason.MAX_TOKENS),
        ("sensitive", FinishReason.SAFETY),
        ("content_filter", FinishReason.SAFETY),
        ("something_new", FinishReason.OTHER),
        ("eos_token", FinishReason.STOP),
        ("SAFETY", FinishReason.SAFETY),
        ("content_filter: RECITATION", FinishReason.RECITATION),
        ("content_filter: SOMETHING_NEW", FinishReason.SAFETY),
        ("function_call_filter: MALFORMED_FUNCTION_CALL", FinishReason.MALFORMED_FUNCTION_CALL),
    ],
)
def test_the_finish_reason_and_upstreams_own_word_are_told(finish: str, reason: FinishReason) -> None:
    (*_, ending) = heard(chunk(content="a"), chunk(finish))
    assert isinstance(ending, Finished)
    assert (ending.reason, ending.upstream_reason, ending.model_version) == (reason, finish, "m-1")


@pytest.mark.parametrize("finish", [None, "", "error", "abort", "insufficient_system_resource", "network_error"])
def test_an_answer_that_was_given_up_is_cut(finish: str | None) -> None:
    with pytest.raises(errors.UpstreamCut):
        heard(chunk(content="a"), chunk(finish))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["length", "stop"], (FinishReason.MAX_TOKENS, "length")),
        (["stop", "length", "stop"], (FinishReason.MAX_TOKENS, "length")),
        (["content_filter", "STOP"], (FinishReason.SAFETY, "content_filter")),
        (["length", "end_turn"], (FinishReason.MAX_TOKENS, "length")),
        (["null", "stop"], (FinishReason.STOP, "stop")),  # a word that nobody knows is no cut
        (["stop", "end_turn"], (FinishReason.STOP, "end_turn")),
        (["stop", "stop"], (FinishReason.STOP, "stop")),
    ],
)
def test_a_clean_end_takes_the_place_of_no_other(words: list[str], expected: tuple[FinishReason, str]) -> None:
    ending = heard(chunk(content="a"), *map(chunk, words))[-1]
    assert isinstance(ending, Finished)
    assert (ending.reason, ending.upstream_reason) == expected


def test_what_an_earlier_chunk_told_is_not_wiped_by_a_later_one() -> None:
    counted = {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}}
    (*_, ending) = heard(chunk("stop", content="a"), counted, {"choices": [], "model": "", "usage": {}})
    assert isinstance(ending, Finished)
    assert ending.usage == Usage(input_tokens=1, output_tokens=2, total_tokens=3)
    assert ending.model_version == "m-1"


def test_a_refusal_is_a_safety_stop() -> None:
    events = heard(chunk(refusal="I won't"), chunk("stop"))
    assert events[0] == Text("I won't")
    assert isinstance(events[-1], Finished)
    assert (events[-1].reason, events[-1].upstream_reason) == (FinishReason.SAFETY, "refusal")


def figures(prompt: Any, output: Any, total: Any, thoughts: Any = None, cached: Any = None) -> Json:
    return {
        "prompt_tokens": prompt,
        "completion_tokens": output,
        "total_tokens": total,
        "completion_tokens_details": {"reasoning_tokens": thoughts},
        "prompt_tokens_details": {"cached_tokens": cached},
    }


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (figures(5, 13, 18, 10), (5, 3, 10, 0, 18)),  # inside
        (figures(5, 3, 18, 10), (5, 3, 10, 0, 18)),  # beside
        (figures(5, 3, 8, None, 4), (5, 3, 0, 4, 8)),
        ({"prompt_tokens": 5, "completion_tokens": 3}, (5, 3, 0, 0, 8)),
        ({"prompt_tokens": 5, "completion_tokens": 3, "prompt_cache_hit_tokens": 2}, (5, 3, 0, 2, 8)),
        ({"prompt_tokens": 5, "completion_tokens": 3, "cached_tokens": 2}, (5, 3, 0, 2, 8)),
        (figures(5.0, 3.0, 8.0), (5, 3, 0, 0, 8)),
        (figures(5, 3, 30), (5, 3, 0, 0, 30)),  # tokens of kinds that have no name here
    ],
)
def test_tokens_are_counted_as_the_sum_tells(said: Json, expected: tuple[int, ...]) -> None:
    counted = usage(said)
    assert counted is not None
    found = (counted.input_tokens, counted.output_tokens, counted.reasoning_tokens, counted.cached_tokens)
    assert (*found, counted.total_tokens) == expected


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"completion_tokens": 3},
        {"total_tokens": 8},
        figures(0, 0, 0),
        figures(0, 0, None),
        figures(True, 3, 4),
        figures(5, None, 8),
        figures(None, 3, 8),
        figures(-5, 3, 8),
        figures(5, 3, 7),
        figures(5, 3, 9, 4),
        figures(5, 3, 8, 4),
        figures(5, 3, 8, "x"),
        figures(5, 3, 8, 0, 6),
        figures(5, True, 6),
        figures(2**40, 3, 2**40 + 3),
        figures(float("nan"), 3, 8),
        3,
        None,
        [],
    ],
)
def test_a_count_that_is_missing_or_cannot_be_is_none(said: Any) -> None:
    assert usage(said) is None


COUNTS: st.SearchStrategy[Any] = st.sampled_from(
    [None, 0, 0.0, True, False, "", "5", -1, 5, 3, 8, 2**40, float("nan"), [], {}]
)


@given(st.dictionaries(st.sampled_from([*figures(0, 0, 0), "reasoning_tokens", "cached_tokens"]), COUNTS))
def test_figures_that_cannot_be_read_do_not_wipe_out_those_that_could(said: Json) -> None:
    counted = figures(5, 3, 8)
    (*_, ending) = heard(chunk("stop", content="a"), {"choices": [], "usage": counted}, {"choices": [], "usage": said})
    assert isinstance(ending, Finished)
    assert ending.usage == (usage(said) or usage(counted))
    if (told := usage(said)) is not None:
        assert told.input_tokens or told.output_tokens or told.total_tokens


# ---- whatever stands in a chunk --------------------------------------------------------------------------------------

CITED: Json = {"type": "url_citation", "url_citation": {"url": "u", "start_index": 0, "end_index": 3}}

GOOD: list[Json] = [
    chunk(role="assistant", content="", reasoning_content="hm"),
    chunk(reasoning_details=[{"type": "reasoning.text", "text": "hm", "signature": "s", "index": 0}]),
    chunk(content="one "),
    {
        **chunk(content="two"),
        "citations": ["u"],
        "choices": [
            {
                "index": 0,
                "delta": {"content": "two", "annotations": [CITED]},
                "logprobs": {"content": [{"token": "two", "logprob": -0.5, "top_logprobs": []}]},
                "finish_reason": None,
            }
        ],
    },
    chunk(tool_calls=[piece(0, "a", "w", '{"city"')]),
    chunk(tool_calls=[piece(0, None, None, ':"Rome"}')]),
    chunk(tool_calls=[piece(1, "b", "v", "{}")]),
    chunk("tool_calls"),
    {"choices": [], "usage": figures(5, 13, 18, 10, 2)},
]

NOTHING: Any = object()

ODD = st.sampled_from([NOTHING, None, 0, -1, 1.5, float("nan"), 2**70, True, "", "x", "\ud83d", [], [None], {}, [{}]])


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every field at every depth."""
    inner: Any = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        yield (*path, key)
        yield from places(one, (*path, key))


PLACES = list(places(GOOD))


def changed(chunks: list[Json], path: tuple[Any, ...], value: Any, *, twice: bool) -> list[Json]:
    made = copy.deepcopy(chunks)
    holder: Any = made
    for key in path[:-1]:
        holder = holder[key]
    if twice and isinstance(holder, list):
        holder.insert(path[-1], copy.deepcopy(holder[path[-1]]))
    elif value is NOTHING:
        del holder[path[-1]]
    else:
        holder[path[-1]] = value
    return made


def words(events: Sequence[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, Text))


@given(
    st.sampled_from(PLACES),
    ODD,
    st.booleans(),
    st.none() | st.randoms(use_true_random=False),
    st.sampled_from(["", "reasoning_details"]),
)
def test_one_odd_field_anywhere_is_the_same_answer_or_a_typed_failure(
    path: tuple[Any, ...], value: Any, twice: bool, dice: Any, back: str
) -> None:
    chunks = changed(GOOD, path, value, twice=twice)
    if dice:
        dice.shuffle(chunks)
    try:
        events = heard(*chunks, back=back)
        messages = told(events)
    except errors.UpstreamError as error:
        error.status()
        return
    assert messages[-1].completed.finish_reason
    # Only what upstream said is told: pieces of the answer, or the odd value where the words should be.
    parts = ["one ", "two", "x"]
    possible = {"".join(some) for size in range(5) for some in itertools.product(parts, repeat=size)}
    assert words(events) in possible
    for call in (event for event in events if isinstance(event, ToolCall)):
        assert call.name
        assert call.id


@given(st.integers(1, 20), st.data())
def test_an_answer_is_the_same_however_it_is_cut_into_pieces(size: int, data: st.DataObject) -> None:
    text = data.draw(st.text(max_size=30))
    arguments = json.dumps({"text": text}, ensure_ascii=False)

    def cut(whole: str) -> list[str]:
        units = whole.encode("utf-16-le")
        return [units[at : at + 2 * size].decode("utf-16-le", "surrogatepass") for at in range(0, len(units), 2 * size)]

    pieces = [piece(0, "a", "w", "")] + [piece(0, None, None, one) for one in cut(arguments)]
    chunks = [chunk(content=one) for one in cut(text)] + [chunk(tool_calls=[one]) for one in pieces]
    events = heard(*chunks, chunk("stop"))
    assert words(events) == text
    assert [event.arguments for event in events if isinstance(event, ToolCall)] == [{"text": text}]
