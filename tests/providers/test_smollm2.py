"""A real model behind every provider: xllamacpp's own OpenAI server, and the local Vertex by gRPC and by HTTP."""

import asyncio
from collections.abc import AsyncIterator

import grpc
import grpc.aio
import pytest

from tests.conftest import failure
from tests.providers.conftest import LINES, Open, Upstream
from tokenwire.v1 import generation_service_pb2 as pb
from tokenwire.v1.config_pb2 import GenerationConfig
from vertex_emulator.answerers.smollm2 import SmolLM2
from vertex_emulator.answerers.weights import fetch
from vertex_emulator.emulator import Emulator

pytestmark = pytest.mark.smollm2


@pytest.fixture(scope="module")
async def smollm2() -> SmolLM2:
    return SmolLM2(weights=await asyncio.to_thread(fetch, say=print), slots=2)


@pytest.fixture(scope="module")
async def emulator(smollm2: SmolLM2) -> AsyncIterator[Emulator]:
    async with Emulator(smollm2, rest_port=0) as running:
        yield running


@pytest.fixture(params=[*sorted(LINES), "xllamacpp"])
async def upstream(request: pytest.FixtureRequest, open_provider: Open, smollm2: SmolLM2) -> AsyncIterator[Upstream]:
    line = ""
    if request.param == "xllamacpp":
        line = f"gpt=openai:smollm2?base_url={smollm2.openai_base_url}&api_key_env=SMOLLM2_API_KEY"
    opened = await open_provider(request.param, line=line, environ={"SMOLLM2_API_KEY": smollm2.openai_api_key})
    yield opened
    await until_idle(smollm2)


async def until_idle(smollm2: SmolLM2) -> None:
    async with asyncio.timeout(10):
        while await smollm2.busy_slots():  # noqa: ASYNC110 - llama.cpp's own thread ends it
            await asyncio.sleep(0.01)


async def test_it_streams_an_answer_with_exact_usage(upstream: Upstream) -> None:
    messages = await upstream.ask(config={"max_output_tokens": 16, "temperature": 0.0})
    assert "aseball" in "".join(message.text for message in messages)
    assert len(messages) > 8
    completed = messages[-1].completed
    assert completed.finish_reason == pb.FINISH_REASON_MAX_TOKENS
    assert completed.usage.exact
    assert completed.usage.output_tokens == 16
    assert completed.usage.total_tokens == completed.usage.input_tokens + 16


async def test_a_cancel_stops_the_model(upstream: Upstream, smollm2: SmolLM2) -> None:
    call = upstream.served.stub.Generate(
        pb.GenerateRequest(
            prompt="Write a very long story about a dragon.", config=GenerationConfig(max_output_tokens=1500)
        )
    )
    await call.read()
    await call.read()
    assert await smollm2.busy_slots() == 1
    call.cancel()
    await until_idle(smollm2)


async def test_a_conversation_that_is_too_long_is_refused(upstream: Upstream) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await upstream.ask("word " * 3000)
    assert failure(caught.value) == (grpc.StatusCode.INVALID_ARGUMENT, "UPSTREAM_REJECTED")
