"""Google's REST form, as a caller sees it on the wire."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import grpc
import httpx
import pytest
from google import genai
from google.genai import types
from google.rpc import error_details_pb2

from vertex_emulator import script as s
from vertex_emulator.control.client import ControlClient
from vertex_emulator.emulator import Emulator
from vertex_emulator.http.server import HTTP_STATUS
from vertex_emulator.protos import prediction_pb2 as pb
from vertex_emulator.script import answer

MODEL = "projects/p/locations/us-central1/publishers/google/models/gemini-2.5-flash"
HELLO = {"contents": [{"role": "user", "parts": [{"text": "Hello"}]}]}


@pytest.fixture
async def emulator() -> AsyncIterator[Emulator]:
    async with Emulator(rest_port=0, relay=True) as running:
        yield running


class Client:
    def __init__(self, http: httpx.AsyncClient) -> None:
        self.http = http

    async def ask(self, body: object = HELLO, *, model: str = MODEL, query: str = "?alt=sse") -> httpx.Response:
        return await self.http.post(f"/v1/{model}:streamGenerateContent{query}", json=body)

    def stream(self) -> Any:
        return self.http.stream("POST", f"/v1/{MODEL}:streamGenerateContent?alt=sse", json=HELLO)

    async def generate(self, body: object = HELLO) -> httpx.Response:
        return await self.http.post(f"/v1beta1/{MODEL}:generateContent", json=body)

    async def count(self, body: object = HELLO) -> httpx.Response:
        return await self.http.post(f"/v1/{MODEL}:countTokens", json=body)


@pytest.fixture
async def rest(emulator: Emulator) -> AsyncIterator[Client]:
    async with httpx.AsyncClient(base_url=f"http://{emulator.rest_address}", timeout=20) as http:
        yield Client(http)


def events(response: httpx.Response) -> list[Any]:
    """What server-sent events hold; fails if there is anything else."""
    *found, rest = response.content.split(b"\r\n\r\n")
    assert rest == b""
    assert all(event.startswith(b"data: ") for event in found)
    return [json.loads(event.removeprefix(b"data: ")) for event in found]


def text(chunk: Any) -> str:
    said = chunk["candidates"][0]["content"]["parts"][0]["text"]
    assert isinstance(said, str)
    return said


async def test_it_streams_server_sent_events(emulator: Emulator, rest: Client) -> None:
    emulator.script.play(answer("a\N{LINE SEPARATOR}b", "ü", usage=s.usage(2, 4)))
    response = await rest.ask()
    assert (response.status_code, response.headers["content-type"]) == (200, "text/event-stream")
    first, last = events(response)
    assert (text(first), text(last)) == ("a\N{LINE SEPARATOR}b", "ü")
    assert "finishReason" not in first["candidates"][0]
    assert last["candidates"][0]["finishReason"] == "STOP"
    assert last["usageMetadata"] == {"promptTokenCount": 2, "candidatesTokenCount": 4, "totalTokenCount": 6}
    assert last["modelVersion"] == "gemini-2.5-flash"
    assert len(response.text.splitlines()) == 4, "a client that splits lines would break a chunk"


async def test_without_sse_it_streams_one_array(emulator: Emulator, rest: Client) -> None:
    emulator.script.play(
        answer("a", "b"), answer(s.end()), answer("a", s.status("ABORTED")), answer(s.status("ABORTED"))
    )
    assert [text(chunk) for chunk in (await rest.ask(query="")).json()] == ["a", "b"]
    assert (await rest.ask(query="")).json() == []
    broken = (await rest.ask(query="")).json()
    assert (text(broken[0]), broken[1]["error"]["status"]) == ("a", "ABORTED")
    refused = await rest.ask(query="")
    assert (refused.status_code, refused.json()[0]["error"]["code"]) == (409, 409)


async def test_a_call_is_recorded_with_its_transport(emulator: Emulator, rest: Client) -> None:
    await rest.http.post(
        f"/v1beta1/{MODEL}:generateContent", json=HELLO, headers={"X-Server-Timeout": "7", "X-One": "1"}
    )
    (call,) = emulator.calls
    assert (call.transport, call.method, call.api_version) == ("rest", "GenerateContent", "v1beta1")
    assert (call.model, call.deadline, call.header("x-one")) == ("gemini-2.5-flash", 7, "1")
    assert isinstance(call.request, pb.GenerateContentRequest)
    assert call.request.model == MODEL
    assert call.request.contents[0].parts[0].text == "Hello"
    assert call.body is not None
    assert json.loads(call.body) == HELLO
    assert (call.code, call.by_caller, call.pieces_sent) == (grpc.StatusCode.OK, False, 1)
    with ControlClient(emulator.address) as control:
        assert (await asyncio.to_thread(control.calls))[0].transport == "rest"


@pytest.mark.parametrize("model", ["publishers/google/models/gemini", "models/gemini"])
async def test_the_project_may_be_left_out(emulator: Emulator, rest: Client, model: str) -> None:
    assert (await rest.ask(model=model)).status_code == 200
    assert emulator.calls[0].model == "gemini"


async def test_google_genai_asks_as_for_the_gemini_api(emulator: Emulator, rest: Client) -> None:
    emulator.script.play(answer("a", "b"))
    address = f"http://{emulator.rest_address}"
    client = genai.Client(vertexai=False, api_key="k", http_options=types.HttpOptions(base_url=address))
    said = await client.aio.models.generate_content_stream(model="gemini-2.5-flash", contents="hi")
    assert [chunk.text async for chunk in said] == ["a", "b"]
    assert (emulator.calls[0].api_version, emulator.calls[0].header("x-goog-api-key")) == ("v1beta", "k")
    assert [one.name async for one in await client.aio.models.list()] == ["models/scripted"]
    assert (await client.aio.models.get(model="gemini-2.5-flash")).name == "models/gemini-2.5-flash"
    client.close()
    del rest


async def test_the_other_methods_answer_with_one_message(emulator: Emulator, rest: Client) -> None:
    emulator.script.play(
        answer(s.thought("hm"), "a", "b", s.function_call("add", {"a": 1})),
        answer(s.tokens(42), method="CountTokens"),
        answer(s.headers({"x-one": "1"}), s.status("ABORTED"), method="CountTokens"),
    )
    whole = (await rest.generate()).json()
    assert whole["candidates"][0]["content"]["parts"] == [
        {"text": "hm", "thought": True},
        {"text": "ab"},
        {"functionCall": {"name": "add", "args": {"a": 1}}},
    ]
    assert (await rest.count()).json() == {"totalTokens": 42}
    late = await rest.count()
    assert (late.status_code, late.headers["x-one"], late.json()["error"]["code"]) == (200, "1", 409)


# ---- requests ----------------------------------------------------------------------------------------------------


async def test_a_request_may_name_its_fields_in_either_way(emulator: Emulator, rest: Client) -> None:
    body = {
        "contents": [{"parts": [{"inlineData": {"mime_type": "image/png", "data": "aGk="}}]}],
        "generation_config": {"thinkingConfig": {"thinking_budget": 7}},
        "systemInstruction": {"parts": [{"text": "Be brief"}]},
    }
    assert (await rest.generate(body)).status_code == 200
    request = emulator.calls[0].request
    assert isinstance(request, pb.GenerateContentRequest)
    assert request.contents[0].parts[0].inline_data.data == b"hi"
    assert request.generation_config.thinking_config.thinking_budget == 7


@pytest.mark.parametrize(
    ("body", "words", "field"),
    [
        ({"content": []}, 'Unknown name "content": Cannot find field.', None),
        (
            {"generationConfig": {"warmth": 1}},
            "Unknown name \"warmth\" at 'generation_config': Cannot find field.",
            "generation_config",
        ),
        (
            {"contents": [{"parts": [{"txt": "Hi"}]}]},
            "Unknown name \"txt\" at 'contents[0].parts[0]': Cannot find field.",
            "contents[0].parts[0]",
        ),
        ({"contents": "Hi"}, "", None),
        ({"generationConfig": {"temperature": "warm"}}, "", None),
        ([1], "", None),
    ],
)
async def test_a_request_that_is_none_is_refused_in_googles_form(
    emulator: Emulator, rest: Client, body: object, words: str, field: str | None
) -> None:
    response = await rest.ask(body)
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["status"]) == (400, 400, "INVALID_ARGUMENT")
    assert error["message"].startswith("Invalid JSON payload received.")
    assert words in error["message"]
    (detail,) = error["details"]
    assert detail["@type"] == "type.googleapis.com/google.rpc.BadRequest"
    assert detail["fieldViolations"][0].get("field") == field
    assert (emulator.calls[0].request, emulator.calls[0].code) == (None, grpc.StatusCode.INVALID_ARGUMENT)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"contents": []}, "at least one contents field is required"),
        ({"generationConfig": {"temperature": 9}}, "a temperature value of 9 but the supported range is from 0 to 2"),
        ({"generationConfig": {"temperature": -1}}, "a temperature value of -1 but"),
        ({"generationConfig": {"topP": 1.5}}, "a top_p value of 1.5 but"),
        ({"generationConfig": {"candidateCount": 9}}, "a candidate_count value of 9 but"),
        ({"generationConfig": {"stopSequences": ["a"] * 6}}, "it has 6 stop_sequences but at most 5 are supported"),
    ],
)
@pytest.mark.parametrize("verb", ["streamGenerateContent", "generateContent"])
async def test_what_vertex_refuses_is_refused(
    emulator: Emulator, rest: Client, verb: str, change: dict[str, object], words: str
) -> None:
    emulator.script.play(answer("a"))
    response = await rest.http.post(f"/v1/{MODEL}:{verb}?alt=sse", json={**HELLO, **change})
    error = response.json()["error"]
    assert (response.status_code, error["status"]) == (400, "INVALID_ARGUMENT")
    assert error["message"].startswith("Unable to submit request because ")
    assert words in error["message"]
    assert emulator.calls[0].code is grpc.StatusCode.INVALID_ARGUMENT
    assert emulator.script.unplayed == 1


async def test_vertex_tells_of_one_model(rest: Client) -> None:
    for path in (MODEL, "publishers/google/models/m"):
        response = await rest.http.get(f"/v1beta1/{path}")
        assert response.json()["name"].startswith("publishers/google/models/")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000])
async def test_bytes_that_are_no_json_are_refused(rest: Client, content: bytes) -> None:
    response = await rest.http.post(f"/v1/{MODEL}:generateContent", content=content)
    assert (response.status_code, response.json()["error"]["status"]) == (400, "INVALID_ARGUMENT")


async def test_a_request_that_is_too_large_is_refused(rest: Client) -> None:
    response = await rest.http.post(f"/v1/{MODEL}:generateContent", content=b" " * (64 * 1024 * 1024 + 1))
    assert response.json()["error"]["message"] == "Request payload size exceeds the limit: 67108864 bytes."


@pytest.mark.parametrize("path", ["/", f"/v1/{MODEL}", f"/v1/{MODEL}:predict", f"/v2/{MODEL}:generateContent"])
async def test_what_it_does_not_serve_is_not_found(emulator: Emulator, rest: Client, path: str) -> None:
    response = await rest.http.post(path, json=HELLO)
    assert (response.status_code, response.json()["error"]["status"]) == (404, "NOT_FOUND")
    assert (await rest.http.get(f"/v1/{MODEL}:generateContent")).status_code == 404
    assert emulator.calls == ()


# ---- statuses ----------------------------------------------------------------------------------------------------


async def test_a_status_may_be_one_that_grpc_has_no_code_for(emulator: Emulator, rest: Client) -> None:
    emulator.script.play(answer(s.status("UNAVAILABLE", "why", http_status=502)))
    response = await rest.ask()
    assert response.status_code == response.json()["error"]["code"] == 502
    assert response.json()["error"]["status"] == "UNAVAILABLE"


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
async def test_a_status_before_the_headers_is_the_http_status(
    emulator: Emulator, rest: Client, code: grpc.StatusCode
) -> None:
    retry, info = error_details_pb2.RetryInfo(), error_details_pb2.ErrorInfo(reason="R", domain="d")
    retry.retry_delay.FromMilliseconds(1500)
    emulator.script.play(answer(s.status(code, "why", retry, info, trailing_metadata={"retry-after": "2"})))
    response = await rest.ask()
    assert (response.status_code, response.headers["retry-after"]) == (HTTP_STATUS[code], "2")
    assert response.headers["content-type"] == "application/json; charset=UTF-8"
    assert response.json()["error"] == {
        "code": HTTP_STATUS[code],
        "message": "why",
        "status": code.name,
        "details": [
            {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "1.500s"},
            {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "R", "domain": "d"},
        ],
    }
    assert (emulator.calls[-1].code, emulator.calls[-1].by_caller) == (code, False)


@pytest.mark.parametrize("pieces", [0, 1, 3])
async def test_a_status_after_the_headers_stands_bare_in_the_stream(
    emulator: Emulator, rest: Client, pieces: int
) -> None:
    emulator.script.play(answer(s.headers({"x-one": "1"}), *"a" * pieces, s.status("UNAVAILABLE", "why")))
    response = await rest.ask()
    assert (response.status_code, response.headers["x-one"]) == (200, "1")
    *said, last = response.content.split(b"\r\n\r\n")
    assert len(said) == pieces
    assert last.startswith(b'{\n  "error"')
    assert json.loads(last) == {"error": {"code": 503, "message": "why", "status": "UNAVAILABLE"}}


async def test_headers_come_by_themselves(emulator: Emulator, rest: Client) -> None:
    emulator.script.play(answer(s.headers({"x-one": "1"}), s.wait_for("go"), "a"))
    async with rest.stream() as response:  # the gate is still closed
        assert (response.status_code, response.headers["x-one"]) == (200, "1")
        emulator.open_gate("go")
        assert b'"a"' in await response.aread()


async def test_a_blocked_prompt_has_a_reason_and_no_candidates(emulator: Emulator, rest: Client) -> None:
    emulator.script.play(answer(s.blocked("PROHIBITED_CONTENT", "no")))
    (chunk,) = events(await rest.ask())
    assert "candidates" not in chunk
    assert chunk["promptFeedback"] == {"blockReason": "PROHIBITED_CONTENT", "blockReasonMessage": "no"}


async def test_an_answer_can_end_without_a_message_or_a_finish_reason(emulator: Emulator, rest: Client) -> None:
    emulator.script.play(answer(s.end()), answer("a", finish=None))
    assert events(await rest.ask()) == []
    (chunk,) = events(await rest.ask())
    assert "finishReason" not in chunk["candidates"][0]


# ---- bad bytes ---------------------------------------------------------------------------------------------------


async def test_text_that_is_no_utf8_reaches_the_wire(emulator: Emulator, rest: Client) -> None:
    surrogate = "\ud800".encode(errors="surrogatepass")
    emulator.script.play(*(answer(s.text_bytes(data)) for data in (surrogate, b'"\xff\\', "é".encode())))
    assert b'"text": "\\ud800"' in (await rest.ask()).content
    assert b'"text": "\\"\xff\\\\"' in (await rest.ask()).content
    assert text(events(await rest.ask())[0]) == "é"


async def test_a_message_that_is_no_json_reaches_the_wire(emulator: Emulator, rest: Client) -> None:
    emulator.script.play(answer(s.message_bytes(b"\xff{]"), finish=None))
    assert (await rest.ask()).content == b"data: \xff{]\r\n\r\n"


# ---- connections -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "steps",
    [
        (s.silence(),),
        ("a", s.silence()),
        (s.headers(), s.silence()),
        (s.wait_for("never"),),
        (s.delay(60),),
        (s.repeat(0, "a", interval=0.002),),
        (s.repeat(0, "a" * 10_000),),
    ],
    ids=["before headers", "after a piece", "after headers", "at a gate", "in a delay", "while streaming", "blocked"],
)
@pytest.mark.parametrize("relay", [False, True])
async def test_a_caller_that_goes_is_recorded_at_once(steps: tuple[s.Step | str, ...], relay: bool) -> None:
    async with Emulator(rest_port=0, relay=relay) as emulator:
        emulator.script.play(answer(*steps))
        host, _, port = emulator.rest_address.partition(":")
        _, writer = await asyncio.open_connection(host, int(port))
        body = json.dumps(HELLO).encode()
        writer.write(
            f"POST /v1/{MODEL}:streamGenerateContent?alt=sse HTTP/1.1\r\nhost: x\r\n"
            f"content-length: {len(body)}\r\n\r\n".encode()
            + body
        )
        await emulator.wait_until(lambda emulator: len(emulator.open_calls) == 1)
        if "a" in steps or (isinstance(steps[0], s.Step) and steps[0].repeat.steps):
            await emulator.wait_until(lambda emulator: emulator.calls[0].pieces_sent > 0)
        writer.transport.abort()
        await emulator.wait_until(lambda emulator: not emulator.open_calls)  # none of them would end by itself
        assert (emulator.calls[0].code, emulator.calls[0].by_caller) == (grpc.StatusCode.CANCELLED, True)


async def test_a_caller_that_closes_one_response_ends_one_call(emulator: Emulator, rest: Client) -> None:
    emulator.script.play(answer("a", s.silence()), answer("b", s.wait_for("go"), "c"))
    async with rest.stream() as first, rest.stream() as second:
        assert b'"a"' in await anext(first.aiter_raw())
        await first.aclose()
        await emulator.wait_until(lambda emulator: len(emulator.open_calls) == 1)
        emulator.open_gate("go")
        assert b'"c"' in await second.aread()
    assert [call.by_caller for call in emulator.calls] == [True, False]


async def test_a_caller_that_does_not_read_holds_the_answer_back(emulator: Emulator, rest: Client) -> None:
    emulator.script.play(answer(s.repeat(1000, "x" * 100_000)))
    async with rest.stream():
        sent = -1
        while sent != emulator.calls[0].pieces_sent:  # until it stands still
            sent = emulator.calls[0].pieces_sent
            await asyncio.sleep(0.2)
        assert sent < 500
    await emulator.wait_until(lambda emulator: not emulator.open_calls)


async def test_a_large_answer_passes_whole(emulator: Emulator, rest: Client) -> None:
    emulator.script.play(answer(s.repeat(100, "x" * 100_000)))
    assert "".join(map(text, events(await rest.ask()))) == "x" * 10_000_000


async def test_a_cut_resets_this_callers_connection_and_no_other(emulator: Emulator, rest: Client) -> None:
    emulator.script.play(answer("a", s.wait_for("read"), s.cut()), answer("b", s.wait_for("on"), "c"))
    async with rest.stream() as first, rest.stream() as second:
        pieces = first.aiter_raw()
        assert b'"a"' in await anext(pieces)
        emulator.open_gate("read")
        with pytest.raises(httpx.ReadError) as caught:
            await anext(pieces)
        assert isinstance(root(caught.value), ConnectionResetError)
        emulator.open_gate("on")
        assert b'"c"' in await second.aread()
    await emulator.wait_until(lambda emulator: not emulator.open_calls)


def root(error: BaseException) -> BaseException:
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return error


async def test_a_blackhole_swallows_everything_but_closes_nothing(emulator: Emulator, rest: Client) -> None:
    emulator.script.play(answer("a", s.wait_for("read"), s.blackhole()))
    async with rest.stream() as response:
        pieces = response.aiter_raw()
        assert b'"a"' in await anext(pieces)
        emulator.open_gate("read")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(pieces), 0.3)
        assert len(emulator.open_calls) == 1
    await emulator.wait_until(lambda emulator: not emulator.open_calls)


async def test_one_connection_serves_one_call_after_the_other(rest: Client) -> None:
    limits = httpx.Limits(max_connections=1)
    async with httpx.AsyncClient(base_url=rest.http.base_url, limits=limits, timeout=20) as http:
        for _ in range(3):
            assert (await Client(http).ask()).status_code == 200


async def test_many_calls_at_once_are_all_served(emulator: Emulator) -> None:
    emulator.script.play(answer("a", s.wait_for("go"), "b", uses=0))
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=f"http://{emulator.rest_address}", limits=limits, timeout=60) as http:
        asks = [asyncio.create_task(Client(http).ask()) for _ in range(100)]
        await emulator.wait_until(
            lambda emulator: sum(one.waiting_for == "go" for one in emulator.open_calls) == 100, timeout=30
        )
        emulator.open_gate("go")
        responses = await asyncio.gather(*asks)
        assert {"".join(map(text, events(response))) for response in responses} == {"ab"}


async def test_stopping_ends_open_calls() -> None:
    async with Emulator(rest_port=0) as emulator:
        emulator.script.play(answer("a", s.silence()))
        async with httpx.AsyncClient(base_url=f"http://{emulator.rest_address}") as http, Client(http).stream() as told:
            pieces = told.aiter_raw()
            await anext(pieces)
            await emulator.stop()
            with pytest.raises(httpx.TransportError):
                await anext(pieces)
    assert (emulator.calls[0].code, emulator.calls[0].by_caller) == (grpc.StatusCode.UNAVAILABLE, False)


async def test_a_port_in_use_is_an_error(emulator: Emulator) -> None:
    port = int(emulator.rest_address.partition(":")[2])
    for relay in (False, True):
        with pytest.raises(OSError, match=f"can't listen on 127.0.0.1:{port}: Address already in use"):
            await Emulator(rest_port=port, relay=relay).start()


async def test_without_a_rest_port_there_is_no_rest_address() -> None:
    async with Emulator() as emulator:
        with pytest.raises(RuntimeError, match="doesn't serve HTTP"):
            _ = emulator.rest_address
