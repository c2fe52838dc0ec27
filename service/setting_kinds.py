"""The kinds of settings: how the text of a flag or a variable becomes a value.

Each raises ValueError with what is wanted, as in "a whole number from 0 to 65535".
"""

import os
import re
from collections.abc import Callable
from urllib.parse import parse_qs, urlsplit

from .providers import addresses

_LONGEST_SOCKET_BYTES = 107
_DATABASE = re.compile(r"(/[0-9]{0,5})?")
_OF_TLS = {"ssl_ca_certs", "ssl_certfile", "ssl_keyfile"}


def that(fits: Callable[[str], bool], wanted: str) -> Callable[[str], str]:
    def parse(value: str) -> str:
        if not fits(value):
            raise ValueError(wanted)
        return value

    return parse


def file(value: str) -> str:
    """The path of one; whether it can be read, and serves, is for those to say who read it."""
    return value


model_name = that(str.isprintable, "a name without line breaks and other controls")


def host_and_port(value: str) -> str:
    host, _, port = value.rpartition(":")
    if not (addresses.is_host(host) and addresses.is_port(port)):
        raise ValueError("HOST:PORT, such as 127.0.0.1:8080,")
    return value


def redis_url(value: str) -> str:
    """Where a Redis is, as redis-py takes it; of its options those only that TLS needs."""
    try:
        parts = urlsplit(value)
        options = parse_qs(parts.query, strict_parsing=True) if parts.query else {}
        address = parts.netloc.rpartition("@")[2]
        host, _, port = address.rpartition(":") if parts.port is not None else (address.rstrip(":"), "", "1")
        if parts.scheme == "unix":
            fits = not address and parts.path.startswith("/") and options.keys() <= {"db"}
        else:
            fits = addresses.is_host(host) and addresses.is_port(port) and bool(_DATABASE.fullmatch(parts.path))
            fits = fits and options.keys() <= (_OF_TLS if parts.scheme == "rediss" else set())
    except ValueError:
        fits = False
    if not fits or parts.scheme not in ("redis", "rediss", "unix") or parts.fragment or not value.isprintable():
        raise ValueError(
            "redis://[[USER]:PASSWORD@]HOST[:PORT][/DATABASE], rediss:// for TLS, or unix:///PATH[?db=DATABASE],"
        )
    return value


def has_password(url: str) -> bool:
    return bool(urlsplit(url).password)


def bracketed(host: str) -> str:
    """As it stands before a port."""
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


def listening(value: str) -> str:
    """An address, a name, or a Unix domain socket as gRPC writes it."""
    if value.startswith("unix:"):
        path = value.removeprefix("unix:").removeprefix("//")
        if not path.startswith("/") or "\0" in path or len(os.fsencode(path)) > _LONGEST_SOCKET_BYTES:
            raise ValueError(f"unix:/PATH, of at most {_LONGEST_SOCKET_BYTES} bytes,")
        return f"unix:{path}"
    if not addresses.is_host(bracketed(value)):
        raise ValueError("an address, a name, or unix:/PATH")
    return value.strip("[]")


def switch(value: str) -> bool:
    known = {
        "1": True,
        "true": True,
        "yes": True,
        "on": True,
        "0": False,
        "false": False,
        "no": False,
        "off": False,
    }
    try:
        return known[value.lower()]
    except KeyError:
        raise ValueError("true or false") from None


def one_of(*allowed: str) -> Callable[[str], str]:
    def parse(value: str) -> str:
        if value.lower() not in allowed:
            raise ValueError(f"one of {', '.join(allowed)}")
        return value.lower()

    return parse


def whole(low: int, high: int) -> Callable[[str], int]:
    def parse(value: str) -> int:
        try:
            number = int(value)
        except ValueError:
            number = low - 1
        if not low <= number <= high:
            raise ValueError(f"a whole number from {low} to {high}")
        return number

    return parse


def seconds(low: float, high: float) -> Callable[[str], float]:
    def parse(value: str) -> float:
        try:
            number = float(value)
        except ValueError:
            number = float("nan")
        if not low <= number <= high:  # also false for NaN
            raise ValueError(f"seconds, from {low:g} to {high:g}")
        return number

    return parse
