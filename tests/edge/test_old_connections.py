"""Callers connect anew now and then, and what runs on the old connection comes to its end."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.edge.conftest import Running, ended, running_envoy
from tests.ports import free_port
from tokenwire import AsyncClient
from tokenwire.cli.running import envoy_configuration
from vertex_emulator.emulator import Emulator
from vertex_emulator.script import answer, wait_for


@asynccontextmanager
async def envoy(replica: str, folder: Path) -> AsyncIterator[tuple[int, int]]:
    """As `tokenwire edge` runs it, but that a connection is old after a second: its port, and its administration's."""
    own, admin = free_port(), free_port()
    told = envoy_configuration.filled_in(
        addresses=["127.0.0.1"], port=own, replicas=[replica], admin=("127.0.0.1", admin)
    )
    (listener,) = told["static_resources"]["listeners"]
    options: dict[str, Any] = listener["filter_chains"][0]["filters"][0]["typed_config"]["common_http_protocol_options"]
    assert options["max_connection_duration"] == "3600s"
    options["max_connection_duration"] = "1s"
    async with running_envoy(told, folder):
        yield own, admin


async def ready(admin: httpx.AsyncClient) -> bool:
    """Whether it listens."""
    try:
        return (await admin.get("/ready")).status_code == 200
    except httpx.TransportError:
        return False


async def counted(admin: httpx.AsyncClient, name: str) -> int:
    """How many of callers' connections."""
    (told,) = (await admin.get(f"/stats?format=json&filter=^http.edge.{name}$")).json()["stats"]
    return int(told["value"])


async def test_running_answers_survive_the_age_of_their_connection(
    running: Running, vertex: Emulator, tmp_path: Path
) -> None:
    halves = answer("Baseball ", wait_for("rest"), "is a game.")
    vertex.script.play(halves, halves, default=answer("Baseball."))
    async with (
        envoy(running.service, tmp_path) as (own, admin_port),
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{admin_port}", trust_env=False) as admin,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{own}", timeout=30, trust_env=False) as http,
        AsyncClient(f"127.0.0.1:{own}") as grpc,
    ):
        async with asyncio.timeout(60):
            while not await ready(admin):  # noqa: ASYNC110 - another process's doing
                await asyncio.sleep(0.05)
            json_call = asyncio.create_task(ended(http))
            async with grpc.generate("What is baseball?") as call:
                words = call.text()
                assert await anext(words) == "Baseball "
                await vertex.wait_until(lambda e: [one.waiting_for for one in e.open_calls] == ["rest"] * 2)
                before = await counted(admin, "downstream_cx_total")
                assert before == 2
                while await counted(admin, "downstream_cx_max_duration_reached") < 2:  # noqa: ASYNC110 - only Envoy knows
                    await asyncio.sleep(0.05)
                # The next call connects anew, as soon as the caller has heard of it.
                while await counted(admin, "downstream_cx_total") == before:
                    async with grpc.generate("What is baseball?") as other:
                        assert [word async for word in other.text()] == ["Baseball."]
                assert not json_call.done()
                vertex.open_gate("rest")
                assert [word async for word in words] == ["is a game."]
            assert await json_call == "completed"
