"""Certificates for tests: an authority of their own, and what it signs."""

import datetime as dt
import ipaddress
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

DAY = dt.timedelta(days=1)


class Pair(NamedTuple):
    """A certificate and its key, in PEM."""

    certificate: bytes
    key: bytes

    def write(self, folder: Path, name: str = "server") -> tuple[str, str]:
        """As two files, each put in the other's place at once as Kubernetes does; gives their paths."""
        paths = []
        for kind, content in zip(("crt", "key"), self, strict=True):
            path = folder / f"{name}.{kind}"
            new = folder / f"{name}.{kind}.new"
            new.write_bytes(content)
            new.replace(path)
            paths.append(str(path))
        return paths[0], paths[1]


class Authority:
    """Signs certificates; `pem` is its own."""

    def __init__(self, name: str = "tests") -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._certificate = (
            _builder(self._name, self._name, self._key, -DAY, 100 * DAY)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self.pem = self._certificate.public_bytes(serialization.Encoding.PEM)

    def sign(
        self,
        *names: str,
        common_name: str = "anybody",
        begins: dt.timedelta = -DAY,
        ends: dt.timedelta = 50 * DAY,
        encrypted: bool = False,
        general: Iterable[x509.GeneralName] = (),
    ) -> Pair:
        """A certificate for these names: addresses, DNS names, URIs, and any others. Its time is told from now."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
        builder = _builder(subject, self._name, key, begins, ends).add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False
        )
        if names or general:
            alternatives = x509.SubjectAlternativeName([*map(_general, names), *general])
            builder = builder.add_extension(alternatives, critical=False)
        secret: serialization.KeySerializationEncryption = serialization.NoEncryption()
        if encrypted:
            secret = serialization.BestAvailableEncryption(b"secret")
        return Pair(
            builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM),
            key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, secret),
        )


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    begins: dt.timedelta,
    ends: dt.timedelta,
) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + begins)
        .not_valid_after(now + ends)
    )


def _general(name: str) -> x509.GeneralName:
    if "://" in name:
        return x509.UniformResourceIdentifier(name)
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def joined(pems: Iterable[bytes]) -> bytes:
    """Several in one file."""
    return b"".join(pems)
