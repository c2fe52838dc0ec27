"""The server over each provider's real library, over a local upstream that speaks its protocol and plays a script."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc.aio
import pytest
from google.protobuf import json_format

from service.providers import registry
from service.providers.offers import offers
from service.providers.retry import Policy, Retrying
from service.settings import Settings
from service.telemetry.watch import Watch
from tests.conftest import Serve, Served, failure
from tokenwire.v1 import generation_service_pb2 as pb
from vertex_emulator.call_records import Call
from vertex_emulator.emulator import Emulator

LINES = {
    "vertex": "gemini=vertex:gemini-2.5-flash",
    "genai": "gemini=genai:gemini-2.5-flash",
    "openai": "gpt=openai:gpt-4.1-mini?base_url=http://{rest}/v1",
    "azure": "gpt=azure:gpt-4.1-mini?endpoint=http://{rest}&api_version=2024-10-21",
}
"""By provider: a model on offer there."""


@dataclass(frozen=True)
class Upstream:
    """One provider: its server, the local upstream behind it, and how to ask."""

    provider: str
    served: Served
    emulator: Emulator

    async def ask(self, prompt: str = "What is baseball?", **fields: Any) -> list[pb.GenerateResponse]:
        return await self.served.ask(prompt, **fields)

    async def request(self, **fields: Any) -> Any:
        """Ask something, and give what reached upstream."""
        await self.ask(**fields)
        return self.call.request

    @property
    def call(self) -> Call:
        """The latest."""
        return self.emulator.calls[-1]


Open = Callable[..., Awaitable[Upstream]]


@pytest.fixture
async def emulator() -> AsyncIterator[Emulator]:
    """A local Vertex that also speaks HTTP."""
    async with Emulator(relay=True, rest_port=0) as running:
        yield running


@pytest.fixture
async def open_provider(serve: Serve, emulator: Emulator) -> AsyncIterator[Open]:
    """`await open_provider("openai", **settings)`."""
    async with AsyncExitStack() as stack:

        async def start(
            provider: str,
            *,
            line: str = "",
            environ: Mapping[str, str] = {},
            watch: Watch | None = None,
            **settings: Any,
        ) -> Upstream:
            rest = str(emulator.rest_address)
            line = line or LINES[provider].format(rest=rest)
            (offer,) = offers(line)
            told = Settings.load(
                ["--model", offer.name, "--models", line],
                {
                    "OPENAI_API_KEY": "k",
                    "AZURE_OPENAI_API_KEY": "k",
                    "VERTEX_EMULATOR_HOST": emulator.address,
                    "VERTEX_EMULATOR_REST_HOST": rest,
                    **environ,
                },
                prog="tokenwire serve",
            )
            registry.imported(told.offers)
            model = await stack.enter_async_context(registry.opened(told.offers, told.google))
            served = await serve(Retrying(model, Policy(base_seconds=0.01), watch=watch), **settings)
            return Upstream(provider, served, emulator)

        yield start


# ---- an upstream by hand ---------------------------------------------------------------------------------------------

OK = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"


class ByHand:
    """Answers each request with bytes, and closes the connection."""

    def __init__(self) -> None:
        self.says = b""
        self.answers: Iterator[bytes] = iter(())
        """What comes before `says`, one for each request."""
        self.heads: list[str] = []

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=2**21)
        yield "127.0.0.1:{1}".format(*server.sockets[0].getsockname())
        server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.heads.append((await reader.readuntil(b"\r\n\r\n")).decode())
        writer.write(next(self.answers, self.says))
        await reader.read(2**20)
        writer.close()


@pytest.fixture
async def by_hand() -> AsyncIterator[tuple[ByHand, str]]:
    upstream = ByHand()
    async with upstream.serving() as address:
        yield upstream, address


def told(messages: Sequence[pb.GenerateResponse]) -> dict[str, Any]:
    """What an answer says: its words, thoughts and calls, and why it ended; not how it was cut into pieces."""
    calls = [message.tool_call.tool_call for message in messages if message.HasField("tool_call")]
    return {
        "text": "".join(message.text for message in messages),
        "thoughts": "".join(message.reasoning.text for message in messages),
        "calls": [(call.name, json_format.MessageToDict(call.arguments)) for call in calls],
        "finish": pb.FinishReason.Name(messages[-1].completed.finish_reason),
    }


def told_or_typed(
    messages: Sequence[pb.GenerateResponse],
    error: grpc.aio.AioRpcError | None,
    good: Mapping[str, Any] | None = None,
) -> None:
    """Fail unless an odd answer was told whole, or failed as upstream's fault.

    With `good`, what the answer says without its oddity, it has to be told, and to say the same.
    """
    if good is not None:
        assert error is None, error.details()
        assert told(messages) == good
    elif error is None:
        assert messages[-1].HasField("completed")
        assert all(name for name, _ in told(messages)["calls"])
        assert not any(sign in told(messages)["text"] for sign in ("{'", "[{", "None")), "a structure is no text"
    else:
        assert failure(error)[1] in ("UPSTREAM_FAULT", "UPSTREAM_CUT"), error.details()


async def open_on(open_provider: Open, provider: str, address: str, **settings: Any) -> Upstream:
    line, environ = LINES[provider].format(rest=address), {"VERTEX_EMULATOR_REST_HOST": address}
    return await open_provider(provider, line=line, environ=environ, **settings)
