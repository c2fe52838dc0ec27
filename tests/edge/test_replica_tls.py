"""TLS between Envoy and the replicas: calls and health checks alike, and with nobody that isn't one."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.certificates import Authority
from tests.conftest import server_process
from tests.edge.conftest import Running, ended, running_edge
from tests.ports import free_port
from vertex_emulator.emulator import Emulator
from vertex_emulator.script import answer

NAME = "replica.internal"


@dataclass(frozen=True)
class Secured:
    """A replica that speaks TLS, for its address and for a name."""

    address: str
    ca: str
    other_ca: str
    """Of an authority that has signed nothing of it."""


@pytest.fixture(scope="module")
async def secured(running: Running, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Secured]:
    folder: Path = tmp_path_factory.mktemp("secured")
    authority = Authority()
    certificate, key = authority.sign("127.0.0.1", NAME).write(folder)
    paths = folder / "ca.pem", folder / "other.pem"
    for path, one in zip(paths, (authority, Authority()), strict=True):
        path.write_bytes(one.pem)
    flags = ("--tls-certificate", certificate, "--tls-key", key, "--workers", "1")
    async with server_process(running.emulator, *flags) as server:
        await server.said("ready after")
        yield Secured(server.address, *map(str, paths))


async def healthy(port: int) -> int:
    """How many replicas the edge with this port for metrics holds to serve."""
    async with httpx.AsyncClient(trust_env=False) as client:
        told = (await client.get(f"http://127.0.0.1:{port}/metrics")).text
    name = 'envoy_cluster_membership_healthy{envoy_cluster_name="replicas"} '
    (line,) = (line for line in told.splitlines() if line.startswith(name))
    return int(line.removeprefix(name))


@pytest.mark.parametrize("name", [[], ["--replica-name", NAME]])
async def test_replicas_are_called_and_asked_for_their_health_by_tls(
    vertex: Emulator, secured: Secured, name: list[str]
) -> None:
    vertex.script.play(answer("Base", "ball."))
    port = free_port()
    flags = ("--replica", secured.address, "--replica-ca", secured.ca, *name, "--metrics-port", str(port))
    async with running_edge(*flags) as edge, edge.client() as client:
        assert await healthy(port) == 1
        assert await ended(client) == "completed"
    assert len(vertex.calls) == 1


@pytest.mark.parametrize("wrong", ["name", "authority", "no TLS of Envoy's", "no TLS of the replica's"])
async def test_what_is_no_replica_is_neither_called_nor_taken_for_one(
    running: Running, vertex: Emulator, secured: Secured, wrong: str
) -> None:
    ca = secured.other_ca if wrong == "authority" else secured.ca
    flags = {
        "name": ["--replica-ca", ca, "--replica-name", "another.internal"],
        "no TLS of Envoy's": [],
    }.get(wrong, ["--replica-ca", ca])
    replica = running.service if wrong == "no TLS of the replica's" else secured.address
    port = free_port()
    async with (
        running_edge("--replica", replica, *flags, "--metrics-port", str(port)) as edge,
        edge.client() as client,
    ):
        assert await healthy(port) == 0
        assert (await client.post("/v1/generate", json={"prompt": "What is baseball?"})).status_code == 503
    assert not vertex.calls
