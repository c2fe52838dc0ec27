"""Hosts and addresses that the server's owner has set: which can be reached at all, and which are on this machine.

Asked when the settings are read: what an HTTP library stumbles on later fails each call. No I/O.
"""

import ipaddress
import re
import socket
from urllib.parse import urlsplit

_LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
_LONGEST_NAME = 253
_LONGEST_ADDRESS = 2000
_DOTTED = re.compile(r"[0-9]+(\.[0-9]+){3}")
"""What libraries take for an address of IPv4, though its numbers may be too large for one."""

_PATH = re.compile(r"(/[!-~]*)?")


def is_plain(value: str) -> bool:
    """Whether it can stand in a header or a path: printable ASCII without spaces, and not nothing."""
    return bool(value) and value.isascii() and value.isprintable() and " " not in value


def is_word(value: str) -> bool:
    """Whether it can stand for one step of a path, or one value of a query."""
    return is_plain(value) and not set(value) & set("/?#&%\\")


def is_label(value: str) -> bool:
    """Whether it can be a part of a host's name."""
    return bool(_LABEL.fullmatch(value))


def is_host(value: str) -> bool:
    """Whether it is a name, in ASCII, or an address; one of IPv6 in brackets."""
    if value.startswith("[") and value.endswith("]"):
        return "%" not in value and _ip(value) is not None
    if _DOTTED.fullmatch(value):
        return _ip(value) is not None
    return len(value) <= _LONGEST_NAME and all(map(_LABEL.fullmatch, value.removesuffix(".").split(".")))


def is_port(value: str) -> bool:
    return value.isascii() and value.isdigit() and len(value) <= len("65535") and 0 < int(value) < 1 << 16


def is_address(value: str) -> bool:
    """Whether it is http://HOST:PORT/PATH, or https; the port and the path may be missing."""
    if not is_plain(value) or len(value) > _LONGEST_ADDRESS or set(value) & set("@?#\\"):
        return False
    try:
        parts = urlsplit(value)
    except ValueError:  # brackets that don't close
        return False
    host, colon, port = parts.netloc.rpartition(":")
    if not colon or "]" in port:  # that colon is a part of the host
        host, colon, port = parts.netloc, "", ""
    return (
        parts.scheme in ("http", "https")
        and value.lower().startswith(f"{parts.scheme}://")
        and is_host(host)
        and (not colon or is_port(port))
        and bool(_PATH.fullmatch(parts.path))
    )


def host_in(address: str) -> str:
    """Of a URL, or of host:port: the host, in lower case; one of IPv6 in brackets; empty for none."""
    netloc = urlsplit(address if "://" in address else f"//{address}").netloc.rpartition("@")[2].lower()
    return netloc.partition("]")[0] + "]" if netloc.startswith("[") else netloc.partition(":")[0]


def is_local(host: str) -> bool:
    """Whether the host, as `host_in` gives it, is this machine by its loopback, which no proxy can reach."""
    found = _address_of(host)
    return is_loopback(host) or (found is not None and found.is_unspecified)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the host; it is as `host_in` gives it."""
    name = host.removesuffix(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    found = _address_of(host)
    return found is not None and found.is_loopback


def _address_of(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """In numbers; None: it is a name."""
    found = _ip(host) or _ip_in_short(host)
    if isinstance(found, ipaddress.IPv6Address):
        return found.ipv4_mapped or found
    return found


def _ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.IPv6Address(host[1:-1]) if host.startswith("[") else ipaddress.IPv4Address(host)
    except ValueError:
        return None


def _ip_in_short(host: str) -> ipaddress.IPv4Address | None:
    """As the system's resolver takes it: 127.1, 0x7f.1, 2130706433."""
    if not host[:1].isdigit():
        return None
    try:
        return ipaddress.IPv4Address(socket.inet_aton(host))
    except OSError:
        return None
