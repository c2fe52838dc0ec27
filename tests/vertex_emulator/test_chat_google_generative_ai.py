"""The unchanged ChatGoogleGenerativeAI, talking to the emulator in Google's REST form."""

import asyncio
import gc
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from langchain_core.messages import ToolMessage

from vertex_emulator import script as s
from vertex_emulator.emulator import Emulator
from vertex_emulator.protos import prediction_pb2 as pb
from vertex_emulator.script import answer

Chat = Callable[..., Any]


@pytest.fixture
async def emulator() -> AsyncIterator[Emulator]:
    async with Emulator(rest_port=0, relay=True) as running:
        yield running


@pytest.fixture
async def chat(emulator: Emulator) -> AsyncIterator[Chat]:
    from google.oauth2.credentials import Credentials  # noqa: PLC0415 - seconds that other tests needn't pay
    from langchain_google_genai import ChatGoogleGenerativeAI  # noqa: PLC0415 - as above

    built: list[Any] = []

    def build(**settings: Any) -> Any:
        model = ChatGoogleGenerativeAI(
            model="gemini-2.5-flash",
            vertexai=True,
            project="p",
            location="us-central1",
            base_url=f"http://{emulator.rest_address}",
            credentials=Credentials(token="local"),  # type: ignore[no-untyped-call]
            max_retries=1,
            **settings,
        )
        built.append(model)
        return model

    yield build
    for model in built:
        await model.client.aio.aclose()
        await asyncio.to_thread(model.client.close)


async def whole(stream: AsyncIterator[Any]) -> Any:
    chunks = [chunk async for chunk in stream]
    return sum(chunks[1:], chunks[0])


async def test_it_streams_the_script(emulator: Emulator, chat: Chat) -> None:
    emulator.script.play(answer("Base", "ball", " is", usage=s.usage(5, 9, cached=2)))
    chunks = [chunk async for chunk in chat().astream("What is baseball?")]
    assert [chunk.content for chunk in chunks if chunk.content] == ["Base", "ball", " is"]
    message = sum(chunks[1:], chunks[0])
    assert message.response_metadata["finish_reason"] == "STOP"
    assert message.response_metadata["model_name"] == "gemini-2.5-flash"
    assert (message.usage_metadata["input_tokens"], message.usage_metadata["output_tokens"]) == (5, 9)
    assert message.usage_metadata["input_token_details"]["cache_read"] == 2
    (call,) = emulator.calls
    assert (call.transport, call.method, call.api_version) == ("rest", "StreamGenerateContent", "v1beta1")
    assert call.model == "gemini-2.5-flash"
    assert call.code is grpc.StatusCode.OK


async def test_its_whole_request_arrives(emulator: Emulator, chat: Chat) -> None:
    def add(a: int, b: int) -> int:
        """Add two numbers."""
        return a + b

    model = chat(
        temperature=0.5,
        top_p=0.25,
        top_k=3,
        max_output_tokens=17,
        seed=4,
        stop=["END"],
        thinking_budget=100,
        include_thoughts=True,
        labels={"team": "one"},
        timeout=7,
    )
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}}
    turns = [("system", "Be brief"), ("human", [{"type": "text", "text": "Hi"}, picture])]
    await whole(model.bind_tools([add, {"google_search": {}}]).astream(turns))
    (call,) = emulator.calls
    assert call.deadline == 7
    request = call.request
    assert isinstance(request, pb.GenerateContentRequest)
    config = request.generation_config
    assert (config.temperature, config.top_p, config.top_k) == (0.5, 0.25, 3)
    assert (config.max_output_tokens, config.seed, list(config.stop_sequences)) == (17, 4, ["END"])
    assert (config.thinking_config.thinking_budget, config.thinking_config.include_thoughts) == (100, True)
    assert dict(request.labels) == {"team": "one"}
    assert request.system_instruction.parts[0].text == "Be brief"
    assert request.contents[0].parts[1].inline_data == pb.Blob(mime_type="image/png", data=b"hi")
    assert {field.name for tool in request.tools for field, _ in tool.ListFields()} == {
        "google_search",
        "function_declarations",
    }


async def test_it_calls_tools(emulator: Emulator, chat: Chat) -> None:
    emulator.script.play(answer(s.function_call("add", {"a": 1}, call_id="7")))
    add = {
        "name": "add",
        "description": "adds",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}},
    }
    message = await whole(chat().bind_tools([add]).astream("1+1?"))
    (told,) = message.tool_calls
    assert (told["name"], told["args"], told["id"]) == ("add", {"a": 1}, "7")


async def test_a_call_brings_its_signature_and_the_next_turn_brings_it_back(emulator: Emulator, chat: Chat) -> None:
    emulator.script.play(answer(s.function_call("add", {"a": 1}, call_id="7", signature=b"sig")))
    message = await whole(chat().astream("1+1?"))
    await whole(chat().astream([("human", "1+1?"), message, ToolMessage("two", tool_call_id="7", name="add")]))
    request = emulator.calls[1].request
    assert isinstance(request, pb.GenerateContentRequest)
    (told,) = request.contents[1].parts
    assert (told.function_call.name, told.thought_signature) == ("add", b"sig")
    result = request.contents[2].parts[0].function_response
    assert (result.name, dict(result.response)) == ("add", {"output": "two"})


async def test_it_tells_what_an_answer_rests_on(emulator: Emulator, chat: Chat) -> None:
    emulator.script.play(answer("Baseball.", s.grounding(("https://example.org/a", "A"), supports=[("Baseball", [0])])))
    message = await whole(chat().astream("Hi"))
    grounded = message.response_metadata["grounding_metadata"]
    assert grounded["grounding_chunks"][0]["web"]["uri"] == "https://example.org/a"
    assert grounded["grounding_supports"][0]["segment"]["text"] == "Baseball"


async def test_it_tells_thoughts_apart(emulator: Emulator, chat: Chat) -> None:
    emulator.script.play(answer(s.thought("Hm."), "Ah.", usage=s.usage(1, 2, thoughts=3)))
    message = await whole(chat(include_thoughts=True).astream("Hi"))
    assert message.content[0] == {"type": "thinking", "thinking": "Hm.", "index": 0}
    assert message.text == "Ah."
    assert message.usage_metadata["output_token_details"]["reasoning"] == 3


async def test_it_invokes_and_counts(emulator: Emulator, chat: Chat) -> None:
    emulator.script.play(answer("a", "b"), answer(s.tokens(42), method="CountTokens"))
    model = chat()
    assert (await model.ainvoke("Hi")).content == "ab"
    assert await asyncio.to_thread(model.get_num_tokens, "Hi") == 42
    assert [call.method for call in emulator.calls] == ["GenerateContent", "CountTokens"]


@pytest.mark.parametrize("pieces", [0, 1])
@pytest.mark.parametrize(("code", "status"), [("RESOURCE_EXHAUSTED", 429), ("UNAVAILABLE", 503)])
async def test_it_raises_a_status_with_its_details(
    emulator: Emulator, chat: Chat, pieces: int, code: str, status: int
) -> None:
    from google.genai.errors import APIError  # noqa: PLC0415 - as above

    retry = error_details_pb2.RetryInfo()
    retry.retry_delay.FromSeconds(2)
    emulator.script.play(answer(*"a" * pieces, s.status(code, "why", retry)))
    stream = chat().astream("Hi")
    for _ in range(pieces):
        assert (await anext(stream)).content == "a"
    with pytest.raises(Exception, match="why") as caught:
        await anext(stream)
    error = caught.value if isinstance(caught.value, APIError) else caught.value.__cause__
    assert isinstance(error, APIError)
    assert (error.code, error.status, error.message) == (status, code, "why")
    assert error.details["error"]["details"] == [
        {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "2s"}
    ]
    assert len(emulator.calls) == 1


async def test_cancelling_its_reader_ends_the_call(emulator: Emulator, chat: Chat) -> None:
    emulator.script.play(answer("a", s.silence()))
    arrived = asyncio.Event()

    async def read() -> None:
        async for _ in chat().astream("Hi"):
            arrived.set()

    reader = asyncio.create_task(read())
    await arrived.wait()
    reader.cancel()
    await emulator.wait_until(lambda emulator: not emulator.open_calls)
    assert emulator.calls[0].by_caller


async def test_a_stream_that_is_only_closed_stays_open(emulator: Emulator, chat: Chat) -> None:
    # The trap that the records are there to show: closing the outer generator doesn't close those within.
    emulator.script.play(answer("a", s.wait_for("go"), "b"))
    gc.disable()
    try:
        stream = chat().astream("Hi")
        assert (await anext(stream)).content == "a"
        await stream.aclose()
        await emulator.wait_until(lambda emulator: emulator.calls[0].waiting_for == "go")
        emulator.open_gate("go")
        await emulator.wait_until(lambda emulator: not emulator.open_calls)
        assert (emulator.calls[0].code, emulator.calls[0].pieces_sent) == (grpc.StatusCode.OK, 2)
    finally:
        gc.enable()
    gc.collect()


async def test_a_cut_is_an_error(emulator: Emulator, chat: Chat) -> None:
    import httpx  # noqa: PLC0415 - as above

    emulator.script.play(answer("a", s.wait_for("read"), s.cut()))
    stream = chat().astream("Hi")
    assert (await anext(stream)).content == "a"
    emulator.open_gate("read")
    with pytest.raises(httpx.ReadError):
        await anext(stream)
