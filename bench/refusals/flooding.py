"""A flood of calls that are to be refused: at a steady rate, whatever becomes of them, and for little CPU.

HTTP/2 by hand (RFC 9113): each call is the same few bytes but for its number, and of the answers only frame heads are
read. What they say is for others to look at.
"""

import asyncio
import struct
from typing import Any

from bench.targets import now

_DATA, _HEADERS, _SETTINGS, _PING, _GOAWAY = 0, 1, 4, 6, 7
_END_STREAM, _ACK, _END_HEADERS = 1, 1, 4
_TICK_SECONDS = 0.005
_LATE_SECONDS = 3.0
"""So long the last answers are waited for."""


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3) + struct.pack(">BBI", kind, flags, stream) + payload


def header_block(fields: list[tuple[str, str]]) -> bytes:
    """As literals that nobody keeps (RFC 7541, 6.2.2)."""
    return b"".join(b"\0" + _text(name) + _text(value) for name, value in fields)


def _text(text: str) -> bytes:
    raw, most = text.encode("latin-1"), 127
    if len(raw) < most:
        return bytes([len(raw)]) + raw
    length, rest = bytearray([most]), len(raw) - most
    while rest >= 1 << 7:
        length.append(rest % (1 << 7) + (1 << 7))
        rest >>= 7
    return bytes([*length, rest]) + raw


class _Connection(asyncio.Protocol):
    """Sends calls, and counts how many have ended."""

    def __init__(self, host: str, method: str, authorization: list[str], message: bytes) -> None:
        fields = [(":method", "POST"), (":scheme", "http"), (":path", method), (":authority", host)]
        fields += [("te", "trailers"), ("content-type", "application/grpc")]
        self._block = header_block(fields + [("authorization", one) for one in authorization])
        self._message = b"\0" + len(message).to_bytes(4) + message
        self._next = 1
        self._left = b""
        self.sent = self.ended = 0
        self.closed = ""
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._transport.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(_SETTINGS, 0, 0, b""))

    def call(self, count: int) -> None:
        """Open so many."""
        calls = []
        for _ in range(count):
            calls += [
                frame(_HEADERS, _END_HEADERS, self._next, self._block),
                frame(_DATA, _END_STREAM, self._next, self._message),
            ]
            self._next += 2
        self._transport.write(b"".join(calls))
        self.sent += count

    def data_received(self, data: bytes) -> None:
        data = self._left + data
        at = 0
        while len(data) >= at + 9:
            length, (kind, flags) = int.from_bytes(data[at : at + 3]), data[at + 3 : at + 5]
            if len(data) < at + 9 + length:
                break
            if kind == _HEADERS and flags & _END_STREAM:
                self.ended += 1
            elif kind in (_SETTINGS, _PING) and not flags & _ACK:
                self._transport.write(frame(kind, _ACK, 0, data[at + 9 : at + 9 + length] if kind == _PING else b""))
            elif kind == _GOAWAY:
                self.closed = "the server said GOAWAY"
            at += 9 + length
        self._left = data[at:]

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = self.closed or f"the connection was lost: {exc}"


async def flood(told: dict[str, Any]) -> dict[str, Any]:
    """`rate` calls a second from `begin` on, for `seconds`, over so many `connections`."""
    host, _, port = told["address"].rpartition(":")
    loop = asyncio.get_running_loop()

    def one() -> _Connection:
        return _Connection(told["address"], told["method"], told["authorization"], bytes.fromhex(told["message"]))

    found = [(await loop.create_connection(one, host, int(port)))[1] for _ in range(told["connections"])]
    await asyncio.sleep(max(0.0, told["begin"] - now()))
    begin, sent = now(), 0
    while (passed := now() - begin) < told["seconds"]:
        due = int(passed * told["rate"]) - sent
        for index, connection in enumerate(found):
            connection.call(due // len(found) + (index < due % len(found)))
        sent += due
        await asyncio.sleep(_TICK_SECONDS)
    seconds = now() - begin
    give_up = now() + _LATE_SECONDS
    while sum(one.ended for one in found) < sent and now() < give_up:  # noqa: ASYNC110 - of all connections
        await asyncio.sleep(_TICK_SECONDS)
    ended = sum(one.ended for one in found)
    errors = {one.closed: 1 for one in found if one.closed}
    if ended < sent:
        errors[f"of {sent} calls {sent - ended} were not answered"] = 1
    return {"errors": errors, "sent": sent, "ended": ended, "per_second": sent / seconds}
