"""TLS on a real port: who gets in, and what a change of the files does."""

import asyncio
import datetime as dt
import errno
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import grpc.aio
import pytest
from cryptography import x509

from service.runtime import tls
from service.runtime.server import Server
from service.settings import SettingError, Settings
from service.testing import FakeProvider
from tests.certificates import DAY, Authority, Pair
from tests.conftest import Serve, Served
from tests.service.calls.test_servicer import HELLO, Silent
from tokenwire.v1 import generation_service_pb2 as pb
from tokenwire.v1.generation_service_pb2_grpc import GenerationServiceStub

OWN = [("grpc.use_local_subchannel_pool", 1)]  # a connection of its own, with a handshake of its own


@pytest.fixture
def authority() -> Authority:
    return Authority()


def settings_of(pair: Pair, folder: Path, client_ca: bytes = b"") -> dict[str, Any]:
    certificate, key = pair.write(folder)
    found: dict[str, Any] = {"tls_certificate": certificate, "tls_key": key}
    if client_ca:
        (folder / "clients.crt").write_bytes(client_ca)
        found["tls_client_ca"] = str(folder / "clients.crt")
    return found


async def asked(served: Served, authority: Authority, client: Pair | None = None) -> list[pb.GenerateResponse]:
    """Ask on a new connection, which trusts this authority alone."""
    return await _asked(served.address, authority.pem, client)


async def _asked(address: str, trusted: bytes, client: Pair | None) -> list[pb.GenerateResponse]:
    shown = (client.key, client.certificate) if client else (None, None)
    async with grpc.aio.secure_channel(address, grpc.ssl_channel_credentials(trusted, *shown), OWN) as channel:
        stub: Any = GenerationServiceStub(channel)
        return [message async for message in stub.Generate(pb.GenerateRequest(prompt="hi"), timeout=10)]


async def refused(answer: Any) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await answer
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    return str(caught.value.details())


async def test_an_answer_comes_over_tls_and_not_without(serve: Serve, authority: Authority, tmp_path: Path) -> None:
    served = await serve(FakeProvider(HELLO), **settings_of(authority.sign("127.0.0.1"), tmp_path))
    assert (await asked(served, authority))[-1].HasField("completed")
    await refused(served.ask())
    await refused(asked(served, Authority("another")))


async def test_with_an_authority_for_clients_others_do_not_get_in(
    serve: Serve, authority: Authority, tmp_path: Path
) -> None:
    clients, stranger = Authority("clients"), Authority("stranger")
    served = await serve(FakeProvider(HELLO), **settings_of(authority.sign("127.0.0.1"), tmp_path, clients.pem))
    assert (await asked(served, authority, clients.sign("spiffe://example/app")))[-1].HasField("completed")
    for client in (None, stranger.sign("spiffe://example/app"), clients.sign("a", begins=-2 * DAY, ends=-DAY)):
        await refused(asked(served, authority, client))


async def test_a_new_certificate_serves_at_the_next_handshake_and_streams_go_on(
    serve: Serve, authority: Authority, tmp_path: Path, lines: list[str]
) -> None:
    model = Silent(HELLO[:2])
    served = await serve(model, **settings_of(authority.sign("127.0.0.1"), tmp_path))
    credentials = grpc.ssl_channel_credentials(authority.pem)
    async with grpc.aio.secure_channel(served.address, credentials, OWN) as channel:
        stub: Any = GenerationServiceStub(channel)
        call = stub.Generate(pb.GenerateRequest(prompt="hi"))
        await call.read()
        for turn in range(20):
            following = Authority(f"the {turn}th")
            following.sign("127.0.0.1").write(tmp_path)
            assert await issuer(served.address) == f"the {turn}th"
        await call.read()
        assert not call.done()
        call.cancel()
    assert sum("new certificate" in line for line in lines) == 20


async def issuer(address: str) -> str:
    """Whose certificate a new connection is shown."""
    import ssl  # noqa: PLC0415 - here only

    from cryptography import x509  # noqa: PLC0415 - here only

    host, _, port = address.rpartition(":")
    pem = await asyncio.to_thread(_certificate, ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), host, int(port))
    return str(x509.load_der_x509_certificate(pem).issuer.rdns[0].rfc4514_string()).removeprefix("CN=")


def _certificate(context: Any, host: str, port: int) -> bytes:
    context.check_hostname, context.verify_mode = False, 0
    context.set_alpn_protocols(["h2"])
    with socket.create_connection((host, port), timeout=10) as raw, context.wrap_socket(raw) as wrapped:
        found: bytes = wrapped.getpeercert(binary_form=True)
        return found


Break = Callable[[Path, Authority], None]


def _remove(folder: Path, _: Authority) -> None:
    (folder / "server.crt").unlink()


def _garble(folder: Path, _: Authority) -> None:
    (folder / "server.crt").write_text("-----BEGIN CERTIFICATE-----\nnone\n-----END CERTIFICATE-----\n")


def _cut_the_key(folder: Path, _: Authority) -> None:
    (folder / "server.key").write_bytes((folder / "server.key").read_bytes()[:50])


def _only_the_certificate(folder: Path, authority: Authority) -> None:
    (folder / "server.crt").write_bytes(authority.sign("127.0.0.1").certificate)


def _expired(folder: Path, authority: Authority) -> None:
    authority.sign("127.0.0.1", begins=-2 * DAY, ends=-DAY).write(folder)


def _encrypted(folder: Path, authority: Authority) -> None:
    authority.sign("127.0.0.1", encrypted=True).write(folder)


def _a_folder(folder: Path, _: Authority) -> None:
    (folder / "server.key").unlink()
    (folder / "server.key").mkdir()


BROKEN: dict[Break, str] = {
    _remove: "TOKENWIRE_TLS_CERTIFICATE is '{folder}/server.crt': No such file or directory",
    _garble: "TOKENWIRE_TLS_CERTIFICATE is '{folder}/server.crt': no certificate in PEM is there",
    _cut_the_key: "TOKENWIRE_TLS_KEY is '{folder}/server.key': no key in PEM is there",
    _only_the_certificate: "TOKENWIRE_TLS_KEY is '{folder}/server.key': it is not the key of the certificate: "
    "TOKENWIRE_TLS_CERTIFICATE is '{folder}/server.crt'",
    _expired: "TOKENWIRE_TLS_CERTIFICATE is '{folder}/server.crt': it has expired on ",
    _encrypted: "TOKENWIRE_TLS_KEY is '{folder}/server.key': a key without a passphrase is wanted",
    _a_folder: "TOKENWIRE_TLS_KEY is '{folder}/server.key': Is a directory",
}


@pytest.mark.parametrize("broken", BROKEN, ids=lambda one: one.__name__.strip("_"))
async def test_files_that_cannot_serve_leave_the_old_ones_and_are_told_once(
    serve: Serve, authority: Authority, tmp_path: Path, lines: list[str], broken: Break
) -> None:
    served = await serve(FakeProvider(HELLO), **settings_of(authority.sign("127.0.0.1"), tmp_path))
    broken(tmp_path, Authority("another"))
    for _ in range(3):
        assert (await asked(served, authority))[-1].HasField("completed")
    told = [line for line in lines if "TLS" in line]
    assert len(told) == 1
    wanted = f"TLS goes on with the certificate it has: {BROKEN[broken].format(folder=tmp_path)}"
    assert told[0].startswith(wanted)
    if broken is not _a_folder:
        following = Authority("the next")
        following.sign("127.0.0.1").write(tmp_path)
        assert (await asked(served, following))[-1].HasField("completed")


@pytest.mark.parametrize("broken", BROKEN, ids=lambda one: one.__name__.strip("_"))
def test_files_that_cannot_serve_are_refused_at_the_start(authority: Authority, tmp_path: Path, broken: Break) -> None:
    settings = Settings(**settings_of(authority.sign("127.0.0.1"), tmp_path))
    broken(tmp_path, Authority("another"))
    with pytest.raises(SettingError) as caught:
        Server(settings)
    assert str(caught.value).startswith(BROKEN[broken].format(folder=tmp_path))


async def test_a_changed_authority_for_clients_holds_for_the_next(
    serve: Serve, authority: Authority, tmp_path: Path
) -> None:
    before, after = Authority("before"), Authority("after")
    served = await serve(FakeProvider(HELLO), **settings_of(authority.sign("127.0.0.1"), tmp_path, before.pem))
    await asked(served, authority, before.sign("app"))
    (tmp_path / "clients.crt").write_bytes(after.pem)
    await asked(served, authority, after.sign("app"))
    await refused(asked(served, authority, before.sign("app")))


def test_a_process_that_serves_tls_starts_no_other() -> None:
    """In one of its own, since it never ends."""
    ways = {
        "subprocess.Popen": "__import__('subprocess').run(['true'])",
        "os.fork": "__import__('os').fork()",
        "os.posix_spawn": "__import__('os').posix_spawn('/bin/true', ['true'], {})",
        "os.system": "__import__('os').system('true')",
    }
    code = "from service.runtime import tls\ntls.forbid_processes()\n"
    for way in ways.values():
        code += f"try:\n    {way}\nexcept RuntimeError as error:\n    print(error)\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert [line.partition(":")[0] for line in done.stdout.splitlines()] == list(ways), done.stderr


async def test_a_unix_domain_socket_is_this_users_alone(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    server = Server(Settings(host=f"unix:{path}"))
    await server.start()
    try:
        await server.announce_serving(FakeProvider(HELLO))
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
            assert (await Served(server, "", channel).ask())[-1].HasField("completed")
        with pytest.raises(SettingError, match=r"cannot listen on unix:.*: Address already in use"):
            await Server(Settings(host=f"unix:{path}")).start()
    finally:
        await server.stop(0)


async def test_a_socket_that_was_left_behind_is_taken_and_anything_else_is_not(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    server = Server(Settings(host=f"unix:{path}"))
    await server.start()
    await server.stop(0)
    path.unlink(missing_ok=True)
    path.write_text("mine")
    with pytest.raises(SettingError, match="something else than a socket is there"):
        await Server(Settings(host=f"unix:{path}")).start()
    assert path.read_text() == "mine"
    with pytest.raises(SettingError, match=r"cannot listen on unix:.*: No such file or directory"):
        await Server(Settings(host=f"unix:{tmp_path}/none/socket")).start()


async def test_the_umask_stays_what_it_was(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        server = Server(Settings(host=f"unix:{tmp_path}/socket"))
        await server.start()
        await server.stop(0)
        assert os.umask(0o022) == 0o022
    finally:
        os.umask(before)


@pytest.fixture
def closed_to_us(monkeypatch: pytest.MonkeyPatch) -> None:
    """Modes hold for this process too, as they do for all but root."""
    really = os.open

    def opened(path: Any, flags: int, mode: int = 0o777, **more: Any) -> int:
        if not flags & os.O_CREAT and isinstance(path, str | os.PathLike) and not os.stat(path).st_mode & stat.S_IRUSR:  # noqa: PTH116 - as `os.open` takes it
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return really(path, flags, mode, **more)

    monkeypatch.setattr(os, "open", opened)


@pytest.mark.usefixtures("closed_to_us")
async def test_a_new_key_that_cannot_be_read_is_told_once_and_taken_when_it_can_be(
    serve: Serve, authority: Authority, tmp_path: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`chmod` leaves the time of a file's content as it is."""
    monkeypatch.setattr("service.runtime.secured._LOOK_SECONDS", 0.01)
    served = await serve(FakeProvider(HELLO), **settings_of(authority.sign("127.0.0.1"), tmp_path))
    following = Authority("the next")
    pair = following.sign("127.0.0.1")
    key = tmp_path / "server.key"
    key.chmod(0)
    await told(lines, "TLS goes on with the certificate it has")
    pair.write(tmp_path, "new")
    (tmp_path / "new.key").chmod(0)
    (tmp_path / "new.key").replace(key)
    (tmp_path / "new.crt").replace(tmp_path / "server.crt")
    for _ in range(3):
        assert (await asked(served, authority))[-1].HasField("completed")
    key.chmod(0o600)
    await told(lines, "TLS has a new certificate")
    assert (await asked(served, following))[-1].HasField("completed")
    key.chmod(0)
    await told(lines, "TLS goes on", times=sum("TLS goes on" in line for line in lines) + 1)
    key.chmod(0o600)
    await told(lines, "the files of TLS are read anew: as before")
    assert all("Permission denied" in line for line in lines if "TLS goes on" in line)


@pytest.mark.usefixtures("closed_to_us")
def test_a_file_that_cannot_be_read_is_tried_again_whatever_it_looks_like(
    authority: Authority, tmp_path: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate, key = authority.sign("127.0.0.1").write(tmp_path)
    found = tls.Certificates(certificate, key)
    found.load()

    def refuse(*_: Any, **__: Any) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    authority.sign("127.0.0.1").write(tmp_path)
    with monkeypatch.context() as full:
        full.setattr(os, "open", refuse)
        for _ in range(3):
            found.refresh()
    assert len([line for line in lines if "TLS goes on" in line]) == 1
    found.refresh()
    assert "TLS has a new certificate" in lines[-1]
    count = len(lines)
    found.refresh()
    assert len(lines) == count


async def told(lines: list[str], text: str, *, times: int = 1) -> None:
    async with asyncio.timeout(20):
        while sum(text in line for line in lines) < times:  # noqa: ASYNC110 - what is waited for is in a thread's hands
            await asyncio.sleep(0.01)


def test_an_owner_is_warned_once_a_week_before_a_certificate_expires_and_once_when_it_has(
    authority: Authority, tmp_path: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = tls.Certificates(*authority.sign("127.0.0.1", ends=8 * DAY).write(tmp_path))
    found.load()
    found.look_at_the_clock()
    assert lines == []
    now = dt.datetime.now(dt.UTC)

    class Later(dt.datetime):
        days = 0.0

        @classmethod
        def now(cls, tz: dt.tzinfo | None = None) -> "Later":
            later = now + dt.timedelta(days=cls.days)
            return cls.fromtimestamp(later.timestamp(), tz)

    monkeypatch.setattr(tls, "dt", SimpleNamespace(datetime=Later, timedelta=dt.timedelta, UTC=dt.UTC))
    place = f"the certificate of TLS in '{tmp_path}/server.crt'"
    for days, told in ((0.9, 0), (1.1, 1), (5, 1), (7.9, 1), (8.1, 2), (9, 2)):
        Later.days = days
        for _ in range(3):
            found.look_at_the_clock()
        assert len(lines) == told, days
    assert lines[0].startswith(f"{place} expires on {now + 8 * DAY:%Y-%m-%d}")
    assert lines[1].startswith(f"{place} has expired on {now + 8 * DAY:%Y-%m-%d}")
    authority.sign("127.0.0.1", ends=12 * DAY).write(tmp_path)
    found.refresh()
    assert "TLS has a new certificate" in lines[2]
    assert lines[3].startswith(f"{place} expires on ")
    assert len(lines) == 4


async def test_a_running_server_looks_at_the_clock(
    serve: Serve, authority: Authority, tmp_path: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.runtime.secured._LOOK_SECONDS", 0.01)
    await serve(FakeProvider(HELLO), **settings_of(authority.sign("127.0.0.1", ends=8 * DAY), tmp_path))
    assert not [line for line in lines if "expires" in line]
    monkeypatch.setattr(tls, "_SOON", 9 * DAY)
    await told(lines, "expires on")


def test_the_start_warns_of_a_certificate_that_expires_soon(
    authority: Authority, tmp_path: Path, lines: list[str]
) -> None:
    tls.Certificates(*authority.sign("127.0.0.1", ends=6 * DAY).write(tmp_path)).load()
    assert len(lines) == 1
    assert " expires on " in lines[0]


NAMES: dict[str, tuple[list[str], list[x509.GeneralName], bool]] = {
    "none": ([], [], False),
    "an address for mail": ([], [x509.RFC822Name("tokenwire.example")], False),
    "a URI alone": (["spiffe://example/tokenwire"], [], False),
    "a URL as a DNS name": ([], [x509.DNSName("https://tokenwire.example")], False),
    "with a port": ([], [x509.DNSName("tokenwire.example:50051")], False),
    "a star in the middle": ([], [x509.DNSName("a.*.example")], False),
    "a host": (["tokenwire.example"], [], True),
    "all of a domain": (["*.tokenwire.example"], [], True),
    "an address": (["::1"], [], True),
    "one that can match and one that can't": (["spiffe://example/tokenwire", "localhost"], [], True),
}


@pytest.mark.parametrize("names", NAMES)
def test_a_certificate_that_no_caller_can_take_is_warned_of(
    authority: Authority, tmp_path: Path, lines: list[str], names: str
) -> None:
    plain, general, can_match = NAMES[names]
    certificate = authority.sign(*plain, general=general, common_name="tokenwire.example")
    tls.Certificates(*certificate.write(tmp_path)).load()
    assert [("no subject alternative name" in line) for line in lines] == ([] if can_match else [True])


async def test_the_metric_is_that_of_the_certificate_that_serves(
    serve: Serve, authority: Authority, tmp_path: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.runtime.secured._LOOK_SECONDS", 0.01)
    name = "tokenwire_certificate_expiry_time_seconds"
    plain = await serve(FakeProvider(HELLO))
    assert name not in {one.name for one in plain.server.readings()}
    served = await serve(FakeProvider(HELLO), **settings_of(authority.sign("127.0.0.1", ends=20 * DAY), tmp_path))

    def ends() -> float:
        return next(one.samples[0].value for one in served.server.readings() if one.name == name)

    now = dt.datetime.now(dt.UTC)
    assert abs(ends() - (now + 20 * DAY).timestamp()) < 100
    authority.sign("127.0.0.1", ends=30 * DAY).write(tmp_path)
    await told(lines, "TLS has a new certificate")
    assert abs(ends() - (now + 30 * DAY).timestamp()) < 100
