"""Requests that never come to their end take a bounded amount of Envoy's memory, and no running answer with them."""

import asyncio
import re
import resource
import shutil
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.edge.conftest import Edge, Running, children, ended, running_edge
from tests.ports import free_port
from vertex_emulator.emulator import Emulator
from vertex_emulator.script import answer, wait_for

UPLOADS = 40
MEGABYTES = 15  # of each: less than a request may have
MEMORY = 128  # MiB that Envoy may hold
# On top: its code, what it holds before it looks again, and what its allocator keeps.
BOUND = 400
SPACES = b" " * (1 << 20)  # JSON so far


async def over_http_1(edge: Edge) -> None:
    """Send most of a request. Returns once Envoy has cut it off."""
    reader, writer = await asyncio.open_connection("localhost", edge.port)
    try:
        writer.write(b"POST /v1/generate HTTP/1.1\r\nHost: edge\r\nContent-Length: 16000000\r\n\r\n")
        for _ in range(MEGABYTES):
            writer.write(SPACES)
            await writer.drain()
        await reader.read()
    except ConnectionError:  # while it still sends, what Envoy has said may be lost
        pass
    finally:
        writer.close()


async def over_http_2(edge: Edge) -> None:
    """Send most of a request. Returns once Envoy has cut it off."""
    curl = shutil.which("curl")
    assert curl, "curl is missing"
    process = await asyncio.create_subprocess_exec(
        *(curl, "--silent", "--http2-prior-knowledge", "-X", "POST", "-T", "-", f"{edge.url}/v1/generate"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert process.stdin is not None
    try:
        with suppress(ConnectionError):
            for _ in range(MEGABYTES):
                process.stdin.write(SPACES)
                await process.stdin.drain()
        await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def most_memory(pid: int) -> int:
    """What the process has held at most, in MiB."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found
    return int(found[1]) >> 10


async def answered(client: httpx.AsyncClient) -> httpx.Response:
    """An answer to a small call; new connections are refused for as long as all memory is taken."""
    while True:
        with suppress(httpx.TransportError):
            return await client.post("/v1/generate", json={"prompt": "What is baseball?"})


@pytest.mark.parametrize("upload", [over_http_1, over_http_2])
async def test_unfinished_requests_are_cut_off_and_running_answers_go_on(
    running: Running, vertex: Emulator, upload: Callable[[Edge], Coroutine[Any, Any, None]]
) -> None:
    vertex.script.play(answer("Baseball ", wait_for("rest"), "is a game."), default=answer("Baseball."))
    flags = ("--replica", running.service, "--memory", str(MEMORY), "--threads", "2")
    async with running_edge(*flags) as edge, edge.client() as client, asyncio.TaskGroup() as tasks:
        (envoy,) = children(edge.process.pid)
        call = tasks.create_task(ended(client))
        await vertex.wait_until(lambda e: [one.waiting_for for one in e.open_calls] == ["rest"])
        sending = [tasks.create_task(upload(edge)) for _ in range(UPLOADS)]
        # What is below the bound may stay, as long as a request may take; far more than that was sent.
        async with asyncio.timeout(45):
            while len(sending) > MEMORY // MEGABYTES:
                _, left = await asyncio.wait(sending, return_when=asyncio.FIRST_COMPLETED)
                sending = list(left)
        async with asyncio.timeout(30):
            small = await answered(client)
        assert small.status_code == 200 or small.json()["code"] == 14
        assert small.status_code in (200, 503)
        assert not call.done()
        vertex.open_gate("rest")
        assert await call == "completed"
        assert most_memory(envoy) < BOUND
        for one in sending:
            one.cancel()


CONNECTIONS = 3000
SMALL = 64  # MiB
BEGUN = b"GET /v1/models HTTP/1.1\r\nHost: edge\r\nx: " + b"a" * 30_000


async def test_connections_are_refused_when_memory_is_full() -> None:
    port = free_port()
    few, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(20_000, most), most))
    writers: list[asyncio.StreamWriter] = []
    try:
        async with running_edge("--memory", str(SMALL), "--admin-port", str(port)) as edge, edge.client() as client:
            (envoy,) = children(edge.process.pid)
            counter = f"http://127.0.0.1:{port}/stats?filter=listener.127.*overload_reject"
            while (await client.get(counter)).text.endswith(": 0\n"):
                assert len(writers) < CONNECTIONS
                for _ in range(100):
                    _, writer = await asyncio.open_connection("127.0.0.1", edge.port)
                    writer.write(BEGUN)
                    writers.append(writer)
            assert most_memory(envoy) < 2 * SMALL + 100
            for writer in writers:
                writer.transport.abort()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (few, most))
