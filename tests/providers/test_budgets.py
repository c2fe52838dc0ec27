"""A budget of the day that runs out in mid-stream, by what each provider tells of usage as it goes."""

import json
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.rpc.error_details_pb2 import ErrorInfo

from service.admission import api_keys
from tests.conftest import detail, failure
from tests.providers.conftest import OK, ByHand, Open, open_on
from tests.service.providers.chat_completions.test_chunks import chunk
from tokenwire.v1 import generation_service_pb2 as pb
from tokenwire.v1.config_pb2 import GenerationConfig
from vertex_emulator.protos import prediction_pb2 as google
from vertex_emulator.script import answer, message_bytes

PIECES, EACH, BUDGET = 40, 10, 100


def pieces(provider: str) -> list[Any]:
    """Each with a word, and with what the answer has taken so far."""
    found: list[Any] = []
    for piece in range(1, PIECES + 1):
        total = EACH * piece
        if provider == "vertex":
            message = google.GenerateContentResponse()
            message.candidates.add().content.parts.add(text="word ")
            counts = message.usage_metadata
            counts.prompt_token_count, counts.candidates_token_count, counts.total_token_count = 1, total - 1, total
            found.append(message)
        elif provider == "genai":
            usage = {"promptTokenCount": 1, "candidatesTokenCount": total - 1, "totalTokenCount": total}
            found.append({"candidates": [{"content": {"parts": [{"text": "word "}]}}], "usageMetadata": usage})
        else:
            usage = {"prompt_tokens": 1, "completion_tokens": total - 1, "total_tokens": total}
            found.append({**chunk(content="word "), "usage": usage})
    return found


Limited = Callable[[str, Sequence[Any]], Awaitable[Callable[[], Any]]]


@pytest.fixture
def limited(open_provider: Open, by_hand: tuple[ByHand, str], tmp_path: Path) -> Limited:
    """`await limited(provider, pieces)`: how a caller with so small a budget asks, where upstream says these pieces."""

    async def start(provider: str, said: Sequence[Any]) -> Callable[[], Any]:
        keys, callers = str(tmp_path / "keys"), tmp_path / "callers.toml"
        _, secret = api_keys.new(keys, "billing")
        callers.write_text(f'[callers.billing]\napi_keys = ["billing"]\ntokens_per_day = {BUDGET}\n')
        settings = {"api_keys": keys, "callers": str(callers)}
        if provider == "vertex":
            upstream = await open_provider(provider, **settings)
            upstream.emulator.script.play(answer(*(message_bytes(one.SerializeToString()) for one in said)))
        else:
            byte_server, address = by_hand
            body = b"".join(b"data: " + json.dumps(one).encode() + b"\n\n" for one in said)
            byte_server.says = OK + b"\r\n" + body
            upstream = await open_on(open_provider, provider, address, **settings)
        return lambda: upstream.served.stub.Generate(
            pb.GenerateRequest(prompt="hi", config=GenerationConfig(max_output_tokens=1)),
            metadata=[("authorization", f"Bearer {secret}")],
        )

    return start


async def ended(call: Any, texts: list[str]) -> grpc.aio.AioRpcError:
    """The error that a call ends with, behind these texts."""

    async def read() -> None:
        async for message in call:
            if message.HasField("text"):
                texts.append(message.text)  # noqa: PERF401 - they are to be there when it fails

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await read()
    return caught.value


PROVIDERS = ["vertex", "genai", "openai", "azure"]


@pytest.mark.parametrize("provider", PROVIDERS)
async def test_a_budget_ends_the_answer_with_the_figure_that_exceeds_it(limited: Limited, provider: str) -> None:
    ask = await limited(provider, pieces(provider))
    texts: list[str] = []
    error = await ended(ask(), texts)
    assert failure(error) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "BUDGET_EXHAUSTED")
    # The figure beyond the budget comes with a piece, and so does what upstream had sent together with it.
    assert BUDGET // EACH <= len("".join(texts).split()) <= BUDGET // EACH + 1
    assert int(detail(error, ErrorInfo).metadata["last_sequence"]) == len(texts)
    assert failure(await ended(ask(), [])) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUOTA_EXCEEDED")


def end(provider: str, total: int) -> list[Any]:
    """The end of an answer that has taken so many tokens, as the provider tells it: with it, or behind it."""
    if provider == "vertex":
        message = google.GenerateContentResponse()
        message.candidates.add(finish_reason="STOP").content.parts.add(text="end")
        counts = message.usage_metadata
        counts.prompt_token_count, counts.candidates_token_count, counts.total_token_count = 1, total - 1, total
        return [message]
    if provider == "genai":
        usage = {"promptTokenCount": 1, "candidatesTokenCount": total - 1, "totalTokenCount": total}
        content = {"parts": [{"text": "end"}]}
        return [{"candidates": [{"content": content, "finishReason": "STOP"}], "usageMetadata": usage}]
    usage = {"prompt_tokens": 1, "completion_tokens": total - 1, "total_tokens": total}
    return [chunk(content="end"), chunk("stop"), {"choices": [], "usage": usage}]


@pytest.mark.parametrize("provider", PROVIDERS)
async def test_an_answer_whose_last_figure_exceeds_the_budget_is_whole(limited: Limited, provider: str) -> None:
    """It has been written, and paid for. The next call is refused."""
    ask = await limited(provider, end(provider, 2 * BUDGET))
    messages = [message async for message in ask()]
    assert messages[-1].completed.usage.total_tokens == 2 * BUDGET
    assert failure(await ended(ask(), [])) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUOTA_EXCEEDED")
