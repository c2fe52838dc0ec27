"""One server process, on a local Vertex in this process, for all the rows that fit it; others start their own."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from tests.faults.forkserver import ForkServer, clock, opened
from tests.faults.processes import BLOCKED, ServerChild
from tests.faults.recorder import record
from vertex_emulator.emulator import Emulator

SLOTS = 20


@pytest.fixture(scope="session", autouse=True)
def the_loops() -> Iterator[None]:
    """Keeps how long the loops of all server processes were blocked, once the last of them has ended."""
    yield
    if BLOCKED:
        longest = max(BLOCKED)
        try:
            record("event loop blocked", *(milliseconds for milliseconds, _ in BLOCKED))
        except AssertionError as failure:
            failure.add_note(f"{longest[0]:g} ms in a server that ended with {longest[1]}")
            raise


@pytest.fixture(scope="session")
async def the_upstream() -> AsyncIterator[Emulator]:
    async with Emulator(relay=True) as running:
        yield running


@pytest.fixture(scope="session")
async def the_server(forkserver: ForkServer, the_upstream: Emulator) -> AsyncIterator[ServerChild]:
    async with forkserver.serving(the_upstream.address) as running:
        yield running


@pytest.fixture
async def upstream(the_upstream: Emulator) -> AsyncIterator[Emulator]:
    """The local Vertex, without a script; afterwards no call may be left open: no orphan, ever."""
    the_upstream.reset()
    yield the_upstream
    await the_upstream.wait_until(lambda upstream: not upstream.open_calls)


@pytest.fixture
async def served(the_server: ServerChild, upstream: Emulator) -> ServerChild:
    """A server as shipped, on `upstream`, with its default settings."""
    del upstream  # only so that it is fresh
    return the_server


@pytest.fixture
async def budget(served: ServerChild, upstream: Emulator) -> None:
    """Fill the server's retry budget: each success earns a tenth of what a failure costs."""
    async with served.caller() as caller:
        for _ in range(10):
            await asyncio.gather(*(caller.ask("earn") for _ in range(10)))
    upstream.reset()


@pytest.fixture(scope="session")
async def the_limited_server(forkserver: ForkServer, the_upstream: Emulator) -> AsyncIterator[ServerChild]:
    flags = ("--slots", str(SLOTS), "--queue", "0", "--write-timeout", "1")
    async with forkserver.serving(the_upstream.address, *flags) as running:
        yield running


@pytest.fixture
async def limited(the_limited_server: ServerChild, upstream: Emulator) -> ServerChild:
    """A server of 20 streams without a queue, which gives readers 1 s."""
    del upstream  # only so that it is fresh
    return the_limited_server


@pytest.fixture(scope="session")
async def forkserver(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ForkServer]:
    """Forks servers that have imported everything; where there is a C compiler, their wall clock can be set."""
    async with opened(clock=clock(tmp_path_factory.mktemp("clock"))) as running:
        yield running
