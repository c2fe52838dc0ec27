"""Details of thoughts: put together from pieces, told as a signature, and sent back as they were."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service import errors
from service.generation.events import Finished, FinishReason, Text
from service.generation.prompt import Reasoning, ToolCall
from service.providers.chat_completions import thought_details

from .test_chunks import chunk, heard, piece

ENCRYPTED = {"type": "reasoning.encrypted", "data": "Zm9v", "id": "a", "format": "google-gemini-v1", "index": 0}


def details(*told: Any) -> list[Any]:
    """Those that a caller would send back, where each of these came in a chunk."""
    said = heard(
        *(chunk(reasoning_details=one) for one in told), chunk("stop", content="a"), back=thought_details.FIELD
    )
    signatures = [event.signature for event in said if isinstance(event, Reasoning) and event.signature]
    return [one for signature in signatures for one in thought_details.back(signature)]


def test_an_encrypted_thought_is_told_before_the_calls_that_it_led_to() -> None:
    chunks = (
        chunk(content="a", reasoning_details=[ENCRYPTED]),
        chunk("tool_calls", tool_calls=[piece(0, "a", "w", "{}")]),
    )
    text, thought, call, end = heard(*chunks, back=thought_details.FIELD)
    assert text == Text("a")
    assert isinstance(thought, Reasoning)
    assert (thought.text, json.loads(thought.signature)) == ("", [ENCRYPTED])
    assert isinstance(call, ToolCall)
    assert isinstance(end, Finished)
    assert not [event for event in heard(*chunks) if isinstance(event, Reasoning)]  # where nobody can send it back


def test_an_answer_that_was_cut_by_its_limit_tells_them_too() -> None:
    thought, end = heard(chunk("length", reasoning_details=[ENCRYPTED]), back=thought_details.FIELD)
    assert isinstance(thought, Reasoning)
    assert isinstance(end, Finished)
    assert end.reason is FinishReason.MAX_TOKENS


def test_a_whole_message_behind_the_pieces_does_not_tell_them_again() -> None:
    message = {"choices": [{"index": 0, "message": {"reasoning_details": [ENCRYPTED]}, "finish_reason": "stop"}]}
    said = heard(chunk(reasoning_details=[ENCRYPTED]), message, back=thought_details.FIELD)
    assert isinstance(said[0], Reasoning)
    assert json.loads(said[0].signature) == [ENCRYPTED]


@given(st.text(min_size=1, max_size=30), st.integers(1, 4), st.sampled_from([0, None]))
def test_a_thought_is_the_same_however_it_is_cut_into_pieces(text: str, size: int, index: int | None) -> None:
    whole = {"type": "reasoning.text", "text": text, "format": "anthropic-claude-v1", "signature": "s", "index": index}
    units = text.encode("utf-16-le")
    cut = [units[at : at + 2 * size].decode("utf-16-le", "surrogatepass") for at in range(0, len(units), 2 * size)]
    pieces = [{**whole, "text": one, "signature": None} for one in cut]
    signed = {key: value for key, value in whole.items() if key != "text"}
    another = {"type": "reasoning.text", "text": "b", "index": index}
    found = details(*([one] for one in pieces), [signed], [ENCRYPTED], [ENCRYPTED], [another, None])
    first = {key: value for key, value in found[0].items() if value is not None}
    assert first == {key: value for key, value in whole.items() if value is not None}
    assert found[1:] == [ENCRYPTED, ENCRYPTED, another]


def test_another_thought_begins_behind_a_signature() -> None:
    one, two = ({"type": "reasoning.text", "text": text, "signature": text} for text in "ab")
    assert details([one], [two]) == [one, two]
    assert details([one, two]) == [one, two]


@pytest.mark.parametrize("told", ["SECRET", {"a": 1}, ["SECRET"], [{"data": float("nan")}], [{"data": "\ud83d"}]])
def test_what_could_not_be_sent_back_is_the_models_fault(told: Any) -> None:
    with pytest.raises(errors.UpstreamFault) as caught:
        details(told)
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize(
    "signature",
    [b"s", b"\xff", b"{}", b"1", b"[1]", b'[{"a":NaN}]', b'[{"a":"\\ud83d"}]', b"[" * 100_000, b"[{}" + b"1" * 5000],
)
def test_a_signature_of_somebody_else_is_refused(signature: bytes) -> None:
    with pytest.raises(errors.InvalidRequest) as caught:
        thought_details.back(signature)
    assert "reasoning_signature" in str(caught.value)
