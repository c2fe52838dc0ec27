"""An attack on the real server process, with calls beside it, and what is looked at afterwards."""

import asyncio
import json
import os
import re
import statistics
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import grpc.aio
import pytest

from tests.conftest import ServerProcess
from tokenwire.v1 import generation_service_pb2 as pb
from tokenwire.v1.generation_service_pb2_grpc import GenerationServiceStub
from vertex_emulator.emulator import Emulator

STRICT = os.environ.get("TOKENWIRE_STRICT") == "1"
PROBE_BOUND_MS = 250
MEMORY_BOUND_MB = 20
FIGURES = Path(__file__).parents[2] / "build" / "hostile.json"

# Stands in every prompt and every answer here; nothing of the kind may be logged.
CANARY = "canary"

MB = 1024 * 1024

Attack = Callable[[str], AbstractAsyncContextManager[None]]


@pytest.fixture(scope="module")
async def vertex() -> AsyncIterator[Emulator]:
    async with Emulator() as running:
        yield running


@pytest.fixture(scope="module")
def figures() -> Iterator[dict[str, dict[str, float]]]:
    found: dict[str, dict[str, float]] = {}
    yield found
    FIGURES.parent.mkdir(exist_ok=True)
    known = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
    FIGURES.write_text(json.dumps(known | found, indent=1) + "\n")


class Decent(NamedTuple):
    """How the calls beside an attack are made."""

    metadata: tuple[tuple[str, str], ...] = ()
    credentials: grpc.ChannelCredentials | None = None


@pytest.fixture(scope="module")
def decent() -> Decent:
    """As anybody may, unless a module says otherwise."""
    return Decent()


@pytest.fixture(scope="module")
async def attack(
    server: ServerProcess, vertex: Emulator, figures: dict[str, dict[str, float]], decent: Decent
) -> AsyncIterator[Attack]:
    """`async with attack("name"): ...` asks beside it, again and again, and looks at the server afterwards."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    if decent.credentials is None:
        probe_channel = grpc.aio.insecure_channel(server.address, options=options)
    else:
        probe_channel = grpc.aio.secure_channel(server.address, decent.credentials, options=options)
    stub = GenerationServiceStub(probe_channel)

    async def probe(name: str = "probe") -> float:
        begin = time.perf_counter()
        call = stub.Generate(asked(request_id=name), timeout=20, metadata=decent.metadata)
        kinds = [message.WhichOneof("event") async for message in call]
        assert kinds[0] == "started"
        assert kinds[-1] == "completed"
        return (time.perf_counter() - begin) * 1000

    @asynccontextmanager
    async def watch(name: str) -> AsyncIterator[None]:
        times: list[float] = []
        over = asyncio.Event()
        memory, lines = _resident_mb(server), len(server.log)

        async def ask() -> None:
            while not over.is_set() or len(times) < 5:
                times.append(await probe())
                await asyncio.sleep(0.01)

        asking = asyncio.ensure_future(ask())
        begin = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - begin
            over.set()
            await asking
        await vertex.wait_until(lambda emulator: not emulator.open_calls)
        grown = await _grown_mb(server, memory)
        figures[name] = {
            "seconds": round(seconds, 2),
            "probes": len(times),
            "probe_p50_ms": round(statistics.median(times), 1),
            "probe_max_ms": round(max(times), 1),
            "memory_grown_mb": round(grown, 1),
        }
        assert server.process.returncode is None
        last = f"behind-{len(figures)}"
        await probe(last)
        await server.said(f"request_id={last} ")  # lines gather: what was to be said about the attack came before
        _assert_discreet(server.log[lines:])
        if STRICT:
            assert max(times) < PROBE_BOUND_MS
            assert grown < MEMORY_BOUND_MB

    for _ in range(5):  # first calls are slower, and make what stays in memory
        await probe()
    yield watch
    await probe_channel.close()


def asked(**fields: Any) -> pb.GenerateRequest:
    return pb.GenerateRequest(prompt=CANARY, **fields)


def _resident_mb(server: ServerProcess) -> float:
    pages = int(Path(f"/proc/{server.process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / MB


async def _grown_mb(server: ServerProcess, before: float) -> float:
    """By how much its memory is larger than before; connections take a moment to be let go."""
    for _ in range(50):
        if _resident_mb(server) - before < MEMORY_BOUND_MB / 2:
            break
        await asyncio.sleep(0.1)
    return _resident_mb(server) - before


# Of a call, of those that never arrived or were refused, of files of callers; of gRPC's core; of a library that says
# something that is not shown.
HARMLESS = re.compile(
    r"\S+Z \w+ tokenwire (Generate|ListModels) code="
    r"|\S+Z INFO tokenwire requests that never arrived: \d+; their callers left, or they were larger than \d+ bytes, "
    r"|\S+Z INFO tokenwire (\d+ more calls were refused|callers are read anew|the keys of issuer \w+ are read anew"
    r"|TLS has a new certificate)"
    r"|\S+Z WARNING tokenwire (not taken, and as before|the keys of issuer \w+ can't be had|TLS goes on with)"
    r"|\S+Z WARNING tokenwire \S+: (\[\S+\] models names|the API key)"
    r"|[IWE]\d{4} \S+ +\d+ \w+\.cc:\d+\] "
    r"|\S+Z (WARNING|ERROR) grpc\S* says something that is not shown|[\w.]+Error$"
)


def _assert_discreet(lines: list[str]) -> None:
    for line in lines:
        assert HARMLESS.match(line), line
        assert CANARY not in line, line
