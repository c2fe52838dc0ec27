"""The files that `tokenwire edge` is given: what is wrong with them is told before Envoy tells it in its own words."""

import json
import ssl
from pathlib import Path

from tokenwire.cli.terminal import say


class EdgeError(Exception):
    """Envoy can't be run; the message says why, and what would help."""


def check_certificate(certificate: str, key: str) -> None:
    check_readable(certificate, "--tls-certificate")
    check_readable(key, "--tls-key")

    def refuse_to_ask() -> str:
        raise EdgeError(f"--tls-key {key} has a passphrase: a key without one is wanted")

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, refuse_to_ask)
    except ssl.SSLError as error:
        why = "the key isn't that of the certificate" if error.reason == "KEY_VALUES_MISMATCH" else "they aren't PEM"
        raise EdgeError(f"--tls-certificate {certificate} and --tls-key {key} can't be used: {why}") from error


def check_authorities(path: str) -> None:
    check_readable(path, "--replica-ca")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except ssl.SSLError as error:
        raise EdgeError(f"--replica-ca {path} can't be used: it has no certificates in PEM") from error


def check_readable(path: str, flag: str) -> None:
    try:
        Path(path).read_bytes()
    except OSError as error:
        raise EdgeError(
            f"{flag} {path} can't be read: {error.strerror}. Give it a file that this user may read"
        ) from error


class FollowedCertificate:
    """The certificate that Envoy shows and its key: when the files change, Envoy is handed the new ones.

    Envoy by itself would notice only files that are moved into their place, and would take a certificate without its
    key. It is handed links of other names each time, since it takes the same names for the same files.
    """

    def __init__(self, certificate: str, key: str, folder: Path) -> None:
        """`folder`: where what Envoy reads is kept, as long as it runs. The files have been checked."""
        self.secret = folder / "certificate.json"
        """What Envoy follows: `tls_certificate` of its secret `certificate`."""
        self._folder = folder
        self._files = Path(certificate).absolute(), Path(key).absolute()
        self._count = 0
        self._judged = self._last = self._contents()
        self._hand_over()

    def look(self) -> None:
        """Hand over what has changed, and say so. What can't be used is told, and the one before stays.

        One file may be changed a moment before the other: so both are judged once they have stood for two looks.
        """
        before, self._last = self._last, self._contents()
        if self._last == self._judged or self._last != before:
            return
        self._judged = self._last
        try:
            check_certificate(*map(str, self._files))
            self._hand_over()
        except (EdgeError, OSError) as error:
            say(f"Envoy goes on with the certificate it has: {error}")
        else:
            say("New connections get the new certificate")

    def _contents(self) -> tuple[bytes, ...] | None:
        """None: one can't be read, as may be for a moment while another one is put in its place."""
        try:
            return tuple(file.read_bytes() for file in self._files)
        except OSError:
            return None

    def _hand_over(self) -> None:
        self._count += 1
        names = [self._folder / f"{self._count}.{ending}" for ending in ("crt", "key")]
        for name, file in zip(names, self._files, strict=True):
            name.symlink_to(file)
        chain, key = ({"filename": str(name)} for name in names)
        secret = {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret",
            "name": "certificate",
            "tls_certificate": {"certificate_chain": chain, "private_key": key},
        }
        written = self.secret.with_suffix(".new")
        written.write_text(json.dumps({"resources": [secret]}))
        written.replace(self.secret)
