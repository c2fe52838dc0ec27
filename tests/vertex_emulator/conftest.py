"""A plain client of Google's PredictionService, without Google's SDK."""

import json
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from vertex_emulator.emulator import Emulator
from vertex_emulator.protos import prediction_pb2 as pb

Stream = grpc.aio.UnaryStreamCall[Any, pb.GenerateContentResponse]


def user(text: str) -> pb.Content:
    return pb.Content(role="user", parts=[pb.Part(text=text)])


def model(text: str) -> pb.Content:
    return pb.Content(role="model", parts=[pb.Part(text=text)])


async def next_text(call: Stream) -> str:
    """The text of the next chunk."""
    chunk = await call.read()
    assert isinstance(chunk, pb.GenerateContentResponse)
    return chunk.candidates[0].content.parts[0].text


@dataclass
class Told:
    """What a caller was told before its call ended."""

    chunks: list[pb.GenerateContentResponse] = field(default_factory=list)
    error: grpc.aio.AioRpcError | None = None

    @property
    def text(self) -> str:
        return "".join(self.texts)

    @property
    def texts(self) -> list[str]:
        return [part.text for chunk in self.chunks for one in chunk.candidates for part in one.content.parts]

    @property
    def finish_reasons(self) -> list[int]:
        return [one.finish_reason for chunk in self.chunks for one in chunk.candidates]

    @property
    def usages(self) -> list[tuple[int, int, int, int, int]]:
        """Prompt, candidates, thoughts, cached, total."""
        return [
            (
                told.prompt_token_count,
                told.candidates_token_count,
                told.thoughts_token_count,
                told.cached_content_token_count,
                told.total_token_count,
            )
            for told in (chunk.usage_metadata for chunk in self.chunks)
        ]


class Client:
    def __init__(self, channel: grpc.aio.Channel, version: str = "v1") -> None:
        self.channel = channel
        self._prefix = f"/google.cloud.aiplatform.{version}.PredictionService/"

    def stream(
        self, *contents: pb.Content | str, timeout: float | None = 30, model: str = "gemini", **request: Any
    ) -> Stream:
        method = self.channel.unary_stream(
            self._prefix + "StreamGenerateContent",
            request_serializer=pb.GenerateContentRequest.SerializeToString,
            response_deserializer=pb.GenerateContentResponse.FromString,
        )
        turns = [user(one) if isinstance(one, str) else one for one in contents or ("Hello",)]
        return method(pb.GenerateContentRequest(model=model, contents=turns, **request), timeout=timeout)

    async def ask(self, *contents: pb.Content | str, **request: Any) -> Told:
        told = Told()
        try:
            async for chunk in self.stream(*contents, **request):
                told.chunks.append(chunk)
        except grpc.aio.AioRpcError as error:
            told.error = error
        return told

    async def generate(self, *contents: pb.Content | str, **request: Any) -> pb.GenerateContentResponse:
        method = self.channel.unary_unary(
            self._prefix + "GenerateContent",
            request_serializer=pb.GenerateContentRequest.SerializeToString,
            response_deserializer=pb.GenerateContentResponse.FromString,
        )
        turns = [user(one) if isinstance(one, str) else one for one in contents or ("Hello",)]
        return await method(pb.GenerateContentRequest(model="gemini", contents=turns, **request), timeout=30)

    async def count_tokens(self, *contents: pb.Content | str) -> pb.CountTokensResponse:
        method = self.channel.unary_unary(
            self._prefix + "CountTokens",
            request_serializer=pb.CountTokensRequest.SerializeToString,
            response_deserializer=pb.CountTokensResponse.FromString,
        )
        turns = [user(one) if isinstance(one, str) else one for one in contents or ("Hello",)]
        return await method(pb.CountTokensRequest(model="gemini", contents=turns), timeout=30)


@pytest.fixture
async def client(emulator: Emulator) -> AsyncIterator[Client]:
    async with grpc.aio.insecure_channel(emulator.address) as channel:
        yield Client(channel)


def documented_scripts() -> Iterator[tuple[int, str]]:
    """Each JSON block of the help page, with the line it begins at."""
    lines = (Path(__file__).parents[2] / "docs" / "emulator.md").read_text().splitlines()
    block: list[str] | None = None
    for number, line in enumerate(lines, 1):
        if line.strip() == "```json":
            block, begin = [], number
        elif block is not None and line.strip() == "```":
            yield begin, "\n".join(block)
            block = None
        elif block is not None:
            block.append(line)


Write = Callable[[object], Path]


@pytest.fixture
def script_file(tmp_path: Path) -> Write:
    """Writes a script, given as what JSON makes of it or as text, and returns its path."""

    def write(script: object) -> Path:
        path = tmp_path / "script.json"
        path.write_text(script if isinstance(script, str) else json.dumps(script))
        return path

    return write
