"""What upstream's chunks say reaches the caller, whichever of them LangChain passes on."""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import ChatCompletionChunk

from service.generation.events import Event, Logprobs, Text, TokenLogprob
from service.providers.chat_completions import _Call

# A second answer, that nobody asked for.
OTHER = {"index": 1, "delta": {"content": "other", "refusal": "other"}, "finish_reason": "length"}


def chunk(content: str | None, refusal: str | None, logprob: float | None) -> ChatCompletionChunk:
    choice: dict[str, Any] = {"index": 0, "delta": {"content": content, "refusal": refusal}, "finish_reason": None}
    if logprob is not None:
        choice["logprobs"] = {"content": [{"token": "x", "logprob": logprob, "top_logprobs": []}], "refusal": None}
    told = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice, OTHER]}
    return ChatCompletionChunk.model_validate(told)


def said(content: str | None, refusal: str | None, logprob: float | None) -> list[Event]:
    events: list[Event] = [Text(text) for text in (content, refusal) if text]
    return events if logprob is None else [*events, Logprobs((TokenLogprob("x", logprob, ()),))]


TEXTS = st.none() | st.text(max_size=5)
CHUNKS = st.lists(st.tuples(TEXTS, TEXTS, st.none() | st.floats(-9, 0)), max_size=8)


@given(CHUNKS, st.sets(st.integers(0, 8)))
def test_each_chunk_is_told_once_and_in_order_however_often_langchain_passes_one_on(
    chunks: Sequence[tuple[str | None, str | None, float | None]], passed_on: set[int]
) -> None:
    call = _Call(None, "somebody")
    told: list[Event] = []
    for number, one in enumerate(chunks):
        call._look_at(chunk(*one))
        if number in passed_on:
            told += call.events()
    told += call.events()
    assert call._finish == ""
    assert told == [event for one in chunks for event in said(*one)]


@given(
    st.sampled_from(["content", "refusal"]),
    st.integers(1)
    | st.just(True)
    | st.lists(st.text(), min_size=1)
    | st.dictionaries(st.text(), st.text(), min_size=1),
)
def test_words_that_are_no_text_are_no_answer(field: str, value: Any) -> None:
    raw = chunk("a", None, None)
    setattr(raw.choices[0].delta, field, value)
    call = _Call(None, "somebody")
    with pytest.raises(TypeError):
        call._look_at(raw)
    assert not call.makes_sense()
