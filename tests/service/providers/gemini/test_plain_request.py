"""The shortcut for a conversation in texts makes the request that the library makes, for every conversation."""

from typing import Any

import pytest
from google.cloud.aiplatform_v1beta1.types import GenerateContentRequest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_google_vertexai import ChatVertexAI

from service.providers.gemini.shortcuts import Chat, new

CHAT = new(Chat, "gemini-2.5-flash", "project", "us-central1")

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
contents = st.one_of(texts, st.lists(st.builds(lambda text: {"type": "text", "text": text}, texts), max_size=2))
calls = st.lists(st.just({"name": "f", "args": {"a": 1}, "id": "1"}), max_size=1)
answers = st.one_of(
    st.builds(AIMessage, contents),
    st.builds(lambda text, found: AIMessage(text, tool_calls=found), texts, calls),
    st.builds(lambda text: AIMessage(text, response_metadata={"is_blocked": True}), texts),
    st.builds(
        lambda text: AIMessage([{"type": "text", "text": text}], response_metadata={"output_version": "v1"}), texts
    ),
)
questions = st.builds(HumanMessage, contents)
results = st.builds(lambda text: ToolMessage(text, tool_call_id="1", name="f"), texts)
usual = st.lists(st.tuples(questions, answers), max_size=3).map(lambda pairs: [one for pair in pairs for one in pair])
conversations = st.builds(
    lambda system, turns, last: [*system, *turns, *last],
    st.lists(st.builds(SystemMessage, contents), max_size=1),
    st.one_of(usual, st.lists(st.one_of(questions, answers, st.builds(SystemMessage, contents)), max_size=4)),
    st.one_of(
        questions.map(lambda one: [one]), answers.map(lambda one: [one]), st.tuples(questions, results).map(list)
    ),
)
stops = st.one_of(st.none(), st.lists(st.text("abc", min_size=1), max_size=2))
options: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {"timeout": st.just(1.5)},
    optional={
        "temperature": st.floats(0, 2),
        "top_p": st.floats(0.1, 1),
        "top_k": st.integers(1, 40),
        "max_output_tokens": st.integers(1, 100),
        "seed": st.integers(0, 100),
        "presence_penalty": st.floats(-2, 1.9),
        "frequency_penalty": st.floats(-2, 1.9),
        "thinking_budget": st.integers(0, 100),
        "include_thoughts": st.booleans(),
        "response_mime_type": st.just("application/json"),
        "logprobs": st.integers(1, 5),
        "labels": st.just({"team": "a"}),
        "safety_settings": st.just({"HARM_CATEGORY_HARASSMENT": "BLOCK_NONE"}),
    },
)


@given(messages=conversations, stop=stops, chosen=options)
def test_every_request_is_what_the_library_makes_of_it(
    messages: list[BaseMessage], stop: list[str] | None, chosen: dict[str, Any]
) -> None:
    theirs = ChatVertexAI._prepare_request_gemini(CHAT, list(messages), stop=stop, **chosen)
    assert CHAT._request(messages, stop, **chosen) == GenerateContentRequest.pb(theirs)


@given(stop=stops, chosen=options)
def test_tracers_are_told_what_the_library_tells_them(stop: list[str] | None, chosen: dict[str, Any]) -> None:
    theirs = ChatVertexAI._get_invocation_params(CHAT, stop=stop, **chosen)
    assert CHAT._get_invocation_params(stop=stop, **chosen) == theirs


@pytest.mark.parametrize(
    ("messages", "chosen", "short"),
    [
        ([HumanMessage("a")], {}, True),
        ([SystemMessage("a"), HumanMessage("b"), AIMessage("c"), HumanMessage("d")], {"temperature": 0.5}, True),
        ([HumanMessage("a"), HumanMessage("b")], {}, False),
        ([HumanMessage([{"type": "text", "text": "a"}])], {}, False),
        ([HumanMessage("a")], {"labels": {"a": "b"}}, False),
    ],
)
def test_the_shortcut_is_for_texts_and_numbers(
    messages: list[BaseMessage], chosen: dict[str, Any], short: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []
    prepare = ChatVertexAI._prepare_request_gemini

    def counted(*args: Any, **kwargs: Any) -> Any:
        asked.append(args)
        return prepare(*args, **kwargs)

    monkeypatch.setattr(ChatVertexAI, "_prepare_request_gemini", counted)
    CHAT._request(messages, ["end"], timeout=1.0, **chosen)
    assert (not asked) == short


def test_no_request_changes_what_the_next_one_begins_with() -> None:
    first = CHAT._request([SystemMessage("a"), HumanMessage("b")], ["c"], temperature=1.0)
    second = CHAT._request([HumanMessage("d")], None)
    assert first != second
    assert second == CHAT._request([HumanMessage("d")], None)
    assert not second.HasField("system_instruction")
