"""The embedded model itself."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import httpx
import pytest
from google.protobuf import json_format, struct_pb2

from tests.vertex_emulator.conftest import Client, Told, model, user
from vertex_emulator.answerers.base import MindError
from vertex_emulator.answerers.smollm2 import SmolLM2
from vertex_emulator.answerers.smollm2_requests import MODEL_VERSION
from vertex_emulator.answerers.weights import fetch
from vertex_emulator.control.client import ControlClient
from vertex_emulator.emulator import Emulator
from vertex_emulator.protos import prediction_pb2 as pb

pytestmark = pytest.mark.smollm2

STORY = "Write a very long story about a dragon."


@pytest.fixture(scope="session")
def weights() -> Path:
    return fetch(say=print)


@pytest.fixture(scope="module")
async def smollm2(weights: Path) -> AsyncIterator[SmolLM2]:
    mind = SmolLM2(weights=weights, slots=2, queue=2)
    async with Emulator(mind, rest_port=0) as emulator:
        mind.emulator = emulator  # type: ignore[attr-defined]  # the fixture below serves it
        yield mind


@pytest.fixture
async def emulator(smollm2: SmolLM2) -> AsyncIterator[Emulator]:
    running: Emulator = smollm2.emulator  # type: ignore[attr-defined]  # set above
    yield running
    await until_idle(running)
    running.reset()


@pytest.fixture
def config() -> pb.GenerationConfig:
    return pb.GenerationConfig(temperature=0, seed=1, max_output_tokens=24)


async def until_idle(emulator: Emulator) -> None:
    async with asyncio.timeout(10):
        while emulator.mind.active_generations:  # noqa: ASYNC110  # a worker thread ends it
            await asyncio.sleep(0.001)


async def test_an_answer_streams_as_vertex_streams(client: Client, config: pb.GenerationConfig) -> None:
    told = await client.ask("What is baseball?", generation_config=config)
    assert "baseball" in told.text
    assert len(told.chunks) > 10
    assert told.finish_reasons[:-1] == [0] * (len(told.chunks) - 1)
    assert told.finish_reasons[-1] == pb.Candidate.MAX_TOKENS
    assert {chunk.model_version for chunk in told.chunks} == {MODEL_VERSION}
    assert len({chunk.response_id for chunk in told.chunks}) == 1
    candidates = [usage[1] for usage in told.usages]
    assert candidates[:3] == [1, 2, 3]
    assert candidates == sorted(candidates)
    assert candidates[-1] == 24
    prompts = {usage[0] for usage in told.usages}
    assert prompts == {(await client.count_tokens("What is baseball?")).total_tokens}
    assert all(usage[4] == usage[0] + usage[1] for usage in told.usages)


async def test_a_short_answer_stops_by_itself(client: Client) -> None:
    config = pb.GenerationConfig(temperature=0, seed=1, max_output_tokens=300)
    told = await client.ask("Count from one to ten.", generation_config=config)
    assert told.finish_reasons[-1] == pb.Candidate.STOP
    assert told.usages[-1][1] < 300


async def test_a_follow_up_uses_the_history(client: Client, config: pb.GenerationConfig) -> None:
    question = "What is my name?"
    history = (user("My name is Ada."), model("Nice to meet you, Ada!"))
    assert "Ada" in (await client.ask(*history, question, generation_config=config)).text
    assert "Ada" not in (await client.ask(question, generation_config=config)).text


async def test_a_system_instruction_changes_the_answer(client: Client, config: pb.GenerationConfig) -> None:
    instruction = user("You are a pirate. Begin every answer with Arr!")
    told = await client.ask("Who are you?", generation_config=config, system_instruction=instruction)
    plain = await client.ask("Who are you?", generation_config=config)
    assert told.text != plain.text
    assert told.usages[-1][0] != plain.usages[-1][0]


async def test_a_seed_makes_it_repeat_itself(client: Client) -> None:
    async def ask(seed: int) -> str:
        config = pb.GenerationConfig(temperature=1.5, seed=seed, max_output_tokens=16)
        return (await client.ask("Tell me something.", generation_config=config)).text

    assert await ask(5) == await ask(5)
    assert await ask(5) != await ask(6)


async def test_it_stops_at_a_stop_sequence(client: Client) -> None:
    config = pb.GenerationConfig(temperature=0, seed=1, max_output_tokens=60)
    assert "5" in (await client.ask("Count from one to ten.", generation_config=config)).text
    config.stop_sequences.append("5")
    told = await client.ask("Count from one to ten.", generation_config=config)
    assert "4" in told.text
    assert "5" not in told.text
    assert told.finish_reasons[-1] == pb.Candidate.STOP


async def test_generate_content_gives_it_in_one_piece(client: Client, config: pb.GenerationConfig) -> None:
    whole = await client.generate("What is baseball?", generation_config=config)
    streamed = await client.ask("What is baseball?", generation_config=config)
    (part,) = whole.candidates[0].content.parts
    assert part.text == streamed.text
    assert whole.candidates[0].finish_reason == pb.Candidate.MAX_TOKENS
    assert whole.usage_metadata.candidates_token_count == 24


async def test_a_cancel_stops_generation(emulator: Emulator, client: Client) -> None:
    call = client.stream(STORY)
    await call.read()
    assert emulator.mind.active_generations == 1
    call.cancel()
    await until_idle(emulator)
    written = emulator.mind.generated_tokens
    # Another answer proves that time has passed and that the slot is free.
    config = pb.GenerationConfig(max_output_tokens=8)
    assert (await client.ask(generation_config=config)).usages[-1][1] == 8
    assert emulator.mind.generated_tokens == written + 8
    assert emulator.calls[0].by_caller


async def test_a_cancel_during_a_long_prompt_stops_it_too(emulator: Emulator, client: Client) -> None:
    call = client.stream("word " * 1500)
    await emulator.wait_until(lambda emulator: len(emulator.open_calls) == 1)
    async with asyncio.timeout(10):
        while not emulator.mind.active_generations:  # noqa: ASYNC110  # a worker thread begins it
            await asyncio.sleep(0.001)
    call.cancel()
    await until_idle(emulator)
    assert emulator.calls[-1].pieces_sent == 0


async def test_what_it_has_no_room_for_is_refused_at_once(emulator: Emulator, client: Client) -> None:
    calls = [client.stream(STORY) for _ in range(4)]  # two are written, two wait
    await emulator.wait_until(lambda emulator: len(emulator.open_calls) == 4)
    told = await client.ask()
    assert told.error is not None
    assert told.error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    for call in calls:
        call.cancel()
    await emulator.wait_until(lambda emulator: not emulator.open_calls)
    await until_idle(emulator)
    assert (await client.ask(generation_config=pb.GenerationConfig(max_output_tokens=2))).error is None


async def test_control_tells_what_the_model_does(emulator: Emulator, client: Client) -> None:
    call = client.stream(STORY)
    await call.read()
    with ControlClient(emulator.address) as control:
        stats = await asyncio.to_thread(control.stats)
        assert stats.active_generations == 1
        assert stats.generated_tokens > 0
        with pytest.raises(grpc.RpcError) as caught:
            await asyncio.to_thread(control.play)
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert caught.value.details() == "this emulator is answered by SmolLM2, not by a script"
    call.cancel()


def refused(told: Told) -> str:
    assert told.chunks == []
    assert told.error is not None
    assert told.error.code() is grpc.StatusCode.INVALID_ARGUMENT
    return told.error.details() or ""


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (pb.GenerationConfig(temperature=2.5), "temperature: 2.5 is not within 0 and 2"),
        (pb.GenerationConfig(top_p=-1), "top_p: -1 is not within 0 and 1"),
        (pb.GenerationConfig(top_k=0), "top_k: 0 is not within 1 and 1000"),
        (pb.GenerationConfig(max_output_tokens=0), "max_output_tokens: 0 is not within 1 and 65536"),
        (pb.GenerationConfig(presence_penalty=3), "presence_penalty: 3 is not within -2 and 2"),
        (pb.GenerationConfig(frequency_penalty=float("nan")), "frequency_penalty: nan is not within -2 and 2"),
        (pb.GenerationConfig(stop_sequences="abcdef"), "stop_sequences: 6 are more than 5"),
        (pb.GenerationConfig(candidate_count=2), "candidate_count is not supported"),
        (pb.GenerationConfig(response_schema=pb.Schema(type=pb.OBJECT)), "response_schema is not supported"),
        (pb.GenerationConfig(response_mime_type="application/json"), "response_mime_type is not supported"),
        (
            pb.GenerationConfig(response_json_schema=json_format.Parse("{}", struct_pb2.Value())),
            "response_json_schema is not supported",
        ),
        (pb.GenerationConfig(response_logprobs=True), "response_logprobs is not supported"),
        (pb.GenerationConfig(logprobs=2), "logprobs is not supported"),
        (
            pb.GenerationConfig(response_modalities=[pb.GenerationConfig.AUDIO]),
            "response_modalities is not supported",
        ),
        (
            pb.GenerationConfig(thinking_config=pb.GenerationConfig.ThinkingConfig(include_thoughts=True)),
            "thinking_config is not supported",
        ),
        (
            pb.GenerationConfig(thinking_config=pb.GenerationConfig.ThinkingConfig(thinking_budget=9)),
            "thinking_config is not supported",
        ),
    ],
)
async def test_sampling_it_cannot_do_is_refused(client: Client, config: pb.GenerationConfig, words: str) -> None:
    assert words in refused(await client.ask(generation_config=config))


async def test_what_asks_for_nothing_special_is_taken(client: Client) -> None:
    config = pb.GenerationConfig(
        candidate_count=1,
        response_mime_type="text/plain",
        response_logprobs=False,
        response_modalities=[pb.GenerationConfig.TEXT],
        thinking_config=pb.GenerationConfig.ThinkingConfig(thinking_budget=0, include_thoughts=False),
        top_k=40,
        top_p=0.5,
        presence_penalty=0.5,
        frequency_penalty=0.5,
        max_output_tokens=2,
    )
    settings = [pb.SafetySetting(category=pb.HARM_CATEGORY_HARASSMENT, threshold=pb.SafetySetting.OFF)]
    told = await client.ask(generation_config=config, safety_settings=settings, labels={"team": "one"})
    assert told.error is None


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (pb.Content(role="user"), "contents[0].parts: at least one is required"),
        (pb.Content(role="user", parts=[pb.Part()]), "contents[0].parts[0]: is empty"),
        (pb.Content(role="bard", parts=[pb.Part(text="a")]), "contents[0].role: 'bard' is none of"),
        (
            pb.Content(role="user", parts=[pb.Part(inline_data=pb.Blob(mime_type="image/png", data=b"x"))]),
            "contents[0].parts[0].inline_data is not supported by this model",
        ),
        (
            pb.Content(role="user", parts=[pb.Part(inline_data=pb.Blob(mime_type="image/png", data=b"x"))]),
            "(smollm2-135m-instruct, the emulator's own): it sees no images. Remove it and try again.",
        ),
        (
            pb.Content(role="user", parts=[pb.Part(inline_data=pb.Blob(mime_type="audio/wav", data=b"x"))]),
            "it hears no audio",
        ),
        (
            pb.Content(role="user", parts=[pb.Part(inline_data=pb.Blob(mime_type="application/pdf", data=b"x"))]),
            "it reads no files",
        ),
        (
            pb.Content(role="model", parts=[pb.Part(function_call=pb.FunctionCall(name="add"))]),
            "contents[0].parts[0].function_call is not supported",
        ),
        (
            pb.Content(role="user", parts=[pb.Part(function_response=pb.FunctionResponse(name="add"))]),
            "contents[0].parts[0].function_response is not supported",
        ),
        (
            pb.Content(role="user", parts=[pb.Part(file_data=pb.FileData(file_uri="gs://b/o"))]),
            "contents[0].parts[0].file_data is not supported",
        ),
        (model("I am last"), "contents[0].role: the last message must be the user's"),
        (user("word " * 5000), "exceeds the maximum number of tokens allowed (2048)."),
    ],
)
async def test_a_conversation_it_cannot_take_is_refused(client: Client, content: pb.Content, words: str) -> None:
    assert words in refused(await client.ask(content))


async def test_tools_are_refused(client: Client) -> None:
    tool = pb.Tool(function_declarations=[pb.FunctionDeclaration(name="add")])
    assert "tools is not supported" in refused(await client.ask(tools=[tool]))
    assert "cached_content is not supported" in refused(await client.ask(cached_content="c"))


async def test_it_refuses_over_rest_in_the_same_words(emulator: Emulator, client: Client) -> None:
    body = {"contents": [{"role": "user", "parts": [{"inlineData": {"mimeType": "image/png", "data": "aGk="}}]}]}
    picture = pb.Content(role="user", parts=[pb.Part(inline_data=pb.Blob(mime_type="image/png", data=b"hi"))])
    words = refused(await client.ask(picture))
    assert words.startswith("Unable to submit request because ")
    async with httpx.AsyncClient(timeout=30) as http:
        for verb in (":streamGenerateContent?alt=sse", ":generateContent", ":countTokens"):
            response = await http.post(f"http://{emulator.rest_address}/v1/models/any{verb}", json=body)
            assert response.status_code == 400
            assert response.json()["error"] == {"code": 400, "message": words, "status": "INVALID_ARGUMENT"}
        tools = {"contents": [{"parts": [{"text": "Hi"}]}], "tools": [{"googleSearch": {}}]}
        counted = await http.post(f"http://{emulator.rest_address}/v1/models/any:countTokens", json=tools)
        assert "tools is not supported" in counted.json()["error"]["message"]


async def test_it_answers_over_rest_and_a_caller_that_goes_stops_it(emulator: Emulator) -> None:
    url = f"http://{emulator.rest_address}/v1/models/any:streamGenerateContent?alt=sse"
    body = {"contents": [{"parts": [{"text": STORY}]}]}
    async with httpx.AsyncClient(timeout=30) as http, http.stream("POST", url, json=body) as response:
        assert (await anext(response.aiter_lines())).startswith("data: ")
        assert emulator.mind.active_generations == 1
    await emulator.wait_until(lambda emulator: not emulator.open_calls)
    await until_idle(emulator)
    assert emulator.calls[0].by_caller


async def test_a_call_without_contents_is_refused(client: Client) -> None:
    method: Any = client.channel.unary_unary("/google.cloud.aiplatform.v1.PredictionService/GenerateContent")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await method(b"", timeout=10)
    assert caught.value.details() == "contents: at least one is required"


async def test_weights_that_cannot_be_loaded_are_named(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF")
    with pytest.raises(MindError, match=r"can't load the model from .*broken\.gguf"):
        await Emulator(SmolLM2(weights=broken)).start()


async def test_stopping_in_the_middle_of_an_answer_leaves_nothing_behind(weights: Path) -> None:
    mind = SmolLM2(weights=weights)
    async with Emulator(mind) as emulator, grpc.aio.insecure_channel(emulator.address) as channel:
        call = Client(channel).stream(STORY)
        await call.read()
        assert mind.active_generations == 1
    assert mind.active_generations == 0
    assert not emulator.open_calls
