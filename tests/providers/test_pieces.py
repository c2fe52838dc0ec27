"""One answer cut into pieces anywhere, with messages between them that say nothing, twice and in any order."""

import json
from collections.abc import Sequence
from typing import Any

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.faults import processes
from tests.providers.conftest import LINES, OK, ByHand, Open, Upstream, open_on, told
from tests.service.providers.chat_completions.test_chunks import chunk
from tokenwire.v1 import generation_service_pb2 as pb
from vertex_emulator.protos import prediction_pb2 as google
from vertex_emulator.script import answer, end, message_bytes

TEXT = "Ünd 😀😀 a\u2028b\n\n{} data: [DONE] "
THOUGHTS = "hm 😀"

SAID = {"text": TEXT, "thoughts": THOUGHTS, "calls": [], "finish": "FINISH_REASON_STOP"}


def chat(kind: str, text: str) -> Any:
    """A chunk of Chat Completions."""
    match kind:
        case "text":
            return chunk(content=text)
        case "thought":
            return chunk(reasoning_content=text)
        case "usage":
            return {"choices": [], "usage": {"prompt_tokens": 4, "completion_tokens": 9, "total_tokens": 13}}
        case "end":
            return chunk("stop")
        case _:
            return {"choices": [], "model": "m-1"}


def gemini(kind: str, text: str) -> Any:
    match kind:
        case "text" | "thought":
            return {"candidates": [{"content": {"parts": [{"text": text, "thought": kind == "thought"}]}}]}
        case "usage":
            counts = {"promptTokenCount": 4, "candidatesTokenCount": 9, "totalTokenCount": 13}
            return {"usageMetadata": counts, "candidates": []}
        case "end":
            return {"candidates": [{"finishReason": "STOP"}]}
        case _:
            return {"modelVersion": "m-1"}


def vertex(kind: str, text: str) -> google.GenerateContentResponse:
    message = google.GenerateContentResponse()
    match kind:
        case "text" | "thought":
            message.candidates.add().content.parts.add(text=text, thought=kind == "thought")
        case "usage":
            usage = message.usage_metadata
            usage.prompt_token_count, usage.candidates_token_count, usage.total_token_count = 4, 9, 13
        case "end":
            message.candidates.add(finish_reason=google.Candidate.STOP)
        case _:
            message.model_version = "m-1"
    return message


def cuts(length: int, most: int) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(0, length), max_size=most).map(sorted)


def parted(whole: Any, places: Sequence[int]) -> list[Any]:
    """A text or bytes, cut at these places."""
    return [whole[start:end] for start, end in zip([0, *places], [*places, len(whole)], strict=True)]


def utf16(text: str) -> str:
    """Each character beyond the first plane as its two halves."""
    units = text.encode("utf-16-le")
    return "".join(chr(int.from_bytes(units[place : place + 2], "little")) for place in range(0, len(units), 2))


@st.composite
def plans(draw: st.DrawFn) -> list[tuple[str, str]]:
    """Kinds and texts of messages. A piece may be half of a character: a transport without halves joins two pieces."""
    pieces = [("thought", one) for one in parted(utf16(THOUGHTS), draw(cuts(len(utf16(THOUGHTS)), 2)))]
    pieces += [("text", one) for one in parted(utf16(TEXT), draw(cuts(len(utf16(TEXT)), 5)))]
    for kind in draw(st.lists(st.sampled_from(["usage", "nothing"]), max_size=4)):
        pieces.insert(draw(st.integers(0, len(pieces))), (kind, ""))
    return [*pieces, *[("end", "")] * draw(st.integers(1, 2)), *draw(st.sampled_from([[], [("usage", "")] * 2]))]


def whole_characters(plan: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """The same for protobuf, which has no halves: each is moved to its other half."""
    made, half = [], ""
    for kind, text in plan:
        units = half + text if text else text
        half = half if not text else units[-1:] if "\ud800" <= units[-1:] <= "\udbff" else ""
        whole = units.removesuffix(half) if half and text else units
        made.append((kind, whole.encode("utf-16-le", "surrogatepass").decode("utf-16-le")))
    return made


@pytest.fixture(params=sorted(LINES.keys() - {"azure"}))
async def upstream(request: pytest.FixtureRequest, open_provider: Open, by_hand: tuple[ByHand, str]) -> Upstream:
    if request.param == "vertex":
        return await open_provider("vertex")
    return await open_on(open_provider, request.param, by_hand[1])


def http(plan: Sequence[tuple[str, str]], how: Any, data: st.DataObject) -> bytes:
    """A response whose bytes come in pieces of any size."""
    body = b"".join(b"data: %s\n\n" % json.dumps(how(kind, text)).encode() for kind, text in plan)
    pieces = [one for one in parted(body, data.draw(cuts(len(body), 8))) if one]
    sent = b"".join(b"%x\r\n%s\r\n" % (len(one), one) for one in pieces)
    return OK + b"transfer-encoding: chunked\r\n\r\n" + sent + b"0\r\n\r\n"


@hypothesis.settings(max_examples=60, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
@given(plan=plans(), data=st.data())
async def test_an_answer_is_the_same_however_it_is_cut(
    upstream: Upstream, by_hand: tuple[ByHand, str], plan: list[tuple[str, str]], data: st.DataObject
) -> None:
    if upstream.provider == "vertex":
        said = [vertex(kind, text).SerializeToString() for kind, text in whole_characters(plan)]
        upstream.emulator.script.play(answer(*map(message_bytes, said), end()))
    else:
        by_hand[0].says = http(plan, gemini if upstream.provider == "genai" else chat, data)
    request = pb.GenerateRequest(prompt="hi")
    messages, error = await processes.outcome(upstream.served.stub.Generate(request, timeout=20))
    assert error is None
    assert told(messages) == SAID
    usage = messages[-1].completed.usage
    assert not usage.exact or (usage.input_tokens, usage.output_tokens, usage.total_tokens) == (4, 9, 13)
