"""The shortcut for plain chunks gives what the library gives, for every kind of chunk."""

from collections.abc import AsyncIterator
from itertools import count
from typing import Any
from uuid import UUID

import pytest
from google.cloud.aiplatform_v1beta1.types import (
    Blob,
    Candidate,
    Content,
    FunctionCall,
    GenerateContentResponse,
    Part,
    SafetyRating,
)
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import HumanMessage
from langchain_google_vertexai import ChatVertexAI

from service.generation.events import Text
from service.providers.gemini.chat_vertex import new_chat
from service.providers.gemini.shortcuts import Chat, Slow, new, plain

CHAT = new(Chat, "gemini-2.5-flash", "project", "us-central1")

counts = st.integers(-3, 1000)
usages = st.builds(
    GenerateContentResponse.UsageMetadata,
    prompt_token_count=counts,
    candidates_token_count=counts,
    thoughts_token_count=counts,
    cached_content_token_count=counts,
    total_token_count=counts,
)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
parts = st.one_of(
    st.builds(Part, text=texts),
    st.builds(Part, text=texts, thought=st.booleans()),
    st.builds(Part, text=texts, thought_signature=st.binary(max_size=4)),
    st.builds(Part, function_call=st.builds(FunctionCall, name=st.just("f"), args=st.just({"a": 1}))),
    st.builds(Part, inline_data=st.just(Blob(mime_type="image/png", data=b"x"))),
)
ratings = st.builds(
    SafetyRating,
    category=st.just("HARM_CATEGORY_HARASSMENT"),
    probability=st.just("LOW"),
    blocked=st.booleans(),
)
some_parts = st.one_of(st.builds(lambda text: [Part(text=text)], texts), st.lists(parts, max_size=3))
candidates = st.builds(
    lambda content, extra: Candidate(content=content, **extra),
    st.builds(Content, role=st.sampled_from(["", "model"]), parts=some_parts),
    st.one_of(
        st.just({}),
        st.fixed_dictionaries(
            {},
            optional={
                "finish_reason": st.sampled_from(["STOP", "MAX_TOKENS", "SAFETY"]),
                "finish_message": texts,
                "safety_ratings": st.lists(ratings, max_size=2),
                "avg_logprobs": st.floats(-5, 0),
                "index": st.integers(0, 2),
            },
        ),
    ),
)
chunks = st.builds(
    lambda found, usage, extra: GenerateContentResponse(candidates=found, **extra, **usage),
    st.lists(candidates, max_size=2),
    st.one_of(st.just({}), st.builds(lambda usage: {"usage_metadata": usage}, usages)),
    st.sampled_from([{}, {"prompt_feedback": {"block_reason": "SAFETY"}}, {"model_version": "gemini-2.5-flash-001"}]),
)


def came(chunk: Any) -> Any:
    """As it comes from upstream."""
    raw = GenerateContentResponse.pb(chunk)
    return raw, plain(raw), None


@given(chunk=chunks, before=chunks)
def test_every_chunk_becomes_what_the_library_makes_of_it(chunk: Any, before: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        convert = ChatVertexAI._gemini_chunk_to_generation_chunk
        _, usage = convert(CHAT, before, None)
        for previous in (None, usage):
            numbers = count()  # the library gives tool calls random ids
            patch.setattr("uuid.uuid4", lambda numbers=numbers: UUID(int=next(numbers)))
            theirs = convert(CHAT, chunk, previous)
            numbers = count()
            patch.setattr("uuid.uuid4", lambda numbers=numbers: UUID(int=next(numbers)))
            message, info, total = CHAT._converted(came(chunk), previous)
            assert (message, info, total) == (theirs[0].message, theirs[0].generation_info, theirs[1])
            assert message.text == theirs[0].text
            assert (text := plain(GenerateContentResponse.pb(chunk))) is None or text[0] == theirs[0].message.content
            assert message.model_dump() == theirs[0].message.model_dump()


def chunk_of(**fields: Any) -> Any:
    return GenerateContentResponse.pb(GenerateContentResponse(candidates=[Candidate(**fields)]))


def test_a_piece_of_text_takes_the_shortcut_the_last_one_too() -> None:
    assert plain(chunk_of(content=Content(role="model", parts=[Part(text="a")]))) == ("a", 0)
    assert plain(chunk_of(content=Content(parts=[Part(text="a")]), finish_reason="STOP")) == ("a", 1)
    assert plain(chunk_of(content=Content(role="model"), finish_reason="MAX_TOKENS")) == ("", 2)
    assert plain(chunk_of()) == ("", 0)


@pytest.mark.parametrize(
    "chunk",
    [
        GenerateContentResponse(),
        GenerateContentResponse(prompt_feedback={"block_reason": "SAFETY"}),
        GenerateContentResponse(candidates=[Candidate(content=Content(parts=[Part(text="a")]), avg_logprobs=-1)]),
        GenerateContentResponse(candidates=[Candidate(content=Content(parts=[Part(text="a", thought=True)]))]),
        GenerateContentResponse(candidates=[Candidate(content=Content(parts=[Part(text="a"), Part(text="b")]))]),
        GenerateContentResponse(candidates=[Candidate(content=Content(parts=[Part(text="a")]))] * 2),
    ],
)
def test_anything_else_goes_the_librarys_own_way(chunk: Any) -> None:
    assert plain(GenerateContentResponse.pb(chunk)) is None


def test_no_chunk_shares_what_another_could_change() -> None:
    chunk = GenerateContentResponse(candidates=[Candidate(content=Content(parts=[Part(text="a")]))])
    first, second = (CHAT._converted(came(chunk), None) for _ in range(2))
    assert first[0].response_metadata is not second[0].response_metadata


ASTREAM = ChatVertexAI._astream


class Upstream:
    """A call that says this."""

    def __init__(self, *texts: str) -> None:
        self._chunks = [
            GenerateContentResponse(candidates=[Candidate(content=Content(parts=[Part(text=text)]))]) for text in texts
        ]

    def begin(self, request: Any, seconds: float) -> None:
        assert request.contents
        assert seconds == 1.5

    async def read(self) -> Any:
        """Each brings along the event that its text names; "-": none."""
        if not self._chunks:
            return None
        chunk = self._chunks.pop(0)
        text = chunk.candidates[0].content.parts[0].text
        return *came(chunk)[:2], None if text == "-" else (Text(f"beyond {text}"),)


@pytest.mark.parametrize("traced", [False, True])
async def test_an_answer_is_what_astream_gives_whether_or_not_somebody_traces(
    monkeypatch: pytest.MonkeyPatch, traced: bool
) -> None:
    monkeypatch.setattr("service.providers.gemini.shortcuts.tracing_is_enabled", lambda: traced)
    chat = new_chat("gemini-2.5-flash", "project", "us-central1")
    texts = ("a", "", "-", "b")
    theirs: list[Any] = [chunk async for chunk in chat.astream([HumanMessage("x")], call=Upstream(*texts), timeout=1.5)]
    ours: list[Any] = [pair async for pair in chat.answer([HumanMessage("x")], call=Upstream(*texts), timeout=1.5)]
    assert [chunk.content for chunk in theirs] == [*texts, ""]  # the last is of `astream`'s own making
    assert [content for content, _ in ours] == [*texts, ""][: 5 if traced else 4]
    assert [beyond for _, beyond in ours] == [*BEYOND, ()][: 5 if traced else 4]


BEYOND = [(Text("beyond a"),), (Text("beyond "),), None, (Text("beyond b"),)]


async def reads_ahead(self: Any, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
    for chunk in [chunk async for chunk in ASTREAM(self, *args, **kwargs)]:
        yield chunk


async def test_what_a_response_brings_along_comes_with_its_own_message_however_the_library_reads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ChatVertexAI, "_astream", reads_ahead)
    chat = new(Slow, "gemini-2.5-flash", "project", "us-central1")
    pairs = [pair async for pair in chat.answer([HumanMessage("x")], call=Upstream("a", "", "-", "b"), timeout=1.5)]
    assert [beyond for _, beyond in pairs] == [*BEYOND, ()]
    assert [content for content, _ in pairs] == ["a", "", "-", "b", ""]
