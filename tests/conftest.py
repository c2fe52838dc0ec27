"""One factory serves a real server on a free port; beside it a local Vertex that plays a script."""

import os

# Tests fork this process while gRPC's threads run in it. In gRPC's fork handlers one child of fifteen then dies of a
# segmentation fault. gRPC asks for this when it is imported; the servers that tests start must find the environment
# that users have.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
import grpc
import grpc.aio

del os.environ["GRPC_ENABLE_FORK_SUPPORT"]

# isort: split
import asyncio
import gc
import logging
import re
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import hypothesis
import pytest
from google.protobuf.message import Message
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from service.calls import guard
from service.generation.provider import Provider
from service.providers.retry import Policy, Retrying
from service.runtime.server import Server
from service.settings import Settings
from tokenwire.v1 import generation_service_pb2 as pb
from tokenwire.v1.generation_service_pb2_grpc import GenerationServiceStub
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

pytest_plugins = ["tests.browser", "tests.redis_server", "tests.tokenwire.fixtures"]

# How long an example takes is the machine's matter.
hypothesis.settings.register_profile("tokenwire", deadline=None)
hypothesis.settings.register_profile("quick", deadline=None, max_examples=15)  # `make quick`; the others have them all
hypothesis.settings.load_profile("tokenwire")

# Tests read what servers log as a person would; JSON has a test of its own.
os.environ["TOKENWIRE_LOG_FORMAT"] = "text"

# A shell's background job ignores Ctrl-C, one under nohup SIGHUP as well, and so would every process that the tests
# start and then interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# Tests that start processes, by what their paths begin with; `make quick` leaves them out.
_WITH_PROCESSES = (
    "bench/",
    "edge/",
    "faults/",
    "gateway_ui/test_main.py",
    "hostile/",
    "service/admission/test_redis_counts.py",
    "service/admission/test_slots.py",
    "service/runtime/test_hang_up.py",
    "service/runtime/test_replicas.py",
    "service/runtime/test_secured.py",
    "service/runtime/test_stop.py",
    "service/runtime/test_workers.py",
    "service/test_main.py",
    "test_end_to_end.py",
    "test_image.py",
    "test_readme.py",
    "test_recipes.py",
    "test_snippets.py",
    "test_stubs.py",
    "test_wheel.py",
    "tokenwire/cli/test_ask.py",
    "tokenwire/cli/test_chat.py",
    "vertex_emulator/test_help_page.py",
    "vertex_emulator/test_main.py",
)


# Tests that take most of the time, by what their paths begin with: `make thorough` has them, `make test` doesn't. Each
# goes into something that others have a look at as well: the page in a browser, a server's stop and its signals, storms
# of calls, attacks, replicas, what other variables do.
_THOROUGH = (
    "bench/",
    "faults/test_drain.py",
    "faults/test_metrics.py",
    "faults/test_stops.py",
    "faults/test_storm.py",
    "faults/test_surroundings.py",
    "faults/test_unfinished.py",
    "gateway_ui/test_page_",
    "hostile/",
    "providers/test_environment.py",
    "service/runtime/test_hang_up.py",
    "service/runtime/test_replicas.py",
    "service/runtime/test_secured.py",
    "test_wheel.py",
)


def _is_in(paths: tuple[str, ...], path: Path) -> bool:
    return str(path.relative_to(Path(__file__).parent)).startswith(paths)


def _is_quick(item: pytest.Item) -> bool:
    return not any(map(item.get_closest_marker, ("process", "browser", "smollm2")))


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Don't even import what `make quick` or `make test` leaves out."""
    left_out = collection_path.is_file() and any(
        f"not {mark}" in config.option.markexpr and _is_in(paths, collection_path)
        for mark, paths in (("process", _WITH_PROCESSES), ("thorough", _THOROUGH))
    )
    return True if left_out else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if _is_in(_WITH_PROCESSES, item.path):
            item.add_marker("process")
        if _is_in(_THOROUGH, item.path):
            item.add_marker("thorough")
    # Files are shared out in this order: the longest last would leave one process alone with it.
    items.sort(key=lambda item: (item.path.parent.name != "simulation", _is_quick(item)))


Detail = TypeVar("Detail", bound=Message)
Serve = Callable[..., Awaitable[Served]]


async def _stop(server: Server) -> None:
    """Stop it without the moment in which calls may still be on their way: no test's are."""

    async def nobody(_: guard.Guard) -> bool:
        return False

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(guard, "_COMING_IN_SECONDS", 0)
        patch.setattr(guard.Guard, "_may_return", nobody)
        await server.stop(0)


@pytest.fixture(scope="module", autouse=True)
def small_garbage() -> None:
    """Let the collector look at nothing that the modules before have left.

    Upstream, or the callers, run in this process: a collection that walks through all of it stops them for half a
    second of CPU time, which are seconds on a busy machine, and is then told as the server's.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """`await serve(model, **settings)`: the model may be None (not ready yet) or any
    `service.generation.provider.Provider`.
    """
    async with AsyncExitStack() as stack:

        async def start(model: Provider | None, /, **settings: Any) -> Served:
            server = Server(Settings(port=0, **settings))
            port = await server.start()
            stack.push_async_callback(_stop, server)
            if model is not None:
                await server.announce_serving(model)
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{port}"))
            return Served(server, f"127.0.0.1:{port}", channel)

        yield start


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the server logs, from level info on."""
    told: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            told.append(record.getMessage())

    logger = logging.getLogger("tokenwire")
    handler = Keep()
    monkeypatch.setattr(logger, "handlers", [handler])
    monkeypatch.setattr(logger, "propagate", False)
    monkeypatch.setattr(logger, "level", logging.INFO)
    logger.manager._clear_cache()  # type: ignore[attr-defined] # isEnabledFor keeps what the level was
    return told


@pytest.fixture
async def emulator() -> AsyncIterator[Emulator]:
    """A local Vertex that plays what the test tells it to."""
    async with Emulator(relay=True) as running:
        yield running


@pytest.fixture
async def serve_vertex(serve: Serve, emulator: Emulator) -> AsyncIterator[Serve]:
    """`await serve_vertex(**settings)`: the server over the real ChatVertexAI over the local Vertex."""
    from service.providers.gemini.over_grpc import VertexProvider  # noqa: PLC0415 - ten seconds that other tests needn't pay

    async with AsyncExitStack() as stack:

        async def start(**settings: Any) -> Served:
            offers = Settings(**settings).offers
            model = VertexProvider.local(emulator.address, offers, project="project", location="us-central1")
            stack.push_async_callback(model.close)
            policy = Policy(fallback=settings.get("fallback_model", ""))
            return await serve(Retrying(model, policy), emulator=emulator.address, **settings)

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


@dataclass(frozen=True)
class ServerProcess:
    """`python -m service` in a process of its own, as users run it."""

    process: asyncio.subprocess.Process
    address: str
    log: list[str]
    """Its lines so far."""
    more: asyncio.Condition
    """Notified of every new line."""

    async def said(self, words: str, times: int = 1) -> None:
        """Wait until it has said so, so often: each worker may."""
        async with asyncio.timeout(60), self.more:
            await self.more.wait_for(lambda: sum(words in line for line in self.log) >= times)

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)


StartProcess = Callable[..., Awaitable[ServerProcess]]


@asynccontextmanager
async def server_process(emulator: Emulator, *flags: str, module: str = "service") -> AsyncIterator[ServerProcess]:
    """A server on the local Vertex; listening, though perhaps not ready yet."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", module, "--port", "0", "--emulator", emulator.address, *flags),
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    lines: list[str] = []
    more = asyncio.Condition()
    address: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def read(stream: asyncio.StreamReader) -> None:
        async for line in stream:
            async with more:
                lines.append(line.decode(errors="backslashreplace").rstrip())
                more.notify_all()
            if found := re.search(r"listening on (\S+:\d+)", lines[-1]):
                address.set_result(found[1])
        if not address.done():
            address.set_exception(AssertionError("\n".join(lines)))

    reading = asyncio.ensure_future(read(process.stderr))
    try:
        yield ServerProcess(process, await asyncio.wait_for(address, 60), lines, more)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        await reading


@pytest.fixture
async def start_process(emulator: Emulator) -> AsyncIterator[StartProcess]:
    """`await start_process("--grace", "5")`: as many as the test wants."""
    async with AsyncExitStack() as stack:

        async def start(*flags: str) -> ServerProcess:
            return await stack.enter_async_context(server_process(emulator, *flags))

        yield start
