"""What Gemini says over gRPC with a field missing, twice, odd or unknown: the same answer, or a typed failure."""

from collections.abc import Iterator, Sequence
from typing import Any

import hypothesis
import pytest
from google.protobuf import json_format
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import failure
from tests.faults import processes
from tests.providers import test_odd_gemini
from tests.providers.conftest import Open, Upstream, told_or_typed
from tokenwire.v1 import generation_service_pb2 as pb
from vertex_emulator.protos import prediction_pb2 as google
from vertex_emulator.script import answer, end, message_bytes

GOOD = [json_format.ParseDict(one, google.GenerateContentResponse()) for one in test_odd_gemini.GOOD]

# Field 5000, a string. No message has a field of that number.
HARMLESS = {"usage_metadata", "model_version", "safety_ratings", "grounding_metadata", "response_id", "role", "index"}
"""Of the names on the way to a field: it says nothing of what the answer says."""

UNKNOWN = b"\xc2\xb8\x02\x01x"

Place = tuple[str | int, ...]
"""The way to a message or a field of one: names, and indices behind names of repeated fields."""


def places(message: Message) -> Iterator[Place]:
    """The ways to the message itself and to all that is set in it, but not into the JSON of a Struct."""
    yield ()
    if message.DESCRIPTOR.full_name == "google.protobuf.Struct":
        return
    for field, value in message.ListFields():
        yield (field.name,)
        if field.message_type is not None and not field.message_type.GetOptions().map_entry:
            inner = enumerate(value) if isinstance(value, Sequence) or hasattr(value, "add") else [(None, value)]
            for index, one in inner:
                way = (field.name,) if index is None else (field.name, index)
                yield from ((*way, *rest) for rest in places(one))


PLACES = [(number, *place) for number, one in enumerate(GOOD) for place in places(one)]


def at(message: Any, place: Sequence[Any]) -> Any:
    for step in place:
        message = message[step] if isinstance(step, int) else getattr(message, step)
    return message


def changed(place: Sequence[Any], how: str, number: int) -> list[google.GenerateContentResponse] | None:
    """Good responses with one of them changed there; None where that makes no sense."""
    messages = [google.GenerateContentResponse.FromString(one.SerializeToString()) for one in GOOD]
    first, *way = place
    if way:
        held = at(messages[first], way[:-1])
        return messages if change(held, way[-1], how, number) else None
    match how:
        case "missing":
            del messages[first]
        case "twice":
            messages.insert(first, messages[first])
        case _:
            messages[first].MergeFromString(UNKNOWN)
    return messages


def change(held: Any, last: str | int, how: str, number: int) -> bool:
    """Change what stands there in a message, or in a repeated field; False where that makes no sense."""
    value = held[last] if isinstance(last, int) else getattr(held, last)
    match how, value:
        case "missing", _ if isinstance(last, int):
            del held[last]
        case "missing", _:
            held.ClearField(last)
        case "twice", Message() if isinstance(last, int):
            held.add().CopyFrom(value)
        case "unknown", Message():
            value.MergeFromString(UNKNOWN)
        case "odd", bool():
            setattr(held, str(last), not value)
        case "odd", int():
            setattr(held, str(last), number)
        case "odd", str():
            setattr(held, str(last), "\0\u2028")
        case _:
            return False
    return True


@pytest.fixture
async def vertex(open_provider: Open) -> Upstream:
    return await open_provider("vertex")


async def heard(upstream: Upstream, *messages: bytes) -> tuple[list[pb.GenerateResponse], Any]:
    upstream.emulator.script.play(answer(*map(message_bytes, messages), end()))
    return await processes.outcome(upstream.served.stub.Generate(pb.GenerateRequest(prompt="hi"), timeout=20))


def bytes_of(messages: Sequence[Message]) -> list[bytes]:
    return [one.SerializeToString() for one in messages]


async def test_what_is_taken_apart_below_is_an_answer(vertex: Upstream) -> None:
    messages, error = await heard(vertex, *bytes_of(GOOD))
    assert error is None
    assert "".join(message.text for message in messages) == "one two."
    assert messages[-1].completed.usage.total_tokens == 15


@pytest.mark.parametrize("signature", [b"", b"s"])
async def test_a_part_of_a_kind_that_nobody_knows_does_not_vanish(vertex: Upstream, signature: bytes) -> None:
    message = google.GenerateContentResponse()
    part = message.candidates.add(finish_reason=google.Candidate.STOP).content.parts.add(thought_signature=signature)
    part.MergeFromString(UNKNOWN)
    _, error = await heard(vertex, *bytes_of([GOOD[1], message]))
    assert failure(error)[1] == "UPSTREAM_FAULT"
    assert "part of type 5000" in str(error.details())


@pytest.mark.parametrize("place", [place for place in PLACES if isinstance(place[-1], int)])
async def test_what_nobody_knows_beside_what_is_said_changes_nothing(vertex: Upstream, place: Sequence[Any]) -> None:
    whole, _ = await heard(vertex, *bytes_of(GOOD))
    messages = changed(place, "unknown", 0)
    assert messages is not None
    said, error = await heard(vertex, *bytes_of(messages))
    assert error is None
    for one in (whole[0], whole[-1], said[0], said[-1]):
        one.started.generation_id, one.completed.timing.total.nanos = "", 0
    assert [one.WhichOneof("event") for one in said] == [one.WhichOneof("event") for one in whole]
    assert said[1:-1] == whole[1:-1]


@hypothesis.settings(max_examples=150, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(PLACES),
    st.sampled_from(["missing", "twice", "odd", "unknown"]),
    st.sampled_from([-(2**31), -1, 0, 1, 99, 2**31 - 1]),
)
async def test_no_odd_field_is_a_bug_of_ours(vertex: Upstream, place: Sequence[Any], how: str, number: int) -> None:
    messages = changed(place, how, number)
    hypothesis.assume(messages is not None)
    assert messages is not None
    said, error = await heard(vertex, *bytes_of(messages))
    told_or_typed(said, error, test_odd_gemini.SAID if HARMLESS & set(place) else None)


@hypothesis.settings(max_examples=150, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
@given(st.integers(0, len(GOOD) - 1), st.data())
async def test_no_odd_byte_is_a_bug_of_ours(vertex: Upstream, which: int, data: st.DataObject) -> None:
    messages = bytes_of(GOOD)
    raw = bytearray(messages[which])
    raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    messages[which] = bytes(raw[: data.draw(st.sampled_from([len(raw), len(raw) // 2]))])
    said, error = await heard(vertex, *messages)
    told_or_typed(said, error)
