"""OpenAI's protocol from a script: on the wire, and through the unchanged ChatOpenAI and AzureChatOpenAI."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import httpx
import openai
import pytest
from google.rpc import error_details_pb2
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_openai import AzureChatOpenAI, ChatOpenAI
from openai.types.chat.completion_create_params import CompletionCreateParamsBase

from vertex_emulator import script as s
from vertex_emulator.emulator import Emulator
from vertex_emulator.http import translation
from vertex_emulator.protos import prediction_pb2 as pb
from vertex_emulator.script import answer

Chat = Callable[..., Any]
HELLO = {"model": "gpt-4o", "messages": [{"role": "user", "content": "Hello"}]}
STREAM = {**HELLO, "stream": True}


@pytest.fixture
async def emulator() -> AsyncIterator[Emulator]:
    async with Emulator(rest_port=0, relay=True) as running:
        yield running


@pytest.fixture
async def http(emulator: Emulator) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=f"http://{emulator.rest_address}", timeout=20) as client:
        yield client


async def ask(http: httpx.AsyncClient, body: object = STREAM) -> httpx.Response:
    return await http.post("/v1/chat/completions", json=body)


def events(response: httpx.Response) -> list[Any]:
    *found, rest = response.content.split(b"\n\n")
    assert rest == b""
    assert found.pop() == b"data: [DONE]"
    return [json.loads(one.removeprefix(b"data: ")) for one in found]


def deltas(response: httpx.Response) -> list[Any]:
    return [chunk["choices"][0]["delta"] for chunk in events(response) if chunk["choices"]]


async def test_it_lists_what_answers(http: httpx.AsyncClient) -> None:
    told = (await http.get("/v1/models")).json()
    assert told == {
        "object": "list",
        "data": [{"id": "scripted", "object": "model", "created": 0, "owned_by": "vertex_emulator"}],
    }
    async with openai.AsyncOpenAI(base_url=f"{http.base_url}/v1", api_key="k") as client:
        assert [one.id async for one in await client.models.list()] == ["scripted"]


@pytest.mark.parametrize(
    ("field", "value", "code"),
    [
        ("messages", [], "empty_array"),
        ("temperature", 9, "decimal_above_max_value"),
        ("temperature", -0.1, "decimal_below_min_value"),
        ("top_p", 1.1, "decimal_above_max_value"),
        ("presence_penalty", -3, "decimal_below_min_value"),
        ("n", 0, "integer_below_min_value"),
        ("max_tokens", 0, "integer_below_min_value"),
        ("top_logprobs", 21, "integer_above_max_value"),
        ("stop", ["a"] * 5, "array_above_max_length"),
        ("tool_choice", "auto", None),
        ("tool_choice", {"type": "function", "function": {"name": "f"}}, None),
    ],
)
async def test_what_openai_refuses_is_refused(
    emulator: Emulator, http: httpx.AsyncClient, field: str, value: object, code: str | None
) -> None:
    emulator.script.play(answer("a"))
    response = await ask(http, {**HELLO, field: value})
    assert response.status_code == 400
    assert (response.json()["error"]["param"], response.json()["error"]["code"]) == (field, code)
    assert emulator.calls[0].code is grpc.StatusCode.INVALID_ARGUMENT
    assert emulator.script.unplayed == 1


@pytest.mark.parametrize("wanted", [{"type": "xml"}, {}, {"type": 3}])
async def test_a_form_that_openai_does_not_know_is_refused(http: httpx.AsyncClient, wanted: object) -> None:
    error = (await ask(http, {**HELLO, "response_format": wanted})).json()["error"]
    assert (error["param"], error["code"]) == ("response_format.type", "invalid_value")
    assert error["message"].endswith("Supported values are: 'json_object', 'json_schema', and 'text'.")


async def test_what_openai_takes_at_its_limit_is_taken(http: httpx.AsyncClient) -> None:
    tool = {"type": "function", "function": {"name": "f"}}
    taken = {"stop": ["a"] * 4, "tools": [tool], "tool_choice": "auto", "response_format": {"type": "text"}}
    assert (await ask(http, {**HELLO, **taken})).status_code == 200


async def test_it_tells_of_one_model(http: httpx.AsyncClient) -> None:
    async with openai.AsyncOpenAI(base_url=f"{http.base_url}/v1", api_key="k") as client:
        assert (await client.models.retrieve("any:free")).id == "any:free"


async def test_as_many_answers_come_as_are_wanted_and_are_counted(emulator: Emulator, http: httpx.AsyncClient) -> None:
    said = answer(s.thought("hm"), "a", "b", usage=s.usage(4, 3, thoughts=2))
    emulator.script.play(said, said)
    chunks = events(await ask(http, {**STREAM, "n": 2, "stream_options": {"include_usage": True}}))
    texts = {0: "", 1: ""}
    finished = []
    for chunk in chunks[:-1]:
        (choice,) = chunk["choices"]
        texts[choice["index"]] += choice["delta"].get("content") or ""
        finished += [(choice["index"], choice["finish_reason"])] if choice["finish_reason"] else []
    assert texts == {0: "ab", 1: "ab"}
    assert finished == [(0, "stop"), (1, "stop")]
    whole = (await ask(http, {**HELLO, "n": 2})).json()
    assert [(one["index"], one["message"]["content"]) for one in whole["choices"]] == [(0, "ab"), (1, "ab")]
    for counted in (chunks[-1]["usage"], whole["usage"]):
        figures = [counted[name] for name in ("prompt_tokens", "completion_tokens", "total_tokens")]
        assert figures == [4, 10, 14]
        assert counted["completion_tokens_details"]["reasoning_tokens"] == 4


# ---- on the wire -------------------------------------------------------------------------------------------------


async def test_it_streams_chunks(emulator: Emulator, http: httpx.AsyncClient) -> None:
    emulator.script.play(answer("a", "ü", usage=s.usage(2, 4, thoughts=3, cached=1)))
    response = await ask(http, {**STREAM, "stream_options": {"include_usage": True}})
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    *chunks, last = events(response)
    assert [chunk["choices"][0]["delta"] for chunk in chunks] == [
        {"role": "assistant", "content": "", "refusal": None},
        {"content": "a"},
        {"content": "ü"},
        {},
    ]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, None, "stop"]
    assert {chunk["usage"] for chunk in chunks} == {None}
    assert (last["choices"], last["usage"]) == (
        [],
        {
            "prompt_tokens": 2,
            "completion_tokens": 7,
            "total_tokens": 9,
            "prompt_tokens_details": {"cached_tokens": 1, "audio_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 3, "audio_tokens": 0},
        },
    )
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert {chunk["model"] for chunk in chunks} == {"gpt-4o"}
    assert len({chunk["id"] for chunk in chunks}) == 1


async def test_usage_is_told_only_to_who_asks(emulator: Emulator, http: httpx.AsyncClient) -> None:
    emulator.script.play(answer("a"))
    chunks = events(await ask(http))
    assert not any("usage" in chunk for chunk in chunks)
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


async def test_it_answers_in_one_piece_too(emulator: Emulator, http: httpx.AsyncClient) -> None:
    emulator.script.play(answer(s.thought("hm"), "a", "b", s.function_call("add", {"a": 1}, call_id="7")))
    told = (await ask(http, HELLO)).json()
    (choice,) = told["choices"]
    assert choice["message"]["content"] == "ab"
    (call,) = choice["message"]["tool_calls"]
    assert (call["id"], call["type"], call["function"]["name"]) == ("7", "function", "add")
    assert json.loads(call["function"]["arguments"]) == {"a": 1}
    assert (choice["finish_reason"], told["object"]) == ("tool_calls", "chat.completion")
    assert told["usage"]["total_tokens"] > 0


async def test_a_tool_call_comes_bit_by_bit(emulator: Emulator, http: httpx.AsyncClient) -> None:
    emulator.script.play(answer(s.function_call("add", {"a": 1}, call_id="7"), s.function_call("sub", {"b": 2})))
    response = await ask(http)
    calls = [delta["tool_calls"][0] for delta in deltas(response) if "tool_calls" in delta]
    assert calls[0] == {"index": 0, "id": "7", "type": "function", "function": {"name": "add", "arguments": ""}}
    assert [call["index"] for call in calls] == [0, 0, 0, 1, 1, 1]
    assert calls[3]["id"].startswith("call_")
    assert json.loads("".join(call["function"]["arguments"] for call in calls[:3])) == {"a": 1}
    assert events(response)[-1]["choices"][0]["finish_reason"] == "tool_calls"


async def test_log_probabilities_come_with_their_tokens(emulator: Emulator, http: httpx.AsyncClient) -> None:
    emulator.script.play(answer(s.logprobs(("Ü", -0.5, {"Ü": -0.5, "U": -1.5}))))
    (chunk,) = (chunk for chunk in events(await ask(http)) if chunk["choices"][0]["delta"].get("content"))
    assert chunk["choices"][0]["logprobs"] == {
        "content": [
            {
                "token": "Ü",
                "logprob": -0.5,
                "bytes": [195, 156],
                "top_logprobs": [
                    {"token": "Ü", "logprob": -0.5, "bytes": [195, 156]},
                    {"token": "U", "logprob": -1.5, "bytes": [85]},
                ],
            }
        ],
        "refusal": None,
    }


@pytest.mark.parametrize(
    ("finish", "told"),
    [
        ("STOP", "stop"),
        ("MAX_TOKENS", "length"),
        ("SAFETY", "content_filter"),
        ("SPII", "content_filter"),
        ("MALFORMED_FUNCTION_CALL", "malformed_function_call"),
        (99, "99"),
    ],
)
async def test_finish_reasons_are_openais(
    emulator: Emulator, http: httpx.AsyncClient, finish: int | str, told: str
) -> None:
    emulator.script.play(answer("a", finish=finish))
    assert events(await ask(http))[-1]["choices"][0]["finish_reason"] == told


async def test_an_answer_can_end_without_a_finish_reason_or_a_chunk(
    emulator: Emulator, http: httpx.AsyncClient
) -> None:
    emulator.script.play(answer("a", finish=None), answer(s.end()))
    assert events(await ask(http))[-1]["choices"][0]["finish_reason"] is None
    assert events(await ask(http)) == []


@pytest.mark.parametrize(
    ("path", "version", "model"),
    [
        ("/v1/chat/completions", "v1", "gpt-4o"),
        ("/openai/v1/chat/completions", "v1", "gpt-4o"),
        ("/openai/deployments/dep/chat/completions?api-version=2024-10-21", "2024-10-21", "dep"),
    ],
)
async def test_a_call_is_recorded_with_what_it_amounts_to(
    emulator: Emulator, http: httpx.AsyncClient, path: str, version: str, model: str
) -> None:
    await http.post(path, json=HELLO, headers={"api-key": "k"})
    await http.post(path, json=STREAM)
    first, second = emulator.calls
    assert (first.transport, first.api_version, first.model) == ("openai", version, model)
    assert (first.method, second.method) == ("GenerateContent", "StreamGenerateContent")
    assert first.header("api-key") == "k"
    assert first.body is not None
    assert json.loads(first.body) == HELLO
    assert isinstance(first.request, pb.GenerateContentRequest)
    assert first.request.contents[0].parts[0].text == "Hello"
    assert (first.code, first.by_caller) == (grpc.StatusCode.OK, False)


@pytest.mark.parametrize(
    ("body", "words", "param"),
    [
        ({**HELLO, "warmth": 1}, "Unrecognized request argument supplied: warmth", "warmth"),
        ({"model": "m"}, "Missing required parameter: 'messages'.", "messages"),
        ({"messages": [{"role": "bard", "content": "a"}]}, "Invalid value: 'bard'.", "messages[0].role"),
        ({"messages": "Hi"}, "Invalid request", None),
        ({"messages": [{"role": "user"}]}, "Invalid request", None),
        ({"messages": [{"role": "user", "content": [{"type": "smell"}]}]}, "unknown content type 'smell'", None),
        ({**HELLO, "temperature": "warm"}, "Invalid request", None),
        ({"messages": [{"role": "tool", "tool_call_id": "7", "content": "3"}]}, "must be a response to", None),
        ([1], "could not parse", None),
    ],
)
async def test_a_request_that_is_none_is_refused_in_openais_form(
    emulator: Emulator, http: httpx.AsyncClient, body: object, words: str, param: str | None
) -> None:
    response = await ask(http, body)
    error = response.json()["error"]
    assert (response.status_code, error["type"], error["param"]) == (400, "invalid_request_error", param)
    assert words in error["message"]
    assert (emulator.calls[0].request, emulator.calls[0].code) == (None, grpc.StatusCode.INVALID_ARGUMENT)


def test_every_field_of_openais_is_known() -> None:
    fields = {*CompletionCreateParamsBase.__annotations__, "stream"}
    assert fields - translation.FIELDS == set()
    assert translation.FIELDS - fields == {"data_sources"}


@pytest.mark.parametrize(
    ("code", "status", "words"),
    [
        ("INVALID_ARGUMENT", 400, ("invalid_request_error", None)),
        ("UNAUTHENTICATED", 401, ("invalid_request_error", "invalid_api_key")),
        ("NOT_FOUND", 404, ("invalid_request_error", "model_not_found")),
        ("RESOURCE_EXHAUSTED", 429, ("requests", "rate_limit_exceeded")),
        ("INTERNAL", 500, ("server_error", None)),
        ("UNAVAILABLE", 503, ("server_error", None)),
        ("DEADLINE_EXCEEDED", 504, ("server_error", None)),
    ],
)
async def test_a_status_has_openais_form(
    emulator: Emulator, http: httpx.AsyncClient, code: str, status: int, words: tuple[str, str | None]
) -> None:
    kind, word = words
    retry, info = error_details_pb2.RetryInfo(), error_details_pb2.ErrorInfo(reason="insufficient_quota")
    retry.retry_delay.FromMilliseconds(1500)
    emulator.script.play(answer(s.status(code, "why", retry)), answer("a", s.status(code, "why", info)))
    response = await ask(http)
    assert (response.status_code, response.headers["retry-after"], response.headers["retry-after-ms"]) == (
        status,
        "2",
        "1500",
    )
    assert response.json() == {"error": {"message": "why", "type": kind, "param": None, "code": word}}
    late = await ask(http)
    *_, last = late.content.removesuffix(b"\n\n").split(b"\n\n")
    assert late.status_code == 200
    assert json.loads(last.removeprefix(b"data: "))["error"]["code"] == "insufficient_quota"


@pytest.mark.parametrize("status", [402, 413, 451, 520, 599])
async def test_a_status_may_be_one_that_grpc_has_no_code_for(
    emulator: Emulator, http: httpx.AsyncClient, status: int
) -> None:
    emulator.script.play(answer(s.status("UNAVAILABLE", "why", http_status=status)))
    response = await ask(http)
    assert response.status_code == status
    assert response.json()["error"]["message"] == "why"


async def test_a_blocked_prompt_is_an_error(emulator: Emulator, http: httpx.AsyncClient) -> None:
    emulator.script.play(answer(s.blocked(), uses=0))
    plain = await ask(http)
    assert (plain.status_code, plain.json()["error"]["code"]) == (400, "invalid_prompt")
    azure = await http.post("/openai/deployments/dep/chat/completions", json=STREAM)
    assert (azure.status_code, azure.json()["error"]["code"]) == (400, "content_filter")
    assert azure.json()["error"]["param"] == "prompt"
    assert emulator.calls[0].code is grpc.StatusCode.INVALID_ARGUMENT


async def test_bad_bytes_reach_the_wire(emulator: Emulator, http: httpx.AsyncClient) -> None:
    surrogate = "\ud800".encode(errors="surrogatepass")
    emulator.script.play(
        answer(s.text_bytes(surrogate)), answer(s.text_bytes(b'"\xff')), answer(s.message_bytes(b"\xff{]"), finish=None)
    )
    assert b'"content": "\\ud800"' in (await ask(http)).content
    assert b'"content": "\\"\xff"' in (await ask(http)).content
    assert (await ask(http)).content == b"data: \xff{]\n\ndata: [DONE]\n\n"


async def test_headers_and_gates_and_cuts_work_as_elsewhere(emulator: Emulator, http: httpx.AsyncClient) -> None:
    emulator.script.play(answer(s.headers({"x-one": "1"}), s.wait_for("go"), "a", s.wait_for("read"), s.cut()))
    async with http.stream("POST", "/v1/chat/completions", json=STREAM) as response:
        assert (response.status_code, response.headers["x-one"]) == (200, "1")
        emulator.open_gate("go")
        pieces = response.aiter_raw()
        assert b'"a"' in await anext(pieces)
        emulator.open_gate("read")
        with pytest.raises(httpx.ReadError):
            await anext(pieces)
    await emulator.wait_until(lambda emulator: not emulator.open_calls)


async def test_a_caller_that_goes_is_recorded(emulator: Emulator, http: httpx.AsyncClient) -> None:
    emulator.script.play(answer("a", s.silence()))
    async with http.stream("POST", "/v1/chat/completions", json=STREAM) as response:
        await anext(response.aiter_raw())
    await emulator.wait_until(lambda emulator: not emulator.open_calls)
    assert (emulator.calls[0].code, emulator.calls[0].by_caller) == (grpc.StatusCode.CANCELLED, True)


# ---- through LangChain -------------------------------------------------------------------------------------------


@pytest.fixture(params=["openai", "azure"])
async def chat(request: pytest.FixtureRequest, emulator: Emulator) -> AsyncIterator[Chat]:
    async with httpx.AsyncClient() as client:

        def build(**settings: Any) -> Any:
            common = {"max_retries": 0, "stream_usage": True, "http_async_client": client, "api_key": "k", **settings}
            if request.param == "openai":
                return ChatOpenAI(model="gpt-4o", base_url=f"http://{emulator.rest_address}/v1", **common)
            return AzureChatOpenAI(
                azure_deployment="gpt-4o",
                azure_endpoint=f"http://{emulator.rest_address}",
                api_version="2024-10-21",
                **common,
            )

        yield build


async def whole(stream: AsyncIterator[Any]) -> Any:
    chunks = [chunk async for chunk in stream]
    return sum(chunks[1:], chunks[0])


async def test_langchain_streams_the_script(emulator: Emulator, chat: Chat) -> None:
    emulator.script.play(answer(s.thought("Hm."), "Base", "ball", usage=s.usage(5, 9, thoughts=2, cached=1)))
    chunks = [chunk async for chunk in chat().astream("What is baseball?")]
    assert [chunk.content for chunk in chunks if chunk.content] == ["Base", "ball"]
    message = sum(chunks[1:], chunks[0])
    assert message.response_metadata["finish_reason"] == "stop"
    assert message.response_metadata["model_name"] == "gpt-4o"
    usage = message.usage_metadata
    assert (usage["input_tokens"], usage["output_tokens"]) == (5, 11)
    assert usage["output_token_details"]["reasoning"] == 2
    assert usage["input_token_details"]["cache_read"] == 1


async def test_langchains_whole_request_arrives(emulator: Emulator, chat: Chat) -> None:
    def add(a: int, b: int) -> int:
        """Add two numbers."""
        return a + b

    model = chat(
        temperature=0.5,
        top_p=0.25,
        max_tokens=17,
        seed=4,
        stop=["END"],
        presence_penalty=0.5,
        frequency_penalty=0.25,
        logprobs=True,
        top_logprobs=2,
    )
    url = f"data:image/png;base64,{base64.b64encode(b'hi').decode()}"
    turns = [
        SystemMessage("Be brief"),
        HumanMessage([{"type": "text", "text": "Hi"}, {"type": "image_url", "image_url": {"url": url}}]),
        AIMessage("", tool_calls=[{"name": "add", "args": {"a": 1}, "id": "7"}]),
        ToolMessage("two", tool_call_id="7"),
        HumanMessage("Well?"),
    ]
    emulator.script.play(answer("fits", user_text="Well?"))
    assert (await whole(model.bind_tools([add], tool_choice="any").astream(turns))).content == "fits"
    request = emulator.calls[0].request
    assert isinstance(request, pb.GenerateContentRequest)
    config = request.generation_config
    assert (config.temperature, config.top_p, config.max_output_tokens, config.seed) == (0.5, 0.25, 17, 4)
    assert (config.presence_penalty, config.frequency_penalty, list(config.stop_sequences)) == (0.5, 0.25, ["END"])
    assert (config.response_logprobs, config.logprobs) == (True, 2)
    assert request.system_instruction.parts[0].text == "Be brief"
    assert request.contents[0].parts[1].inline_data == pb.Blob(mime_type="image/png", data=b"hi")
    call = request.contents[1].parts[0].function_call
    assert (call.name, call.id, dict(call.args)) == ("add", "7", {"a": 1})
    result = request.contents[2].parts[0].function_response
    assert (result.name, result.id, dict(result.response)) == ("add", "7", {"output": "two"})
    assert request.tools[0].function_declarations[0].name == "add"
    assert request.tool_config.function_calling_config.mode == pb.FunctionCallingConfig.ANY


async def test_langchain_asks_for_a_schema(emulator: Emulator, chat: Chat) -> None:
    schema = {"title": "X", "type": "object", "properties": {"a": {"type": "string"}}}
    emulator.script.play(answer('{"a": "b"}'))
    assert await chat().with_structured_output(schema, method="json_schema").ainvoke("Hi") == {"a": "b"}
    request = emulator.calls[0].request
    assert request is not None
    assert request.generation_config.response_mime_type == "application/json"
    assert "properties" in request.generation_config.response_json_schema.struct_value.fields


async def test_langchain_calls_tools(emulator: Emulator, chat: Chat) -> None:
    emulator.script.play(answer(s.function_call("add", {"a": 1}, call_id="7"), s.function_call("sub", {"b": 2})))
    message = await whole(chat().astream("1+1?"))
    assert [(call["name"], call["args"]) for call in message.tool_calls] == [("add", {"a": 1}), ("sub", {"b": 2})]
    assert message.tool_calls[0]["id"] == "7"
    assert message.response_metadata["finish_reason"] == "tool_calls"


async def test_langchain_raises_a_status(emulator: Emulator, chat: Chat) -> None:
    emulator.script.play(answer(s.status("RESOURCE_EXHAUSTED", "slow down")), answer("a", s.status("INTERNAL", "oh")))
    with pytest.raises(openai.RateLimitError, match="slow down") as caught:
        await whole(chat().astream("Hi"))
    assert caught.value.code == "rate_limit_exceeded"
    stream = chat().astream("Hi")
    while not (await anext(stream)).content:
        pass
    with pytest.raises(openai.APIError, match="oh"):
        await whole(stream)
    assert len(emulator.calls) == 2


async def test_langchain_hears_of_a_cut(emulator: Emulator, chat: Chat) -> None:
    emulator.script.play(answer("a", s.wait_for("read"), s.cut()))
    stream = chat().astream("Hi")
    while not (await anext(stream)).content:
        pass
    emulator.open_gate("read")
    with pytest.raises((openai.APIConnectionError, httpx.ReadError)):
        await whole(stream)


async def test_cancelling_its_reader_ends_the_call(emulator: Emulator, chat: Chat) -> None:
    emulator.script.play(answer("a", s.silence()))
    arrived = asyncio.Event()

    async def read() -> None:
        async for chunk in chat().astream("Hi"):
            if chunk.content:
                arrived.set()

    reader = asyncio.create_task(read())
    await arrived.wait()
    reader.cancel()
    await emulator.wait_until(lambda emulator: not emulator.open_calls)
    assert emulator.calls[0].by_caller
