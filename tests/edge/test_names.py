"""Replicas behind one name, whose addresses come and go, as those of a headless Service of Kubernetes."""

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import httpx

from tests.edge.conftest import ended, running_envoy, running_service
from tests.ports import free_port
from tokenwire.cli.running import envoy_configuration
from vertex_emulator.emulator import Emulator
from vertex_emulator.script import answer, wait_for

NAME = "tokenwire-replicas"
_POINTER = b"\xc0\x0c"  # to the name that was asked
_A, _IN, _TTL = 1, 1, 0


class Names(asyncio.DatagramProtocol):
    """A name server that knows one name."""

    def __init__(self) -> None:
        self.addresses: list[str] = []
        self.asked = 0
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        end = data.index(b"\0", 12) + 5  # the name, its end, and what is asked of it
        (kind,) = struct.unpack(">H", data[end - 4 : end - 2])
        found = self.addresses if kind == _A else []
        head = data[:2] + struct.pack(">HHHHH", 0x8180, 1, len(found), 0, 0)
        records = [_POINTER + struct.pack(">HHIH", _A, _IN, _TTL, 4) + IPv4Address(one).packed for one in found]
        self.asked += kind == _A
        self._transport.sendto(head + data[12:end] + b"".join(records), addr)


@asynccontextmanager
async def envoy(names: Names, port: int, folder: Path) -> AsyncIterator[tuple[int, int]]:
    """It looks the name up there, ten times a second. Gives its port, and that of its administration."""
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(lambda: names, local_addr=("127.0.0.1", 0))
    own, admin = free_port(), free_port()
    told = envoy_configuration.filled_in(
        addresses=["127.0.0.1"], port=own, replicas=[f"{NAME}:{port}"], admin=("127.0.0.1", admin)
    )
    (cluster,) = told["static_resources"]["clusters"]
    cluster["dns_refresh_rate"] = "0.1s"
    kind = "type.googleapis.com/envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig"
    server = {"address": "127.0.0.1", "port_value": transport.get_extra_info("sockname")[1]}
    cluster["typed_dns_resolver_config"] = {
        "name": "envoy.network.dns_resolver.cares",
        "typed_config": {
            "@type": kind,
            "resolvers": [{"socket_address": server}],
            "dns_resolver_options": {"no_default_search_domain": True},
        },
    }
    try:
        async with running_envoy(told, folder):
            yield own, admin
    finally:
        transport.close()


async def healthy(admin: httpx.AsyncClient) -> set[str]:
    """The addresses that Envoy sends calls to."""
    try:
        told = (await admin.get("/clusters?format=json")).json()
    except httpx.TransportError:  # it starts
        return set()
    (cluster,) = (one for one in told["cluster_statuses"] if one["name"] == "replicas")
    return {
        one["address"]["socket_address"]["address"]
        for one in cluster.get("host_statuses", ())
        # Anything else says why not: its check has failed, or is yet to come, or the name has forgotten it.
        if one["health_status"].keys() == {"eds_health_status"}
    }


async def until(admin: httpx.AsyncClient, wanted: set[str]) -> None:
    async with asyncio.timeout(30):
        while await healthy(admin) != wanted:  # noqa: ASYNC110 - another process's doing
            await asyncio.sleep(0.02)


async def test_a_replica_that_leaves_the_name_keeps_its_streams_until_they_end(
    emulator: Emulator, tmp_path: Path
) -> None:
    """First the name forgets it, as of a pod that is to go, then it drains; and one that is new is found."""
    emulator.script.play(*(answer("Baseball ", wait_for("rest"), "is a game.") for _ in range(4)), default=answer("a"))
    names, port = Names(), free_port()
    settings: dict[str, Any] = {"port": port, "drain_delay": 2, "slots": 200}
    async with running_service(emulator, host="127.0.0.1", **settings) as going:
        names.addresses = ["127.0.0.1"]
        async with (
            envoy(names, port, tmp_path) as (own, admin_port),
            httpx.AsyncClient(base_url=f"http://127.0.0.1:{own}", timeout=30, trust_env=False) as client,
            httpx.AsyncClient(base_url=f"http://127.0.0.1:{admin_port}", trust_env=False) as admin,
        ):
            await until(admin, {"127.0.0.1"})
            streams = [asyncio.create_task(ended(client)) for _ in range(4)]
            await emulator.wait_until(lambda e: [call.waiting_for for call in e.open_calls] == ["rest"] * 4)
            async with running_service(emulator, host="127.0.0.2", **settings):
                names.addresses = ["127.0.0.1", "127.0.0.2"]
                await until(admin, {"127.0.0.1", "127.0.0.2"})
                names.addresses = ["127.0.0.2"]
                asked = names.asked
                outcomes: list[str] = []
                async with asyncio.timeout(30):
                    while names.asked < asked + 3:  # Envoy has heard of it
                        outcomes += await asyncio.gather(*(ended(client) for _ in range(5)))
                stopping = going.stop(60)
                async with asyncio.timeout(30):
                    while await healthy(admin) != {"127.0.0.2"}:
                        outcomes += await asyncio.gather(*(ended(client) for _ in range(5)))
                outcomes += [await ended(client) for _ in range(20)]
                assert not any(stream.done() for stream in streams)
                emulator.open_gate("rest")
                outcomes += await asyncio.gather(*streams)
                await stopping
                assert set(outcomes) == {"completed"}
                assert len(emulator.calls) == len(outcomes)
