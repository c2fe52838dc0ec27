"""Uploads that never end, on connections of their own: HTTP/2 by hand, within the windows that the server grants."""

import socket
import struct
import threading
import time
from collections import Counter
from types import TracebackType
from typing import Self

from tests.hostile import http2
from tests.hostile.http2 import Connection, call_headers, frame, status_in

FRAME_BYTES = 16384
_GZIP = ("grpc-encoding", "gzip")


class Uploads:
    """One connection with many calls, each of whose requests promises `declared` bytes."""

    def __init__(self, address: str, *, declared: int, compressed: bool = False) -> None:
        self.endings: Counter[int | str | None] = Counter()
        """How calls ended: by their gRPC status."""
        self.sent = 0
        self._declared = declared
        self._compressed = compressed
        self._connection = Connection(address, patience=60)
        self._window = 65535  # of a new call, and of the connection
        self._connection_window = 65535
        self._open: dict[int, int] = {}
        """The window of each call that is open."""
        self._next = 1
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> Self:
        self._connection.hello()
        self._reader.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection._socket.shutdown(socket.SHUT_RDWR)
        self._reader.join(10)
        self._connection.__exit__(kind, error, trace)

    def begin(self, calls: int) -> None:
        """Open so many calls and send the length of each request, but nothing of it."""
        prefix = struct.pack(">BI", self._compressed, self._declared)
        headers = call_headers(*((_GZIP,) if self._compressed else ()))
        for _ in range(calls):
            stream, self._next = self._next, self._next + 2
            with self._changed:
                self._open[stream] = self._window - len(prefix)
                self._connection_window -= len(prefix)
            head = frame(http2.HEADERS, http2.END_HEADERS, stream, headers)
            self._connection.send(head + frame(http2.DATA, 0, stream, prefix))

    def send_for(self, seconds: float, *, piece: int = FRAME_BYTES, pause: float = 0.05) -> None:
        """Send all calls' requests as fast as the server takes them, but for their last bytes."""
        end = time.monotonic() + seconds
        # Always one byte less than was promised: none is ever complete.
        left = dict.fromkeys(self._open, self._declared - 1)
        while time.monotonic() < end:
            before = self.sent
            for stream in list(self._open):
                self._send(stream, left, piece)
            if self.sent == before or piece < FRAME_BYTES:
                with self._changed:
                    self._changed.wait(pause)

    def _send(self, stream: int, left: dict[int, int], piece: int) -> None:
        with self._changed:
            size = min(piece, self._open.get(stream, 0), self._connection_window, left[stream])
            if size <= 0:
                return
            self._open[stream] -= size
            self._connection_window -= size
            left[stream] -= size
            self.sent += size
        self._connection.send(frame(http2.DATA, 0, stream, bytes(size)))

    def _read(self) -> None:
        for kind, flags, stream, payload in self._connection.frames():
            with self._changed:
                self._take(kind, flags, stream, payload)
                self._changed.notify_all()

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == http2.SETTINGS and not flags & http2.ACK:
            for start in range(0, len(payload), 6):
                key, value = struct.unpack(">HI", payload[start : start + 6])
                if key == http2.INITIAL_WINDOW_SIZE:
                    self._open = {one: window + value - self._window for one, window in self._open.items()}
                    self._window = value
        elif kind == http2.WINDOW_UPDATE and stream == 0:
            self._connection_window += int.from_bytes(payload, "big")
        elif kind == http2.WINDOW_UPDATE and stream in self._open:
            self._open[stream] += int.from_bytes(payload, "big")
        elif kind == http2.HEADERS and flags & http2.END_STREAM:
            self.endings[status_in(payload)] += 1
            self._open.pop(stream, None)
        elif kind == http2.RST_STREAM:
            self.endings["reset"] += stream in self._open
            self._open.pop(stream, None)
        elif kind == http2.GOAWAY:
            self.endings["closed"] += 1
