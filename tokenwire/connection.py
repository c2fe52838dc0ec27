"""How a caller reaches the service: its address, TLS, and the token that says who calls.

https://gateway.example         TLS, port 443
https://gateway.example:50051   TLS
gateway.example:50051           plain text
unix:/run/tokenwire.socket      a Unix domain socket, plain text
"""

import ipaddress
import os
import ssl
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Self
from urllib.parse import urlsplit

import grpc

DEFAULT_ADDRESS = "localhost:50051"

_ADDRESS_VARIABLE = "TOKENWIRE_ADDRESS"

_HTTPS_PORT = 443

# Where systems keep the authorities that they trust, in one file.
_SYSTEM_ROOTS = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)

_LONGEST_TOKEN_BYTES = 15 * 1024  # a server takes 16 KB of metadata in all


_SECOND_MS = 1_000
# A machine that answers neither yes nor no is given up after so long; gRPC's own limit is 20 s.
_CONNECT_TIMEOUT_MS = 3 * _SECOND_MS
# A connection that died silently is noticed in the sum of the two.
_KEEPALIVE_MS = 30 * _SECOND_MS
_PING_TIMEOUT_MS = 10 * _SECOND_MS

_CHANNEL_OPTIONS = (
    # Core's name for the time that one attempt to connect may take.
    ("grpc.min_reconnect_backoff_ms", _CONNECT_TIMEOUT_MS),
    # A service that has just been started is found at once, and calls fail fast until then.
    ("grpc.initial_reconnect_backoff_ms", _SECOND_MS // 5),
    ("grpc.max_reconnect_backoff_ms", _SECOND_MS),
    ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
    ("grpc.keepalive_timeout_ms", _PING_TIMEOUT_MS),
    # Without it the ping's own timeout of a minute decides.
    ("grpc.http2.ping_timeout_ms", _PING_TIMEOUT_MS),
    # A caller sends nothing while it reads; by default it would stop pinging after two.
    ("grpc.http2.max_pings_without_data", 0),
)


_OF_GRPC = ("unix:", "dns:", "ipv4:", "ipv6:", "xds:", "vsock:")
"""Kinds of names of gRPC's own, in some of which a `://` may stand."""


def default_address() -> str:
    """Where the service is: TOKENWIRE_ADDRESS, or localhost:50051."""
    return os.environ.get(_ADDRESS_VARIABLE) or DEFAULT_ADDRESS


class Target(NamedTuple):
    """An address, understood."""

    name: str
    """As gRPC dials it."""
    secure: bool
    """Whether by TLS."""
    local: bool
    """Whether what is sent there stays on this machine."""


def target(address: str) -> Target:
    """Understand an address. Raises ValueError, saying what is wanted."""
    if address.startswith("https://"):
        return Target(_dialled(address), secure=True, local=_is_loopback(urlsplit(address).hostname or ""))
    if "://" in address and not address.startswith(_OF_GRPC):
        raise ValueError(f"{address!r} is no address: https://HOST:PORT is TLS, and HOST:PORT alone is plain text")
    if address.startswith(("unix:", "unix-abstract:")):
        return Target(address, secure=False, local=True)
    return Target(address, secure=False, local=_is_loopback(address.rpartition(":")[0].strip("[]")))


def _dialled(address: str) -> str:
    try:
        parts = urlsplit(address)
        host, port = parts.hostname, parts.port or _HTTPS_PORT
    except ValueError as error:
        raise ValueError(f"{address!r} is no address: https://HOST or https://HOST:PORT is wanted") from error
    if not host or parts.path not in ("", "/") or parts.query or parts.fragment or parts.username is not None:
        raise ValueError(f"{address!r} is no address: https://HOST or https://HOST:PORT is wanted")
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # it is a name
        return host == "localhost"


_VARIABLES = {
    "ca": "TOKENWIRE_CA",
    "certificate": "TOKENWIRE_CLIENT_CERTIFICATE",
    "key": "TOKENWIRE_CLIENT_KEY",
    "token": "TOKENWIRE_TOKEN",
    "token_file": "TOKENWIRE_TOKEN_FILE",
}

_GIVEN = {
    "ca": "`ca` or --ca",
    "certificate": "`certificate` or --client-certificate",
    "key": "`key` or --client-key",
    "token": "`token`",
    "token_file": "`token_file` or --token-file",
}
"""What each of them is called where it is given: by a program, and on a command line."""


@dataclass(frozen=True, slots=True)
class Identity:
    """By what a caller trusts the service, and shows who it is. What isn't given comes from the environment."""

    ca: str = ""
    """PEM file: whom to trust instead of the system's authorities (TOKENWIRE_CA)."""
    certificate: str = ""
    """PEM file: this caller's own certificate, and those it rests on (TOKENWIRE_CLIENT_CERTIFICATE)."""
    key: str = ""
    """PEM file: its key (TOKENWIRE_CLIENT_KEY)."""
    token: str = field(default="", repr=False)
    """An API key or a JWT (TOKENWIRE_TOKEN)."""
    token_file: str = ""
    """A file that holds it, read anew when it changes (TOKENWIRE_TOKEN_FILE)."""
    origins: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)
    """Where each was set, by its name here: a variable, or an argument and its flag."""

    @classmethod
    def found(cls, given: Mapping[str, object], environ: Mapping[str, str] = os.environ) -> Self:
        """What is given by name, else by the environment; a given "" is nothing, whatever the environment says.

        A token that is given stands for the environment's file as well, and the other way round.
        """
        told = {name: str(value) for name, value in given.items() if value is not None}
        origins = {name: _GIVEN[name] for name in told}
        for group in (("ca",), ("certificate", "key"), ("token", "token_file")):
            if not told.keys() & set(group):
                told |= {name: environ.get(_VARIABLES[name], "") for name in group}
                origins |= {name: _VARIABLES[name] for name in group}
        return cls(**told, origins=origins)

    def named(self, name: str) -> str:
        """What is set for one of these, and where: never a token itself."""
        origin = f" ({self.origins[name]})" if name in self.origins else ""
        return ("the token" if name == "token" else getattr(self, name)) + origin

    def environ(self) -> dict[str, str]:
        """The environment in which another process finds the same."""
        return {variable: getattr(self, name) for name, variable in _VARIABLES.items()}


class Connection:
    """What a client needs to make its channel, and to say with each call who it is."""

    def __init__(self, address: str | None, identity: Identity) -> None:
        """`address`: None or "" is `default_address`.

        Raises ValueError for what doesn't fit together, and OSError for a token's file that can't be read.
        """
        self.address_variable = "" if address or not os.environ.get(_ADDRESS_VARIABLE) else _ADDRESS_VARIABLE
        """What the address comes from, where it wasn't given."""
        self.target = target(address or default_address())
        self.identity = identity
        self._token = _Token(identity)
        if bool(identity.certificate) != bool(identity.key):
            there, missing = ("certificate", "key") if identity.certificate else ("key", "certificate")
            raise ValueError(
                f"a client's certificate and its key stand together: the {missing} is missing beside "
                f"{identity.named(there)}"
            )
        if not self.target.secure:
            if identity.certificate:
                raise ValueError(f"a client's certificate is shown over TLS only: use https://{self.target.name}")
            if self._token.is_set and not self.target.local:
                raise ValueError(
                    f"a token is never sent in plain text to another machine: use https://{self.target.name}"
                )
        self._token.read()  # better now than with the first call

    def credentials(self) -> grpc.ChannelCredentials | None:
        """For a channel; None: it is one in plain text.

        Raises OSError for a file that can't be read, and ValueError for one that isn't what it has to be: gRPC would
        only say that it has no connection.
        """
        if not self.target.secure:
            return None
        return grpc.ssl_channel_credentials(
            _authorities(self.identity) if self.identity.ca else _system_roots(),
            *_own_pair(self.identity) if self.identity.certificate else (None, None),
        )

    def options(self) -> tuple[tuple[str, int], ...]:
        """For a channel, of either kind."""
        if self.target.local:
            # http_proxy is for the way out, and a proxy can't reach this machine's own loopback.
            return (*_CHANNEL_OPTIONS, ("grpc.enable_http_proxy", 0))
        return _CHANNEL_OPTIONS

    def channel(self, server_name: str = "") -> grpc.Channel:
        """A blocking one, which connects with its first call. Raises as `credentials` does.

        `server_name`: whose certificate is wanted, if not that of the address.
        """
        credentials = self.credentials()
        if credentials is None:
            return grpc.insecure_channel(self.target.name, self.options())
        named = (("grpc.ssl_target_name_override", server_name),) if server_name else ()
        return grpc.secure_channel(self.target.name, credentials, (*self.options(), *named))

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """To be sent with each call."""
        token = self._token.read()
        return (("authorization", f"Bearer {token}"),) if token else ()


class _Token:
    """One that is given, or that stands in a file."""

    def __init__(self, identity: Identity) -> None:
        if identity.token and identity.token_file:
            raise ValueError(
                "a token and a file that holds one are given (TOKENWIRE_TOKEN, TOKENWIRE_TOKEN_FILE): "
                "one of them is wanted"
            )
        self._identity = identity
        self._file = identity.token_file
        self._value = _checked(identity.token.strip(), identity.named("token")) if identity.token else ""
        self._seen: object = None
        self._lock = threading.Lock()

    @property
    def is_set(self) -> bool:
        return bool(self._value or self._file)

    def read(self) -> str:
        """The token; while its file can't be read, or holds none, the one that was there before.

        Raises ValueError or OSError where there was none before.
        """
        if not self._file:
            return self._value
        with self._lock:
            try:
                found = Path(self._file).stat()
                seen = found.st_ino, found.st_size, found.st_mtime_ns
                if seen != self._seen:
                    self._value, self._seen = self._token(), seen
            except OSError as error:
                if not self._value:
                    raise _unreadable(error, self._identity, "token_file") from error
            except ValueError:
                if not self._value:
                    raise
            return self._value

    def _token(self) -> str:
        name = self._identity.named("token_file")
        content = Path(self._file).read_text(encoding="utf-8", errors="replace").strip()
        if not content:
            raise ValueError(f"{name} is empty: an API key or a JWT is wanted in it, on one line")
        if lines := len(content.splitlines()) - 1:
            raise ValueError(f"{name} holds {lines + 1} lines: one token is wanted in it, on one line")
        return _checked(content, f"what is in {name}")


def _checked(token: str, what: str) -> str:
    """Raise ValueError, without telling it, for what no header can hold."""
    if not token or not token.isascii() or not token.isprintable() or " " in token or len(token) > _LONGEST_TOKEN_BYTES:
        raise ValueError(
            f"{what} can't be sent: plain letters and signs without spaces are wanted, "
            f"1 to {_LONGEST_TOKEN_BYTES} of them"
        )
    return token


def _unreadable(error: OSError, identity: Identity, name: str) -> OSError:
    """The same error, which tells where the file was named as well."""
    origin = f" (named by {identity.origins[name]})" if name in identity.origins else ""
    return OSError(error.errno, f"{error.strerror}{origin}", getattr(identity, name))


def _content(identity: Identity, name: str) -> bytes:
    try:
        return Path(getattr(identity, name)).read_bytes()
    except OSError as error:
        raise _unreadable(error, identity, name) from error


def _certificates(identity: Identity, name: str) -> bytes:
    """What is in a file of certificates. Raises OSError, and ValueError where there is none."""
    found = _content(identity, name)
    if b"-----BEGIN CERTIFICATE-----" not in found:
        raise ValueError(f"{identity.named(name)} holds no certificate in PEM")
    return found


def _authorities(identity: Identity) -> bytes:
    found = _certificates(identity, "ca")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cafile=identity.ca)
    except ssl.SSLError as error:
        raise ValueError(f"{identity.named('ca')} holds a certificate that can't be read") from error
    return found


def _own_pair(identity: Identity) -> tuple[bytes, bytes]:
    """The key of this caller and its certificate. Raises OSError; ValueError where they can't serve, saying why."""
    certificate, key = _certificates(identity, "certificate"), _content(identity, "key")
    named = identity.named("key")
    if b"PRIVATE KEY-----" not in key:
        raise ValueError(f"{named} holds no private key in PEM")
    if b"ENCRYPTED" in key:
        raise ValueError(
            f"{named} is encrypted: a key without a passphrase is wanted, such as "
            f"`openssl pkey -in {identity.key} -out NEW.key` writes it"
        )
    try:
        # An empty passphrase, since a key that wants one after all must not ask for it on the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(identity.certificate, identity.key, password=str)
    except ssl.SSLError as error:
        shown = identity.named("certificate")
        if error.reason == "KEY_VALUES_MISMATCH":
            raise ValueError(f"{named} is not the key of the certificate in {shown}") from error
        raise ValueError(f"the certificate in {shown} and its key in {named} can't be read") from error
    return key, certificate


def _system_roots() -> bytes | None:
    """Whom this system trusts, in PEM; None: whom gRPC does by itself.

    gRPC has a list of its own, in which a company's own authority is missing.
    """
    for path in (os.environ.get(ssl.get_default_verify_paths().openssl_cafile_env), *_SYSTEM_ROOTS):
        if path and Path(path).is_file():
            return Path(path).read_bytes()
    trusted = ssl.create_default_context().get_ca_certs(binary_form=True)
    return "".join(map(ssl.DER_cert_to_PEM_cert, trusted)).encode() or None
