"""The unchanged ChatVertexAI, talking to the emulator over gRPC under both API versions."""

import importlib
import warnings
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import grpc.aio
import pytest
from google.api_core.exceptions import ResourceExhausted
from google.rpc import error_details_pb2

from vertex_emulator import script as s
from vertex_emulator.emulator import Emulator
from vertex_emulator.script import answer

Chat = Callable[..., Any]


@pytest.fixture(params=["v1", "v1beta1"])
async def chat(request: pytest.FixtureRequest, emulator: Emulator) -> AsyncIterator[Chat]:
    service = f"google.cloud.aiplatform_{request.param}.services.prediction_service"
    asynchronous = importlib.import_module(service).PredictionServiceAsyncClient
    transport = importlib.import_module(f"{service}.transports.grpc_asyncio").PredictionServiceGrpcAsyncIOTransport
    langchain = importlib.import_module("langchain_google_vertexai")
    async with grpc.aio.insecure_channel(emulator.address) as channel:

        def build(**settings: Any) -> Any:
            with warnings.catch_warnings():
                # One deprecation, told twice: by LangChain and by typing_extensions.
                for words in (r"The class `ChatVertexAI` was deprecated", r"Use \[`ChatGoogleGenerativeAI`\]"):
                    warnings.filterwarnings("ignore", message=words, category=DeprecationWarning)
                return langchain.ChatVertexAI(
                    model="gemini-2.5-flash",
                    project="p",
                    location="us-central1",
                    max_retries=0,
                    endpoint_version=request.param,
                    async_client=asynchronous(transport=transport(channel=channel)),
                    **settings,
                )

        build.version = request.param  # type: ignore[attr-defined]  # which one a test got
        yield build


async def test_it_streams_the_script(emulator: Emulator, chat: Chat) -> None:
    emulator.script.play(answer("Base", "ball", " is", usage=s.usage(5, 9)))
    chunks = [chunk async for chunk in chat().astream("What is baseball?")]
    assert [chunk.content for chunk in chunks if chunk.content] == ["Base", "ball", " is"]
    told = [chunk.response_metadata.get("finish_reason") for chunk in chunks if chunk.content]
    assert told == ["FINISH_REASON_UNSPECIFIED", "FINISH_REASON_UNSPECIFIED", "STOP"]
    assert sum(chunks[1:], chunks[0]).usage_metadata["output_tokens"] == 9
    (call,) = emulator.calls
    assert (call.method, call.api_version) == ("StreamGenerateContent", chat.version)  # type: ignore[attr-defined]  # set above
    assert call.model == "gemini-2.5-flash"
    assert call.code is grpc.StatusCode.OK


async def test_all_its_settings_arrive(emulator: Emulator, chat: Chat) -> None:
    emulator.script.play(answer("a"))
    model = chat(temperature=0.5, top_p=0.25, top_k=3, max_output_tokens=17, seed=4, stop=["END"])
    messages = [("system", "Be brief"), ("human", "Hi"), ("ai", "Hello"), ("human", "Who?")]
    _ = [chunk async for chunk in model.astream(messages)]
    request = emulator.calls[0].request
    assert request is not None
    config = request.generation_config
    assert (config.temperature, config.top_p, config.top_k) == (0.5, 0.25, 3)
    assert (config.max_output_tokens, config.seed, list(config.stop_sequences)) == (17, 4, ["END"])
    assert request.system_instruction.parts[0].text == "Be brief"
    assert [(content.role, content.parts[0].text) for content in request.contents] == [
        ("user", "Hi"),
        ("model", "Hello"),
        ("user", "Who?"),
    ]


async def test_it_calls_tools(emulator: Emulator, chat: Chat) -> None:
    emulator.script.play(answer(s.function_call("add", {"a": 1})))
    add = {
        "name": "add",
        "description": "adds",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}},
    }
    chunks = [chunk async for chunk in chat().bind_tools([add]).astream("1+1?")]
    assert sum(chunks[1:], chunks[0]).tool_calls[0]["args"] == {"a": 1.0}
    request = emulator.calls[0].request
    assert request is not None
    assert request.tools[0].function_declarations[0].name == "add"


async def test_it_invokes(emulator: Emulator, chat: Chat) -> None:
    emulator.script.play(answer("a", "b"))
    assert (await chat().ainvoke("Hi")).content == "ab"
    assert emulator.calls[0].method == "GenerateContent"


async def test_it_raises_a_status_with_its_details(emulator: Emulator, chat: Chat) -> None:
    retry = error_details_pb2.RetryInfo()
    retry.retry_delay.FromSeconds(2)
    emulator.script.play(answer("a", s.status("RESOURCE_EXHAUSTED", "quota", retry)))
    stream = chat().astream("Hi")
    assert (await anext(stream)).content == "a"
    with pytest.raises(ResourceExhausted) as caught:
        await anext(stream)
    assert caught.value.details == [retry]
    assert len(emulator.calls) == 1
