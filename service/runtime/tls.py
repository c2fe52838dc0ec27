"""TLS: the server's certificate, its key, and whose clients it trusts, read anew when their files change."""

import datetime as dt
import re
import sys
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

import grpc

from ..files import content, looks
from ..settings import SettingError, Settings
from ..telemetry import call_log

if TYPE_CHECKING:
    from cryptography import x509

_MOST_BYTES = 1024 * 1024

_SOON = dt.timedelta(days=7)
"""So long before a certificate expires its owner is warned."""

_HOST = re.compile(r"(\*\.)?[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?(\.[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?)*\.?")
"""A name that callers can dial, or all names of one domain."""

_PROCESSES = frozenset(
    ("os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.system", "pty.spawn", "subprocess.Popen")
)
"""Python's own names for the ways to start a process, as it tells them to audit hooks."""


class TLSError(Exception):
    """The files can't serve; the message says which and why."""


class _Files(NamedTuple):
    """What is in the files, in PEM."""

    certificate: bytes
    key: bytes
    client_ca: bytes | None


class Certificates:
    """Gives gRPC what each handshake is made with.

    gRPC asks for it on threads of its own, before each handshake. Streams that run keep their connections: they never
    see a change.
    """

    def __init__(self, certificate: str, key: str, client_ca: str = "", names: Mapping[str, str] | None = None) -> None:
        """Paths of PEM files: the certificate and those that it rests on; its key, without a passphrase.

        With `client_ca` a client has to show a certificate of one of these authorities. `names`: what to call the
        settings in messages, as `Settings.names` tells it; None: by their variables.
        """
        self._names = names or Settings.variables()
        self._paths = {"tls_certificate": certificate, "tls_key": key}
        if client_ca:
            self._paths["tls_client_ca"] = client_ca
        self._lock = threading.Lock()
        self._seen: tuple[object, ...] = ()
        """What the files looked like when they were read last."""
        self._trouble = ""
        """Why what was read last can't serve; empty: it does."""
        self._unread = False
        """Whether a file couldn't be read: they are tried again, whatever they look like."""
        self._files: _Files | None = None
        """What was in them when they could serve."""
        self._ends: dt.datetime | None = None
        """When its certificate expires."""
        self._warned = 0
        """Of that: 1, that it will soon; 2, that it has."""
        self._version = self._given = 0
        """Of `_files`; the one that gRPC has."""

    def load(self) -> None:
        """Read the files for the first time. Raises TLSError where they can't serve."""
        self._seen = self._look()
        self._take(self._read())

    def credentials(self) -> grpc.ServerCredentials:
        """For a port of gRPC's; behind `load`."""
        self.refresh()  # this may be a worker that takes another's place
        assert self._files is not None
        self._given = self._version
        return grpc.dynamic_ssl_server_credentials(
            _configuration(self._files),
            self._asked,  # type: ignore[arg-type] # None is allowed: nothing has changed
            "tls_client_ca" in self._paths,
        )

    def refresh(self, *, anew: bool = False) -> None:
        """Read the files anew if they have changed or couldn't be read, or whatever they look like: `anew`.

        What can't serve is told, and the old ones go on.
        """
        with self._lock:
            seen = self._look()
            changed = anew or seen != self._seen
            if not changed and not self._unread:
                return
            self._seen = seen
            before, self._trouble, self._unread = self._trouble, "", False
            try:
                files = self._read()
            except TLSError as error:
                self._trouble, self._unread = str(error), isinstance(error.__cause__, OSError)
                if changed or self._trouble != before:  # and not whenever they are tried again
                    call_log.warn("TLS goes on with the certificate it has: %s", error)
                return
            ends = _day(_first(files.certificate).not_valid_after_utc)
            if files == self._files:
                call_log.say("the files of TLS are read anew: as before, with a certificate valid until %s", ends)
                return
            self._version += 1
            call_log.say("TLS has a new certificate, valid until %s", ends)
            self._take(files)

    def expires(self) -> float:
        """When the certificate that serves does, as Unix time; behind `load`."""
        assert self._ends is not None
        return self._ends.timestamp()

    def look_at_the_clock(self) -> None:
        """Warn once when less than a week is left, and once when the certificate has expired; behind `load`."""
        assert self._ends is not None
        left = self._ends - dt.datetime.now(dt.UTC)
        stage = (left < _SOON) + (left < dt.timedelta(0))
        if stage > self._warned:
            text = "has expired on %s: no caller takes it" if left < dt.timedelta(0) else "expires on %s"
            call_log.warn(f"the certificate of TLS in %s {text}; put another one there", self._place, _day(self._ends))
        self._warned = stage

    def _take(self, files: _Files) -> None:
        """Serve with these from now on, and warn of what callers won't take."""
        first = _first(files.certificate)
        self._files, self._ends, self._warned = files, first.not_valid_after_utc, 0
        if (begins := first.not_valid_before_utc) > dt.datetime.now(dt.UTC):
            call_log.warn("the certificate of TLS isn't valid before %s", _day(begins))
        if not _names_a_host(first):
            call_log.warn(
                "the certificate of TLS in %s has no subject alternative name that is a host's name or address: "
                "no caller takes it, whatever its common name is",
                self._place,
            )
        self.look_at_the_clock()

    @property
    def _place(self) -> str:
        return repr(self._paths["tls_certificate"])

    def _asked(self) -> grpc.ServerCertificateConfiguration | None:
        """What handshakes are made with from now on; None: what gRPC has. Asked before each, on gRPC's threads."""
        self.refresh()
        if self._given == self._version or self._files is None:
            return None
        self._given = self._version
        return _configuration(self._files)

    def _told(self, setting: str) -> str:
        """As messages begin that are about its file."""
        return f"{self._names[setting]} is {self._paths[setting]!r}"

    def _look(self) -> tuple[object, ...]:
        return tuple(map(looks, self._paths.values()))

    def _read(self) -> _Files:
        found = {}
        for setting, path in self._paths.items():
            try:
                found[setting] = content(path, _MOST_BYTES)
            except OSError as error:
                raise TLSError(f"{self._told(setting)}: {error.strerror}") from error
            except ValueError as error:
                raise TLSError(f"{self._told(setting)}: {error}") from error
        _check(found, self._told)
        return _Files(found["tls_certificate"], found["tls_key"], found.get("tls_client_ca"))


def certificates(settings: Settings, names: Mapping[str, str] | None = None) -> Certificates | None:
    """As the settings have it; None: no TLS. Raises SettingError where the files can't serve.

    `names` as `Certificates` takes them.
    """
    if not settings.tls_certificate:
        return None
    found = Certificates(settings.tls_certificate, settings.tls_key, settings.tls_client_ca, names)
    try:
        found.load()
    except TLSError as error:
        raise SettingError(str(error)) from error
    return found


def forbid_processes() -> None:
    """Refuse, from now on and for good, to start any process from this one.

    In a process that serves TLS, gRPC hangs or dies of it (relative: grpc/grpc#14258).
    """
    sys.addaudithook(_refuse)


def _refuse(event: str, _: tuple[object, ...]) -> None:
    if event in _PROCESSES:
        raise RuntimeError(f"{event}: a server that serves TLS must not start processes; gRPC would hang or die")


def _check(found: dict[str, bytes], told: Callable[[str], str]) -> None:
    """Raise TLSError for what is no PEM, for a key that is another certificate's, and for one that has expired.

    `told`: how messages about one of the files begin.
    """
    from cryptography import x509  # noqa: PLC0415 - takes a moment, and is needed for TLS only
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415 - needed for TLS only

    chains: dict[str, list[x509.Certificate]] = {}
    for setting in ("tls_certificate", "tls_client_ca"):
        if setting in found:
            try:
                chains[setting] = x509.load_pem_x509_certificates(found[setting])
            except ValueError as error:
                raise TLSError(f"{told(setting)}: no certificate in PEM is there") from error
    try:
        key = serialization.load_pem_private_key(found["tls_key"], None)
    except TypeError as error:
        raise TLSError(f"{told('tls_key')}: a key without a passphrase is wanted") from error
    except Exception as error:
        raise TLSError(f"{told('tls_key')}: no key in PEM is there") from error
    first = chains["tls_certificate"][0]
    form = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    if key.public_key().public_bytes(*form) != first.public_key().public_bytes(*form):
        raise TLSError(f"{told('tls_key')}: it is not the key of the certificate: {told('tls_certificate')}")
    if first.not_valid_after_utc < dt.datetime.now(dt.UTC):
        raise TLSError(f"{told('tls_certificate')}: it has expired on {_day(first.not_valid_after_utc)}")


def _configuration(files: _Files) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(files.key, files.certificate)], root_certificates=files.client_ca
    )


def _first(pem: bytes) -> "x509.Certificate":
    from cryptography import x509  # noqa: PLC0415 - takes a moment, and is needed for TLS only

    return x509.load_pem_x509_certificates(pem)[0]


def _names_a_host(certificate: "x509.Certificate") -> bool:
    """Whether it has a name or an address by which a caller can reach a server: common names count for nobody."""
    from cryptography import x509  # noqa: PLC0415 - takes a moment, and is needed for TLS only

    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, x509.ExtensionNotFound):
        return False
    hosts = names.get_values_for_type(x509.DNSName)
    return bool(names.get_values_for_type(x509.IPAddress)) or any(map(_HOST.fullmatch, hosts))


def _day(moment: dt.datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC"
