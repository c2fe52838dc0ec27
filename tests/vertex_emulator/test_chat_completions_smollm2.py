"""SmolLM2 through OpenAI's protocol: llama.cpp's own server, and the emulator's door before it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import grpc
import httpx
import openai
import pytest
from langchain_openai import AzureChatOpenAI, ChatOpenAI

from vertex_emulator.answerers.smollm2 import SmolLM2
from vertex_emulator.answerers.smollm2_requests import MODEL_VERSION
from vertex_emulator.answerers.weights import fetch
from vertex_emulator.emulator import Emulator

pytestmark = pytest.mark.smollm2

STORY = "Write a very long story about a dragon."


@pytest.fixture(scope="module")
async def smollm2() -> SmolLM2:
    return SmolLM2(weights=await asyncio.to_thread(fetch, say=print), slots=2)


@pytest.fixture(scope="module")
async def running(smollm2: SmolLM2) -> AsyncIterator[Emulator]:
    async with Emulator(smollm2, rest_port=0) as emulator:
        yield emulator


@pytest.fixture
async def emulator(running: Emulator, smollm2: SmolLM2) -> AsyncIterator[Emulator]:
    yield running
    await until_idle(smollm2)
    running.reset()


async def until_idle(smollm2: SmolLM2) -> None:
    async with asyncio.timeout(10):
        while await smollm2.busy_slots():  # noqa: ASYNC110 - llama.cpp's own thread ends it
            await asyncio.sleep(0.01)


@dataclass
class Way:
    """One way to the model."""

    build: Callable[..., Any]
    through_the_door: bool


@pytest.fixture(params=["directly", "through the door", "as Azure"])
async def way(request: pytest.FixtureRequest, emulator: Emulator, smollm2: SmolLM2) -> AsyncIterator[Way]:
    async with httpx.AsyncClient(timeout=60) as client:

        def build(**settings: Any) -> Any:
            # Without LangChain's limit on each chunk: it waits by asyncio.wait_for, which in Python 3.11 loses a
            # cancellation that comes together with a chunk.
            settings |= {
                "max_retries": 0,
                "stream_usage": True,
                "stream_chunk_timeout": None,
                "http_async_client": client,
            }
            if request.param == "directly":
                return ChatOpenAI(
                    model="smollm2",
                    base_url=smollm2.openai_base_url,
                    api_key=smollm2.openai_api_key,  # type: ignore[arg-type]  # it takes a string too
                    **settings,
                )
            url = f"http://{emulator.rest_address}"
            if request.param == "through the door":
                return ChatOpenAI(model="smollm2", base_url=f"{url}/v1", api_key="any", **settings)  # type: ignore[arg-type]  # as above
            return AzureChatOpenAI(
                azure_deployment="smollm2",
                azure_endpoint=url,
                api_version="2024-10-21",
                api_key="any",  # type: ignore[arg-type]  # as above
                **settings,
            )

        yield Way(build, request.param != "directly")


async def test_it_streams_with_usage(emulator: Emulator, way: Way) -> None:
    chunks = [chunk async for chunk in way.build(max_tokens=16, temperature=0).astream("What is baseball?")]
    message = sum(chunks[1:], chunks[0])
    assert "aseball" in message.content
    assert len([chunk for chunk in chunks if chunk.content]) > 8
    assert message.response_metadata["finish_reason"] == "length"
    assert message.response_metadata["model_name"] == MODEL_VERSION
    assert message.usage_metadata["output_tokens"] == 16
    assert message.usage_metadata["input_tokens"] > 16
    if way.through_the_door:
        (call,) = emulator.calls
        assert (call.transport, call.method, call.model) == ("openai", "StreamGenerateContent", "smollm2")
        assert (call.code, call.by_caller) == (grpc.StatusCode.OK, False)
        assert call.pieces_sent > 8


async def test_a_caller_that_goes_stops_generation(emulator: Emulator, smollm2: SmolLM2, way: Way) -> None:
    arrived = asyncio.Event()

    async def read() -> None:
        async for chunk in way.build(max_tokens=1500, temperature=0, seed=1).astream(STORY):
            if chunk.content:
                arrived.set()

    reader = asyncio.create_task(read())
    reader.add_done_callback(lambda _: arrived.set())  # whatever ends it early shall be told
    await arrived.wait()
    assert not reader.done(), reader
    assert await smollm2.busy_slots() == 1
    reader.cancel()
    await until_idle(smollm2)
    if way.through_the_door:
        await emulator.wait_until(lambda emulator: not emulator.open_calls)
        assert emulator.calls[0].by_caller


async def test_a_conversation_that_is_too_long_is_refused(emulator: Emulator, way: Way) -> None:
    with pytest.raises(openai.BadRequestError, match="exceeds the available context size"):
        await way.build().ainvoke("word " * 3000)
    if way.through_the_door:
        assert emulator.calls[0].code is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("field", "value"),
    [("tools", [{"type": "function", "function": {"name": "f"}}]), ("functions", [{"name": "f"}]), ("n", 2)],
)
async def test_what_it_would_leave_out_in_silence_is_refused(emulator: Emulator, field: str, value: object) -> None:
    body = {"messages": [{"role": "user", "content": "Hello"}], field: value}
    async with httpx.AsyncClient(base_url=f"http://{emulator.rest_address}", timeout=20) as client:
        response = await client.post("/v1/chat/completions", json=body)
        listed = (await client.get("/v1/models")).json()["data"]
    assert response.status_code == 400
    assert response.json()["error"]["param"] == field
    assert emulator.calls[0].code is grpc.StatusCode.INVALID_ARGUMENT
    assert [one["id"] for one in listed] == ["smollm2-135m-instruct"]


async def rest_of(pieces: AsyncIterator[bytes]) -> list[bytes]:
    return [piece async for piece in pieces]


async def test_stopping_in_the_middle_of_an_answer_leaves_nothing_behind() -> None:
    mind = SmolLM2(weights=await asyncio.to_thread(fetch, say=print))
    async with Emulator(mind, rest_port=0) as emulator:
        body = {"messages": [{"role": "user", "content": STORY}], "stream": True, "temperature": 0, "seed": 1}
        url = f"http://{emulator.rest_address}/v1/chat/completions"
        async with httpx.AsyncClient(timeout=60) as client, client.stream("POST", url, json=body) as told:
            pieces = told.aiter_raw()
            await anext(pieces)
            await emulator.stop()
            with pytest.raises(httpx.TransportError):
                await rest_of(pieces)
    assert emulator.calls[0].code is grpc.StatusCode.UNAVAILABLE
