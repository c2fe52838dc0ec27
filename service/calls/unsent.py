"""What the kernel has not delivered yet to callers, by connection.

When a connection is to close, gRPC closes it with the last of its calls. What then still waits in the kernel is lost
if the caller says anything meanwhile, such as a ping or that it has room again: Linux answers that by a reset
(RFC 1122, 4.2.2.13). So the status that ends the last call has to wait for all that is before it.
"""

import asyncio
import fcntl
import ipaddress
import os
import socket
import stat
import termios
from contextlib import suppress
from pathlib import Path
from urllib.parse import unquote

_LOOK_SECONDS = 0.005

# Asked for a connection that it doesn't know, at most so often it looks for new ones.
_LOOK_AROUND_SECONDS = 0.1

Peer = tuple[str, int]
"""Address and port."""


class Unsent:
    """Knows the connections of this process; empty where there is no /proc, as outside of Linux."""

    def __init__(self) -> None:
        self._lines: dict[Peer, _Line] = {}
        self._looked = -_LOOK_AROUND_SECONDS

    async def delivered(self, peer: str, *, seconds: float) -> None:
        """Wait until a status may follow: the kernel of `peer`, in gRPC's words, has taken what was sent before.

        So long at most. For a call that isn't its connection's last one it is enough that this was so once since.
        """
        line = self._line(peer)
        if line is None:
            return
        begin = line.empty
        line.waiting += 1
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    while line.holds() and not (line.empty > begin and line.waiting > 1):  # noqa: ASYNC110 - the kernel rings no bell
                        await asyncio.sleep(_LOOK_SECONDS)
        finally:
            line.waiting -= 1

    def _line(self, peer: str) -> "_Line | None":
        key = _key(peer)
        if key is None:
            return None
        now = asyncio.get_running_loop().time()
        if key not in self._lines and now - self._looked >= _LOOK_AROUND_SECONDS:
            self._looked = now
            found = _connections()
            self._lines = {one: self._lines.get(one) or _Line(one, number) for one, number in found.items()}
        return self._lines.get(key)


class _Line:
    """One connection."""

    __slots__ = ("_number", "_peer", "empty", "waiting")

    def __init__(self, peer: Peer, number: int) -> None:
        """`number` is that of a file that belongs to gRPC, which may close it at any moment."""
        self._peer = peer
        self._number = number
        self.waiting = 0
        self.empty = 0
        """How often the kernel was seen to hold nothing."""

    def holds(self) -> bool:
        """Whether the kernel has something that the caller's kernel has not taken."""
        if _peer_of(self._number) == self._peer:  # else the connection is gone
            with suppress(OSError):
                if int.from_bytes(fcntl.ioctl(self._number, termios.TIOCOUTQ, bytes(4)), "little"):
                    return True
        self.empty += 1
        return False


def _key(peer: str) -> Peer | None:
    """Of gRPC's "ipv4:127.0.0.1:40000" or "ipv6:%5B::1%5D:40000"; None for a peer of any other kind."""
    kind, _, address = unquote(peer).partition(":")
    host, _, port = address.rpartition(":")
    try:
        return _normal(host.strip("[]"), int(port)) if kind in ("ipv4", "ipv6") else None
    except ValueError:
        return None


def _normal(host: str, port: int) -> Peer:
    address = ipaddress.ip_address(host)
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address), port


def _connections() -> dict[Peer, int]:
    found = {}
    with suppress(OSError):
        for file in Path("/proc/self/fd").iterdir():
            if (peer := _peer_of(int(file.name))) is not None:
                found[peer] = int(file.name)
    return found


def _peer_of(number: int) -> Peer | None:
    """The other side of this file; None if it is no TCP connection, or nothing any more."""
    try:
        if not stat.S_ISSOCK(os.fstat(number).st_mode):
            return None
        borrowed = socket.socket(fileno=number)
    except OSError:
        return None
    try:
        if borrowed.family not in (socket.AF_INET, socket.AF_INET6):
            return None
        return _normal(*borrowed.getpeername()[:2])
    except OSError:
        return None
    finally:
        borrowed.detach()
