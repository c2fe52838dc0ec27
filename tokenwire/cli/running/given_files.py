"""The files that `tokenwire edge` is given: what is wrong with them is told before Envoy tells it in its own words."""

import ssl
from pathlib import Path


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
