"""Certificates that prove nothing, against the real server process, with calls of a caller whose does beside them."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from tests.certificates import DAY, Authority, Pair
from tests.conftest import ServerProcess, server_process
from tests.hostile.conftest import Attack, Decent
from tokenwire import AsyncClient, NotAllowedError, TokenwireError, errors
from vertex_emulator.emulator import Emulator

TIMES = 50

CALLERS = '[callers.billing]\ncertificates = ["spiffe://example/billing"]\n'
NAME = "spiffe://example/billing"


class Setting:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority, self.clients, self.other = Authority(), Authority("clients"), Authority("canary")
        self.certificate, self.key = self.authority.sign("127.0.0.1").write(folder)
        for name, one in (("ca", self.authority), ("clients", self.clients)):
            (folder / f"{name}.pem").write_bytes(one.pem)
        (folder / "callers.toml").write_text(CALLERS)


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    return Setting(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def decent(setting: Setting) -> Decent:
    good = setting.clients.sign(NAME)
    return Decent(credentials=grpc.ssl_channel_credentials(setting.authority.pem, good.key, good.certificate))


@pytest.fixture(scope="module")
async def server(vertex: Emulator, setting: Setting) -> AsyncIterator[ServerProcess]:
    flags = ["--workers", "1", "--callers", str(setting.folder / "callers.toml")]
    flags += ["--tls-certificate", setting.certificate, "--tls-key", setting.key]
    flags += ["--tls-client-ca", str(setting.folder / "clients.pem")]
    async with server_process(vertex, *flags) as running:
        await running.said("ready after")
        yield running


SHOWN: dict[str, Callable[[Setting], Pair | None]] = {
    "no certificate": lambda _: None,
    "an expired certificate": lambda setting: setting.clients.sign(NAME, begins=-3 * DAY, ends=-DAY),
    "a certificate that isn't valid yet": lambda setting: setting.clients.sign(NAME, begins=DAY, ends=3 * DAY),
    "a certificate of another authority": lambda setting: setting.other.sign(NAME),
    "a certificate without a name": lambda setting: setting.clients.sign(common_name="billing"),
    "a certificate of another name": lambda setting: setting.clients.sign("spiffe://example/canary"),
}


@pytest.mark.parametrize("name", SHOWN)
async def test_a_certificate_that_is_no_proof_is_refused(
    attack: Attack, server: ServerProcess, setting: Setting, name: str
) -> None:
    pair = SHOWN[name](setting)
    shown: dict[str, Any] = (
        dict(zip(("certificate", "key"), pair.write(setting.folder, "shown"), strict=True)) if pair else {}
    )
    handshake = {errors.WANTS_CERTIFICATE, errors.CERTIFICATE_REFUSED}
    async with attack(name):
        for _ in range(TIMES):
            async with AsyncClient(
                f"https://{server.address}", ca=str(setting.folder / "ca.pem"), token="", **shown
            ) as client:
                with pytest.raises(TokenwireError) as caught:
                    await client.models()
            if name.endswith("name"):
                assert isinstance(caught.value, NotAllowedError)
            else:
                assert caught.value.reason in handshake


async def test_a_new_key_that_is_not_the_certificates_changes_nothing(
    attack: Attack, server: ServerProcess, setting: Setting
) -> None:
    good = setting.clients.sign(NAME).write(setting.folder, "good")
    kept = await asyncio.to_thread(Path(setting.key).read_bytes)
    async with attack("a server's key that isn't its certificate's"):
        told = sum("TLS goes on with the certificate it has" in line for line in server.log)
        await asyncio.to_thread(Path(setting.key).write_bytes, setting.authority.sign("127.0.0.1").key)
        await server.said("TLS goes on with the certificate it has", times=told + 1)
        for _ in range(TIMES):
            async with AsyncClient(
                f"https://{server.address}", ca=str(setting.folder / "ca.pem"), certificate=good[0], key=good[1]
            ) as client:
                assert await client.models()
    await asyncio.to_thread(Path(setting.key).write_bytes, kept)
