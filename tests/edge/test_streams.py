"""Every way in brings an answer word by word, and its end."""

import asyncio
import shutil
import struct
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any

import grpc.aio
import httpx
import pytest

from tests.conftest import failure
from tests.edge.conftest import ORIGIN, Edge, read
from tokenwire import AsyncClient
from tokenwire.v1 import generation_service_pb2 as pb
from tokenwire.v1.generation_service_pb2_grpc import GenerationServiceStub
from vertex_emulator.emulator import Emulator
from vertex_emulator.script import answer, silence, status, usage, wait_for

if TYPE_CHECKING:  # the generated stub has it for type checkers only
    from tokenwire.v1.generation_service_pb2_grpc import GenerationServiceAsyncStub

ASK = {"prompt": "What is baseball?"}
SSE = {"accept": "text/event-stream"}
METHOD = "/tokenwire.v1.GenerationService/Generate"

WAYS = [
    pytest.param("POST", {}, id="lines"),
    pytest.param("POST", SSE, id="events"),
    pytest.param("GET", {}, id="get-lines"),
    pytest.param("GET", SSE, id="get-events"),
]


def asking(
    client: httpx.AsyncClient, method: str, headers: dict[str, str], prompt: str = "What is baseball?"
) -> AbstractAsyncContextManager[httpx.Response]:
    if method == "GET":
        return client.stream("GET", "/v1/generate", params={"prompt": prompt}, headers=headers)
    return client.stream("POST", "/v1/generate", json={"prompt": prompt}, headers=headers)


async def messages(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    events = response.headers["content-type"] == "text/event-stream"
    async for line in response.aiter_lines():
        if line:
            assert line.startswith("data: ") == events
            yield read(line)


@pytest.mark.parametrize(("method", "headers"), WAYS)
async def test_the_first_word_is_read_before_the_second_is_said(
    http: httpx.AsyncClient, vertex: Emulator, method: str, headers: dict[str, str]
) -> None:
    vertex.script.play(answer("Baseball ", wait_for("rest"), "is a game.", usage=usage(5, 6)))
    async with asking(http, method, headers) as response:
        assert response.status_code == 200
        assert response.headers["content-type"] == headers.get("accept", "application/json")
        assert response.headers["cache-control"] == "no-store"
        coming = messages(response)
        assert "started" in await anext(coming)
        assert await anext(coming) == {"sequence": 1, "text": "Baseball "}
        assert [call.waiting_for for call in vertex.open_calls] == ["rest"]
        vertex.open_gate("rest")
        assert await anext(coming) == {"sequence": 2, "text": "is a game."}
        (last,) = [message async for message in coming]
    assert last["completed"]["finishReason"] == "FINISH_REASON_STOP"
    assert last["completed"]["usage"]["outputTokens"] == 6


async def test_curl_shows_words_as_they_come(edge: Edge, vertex: Emulator) -> None:
    vertex.script.play(answer("Baseball ", wait_for("rest"), "is a game."))
    curl = shutil.which("curl")
    assert curl
    process = await asyncio.create_subprocess_exec(
        *(curl, "-sN", f"{edge.url}/v1/generate", "-d", '{"prompt": "What is baseball?"}'),
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    assert "started" in read((await process.stdout.readline()).decode())
    assert read((await process.stdout.readline()).decode())["text"] == "Baseball "
    assert vertex.open_calls
    vertex.open_gate("rest")
    rest = (await process.stdout.read()).decode().splitlines()
    assert await process.wait() == 0
    assert read(rest[0])["text"] == "is a game."
    assert "completed" in read(rest[-1])


async def test_grpc_passes_through(edge: Edge, vertex: Emulator) -> None:
    vertex.script.play(answer("Baseball ", wait_for("rest"), "is a game."), answer(status("INVALID_ARGUMENT")))
    async with AsyncClient(edge.address) as client, client.generate("What is baseball?") as call:
        words = call.text()
        assert await anext(words) == "Baseball "
        assert vertex.open_calls
        vertex.open_gate("rest")
        assert [word async for word in words] == ["is a game."]
    async with grpc.aio.insecure_channel(edge.address) as channel:
        stub: GenerationServiceAsyncStub = GenerationServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            [_ async for _ in stub.Generate(pb.GenerateRequest(prompt="What is baseball?"))]
    assert failure(raised.value) == (grpc.StatusCode.INVALID_ARGUMENT, "UPSTREAM_REJECTED")


def framed(message: bytes) -> bytes:
    return struct.pack(">BI", 0, len(message)) + message


class Frames:
    """Frames of gRPC-Web: messages, and the trailers in the end."""

    def __init__(self, response: httpx.Response) -> None:
        self._pieces = response.aiter_bytes()
        self._bytes = b""

    async def next(self) -> tuple[int, bytes]:
        head = await self._take(5)
        flags, size = struct.unpack(">BI", head)
        return flags, await self._take(size)

    async def _take(self, count: int) -> bytes:
        while len(self._bytes) < count:
            self._bytes += await anext(self._pieces)
        taken, self._bytes = self._bytes[:count], self._bytes[count:]
        return taken


async def test_grpc_web_from_a_page_of_an_allowed_origin(http: httpx.AsyncClient, vertex: Emulator) -> None:
    vertex.script.play(answer("Baseball ", wait_for("rest"), "is a game."))
    headers = {
        "content-type": "application/grpc-web+proto",
        "x-grpc-web": "1",
        "origin": ORIGIN,
        "sec-fetch-site": "cross-site",
    }
    body = framed(pb.GenerateRequest(prompt=ASK["prompt"]).SerializeToString())
    async with http.stream("POST", METHOD, content=body, headers=headers) as response:
        assert response.status_code == 200
        assert response.headers["access-control-allow-origin"] == ORIGIN
        assert "grpc-status" in response.headers["access-control-expose-headers"]
        frames = Frames(response)
        assert pb.GenerateResponse.FromString((await frames.next())[1]).HasField("started")
        assert pb.GenerateResponse.FromString((await frames.next())[1]).text == "Baseball "
        assert vertex.open_calls
        vertex.open_gate("rest")
        assert pb.GenerateResponse.FromString((await frames.next())[1]).text == "is a game."
        assert pb.GenerateResponse.FromString((await frames.next())[1]).HasField("completed")
        flags, trailers = await frames.next()
    assert flags == 0x80
    assert b"grpc-status:0" in trailers.replace(b" ", b"")


@pytest.mark.parametrize(("method", "headers"), WAYS)
async def test_a_stream_that_fails_in_the_middle_ends_with_why(
    http: httpx.AsyncClient, vertex: Emulator, method: str, headers: dict[str, str]
) -> None:
    vertex.script.play(answer("Half of ", status("INTERNAL")))
    async with asking(http, method, headers) as response:
        assert response.status_code == 200
        told = [message async for message in messages(response)]
    assert [kind(message) for message in told] == ["started", "text", "failed"]
    (info,) = [one for one in told[-1]["failed"]["details"] if one["@type"].endswith("ErrorInfo")]
    assert (info["domain"], info["metadata"]["last_sequence"]) == ("tokenwire", "1")


def kind(message: dict[str, Any]) -> str:
    (found,) = message.keys() - {"sequence"}
    return found


async def test_an_answer_that_was_cut_short_says_so(http: httpx.AsyncClient, vertex: Emulator) -> None:
    vertex.script.play(answer("Once upon", finish="MAX_TOKENS"))
    async with asking(http, "POST", {}) as response:
        told = [message async for message in messages(response)]
    assert told[-1]["completed"]["finishReason"] == "FINISH_REASON_MAX_TOKENS"


@pytest.mark.parametrize(("method", "headers"), WAYS)
async def test_a_caller_that_goes_away_cancels_upstream(
    http: httpx.AsyncClient, vertex: Emulator, method: str, headers: dict[str, str]
) -> None:
    vertex.script.play(answer("Baseball ", silence()))
    async with asking(http, method, headers) as response:
        coming = messages(response)
        await anext(coming)
        await anext(coming)
        assert vertex.open_calls
    await vertex.wait_until(lambda emulator: not emulator.open_calls)
    assert vertex.calls[-1].code is grpc.StatusCode.CANCELLED


async def test_fields_of_a_get_are_those_of_the_contract(http: httpx.AsyncClient, vertex: Emulator) -> None:
    vertex.script.play(answer("a"))
    query = (
        "prompt=What+is%20baseball%3F%20%F0%9F%98%80&config.temperature=0.5&config.max_output_tokens=7&requestId=mine"
    )
    response = await http.get(f"/v1/generate?{query}")
    assert read(response.text.splitlines()[0])["started"]["requestId"] == "mine"
    asked = vertex.calls[-1].request
    assert asked.contents[0].parts[0].text == "What is baseball? 😀"  # type: ignore[union-attr]
    assert asked.generation_config.temperature == 0.5  # type: ignore[union-attr]
    assert asked.generation_config.max_output_tokens == 7  # type: ignore[union-attr]


async def test_a_request_with_a_picture_of_three_megabytes(http: httpx.AsyncClient, vertex: Emulator) -> None:
    vertex.script.play(answer("A picture."))
    blob = {"mimeType": "image/png", "data": "AAAA" * 1_000_000}
    turn = {"role": "ROLE_USER", "parts": [{"inlineData": blob}, {"text": "What is it?"}]}
    response = await http.post("/v1/generate", json={"messages": [turn]})
    assert kind(read(response.text.splitlines()[-1])) == "completed"


async def test_unary_calls_are_json(http: httpx.AsyncClient, vertex: Emulator) -> None:
    vertex.script.play(answer(method="CountTokens", uses=0))
    models = (await http.get("/v1/models")).json()["models"]
    assert models[0]["default"] is True
    counted = (await http.post("/v1/countTokens", json=ASK)).json()
    assert counted["model"] == models[0]["name"]


async def test_a_callers_deadline_holds(http: httpx.AsyncClient, vertex: Emulator) -> None:
    vertex.script.play(answer("Baseball ", silence()))
    async with asking(http, "POST", {"grpc-timeout": "700m"}) as response:
        told = [message async for message in messages(response)]
    assert [kind(message) for message in told][:2] == ["started", "text"]
    assert told[-1]["failed"]["code"] == grpc.StatusCode.DEADLINE_EXCEEDED.value[0]
