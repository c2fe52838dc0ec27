"""Which connections this process has, by its callers' addresses; none where there is no /proc, as on Linux."""

import ipaddress
import os
import socket
import stat
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote

Peer = tuple[str, int]
"""Address and port."""


def key(peer: str) -> Peer | None:
    """Of gRPC's "ipv4:127.0.0.1:40000" or "ipv6:%5B::1%5D:40000"; None for a peer of any other kind."""
    kind, _, address = unquote(peer).partition(":")
    host, _, port = address.rpartition(":")
    try:
        return _normal(host.strip("[]"), int(port)) if kind in ("ipv4", "ipv6") else None
    except ValueError:
        return None


def host(peer: str) -> str:
    """The same without the port; empty for a peer that has no address."""
    found = key(peer)
    return found[0] if found is not None else ""


def _normal(host: str, port: int) -> Peer:
    address = ipaddress.ip_address(host.partition("%")[0])
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address), port


def connections() -> dict[Peer, int]:
    """The numbers of gRPC's files, which it may close at any moment. Thousands of them take a quarter of a second."""
    found = {}
    with suppress(OSError):
        for file in Path("/proc/self/fd").iterdir():
            if (peer := peer_of(int(file.name))) is not None:
                found[peer] = int(file.name)
    return found


def peer_of(number: int) -> Peer | None:
    """The other side of this file; None if it is no TCP connection, or nothing any more."""
    found = _sides(number)
    return None if found is None else _normal(*found[1][:2])


def opened(accepted: Collection[int]) -> int:
    """How many TCP connections this process has opened itself: all but those that came to these ports of its own.

    Takes a millisecond for some hundred files.
    """
    found = 0
    with suppress(OSError):
        for file in Path("/proc/self/fd").iterdir():
            sides = _sides(int(file.name))
            found += sides is not None and sides[0][1] not in accepted
    return found


def _sides(number: int) -> tuple[tuple[Any, ...], tuple[Any, ...]] | None:
    """The addresses of this file's own side and of the other; None if it is no TCP connection."""
    try:
        if not stat.S_ISSOCK(os.fstat(number).st_mode):
            return None
        borrowed = socket.socket(fileno=number)
    except OSError:
        return None
    try:
        if borrowed.family not in (socket.AF_INET, socket.AF_INET6) or borrowed.type != socket.SOCK_STREAM:
            return None
        return borrowed.getsockname(), borrowed.getpeername()
    except OSError:
        return None
    finally:
        borrowed.detach()
