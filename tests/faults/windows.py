"""A caller whose windows are its own: it reads nothing, or so many bytes, until it chooses to read on.

gRPC's own callers can't do that: they open a stream's window again as soon as bytes arrive. HTTP/2 by hand, as in
tests/hostile, but for many calls at once.
"""

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import grpc
from google.rpc.status_pb2 import Status

from tests.hostile.http2 import (
    ACK,
    DATA,
    END_HEADERS,
    END_STREAM,
    GENERATE,
    HEADER_TABLE_SIZE,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    PING,
    PREFACE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    frame,
    grpc_message,
    header_block,
    settings,
)

OPEN = 1 << 30

# A slow line: its kernel has room for little, and of that so much is read at once, 400 KB/s.
_SLOW_BYTES, _SLOW_SECONDS = 8192, 0.02

# gRPC's own setting: bytes in metadata come as they are, not in base64 and Huffman's code.
_TRUE_BINARY = 0xFE03

_CODES = {code.value[0]: code for code in grpc.StatusCode}


@dataclass(slots=True)
class Stream:
    """One call, and what has come of it."""

    number: int
    data: bytearray = field(default_factory=bytearray)
    moved: float = 0.0
    """When something last came, on `time.monotonic()`."""
    reset: int | None = None
    """The code of RST_STREAM, where that ended it."""
    trailers: dict[bytes, bytes] = field(default_factory=dict)
    over: asyncio.Event = field(default_factory=asyncio.Event)
    begun: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def messages(self) -> list[bytes]:
        """Those that have come whole."""
        found, at = [], 0
        while len(self.data) >= at + 5:
            size = int.from_bytes(self.data[at + 1 : at + 5], "big")
            if len(self.data) < at + 5 + size:
                break
            found.append(bytes(self.data[at + 5 : at + 5 + size]))
            at += 5 + size
        return found

    @property
    def code(self) -> grpc.StatusCode | None:
        """None: it has not ended, or without a status."""
        return _CODES[int(self.trailers[b"grpc-status"])] if b"grpc-status" in self.trailers else None

    @property
    def status(self) -> Status | None:
        """The status with its details; None: it has none."""
        packed = self.trailers.get(b"grpc-status-details-bin")
        return None if packed is None else Status.FromString(packed.removeprefix(b"\0"))


class Connection:
    """A connection on which every stream begins with the same window.

    On a socket by hand: asyncio's transport forgets what has come and was not read yet as soon as it can't write any
    more, and a server may close the connection behind its last status.
    """

    def __init__(self, connected: socket.socket, window: int, *, slow: bool = False) -> None:
        """`slow`: it reads 400 KB/s, and pings each time."""
        self._socket = connected
        self._slow = slow
        self._unread = b""
        self.streams: dict[int, Stream] = {}
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(connected, self._read)
        first = settings((HEADER_TABLE_SIZE, 0), (INITIAL_WINDOW_SIZE, window), (_TRUE_BINARY, 1))
        self._write(PREFACE + first + _more(0, OPEN))

    def _write(self, data: bytes) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):  # what has come can still be read
            sent = self._socket.send(data)
            assert sent == len(data), "all that is written here is small"

    def _read(self) -> None:
        try:
            data = self._socket.recv(_SLOW_BYTES if self._slow else 1 << 20)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            return
        self._received(data)
        if self._slow:
            self._loop.remove_reader(self._socket)
            self._loop.call_later(_SLOW_SECONDS, self._read_on)

    def _read_on(self) -> None:
        if self._socket.fileno() >= 0:
            self._write(frame(PING, 0, 0, bytes(8)))
            self._loop.add_reader(self._socket, self._read)

    def call(self, message: bytes, *, path: str = GENERATE, seconds: float | None = None) -> Stream:
        """Begin a call, with a deadline if it has one."""
        stream = Stream(1 + 2 * len(self.streams))
        self.streams[stream.number] = stream
        deadline = [("grpc-timeout", f"{round(seconds * 1000)}m")] if seconds is not None else []
        fields = header_block(
            (":method", "POST"),
            (":scheme", "http"),
            (":path", path),
            (":authority", "localhost"),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
            *deadline,
        )
        head = frame(HEADERS, END_HEADERS, stream.number, fields)
        self._write(head + frame(DATA, END_STREAM, stream.number, grpc_message(message)))
        return stream

    def open(self, stream: Stream) -> None:
        """From now on, read all that comes."""
        if not stream.over.is_set():
            self._write(_more(stream.number, OPEN))

    def cancel(self, stream: Stream) -> None:
        if not stream.over.is_set():
            self._write(frame(RST_STREAM, 0, stream.number, (8).to_bytes(4, "big")))
            self._end(stream)

    def close(self) -> None:
        if self._socket.fileno() < 0:
            return
        self._loop.remove_reader(self._socket)
        self._socket.close()
        for stream in self.streams.values():
            self._end(stream)

    def _received(self, data: bytes) -> None:
        self._unread += data
        while len(self._unread) >= 9:
            size = int.from_bytes(self._unread[:3], "big")
            if len(self._unread) < 9 + size:
                return
            head, payload = self._unread[:9], self._unread[9 : 9 + size]
            self._unread = self._unread[9 + size :]
            self._take(head[3], head[4], int.from_bytes(head[5:], "big"), payload)

    def _take(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        if kind in (SETTINGS, PING) and not flags & ACK:
            self._write(frame(kind, ACK, 0, payload if kind == PING else b""))
        stream = self.streams.get(number)
        if stream is None or kind not in (DATA, HEADERS, RST_STREAM):
            return
        stream.moved = time.monotonic()
        stream.begun.set()
        if kind == DATA:
            stream.data += payload
        elif kind == RST_STREAM:
            if not stream.over.is_set():
                stream.reset = int.from_bytes(payload, "big")
                self._end(stream)
        elif flags & END_STREAM:
            stream.trailers = _fields(payload)
            self._end(stream)

    def _end(self, stream: Stream) -> None:
        stream.begun.set()
        stream.over.set()


@asynccontextmanager
async def connected(address: str, *, window: int, slow: bool = False) -> AsyncIterator[Connection]:
    host, _, port = address.rpartition(":")
    loop = asyncio.get_running_loop()
    connecting = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    connecting.setblocking(False)
    if slow:
        connecting.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SLOW_BYTES)
    await loop.sock_connect(connecting, (host.strip("[]"), int(port)))
    connection = Connection(connecting, window, slow=slow)
    try:
        yield connection
    finally:
        connection.close()


def _more(stream: int, size: int) -> bytes:
    return frame(WINDOW_UPDATE, 0, stream, size.to_bytes(4, "big"))


def _fields(block: bytes) -> dict[bytes, bytes]:
    """Header fields that were sent as literals; others have no name here (RFC 7541, section 6)."""
    found, at = {}, 0
    while at < len(block):
        first = block[at]
        if first & 0x80:
            _, at = _integer(block, at, 7)
        elif first & 0xE0 == 0x20:
            _, at = _integer(block, at, 5)
        else:
            index, at = _integer(block, at, 6 if first & 0x40 else 4)
            name, at = (b"", at) if index else _text(block, at)
            found[name], at = _text(block, at)
    return found


def _text(block: bytes, at: int) -> tuple[bytes, int]:
    assert not block[at] & 0x80, "Huffman's code was not asked for"
    size, at = _integer(block, at, 7)
    return block[at : at + size], at + size


def _integer(block: bytes, at: int, bits: int) -> tuple[int, int]:
    most = (1 << bits) - 1
    value, at = block[at] & most, at + 1
    if value < most:
        return value, at
    shift = 0
    while True:
        value, shift, at = value + ((block[at] & 0x7F) << shift), shift + 7, at + 1
        if not block[at - 1] & 0x80:
            return value, at
