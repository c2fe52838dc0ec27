"""Readers of stamped answers, by gRPC and by server-sent events: how long each chunk took to get here.

Upstream puts into each chunk when it was sent, by a clock that is the same in every process.
"""

import asyncio
import re
import socket
import urllib.request
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any
from urllib.parse import quote

import grpc.aio

from bench.figures import percentile
from bench.processes import cpu_seconds, memory_bytes
from bench.script import STAMP, Script
from bench.targets import Tokenwire, now
from tokenwire.v1 import generation_service_pb2 as pb

# An id in hexadecimal digits may have as many decimal ones, though not with so many zeros, nor from its beginning on.
_STAMP = re.compile(rb"(?<![0-9a-f])000\d{%d}" % (len(STAMP) - 3))
_SMALL_BYTES = 4096
_TAIL_BYTES = 300
_PATIENCE_SECONDS = 60.0
_LOOK_SECONDS = 0.5
_QUIET_LOOKS = 2
_IDLE_PART = 0.1
"""Of a processor: what service and Envoy take that only look after themselves."""


async def stamped(told: dict[str, Any]) -> dict[str, Any]:
    """Read so many answers at once; in ms, how late chunks were, and by how much gaps were longer than the script's.

    `stalled`: how many further callers ask for `stalled_chunks` large chunks at once, and read nothing. The others
    begin once all of them have stalled, so that none of the processes in `memory` has anything to do. They are there
    until the others have ended. `memory`: processes by name, of which the memory in MB is told then; `metrics`: the
    address that says how many streams are open then.
    """
    script = Script(chunks=told["chunks"], interval=told["interval"], stamped=True)
    # As fast as it goes, so that all that would hold it is full.
    flood = Script(chunks=told.get("stalled_chunks", 1), large=True)
    stalled = [await _stall(told["address"], flood) for _ in range(told.get("stalled", 0))]
    if stalled:
        await _settled([pid for pids in told["memory"].values() for pid in pids])
    count = told["streams"]
    readers = await _grpc(told["address"], count) if told["kind"] == "grpc" else _Sse(told["address"])

    async def one(index: int) -> list[tuple[float, float]]:
        await asyncio.sleep(told["spread"] * index / count)
        async with asyncio.timeout(_PATIENCE_SECONDS + script.chunks * script.interval):
            return await readers.read(script, index)

    found = await asyncio.gather(*(one(index) for index in range(count)))
    await readers.close()
    memory = {name: memory_bytes(pids) / 2**20 for name, pids in told.get("memory", {}).items()}
    held = _open_streams(told["metrics"]) if "metrics" in told else 0
    for transport in stalled:
        transport.abort()
    # The first chunk has the way of a request in it.
    late = [came - sent for answer in found for came, sent in answer[1:]]
    gaps = [later[0] - earlier[0] - script.interval for answer in found for earlier, later in pairwise(answer[1:])]
    errors = Counter(
        f"{len(answer)} of {script.chunks} chunks, at last {readers.last.get(index, '')}"
        for index, answer in enumerate(found)
        if len(answer) != script.chunks
    )
    return {
        "errors": errors,
        "late_ms": _spread(late),
        "gap_over_ms": _spread(gaps),
        "memory": memory,
        "held": held,
    }


async def _settled(pids: Sequence[int]) -> None:
    """Wait until these processes have nothing to do any more."""
    async with asyncio.timeout(_PATIENCE_SECONDS):
        quiet = 0
        while quiet < _QUIET_LOOKS:
            before = cpu_seconds(pids)
            await asyncio.sleep(_LOOK_SECONDS)
            quiet = quiet + 1 if cpu_seconds(pids) - before < _IDLE_PART * _LOOK_SECONDS else 0


def _open_streams(address: str) -> int:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=5) as told:
        (found,) = re.findall(rb"^tokenwire_open_streams (\S+)$", told.read(), re.MULTILINE)
    return int(float(found))


def _spread(seconds: Sequence[float]) -> dict[str, float]:
    return {f"p{part}": 1e3 * percentile(seconds, part) for part in (50, 99)} if seconds else {}


class _Grpc:
    def __init__(self, channels: Sequence[grpc.aio.Channel]) -> None:
        self.last: dict[int, str] = {}
        """What came last of an answer that isn't whole."""
        self._channels = channels
        self._calls: list[Any] = [channel.unary_stream(Tokenwire.method) for channel in channels]

    async def read(self, script: Script, index: int) -> list[tuple[float, float]]:
        call = self._calls[index % len(self._calls)](pb.GenerateRequest(prompt=str(script)).SerializeToString())
        arrived = []
        while (message := await call.read()) is not grpc.aio.EOF:
            arrived.append((now(), message))
        if await call.code() is not grpc.StatusCode.OK:
            self.last[index] = f"{await call.code()}: {await call.details()}"
        return [(came, int(found[0]) / 1e9) for came, message in arrived if (found := _STAMP.search(message))]

    async def close(self) -> None:
        await asyncio.gather(*(channel.close() for channel in self._channels))


async def _grpc(address: str, count: int) -> _Grpc:
    options = [("grpc.use_local_subchannel_pool", 1)]
    channels = [grpc.aio.insecure_channel(address, options=options) for _ in range(min(count, 16))]
    await asyncio.gather(*(channel.channel_ready() for channel in channels))
    return _Grpc(channels)


class _Sse:
    """Each on a connection of its own, as browsers have it with EventSource over HTTP/1.1."""

    def __init__(self, address: str) -> None:
        self.last: dict[int, str] = {}
        """What came last of an answer that isn't whole."""
        self._host, _, port = address.partition(":")
        self._port = int(port)

    async def read(self, script: Script, index: int) -> list[tuple[float, float]]:
        loop = asyncio.get_running_loop()
        _, reader = await loop.create_connection(lambda: _Reader(loop), self._host, self._port)
        reader.ask(f"/v1/generate?prompt={quote(str(script))}", self._host)
        found = await reader.over
        if len(found) != script.chunks:
            self.last[index] = repr(reader.tail)
        return found

    async def close(self) -> None:
        """Nothing: each connection has ended with its answer."""


class _Reader(asyncio.Protocol):
    """One answer. What came is searched for stamps only: to read all of it is no part of what is measured."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.over: asyncio.Future[list[tuple[float, float]]] = loop.create_future()
        self._found: list[tuple[float, float]] = []
        self.tail = b""
        """The last that came: a stamp may have come in part."""
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def ask(self, path: str, host: str) -> None:
        self._transport.write(_request(path, host))

    def data_received(self, data: bytes) -> None:
        came = now()
        data = self.tail + data
        end = 0
        for found in _STAMP.finditer(data):
            self._found.append((came, int(found[0]) / 1e9))
            end = found.end()
        self.tail = data[max(end, len(data) - _TAIL_BYTES) :]
        if b'"completed"' in data:
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self.over.set_result(self._found)


def _request(path: str, host: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nhost: {host}\r\naccept: text/event-stream\r\n\r\n".encode()


async def _stall(address: str, script: Script) -> asyncio.Transport:
    """Ask, read nothing, and leave the system little room for what comes."""
    host, _, port = address.partition(":")
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SMALL_BYTES)
    sock.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(sock, (host, int(port)))
    transport, _ = await loop.create_connection(asyncio.Protocol, sock=sock)
    transport.pause_reading()
    transport.write(_request(f"/v1/generate?prompt={quote(str(script))}", host))
    return transport
