"""What Gemini says, as our own events."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.generation.events import Event, FinishReason, Grounding, Logprobs, Support
from service.providers.gemini import answers, grounding

Json = dict[str, Any]


def message(*texts: str, **fields: Any) -> Json:
    return {"candidates": [{"content": {"parts": [{"text": text} for text in texts]}, **fields}]}


def supports(events: list[Event]) -> list[Support]:
    return [support for event in events if isinstance(event, Grounding) for support in event.supports]


def grounded(*segments: Json) -> Json:
    told = [{"segment": segment, "groundingChunkIndices": [0]} for segment in segments]
    return {"groundingChunks": [{"web": {"uri": "u"}}], "groundingSupports": told}


@given(st.lists(st.lists(st.text(min_size=1, max_size=6), min_size=1, max_size=3), min_size=1, max_size=4), st.data())
def test_a_place_is_that_of_its_words_or_is_not_told(said: list[list[str]], data: st.DataObject) -> None:
    """However parts are counted: in their message, or in all, thoughts included or not."""
    whole = "".join(text for texts in said for text in texts)
    begin = data.draw(st.integers(0, len(whole) - 1))
    words = whole[begin : data.draw(st.integers(begin + 1, len(whole)))]
    start = data.draw(st.integers(0, len(whole)))
    segment = {"text": words, "partIndex": data.draw(st.integers(1, 5)), "startIndex": start, "endIndex": start + 1}
    answer = answers.Answer()
    for texts in said:
        answer.read(message(*texts))
    (found,) = supports(answer.read(message(groundingMetadata=grounded(segment), finishReason="STOP")))
    assert found.text == words
    once = whole.encode().find(words.encode(), whole.encode().find(words.encode()) + 1) < 0
    place = len(whole[:begin].encode())
    assert (found.start, found.end) == ((place, place + len(words.encode())) if once else (None, None))


@pytest.mark.parametrize("text", ["", "elsewhere", "a"])
def test_a_place_in_the_first_part_is_told_as_it_came_where_its_words_do_not_say_another(text: str) -> None:
    answer = answers.Answer()
    answer.said("a b a")
    segment = {"text": text, "startIndex": 2, "endIndex": 3}
    (found,) = supports(answer.read(message(groundingMetadata=grounded(segment), finishReason="STOP")))
    assert (found.start, found.end) == (2, 3)


def test_only_so_many_places_are_looked_for() -> None:
    answer = answers.Answer()
    answer.said("a b")
    told = [{"text": "b", "partIndex": 1, "endIndex": 1}] * (grounding._MOST_PLACED - 1)
    few = supports(answer.read(message(groundingMetadata=grounded(*told))))
    assert {(one.start, one.end) for one in few} == {(2, 3)}
    many = supports(answer.read(message("c", groundingMetadata=grounded(*told, *told), finishReason="STOP")))
    assert {(one.start, one.end) for one in many} == {(None, None)}


def test_a_long_answer_is_not_kept_for_the_sake_of_places() -> None:
    answer = answers.Answer()
    for _ in range(3):
        answer.said("word " * (grounding._LONGEST_CITED_CHARACTERS // 10))
    answer.said("end")
    told = [{"text": "end", "endIndex": 3}, {"text": "end", "partIndex": 1, "endIndex": 3}]
    first, second = supports(answer.read(message(groundingMetadata=grounded(*told), finishReason="STOP")))
    assert (first.start, first.end) == (0, 3)
    assert (second.start, second.end) == (None, None)


@pytest.mark.parametrize(
    ("reasons", "expected"),
    [(["STOP", ""], "STOP"), (["MAX_TOKENS", "STOP"], "MAX_TOKENS"), (["STOP", "SAFETY", "STOP"], "SAFETY")],
)
def test_a_clean_end_takes_the_place_of_no_other(reasons: list[str], expected: str) -> None:
    answer = answers.Answer()
    for reason in reasons:
        answer.read(message("a", **({"finishReason": reason} if reason else {})))
    assert answer.finished().reason is FinishReason[expected]


def test_a_token_whose_probability_nobody_tells_is_not_told_as_certain() -> None:
    certain, likely, untold = (
        {"token": "a", "logProbability": 0.0},
        {"token": "b", "logProbability": -0.5},
        {"token": "c"},
    )
    result = {
        "chosenCandidates": [certain, untold, likely],
        "topCandidates": [{"candidates": [certain, untold]}, {"candidates": [likely]}, {"candidates": [likely]}],
    }
    (event,) = (one for one in answers.Answer().read(message(logprobsResult=result)) if isinstance(one, Logprobs))
    assert [(one.token, one.log_probability, len(one.alternatives)) for one in event.tokens] == [
        ("a", 0.0, 1),
        ("b", -0.5, 1),
    ]
