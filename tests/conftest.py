"""One factory serves a real server on a free port; beside it a local Vertex that plays a script."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
import grpc.aio
import pytest
from google.protobuf.message import Message
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from tokenwire.v1 import generation_service_pb2 as pb
from tokenwire.v1.generation_service_pb2_grpc import GenerationServiceStub

from service.config import Settings
from service.model import Model
from service.server import Server
from vertex_emulator.emulator import Emulator


@dataclass(frozen=True)
class Served:
    """A running server and a channel to it."""

    server: Server
    address: str
    channel: grpc.aio.Channel

    @property
    def stub(self) -> "GenerationServiceAsyncStub":
        return GenerationServiceStub(self.channel)

    async def ask(self, prompt: str = "What is baseball?", **fields: Any) -> list[pb.GenerateResponse]:
        return [message async for message in self.stub.Generate(pb.GenerateRequest(prompt=prompt, **fields))]


if TYPE_CHECKING:  # the generated stub has it for type checkers only
    from tokenwire.v1.generation_service_pb2_grpc import GenerationServiceAsyncStub

Detail = TypeVar("Detail", bound=Message)
Serve = Callable[..., Awaitable[Served]]


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """`await serve(model, **settings)`: the model may be None (not ready yet) or any `service.model.Model`."""
    async with AsyncExitStack() as stack:

        async def start(model: Model | None, /, **settings: Any) -> Served:
            server = Server(Settings(port=0, **settings))
            port = await server.start()
            stack.push_async_callback(server.stop, 0)
            if model is not None:
                await server.serve(model)
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{port}"))
            return Served(server, f"127.0.0.1:{port}", channel)

        yield start


@pytest.fixture
async def emulator() -> AsyncIterator[Emulator]:
    """A local Vertex that plays what the test tells it to."""
    async with Emulator(relay=True) as running:
        yield running


@pytest.fixture
async def serve_vertex(serve: Serve, emulator: Emulator) -> AsyncIterator[Serve]:
    """`await serve_vertex(**settings)`: the server over the real ChatVertexAI over the local Vertex."""
    from service.vertex import VertexModel  # noqa: PLC0415 - ten seconds that other tests needn't pay

    async with AsyncExitStack() as stack:

        async def start(**settings: Any) -> Served:
            offered = Settings(**settings).offered
            model = VertexModel.local(emulator.address, names=offered, project="project", location="us-central1")
            stack.push_async_callback(model.close)
            return await serve(model, emulator=emulator.address, **settings)

        yield start


def failure(error: grpc.aio.AioRpcError) -> tuple[grpc.StatusCode, str]:
    """The code and the stable reason of an error; fails unless it is typed as the contract says."""
    info = detail(error, error_details_pb2.ErrorInfo)
    assert info.domain == "tokenwire"
    return error.code(), info.reason


def detail(error: grpc.aio.AioRpcError, kind: type[Detail]) -> Detail:
    """The one detail of this kind."""
    status = rpc_status.from_call(error)  # type: ignore[arg-type] # it takes what has these four methods
    assert status is not None, f"{error.code()} carries no details: {error.details()}"
    found = []
    for packed in status.details:
        message = kind()
        if packed.Unpack(message):
            found.append(message)
    assert len(found) == 1, status
    return found[0]
