"""The scripted upstream: Vertex's streaming call over HTTP/2, answered from bytes that were prepared before.

    python -m bench.upstream

It must not be what is measured, and on grpc.aio it would cost nearly as much as the cheapest peer does. So the few
frames that gRPC needs are written by hand (RFC 9113; header blocks as literals, RFC 7541): a chunk is one timer and one
write to the socket. Each stream has a clock of its own, and the clocks' phases are spread, as those of independent
callers are.
"""

import asyncio
import struct
import sys
import time
from dataclasses import dataclass, field

from bench.script import RELEASE, STAMP, Script, chunk, large

LONGEST = 20_000
"""Chunks in one answer at most."""

# Multiples of the golden ratio's fraction spread evenly, however many there are.
_GOLDEN = 0.618033988749895

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 8
_END_STREAM = _ACK = 0x1
_END_HEADERS = 0x4
_PADDED = 0x8
_INITIAL_WINDOW_SIZE = 0x4
_DEFAULT_WINDOW_BYTES = 65_535
_STAMP = STAMP.encode()
_GRPC_PREFIX_BYTES = 5

# ":status: 200" from the static table, content-type by its name there.
_HEADER_BLOCK = b"\x88\x0f\x10\x10application/grpc"
_TRAILER_BLOCK = b"\x00\x0bgrpc-status\x010"


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return _head(kind, flags, len(payload)) + stream.to_bytes(4, "big") + payload


def _head(kind: int, flags: int, length: int) -> bytes:
    return length.to_bytes(3, "big") + bytes((kind, flags))


@dataclass(frozen=True, slots=True)
class Chunk:
    """A DATA frame with one message, but for its stream's number."""

    head: bytes
    body: bytes

    @classmethod
    def of(cls, message: bytes) -> "Chunk":
        body = struct.pack(">BI", 0, len(message)) + message
        return cls(_head(_DATA, 0, len(body)), body)


@dataclass(slots=True)
class Stream:
    """One call."""

    number: bytes
    window: int
    """Bytes that its reader takes for now."""
    request: bytes = b""
    chunks: list[Chunk] = field(default_factory=list)
    next: int = 0
    """The index of the next chunk."""
    interval: float = 0.0
    due: float = 0.0
    """When the next chunk is to be sent, on the loop's clock."""
    held: bool = False
    """Whether the last chunk waits to be released."""
    stamped: bool = False
    """Whether each chunk is to say when it was sent."""
    timer: asyncio.TimerHandle | None = None


class Answers:
    """What all connections share."""

    def __init__(self) -> None:
        self.connections: set[Connection] = set()
        self._more = [Chunk.of(chunk(index, last=False)) for index in range(LONGEST)]
        self._large: dict[int, list[Chunk]] = {}
        """Answers of large chunks, by the index of the last."""
        self._phase = 0.0

    def chunks(self, script: Script) -> list[Chunk]:
        """A whole answer."""
        last = script.chunks - 1
        if script.stamped:
            return [Chunk.of(chunk(index, last=index == last, text=STAMP)) for index in range(script.chunks)]
        if script.large:
            if last not in self._large:  # megabytes, and many ask for the same
                whole = (chunk(index, last=index == last, text=large(index)) for index in range(script.chunks))
                self._large[last] = [Chunk.of(one) for one in whole]
            return self._large[last]
        return [*self._more[:last], Chunk.of(chunk(last, last=True))]

    def phase(self) -> float:
        """The next stream's, in parts of its interval."""
        self._phase = (self._phase + _GOLDEN) % 1
        return self._phase


class Connection(asyncio.Protocol):
    """One HTTP/2 connection."""

    def __init__(self, answers: Answers) -> None:
        self._answers = answers
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self._received = bytearray()
        self._greeted = False
        self._streams: dict[int, Stream] = {}
        self._blocked: list[Stream] = []
        """Those that have something to send and no room for it."""
        self._window = _DEFAULT_WINDOW_BYTES
        self._initial_window = _DEFAULT_WINDOW_BYTES

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._answers.connections.add(self)
        transport.write(frame(_SETTINGS, 0, 0))

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self._answers.connections.discard(self)
        for number in list(self._streams):
            self._drop(number)

    def data_received(self, data: bytes) -> None:
        self._received += data
        if not self._greeted:
            if len(self._received) < len(_PREFACE):
                return
            if not self._received.startswith(_PREFACE):
                raise ValueError("this is not HTTP/2")
            del self._received[: len(_PREFACE)]
            self._greeted = True
        while len(self._received) >= 9:
            end = 9 + int.from_bytes(self._received[:3], "big")
            if len(self._received) < end:
                return
            kind, flags = self._received[3], self._received[4]
            number = int.from_bytes(self._received[5:9], "big")
            payload = bytes(self._received[9:end])
            del self._received[:end]
            self._take(kind, flags, number, payload)

    def _take(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        if kind == _HEADERS:
            self._streams[number] = Stream(number.to_bytes(4, "big"), self._initial_window)
        elif kind == _DATA:
            self._take_data(flags, number, payload)
        elif kind == _WINDOW_UPDATE:
            self._widen(number, int.from_bytes(payload, "big"))
        elif kind == _PING and not flags & _ACK:
            self._transport.write(frame(_PING, _ACK, 0, payload))
        elif kind == _SETTINGS and not flags & _ACK:
            self._take_settings(payload)
        elif kind == _RST_STREAM:
            self._drop(number)

    def _take_data(self, flags: int, number: int, payload: bytes) -> None:
        assert not flags & _PADDED, "gRPC pads nothing"
        if payload:
            self._transport.write(frame(_WINDOW_UPDATE, 0, 0, len(payload).to_bytes(4, "big")))
        stream = self._streams.get(number)
        if stream is None:
            return
        stream.request += payload
        if flags & _END_STREAM:
            self._begin(stream)

    def _take_settings(self, payload: bytes) -> None:
        for name, value in struct.iter_unpack(">HI", payload):
            if name == _INITIAL_WINDOW_SIZE:
                for stream in self._streams.values():
                    stream.window += value - self._initial_window
                self._initial_window = value
        self._transport.write(frame(_SETTINGS, _ACK, 0))

    def _widen(self, number: int, by: int) -> None:
        if not number:
            self._window += by
        elif number in self._streams:
            self._streams[number].window += by
        blocked, self._blocked = self._blocked, []
        for stream in blocked:
            self._send(stream)

    def _begin(self, stream: Stream) -> None:
        self._transport.write(_head(_HEADERS, _END_HEADERS, len(_HEADER_BLOCK)) + stream.number + _HEADER_BLOCK)
        if RELEASE in stream.request:
            for connection in self._answers.connections:
                connection.release()
            stream.chunks = [Chunk.of(b"")]
        else:
            script = Script.find(stream.request)
            stream.chunks = self._answers.chunks(script)
            stream.interval = script.interval
            stream.held, stream.stamped = script.hold, script.stamped
            if script.interval:
                stream.due = self._loop.time() + self._answers.phase() * script.interval
        self._send(stream)

    def release(self) -> None:
        """End every stream that is held now."""
        for stream in list(self._streams.values()):
            if stream.held:
                stream.held = False
                self._send(stream)

    def _send(self, stream: Stream) -> None:
        """All that is due and has room."""
        stream.timer = None
        out: list[bytes] = []
        now = self._loop.time()
        last = len(stream.chunks) - 1
        while stream.next <= last and stream.due <= now and not (stream.held and stream.next == last):
            data = stream.chunks[stream.next]
            if len(data.body) > min(self._window, stream.window):
                self._blocked.append(stream)
                break
            self._window -= len(data.body)
            stream.window -= len(data.body)
            body = data.body
            if stream.stamped:
                body = body.replace(_STAMP, b"%020d" % time.monotonic_ns())
            out += (data.head, stream.number, body)
            stream.next += 1
            stream.due += stream.interval
        if stream.next > last:
            out += (_head(_HEADERS, _END_HEADERS | _END_STREAM, len(_TRAILER_BLOCK)), stream.number, _TRAILER_BLOCK)
            del self._streams[int.from_bytes(stream.number, "big")]
        elif stream.due > now:
            stream.timer = self._loop.call_at(stream.due, self._send, stream)
        if out:
            self._transport.write(b"".join(out))

    def _drop(self, number: int) -> None:
        stream = self._streams.pop(number, None)
        if stream is None:
            return
        if stream.timer is not None:
            stream.timer.cancel()
        if stream in self._blocked:
            self._blocked.remove(stream)


async def main() -> None:
    """Serve until the process is ended."""
    answers = Answers()
    server = await asyncio.get_running_loop().create_server(lambda: Connection(answers), "127.0.0.1", 0, backlog=1024)
    port = server.sockets[0].getsockname()[1]
    print(f"listening on 127.0.0.1:{port}, ready", file=sys.stderr, flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
