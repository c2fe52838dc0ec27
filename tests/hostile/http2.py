"""HTTP/2 by hand, for what no well-behaved client would send: frames as bytes, on a blocking socket.

Only what the attacks need (RFC 9113 and, for header blocks, the literal fields of RFC 7541).
"""

import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from types import TracebackType
from typing import Self

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM = ACK = 0x1
END_HEADERS = 0x4

HEADER_TABLE_SIZE, INITIAL_WINDOW_SIZE = 0x1, 0x4

GENERATE = "/tokenwire.v1.GenerationService/Generate"


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def settings(*pairs: tuple[int, int]) -> bytes:
    return frame(SETTINGS, 0, 0, b"".join(struct.pack(">HI", *pair) for pair in pairs))


def header_block(*headers: tuple[str, str]) -> bytes:
    """Literal fields, neither indexed nor compressed."""
    return b"".join(b"\0" + _string(name) + _string(value) for name, value in headers)


def call_headers(*more: tuple[str, str], content_type: str = "application/grpc", path: str = GENERATE) -> bytes:
    """The header block of a call, of Generate if nothing else is said."""
    return header_block(
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "localhost"),
        ("content-type", content_type),
        ("te", "trailers"),
        *more,
    )


def grpc_message(data: bytes, *, compressed: bool = False, declared: int | None = None) -> bytes:
    """A gRPC message; `declared` is the length it claims to have."""
    return struct.pack(">BI", compressed, len(data) if declared is None else declared) + data


def _string(text: str) -> bytes:
    data = text.encode("latin-1")
    if len(data) < 127:
        return bytes([len(data)]) + data
    rest, prefix = len(data) - 127, b"\x7f"
    while rest >= 128:
        prefix += bytes([rest % 128 + 128])
        rest //= 128
    return prefix + bytes([rest]) + data


class Connection:
    """A TCP connection to the server; after `hello` an HTTP/2 one. Each wait ends after `patience` seconds."""

    def __init__(self, address: str, *, patience: float = 30) -> None:
        host, _, port = address.rpartition(":")
        self._socket = socket.create_connection((host, int(port)), timeout=patience)
        self._unread = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def hello(self, *pairs: tuple[int, int]) -> Self:
        """Preface and settings; the server is asked to send header fields as literals, so that we can read them."""
        return self.send(PREFACE + settings((HEADER_TABLE_SIZE, 0), *pairs) + frame(SETTINGS, ACK, 0))

    def send(self, data: bytes) -> Self:
        self._socket.sendall(data)
        return self

    def send_until_refused(self, *pieces: bytes) -> bool:
        """Send piece after piece without reading; True if the server closed the connection meanwhile."""
        try:
            for piece in pieces:
                self._socket.sendall(piece)
        except (BrokenPipeError, ConnectionResetError):
            return True
        return False

    def frames(self) -> Iterator[tuple[int, int, int, bytes]]:
        """Kind, flags, stream and payload of each frame, until the server closes the connection. Answers pings."""
        while (head := self._exactly(9)) is not None:
            length = int.from_bytes(head[:3], "big")
            payload = self._exactly(length)
            if payload is None:
                return
            kind, flags, stream = head[3], head[4], int.from_bytes(head[5:], "big") & 0x7FFFFFFF
            if kind == PING and not flags & ACK:
                self.send_until_refused(frame(PING, ACK, 0, payload))
            yield kind, flags, stream, payload

    def until(self, kind: int, *, flags: int = 0) -> bytes | None:
        """The payload of the next frame of this kind and with these flags; None: the connection was closed before."""
        for found, given, _, payload in self.frames():
            if found == kind and given & flags == flags:
                return payload
        return None

    def call(self, frames: bytes) -> bytes | None:
        """Send the frames of one call, its data within the windows that the server grants; the payload of its trailers.

        None: the connection was closed before.
        """
        windows = {0: 65535, 1: 65535}
        initial, greeted = 65535, False
        unsent = list(_split(frames))
        for kind, flags, stream, payload in self.frames():
            if kind == HEADERS and flags & END_STREAM:
                return payload
            if kind == WINDOW_UPDATE and stream in windows:
                windows[stream] += int.from_bytes(payload, "big")
            elif kind == SETTINGS and not flags & ACK:
                for key, value in struct.iter_unpack(">HI", payload):
                    if key == INITIAL_WINDOW_SIZE:
                        windows[1] += value - initial
                        initial = value
                greeted = True
            while greeted and unsent and len(unsent[0]) - 9 <= min(windows.values()):
                one = unsent.pop(0)
                if one[3] == DATA:
                    windows = {stream: window - len(one) + 9 for stream, window in windows.items()}
                if self.send_until_refused(one):
                    return None
        return None

    def hang_up(self) -> None:
        """Say that nothing more comes; what has been sent is still read, as it would not be after a reset."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def until_closed(self) -> None:
        """Read whatever still comes."""
        while self._receive():
            pass

    def _exactly(self, size: int) -> bytes | None:
        while len(self._unread) < size:
            more = self._receive()
            if not more:
                return None
            self._unread += more
        data, self._unread = self._unread[:size], self._unread[size:]
        return data

    def _receive(self) -> bytes:
        try:
            return self._socket.recv(65536)
        except ConnectionResetError:
            return b""


def _split(frames: bytes) -> Iterator[bytes]:
    while frames:
        size = 9 + int.from_bytes(frames[:3], "big")
        yield frames[:size]
        frames = frames[size:]


def status_in(block: bytes | None) -> int | None:
    """The gRPC status in a header block of literals; None where there is none."""
    value = (block or b"").partition(b"grpc-status")[2]
    return int(value[1 : 1 + value[0]]) if value else None


def window_update(stream: int, size: int) -> bytes:
    return frame(WINDOW_UPDATE, 0, stream, struct.pack(">I", size))


def call(request: bytes, *, path: str = GENERATE, stream: int = 1) -> bytes:
    """A whole unary request."""
    return frame(HEADERS, END_HEADERS, stream, call_headers(path=path)) + frame(
        DATA, END_STREAM, stream, grpc_message(request)
    )
