"""Where the installed LangChain is not what the shortcuts were written for, its own way is taken, for everything."""

import asyncio
import importlib
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import langchain_google_vertexai.chat_models as library
import pytest
from langchain_google_vertexai import ChatVertexAI

from service.generation.events import Finished, FinishReason, Started, Text
from service.generation.prompt import Prompt, Role, ToolCall, ToolResult, Turn
from service.providers.gemini import chat_vertex, shortcuts
from service.providers.gemini.over_grpc import VertexProvider
from service.providers.gemini.shortcuts import Chat, Slow
from service.providers.spec import Offer
from service.telemetry import call_log
from vertex_emulator import Emulator, answer
from vertex_emulator.protos.prediction_pb2 import GenerateContentRequest
from vertex_emulator.script import silence, usage

NAME = "gemini-2.5-flash"

PREPARE, CONVERT, ASTREAM = (
    ChatVertexAI._prepare_request_gemini,
    ChatVertexAI._gemini_chunk_to_generation_chunk,
    ChatVertexAI._astream,
)
USAGE = library._get_usage_metadata_gemini


def loud(self: Any, chunk: Any, before: Any = None, **more: Any) -> Any:
    made, total = CONVERT(self, chunk, more.get("prev_total_usage", before))
    made.message.content = str(made.message.content).upper()
    return made, total


def with_private_parts(self: Any, chunk: Any, before: Any = None, **more: Any) -> Any:
    made, total = CONVERT(self, chunk, more.get("prev_total_usage", before))
    object.__setattr__(made.message, "__pydantic_private__", {"_run": chunk.candidates[0].content.parts[0].text})
    return made, total


def thoughts_are_output(raw: dict[str, Any]) -> Any:
    if (made := USAGE(raw)) is not None:
        made["output_tokens"] += raw.get("thoughts_token_count", 0)
    return made


def without_stops(self: Any, messages: Any, stop: Any = None, **options: Any) -> Any:
    del stop
    return PREPARE(self, messages, **options)


def without_the_last_question(self: Any, messages: Any, stop: Any = None, **options: Any) -> Any:
    return PREPARE(self, messages[:-1] or messages, stop=stop, **options)


async def without_the_first(self: Any, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
    place = 0
    async for chunk in ASTREAM(self, *args, **kwargs):
        if place:
            yield chunk
        place += 1


def gone(*_: Any, **__: Any) -> Any:
    raise AttributeError("it has another name now")


CHANGES: dict[str, tuple[Any, str, Callable[..., Any]]] = {
    "text": (ChatVertexAI, "_gemini_chunk_to_generation_chunk", loud),
    "private parts": (ChatVertexAI, "_gemini_chunk_to_generation_chunk", with_private_parts),
    "usage": (library, "_get_usage_metadata_gemini", thoughts_are_output),
    "stop sequences": (ChatVertexAI, "_prepare_request_gemini", without_stops),
    "turns": (ChatVertexAI, "_prepare_request_gemini", without_the_last_question),
    "pieces": (ChatVertexAI, "_astream", without_the_first),
    "a name": (ChatVertexAI, "_gemini_chunk_to_generation_chunk", gone),
}


@pytest.fixture
def compare_anew() -> Iterator[None]:
    shortcuts.fit.cache_clear()
    yield
    shortcuts.fit.cache_clear()


@pytest.mark.usefixtures("compare_anew")
def test_the_installed_library_is_what_the_shortcuts_were_written_for() -> None:
    assert shortcuts.fit()
    assert type(chat_vertex.new_chat(NAME, "project", "us-central1")) is Chat


@pytest.mark.usefixtures("compare_anew")
def test_it_is_compared_at_import_which_is_before_workers_are_forked_and_takes_no_time() -> None:
    before = time.process_time()
    importlib.reload(chat_vertex)
    assert time.process_time() - before < 0.2  # 10 ms, but for a busy machine
    assert shortcuts.fit.cache_info().currsize == 1


@pytest.mark.usefixtures("compare_anew")
@pytest.mark.parametrize("change", CHANGES)
def test_a_library_that_was_changed_is_noticed_and_told(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(*CHANGES[change])
    told: list[str] = []
    monkeypatch.setattr(call_log, "say", lambda text, *values: told.append(text % values))
    assert not shortcuts.fit()
    assert "takes its own way" in told[0]
    assert type(chat_vertex.new_chat(NAME, "project", "us-central1")) is Slow


@pytest.mark.usefixtures("compare_anew")
def test_it_can_be_compared_while_an_event_loop_runs() -> None:
    async def compare() -> bool:
        return shortcuts.fit()

    assert asyncio.run(compare())


@pytest.fixture
def loud_library(monkeypatch: pytest.MonkeyPatch, compare_anew: None) -> None:
    del compare_anew
    monkeypatch.setattr(*CHANGES["text"])


@asynccontextmanager
async def opened(emulator: Emulator) -> AsyncIterator[VertexProvider]:
    model = VertexProvider.local(emulator.address, [Offer(NAME)], project="project", location="us-central1")
    try:
        yield model
    finally:
        await model.close()


def prompt(*before: Turn) -> Prompt:
    return Prompt(model=NAME, turns=(*before, Turn(Role.USER, ("hi",))))


@pytest.mark.usefixtures("loud_library")
async def test_an_answer_comes_the_librarys_own_way_and_loses_nothing(emulator: Emulator) -> None:
    emulator.script.play(answer("Base", "ball", usage=usage(4, 9, thoughts=2)))
    call = ToolCall(id="1", name="f", arguments={}, signature=b"s")
    result = ToolResult(id="1", name="f", response={})
    asked = prompt(
        Turn(Role.USER, ("a",)), Turn(Role.MODEL, (call,)), Turn(Role.TOOL, (result,)), Turn(Role.MODEL, ("b",))
    )
    async with (
        opened(emulator) as model,
        model.stream(asked, deadline=asyncio.get_running_loop().time() + 20) as events,
    ):
        got = [event async for event in events]
    assert got[:-1] == [Started(NAME), Text("BASE"), Text("BALL")]
    assert isinstance(got[-1], Finished)
    assert got[-1].reason is FinishReason.STOP
    assert got[-1].usage is not None
    assert (got[-1].usage.output_tokens, got[-1].usage.reasoning_tokens) == (9, 2)
    (seen,) = emulator.calls
    assert isinstance(seen.request, GenerateContentRequest)
    assert seen.request.contents[1].parts[0].thought_signature == b"s"


@pytest.mark.usefixtures("loud_library")
async def test_leaving_cancels_upstream_on_the_librarys_own_way_too(emulator: Emulator) -> None:
    emulator.script.play(answer("one", silence()))
    async with opened(emulator) as model:
        async with model.stream(prompt(), deadline=asyncio.get_running_loop().time() + 20) as events:
            assert [await anext(events), await anext(events)] == [Started(NAME), Text("ONE")]
        await emulator.wait_until(lambda e: not e.open_calls)
