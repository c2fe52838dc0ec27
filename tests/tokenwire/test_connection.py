"""How callers reach the service: addresses, TLS, tokens."""

import asyncio
import datetime as dt
import re
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from service.admission import api_keys
from service.testing import FakeProvider
from tests.certificates import DAY, Authority
from tests.conftest import Serve
from tests.service.calls.test_servicer import HELLO
from tokenwire import AsyncClient, Client, NotAllowedError, TokenwireError, errors
from tokenwire.cli import ask, chat, models, usage
from tokenwire.connection import Connection, Identity, Target, target
from tokenwire.v1.generation_service_pb2 import ListModelsResponse, Model


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Identity().environ():
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("address", "wanted"),
    [
        ("localhost:50051", Target("localhost:50051", secure=False, local=True)),
        ("127.0.0.1:1", Target("127.0.0.1:1", secure=False, local=True)),
        ("127.9.8.7:1", Target("127.9.8.7:1", secure=False, local=True)),
        ("[::1]:1", Target("[::1]:1", secure=False, local=True)),
        ("gateway.example:50051", Target("gateway.example:50051", secure=False, local=False)),
        ("10.0.0.1:50051", Target("10.0.0.1:50051", secure=False, local=False)),
        ("127.example:1", Target("127.example:1", secure=False, local=False)),
        ("localhost.example:1", Target("localhost.example:1", secure=False, local=False)),
        ("dns:///localhost:1", Target("dns:///localhost:1", secure=False, local=False)),
        ("unix:/run/a", Target("unix:/run/a", secure=False, local=True)),
        ("https://gateway.example", Target("gateway.example:443", secure=True, local=False)),
        ("https://gateway.example/", Target("gateway.example:443", secure=True, local=False)),
        ("https://gateway.example:50051", Target("gateway.example:50051", secure=True, local=False)),
        ("https://[::1]:50051", Target("[::1]:50051", secure=True, local=True)),
        ("https://localhost", Target("localhost:443", secure=True, local=True)),
    ],
)
def test_one_syntax_of_addresses(address: str, wanted: Target) -> None:
    assert target(address) == wanted


@pytest.mark.parametrize(
    "address",
    [
        "http://h",
        "grpcs://h:50061",
        "grpc://h:50061",
        "tcp://h:1",
        "://h:1",
        "https://",
        "https://h/v1",
        "https://h?x=1",
        "https://u:p@h",
        "https://h:x",
        "https://h:99999",
        "https://[::1",
    ],
)
def test_what_is_no_address_says_what_is_wanted(address: str) -> None:
    with pytest.raises(ValueError, match=r"is no address: https://HOST"):
        target(address)


def test_what_is_given_stands_before_the_environment() -> None:
    environ = {"TOKENWIRE_CA": "e.ca", "TOKENWIRE_TOKEN": "of the environment", "TOKENWIRE_CLIENT_KEY": "e.key"}
    assert Identity.found({}, environ) == Identity(ca="e.ca", token="of the environment", key="e.key")
    assert Identity.found({"token": "mine", "ca": None}, environ) == Identity(ca="e.ca", token="mine", key="e.key")
    assert Identity.found({"token_file": "f", "certificate": "c"}, environ) == Identity(
        ca="e.ca", token_file="f", certificate="c"
    )
    assert Identity.found({"token": "", "ca": "", "key": ""}, environ) == Identity()


@pytest.mark.parametrize("address", ["gateway.example:50051", "10.0.0.1:1", "dns:///h:1", "[2001:db8::1]:1"])
def test_a_token_never_goes_to_another_machine_in_plain_text(address: str, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret-token")
    for identity in (Identity(token="secret-token"), Identity(token_file=str(tmp_path / "token"))):
        with pytest.raises(ValueError, match="never sent in plain text to another machine: use https://") as caught:
            Connection(address, identity)
        assert "secret-token" not in str(caught.value)
    for make in (Client, AsyncClient):
        with pytest.raises(ValueError, match="never sent in plain text"):
            make(address, token="secret-token")


@pytest.mark.parametrize("address", ["localhost:1", "unix:/run/a", "https://gateway.example", "[::1]:1"])
def test_a_token_goes_where_nobody_else_can_read_it(address: str) -> None:
    assert Connection(address, Identity(token="t")).metadata() == (("authorization", "Bearer t"),)
    assert Connection(address, Identity()).metadata() == ()


@pytest.mark.parametrize("token", ["a b", "a\nb", "\u201ca\u201d", "a\x7f", "a" * 20_000])
def test_a_token_that_no_header_can_hold_is_refused_without_being_told(token: str) -> None:
    with pytest.raises(ValueError, match="the token can't be sent: plain letters and signs") as caught:
        Connection("localhost:1", Identity(token=token))
    assert token not in str(caught.value)


def test_what_does_not_fit_together_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="stand together: the key is missing"):
        Connection("https://h", Identity(certificate="c"))
    with pytest.raises(ValueError, match="stand together: the certificate is missing"):
        Connection("https://h", Identity(key="c"))
    with pytest.raises(ValueError, match="shown over TLS only: use https://h:1"):
        Connection("h:1", Identity(certificate="c", key="k"))
    with pytest.raises(ValueError, match="one of them is wanted"):
        Connection("https://h", Identity(token="c", token_file="k"))
    with pytest.raises(FileNotFoundError):
        Connection("https://h", Identity(token_file=str(tmp_path / "none")))
    with pytest.raises(ValueError, match="a channel of your own has credentials of its own"):
        Client(channel=grpc.insecure_channel("localhost:1"), token="t")


def test_a_tokens_file_is_read_anew_when_it_changes_and_kept_while_it_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("first\n")
    connection = Connection("localhost:1", Identity(token_file=str(path)))

    def shown() -> str:
        return connection.metadata()[0][1]

    assert shown() == "Bearer first"
    (tmp_path / "new").write_text("second")
    (tmp_path / "new").replace(path)
    assert shown() == "Bearer second"
    path.unlink()
    assert shown() == "Bearer second"
    path.write_text("")
    assert shown() == "Bearer second"
    path.write_text("third")
    assert shown() == "Bearer third"


class _Recorder(grpc.GenericRpcHandler):
    """Answers every ListModels with the token that came."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def service(self, details: Any) -> Any:
        self.seen += [str(value) for key, value in details.invocation_metadata if key == "authorization"]
        return grpc.unary_unary_rpc_method_handler(
            lambda *_: ListModelsResponse(models=[Model(name="a")]),
            response_serializer=ListModelsResponse.SerializeToString,
        )


@pytest.fixture
async def recorder(tmp_path: Path) -> AsyncIterator[_Recorder]:
    """On a Unix domain socket in `tmp_path`."""
    found = _Recorder()
    server = grpc.aio.server()
    server.add_generic_rpc_handlers([found])
    server.add_insecure_port(f"unix:{tmp_path}/socket")
    await server.start()
    yield found
    await server.stop(None)


async def test_each_call_of_either_client_says_who_calls(recorder: _Recorder, tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/socket"
    async with AsyncClient(address, token="one") as client:
        await client.models()
        await client.models()

    def blocking() -> None:
        with Client(address, token="two") as client:
            client.models()

    await asyncio.to_thread(blocking)
    async with AsyncClient(address) as client:
        await client.models()
    assert recorder.seen == ["Bearer one", "Bearer one", "Bearer two"]


async def test_the_command_line_takes_its_token_from_a_file_or_the_environment(
    recorder: _Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    address = f"unix:{tmp_path}/socket"
    (tmp_path / "token").write_text("of the file")
    assert await asyncio.to_thread(models.main, ["--address", address, "--token-file", str(tmp_path / "token")]) == 2
    assert "what is in " in capsys.readouterr().err
    (tmp_path / "token").write_text("of-the-file")
    assert await asyncio.to_thread(models.main, ["--address", address, "--token-file", str(tmp_path / "token")]) == 0
    monkeypatch.setenv("TOKENWIRE_TOKEN", "of-the-environment")
    assert await asyncio.to_thread(models.main, ["--address", address]) == 0
    assert recorder.seen == ["Bearer of-the-file", "Bearer of-the-environment"]


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--address", "h:1"], "never sent in plain text to another machine: use https://h:1."),
        (
            ["--address", "https://h", "--ca", "/none.pem"],
            "/none.pem can't be read: No such file or directory (named by `ca` or --ca).",
        ),
        (
            ["--client-key", "k"],
            "stand together: the certificate is missing beside k (`key` or --client-key).",
        ),
    ],
)
def test_what_a_command_cannot_call_is_told_in_one_line(
    flags: list[str], told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TOKENWIRE_TOKEN", "t")
    assert ask.main(flags) == 2
    said = capsys.readouterr().err
    assert said.endswith(f"{told}\n")
    assert said.count("\n") == 1


@pytest.fixture
async def addresses(serve: Serve, tmp_path: Path) -> dict[str, Any]:
    """Of a server with TLS, one with mutual TLS and one without; and the files to call them with."""
    authority, clients, other = Authority(), Authority("clients"), Authority("other")
    certificate, key = authority.sign("127.0.0.1").write(tmp_path)
    for name, one in (("ca", authority), ("clients", clients), ("other", other)):
        (tmp_path / f"{name}.pem").write_bytes(one.pem)
    tls = {"tls_certificate": certificate, "tls_key": key}
    shown = {
        "own": clients.sign("spiffe://example/app"),
        "stranger": other.sign("spiffe://example/app"),
        "expired": clients.sign("spiffe://example/app", ends=-DAY / 2),
    }
    pairs = {name: pair.write(tmp_path, name) for name, pair in shown.items()}
    return {
        "plain": (await serve(FakeProvider(HELLO))).address,
        "tls": (await serve(FakeProvider(HELLO), **tls)).address,
        "mutual": (await serve(FakeProvider(HELLO), **tls, tls_client_ca=str(tmp_path / "clients.pem"))).address,
        "ca": {"ca": str(tmp_path / "ca.pem")},
        "other": {"ca": str(tmp_path / "other.pem")},
        **{name: {"certificate": one, "key": its} for name, (one, its) in pairs.items()},
    }


async def test_both_clients_and_the_command_speak_tls_and_mutual_tls(
    addresses: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown: dict[str, Any]
    for kind, shown in (("tls", {}), ("mutual", addresses["own"])):
        address = f"https://{addresses[kind]}"
        async with AsyncClient(address, **addresses["ca"], **shown) as client, client.generate("hi") as answer:
            assert "".join([piece async for piece in answer.text()]) == "Hello"

        def blocking(address: str = address, shown: dict[str, Any] = shown) -> str:
            with Client(address, **addresses["ca"], **shown) as client, client.generate("hi") as answer:
                return "".join(answer.text())

        assert await asyncio.to_thread(blocking) == "Hello"
        for name, value in Identity(**addresses["ca"], **shown).environ().items():
            monkeypatch.setenv(name, value)
        assert await asyncio.to_thread(ask.main, ["hi", "--address", address]) == 0
        assert "Hello" in capsys.readouterr().out


async def told(address: str | None, **identity: Any) -> TokenwireError:
    """What a call fails with, the same for either client; and it says nothing of gRPC."""

    def blocking() -> TokenwireError:
        with Client(address, **identity) as client, pytest.raises(TokenwireError) as caught:
            client.models(timeout=20)
        return caught.value

    async with AsyncClient(address, **identity) as other:
        with pytest.raises(TokenwireError) as caught:
            await other.models(timeout=20)
    found = await asyncio.to_thread(blocking)
    assert (str(caught.value), caught.value.reason) == (str(found), found.reason)
    assert not {"ipv4", "SSL", "TSI"} & set(re.findall(r"\w+", str(found)))
    return found


@pytest.mark.parametrize(
    ("address", "shown", "reason", "words"),
    [
        ("https://{tls}", ["other"], errors.NOT_TRUSTED, "is signed by none of those in {other} (`ca` or --ca): give"),
        ("https://{tls}", [], errors.NOT_TRUSTED, "is signed by none of this system's authorities: give"),
        ("{tls}", [], errors.WANTS_TLS, "it may want TLS (https://{tls})."),
        ("https://{plain}", ["ca"], errors.NO_TLS, "does not speak TLS: an address without https:// is for that."),
        ("https://{mutual}", ["ca"], errors.WANTS_CERTIFICATE, "it may want a certificate of this caller"),
        (
            "https://{mutual}",
            ["ca", "stranger"],
            errors.CERTIFICATE_REFUSED,
            "may not trust the certificate in {stranger} (",
        ),
        (
            "https://{mutual}",
            ["ca", "expired"],
            errors.CERTIFICATE_REFUSED,
            "{expired} (`certificate` or --client-certifi",
        ),
    ],
)
async def test_why_there_is_no_connection_is_told(
    addresses: dict[str, Any], address: str, shown: list[str], reason: str, words: str
) -> None:
    address = address.format(**addresses)
    error = await told(address, **{name: path for one in shown for name, path in addresses[one].items()})
    assert error.reason == reason
    assert address in str(error)
    files = {name: next(iter(one.values())) for name, one in addresses.items() if isinstance(one, dict)}
    assert words.format(**files, tls=addresses["tls"]) in str(error)


async def test_a_certificate_for_another_name_is_told(addresses: dict[str, Any]) -> None:
    error = await told(addresses["tls"].replace("127.0.0.1", "https://localhost"), **addresses["ca"])
    assert error.reason == errors.OTHER_NAME
    assert "is for another name" in str(error)


@pytest.mark.parametrize(
    ("begins", "ends", "reason", "words"),
    [
        (-3 * DAY, -DAY, errors.CERTIFICATE_EXPIRED, "has expired: its owner has to renew it"),
        (DAY, 3 * DAY, errors.CERTIFICATE_NOT_YET_VALID, "is not valid yet: this machine's clock is slow"),
    ],
)
async def test_a_servers_certificate_outside_of_its_time_is_told(
    tmp_path: Path, begins: dt.timedelta, ends: dt.timedelta, reason: str, words: str
) -> None:
    authority = Authority()
    pair = authority.sign("127.0.0.1", begins=begins, ends=ends)
    (tmp_path / "ca.pem").write_bytes(authority.pem)
    server = grpc.aio.server()  # the service itself refuses to start with an expired one
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(pair.key, pair.certificate)]))
    await server.start()
    error = await told(f"https://127.0.0.1:{port}", ca=str(tmp_path / "ca.pem"))
    await server.stop(None)
    assert error.reason == reason
    assert words in str(error)


async def test_a_name_that_nobody_has_is_told_and_where_it_was_set(monkeypatch: pytest.MonkeyPatch) -> None:
    error = await told("nowhere.invalid:50051")
    assert error.reason == errors.UNKNOWN_HOST
    assert str(error) == "No machine has the name in nowhere.invalid:50051: mend the name, or this machine's DNS."
    monkeypatch.setenv("TOKENWIRE_ADDRESS", "https://nowhere.invalid")
    assert "in https://nowhere.invalid (TOKENWIRE_ADDRESS): mend" in str(await told(None))


async def test_a_port_that_nobody_listens_on_is_told_and_where_it_was_set(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
    error = await told(address)
    assert error.reason == errors.NOT_CONNECTED
    assert str(error) == f"The service is not running at {address}. Start it with `tokenwire serve`."
    monkeypatch.setenv("TOKENWIRE_ADDRESS", address)
    assert f"not running at {address} (TOKENWIRE_ADDRESS). Start" in str(await told(None))


async def test_a_machine_that_says_nothing_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        error = await told(f"127.0.0.1:{silent.getsockname()[1]}")
    assert error.reason == errors.NO_ANSWER
    assert str(error).endswith("the machine may be off, or a firewall between.")


async def test_a_web_server_is_told_from_the_service() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        error = await told(f"127.0.0.1:{server.sockets[0].getsockname()[1]}")
    assert error.reason == errors.NOT_GRPC
    assert "give the service's own address" in str(error)


@pytest.mark.parametrize(
    ("spoilt", "words"),
    [
        ("key encrypted", "{key} (TOKENWIRE_CLIENT_KEY) is encrypted: a key without a passphrase is wanted"),
        ("key other", "{key} (TOKENWIRE_CLIENT_KEY) is not the key of the certificate in {certificate} (TOKENWIRE_CLI"),
        ("key none", "{key} (TOKENWIRE_CLIENT_KEY) holds no private key in PEM"),
        ("key garbled", "and its key in {key} (TOKENWIRE_CLIENT_KEY) can't be read"),
        ("certificate none", "{certificate} (TOKENWIRE_CLIENT_CERTIFICATE) holds no certificate in PEM"),
        ("ca none", "{ca} (TOKENWIRE_CA) holds no certificate in PEM"),
        ("ca garbled", "{ca} (TOKENWIRE_CA) holds a certificate that can't be read"),
    ],
)
def test_files_that_cannot_serve_are_told_at_once_and_where_they_were_named(
    tmp_path: Path, spoilt: str, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    authority = Authority()
    pair = authority.sign("mine", encrypted=spoilt == "key encrypted")
    certificate, key = pair.write(tmp_path)
    files: dict[str, Any] = {"ca": str(tmp_path / "ca.pem"), "certificate": certificate, "key": key}
    (tmp_path / "ca.pem").write_bytes(authority.pem)
    what, how = spoilt.split()
    content = Path(files[what]).read_bytes()
    other = {"none": b"nothing", "garbled": content.replace(b"-----\nM", b"-----\nA"), "other": authority.sign("a").key}
    Path(files[what]).write_bytes(other.get(how, content))
    for name, value in Identity(**files).environ().items():
        monkeypatch.setenv(name, value)
    for make in (Client, AsyncClient):
        with pytest.raises(ValueError, match=re.escape(words.format(**files))):
            make("https://127.0.0.1:1")
    for command in (ask, chat, models, usage):
        assert command.main(["--address", "https://127.0.0.1:1"]) == 2
        said = capsys.readouterr().err
        assert words.format(**files) in said
        assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "variable"),
    [
        ("ca", "TOKENWIRE_CA"),
        ("certificate", "TOKENWIRE_CLIENT_CERTIFICATE"),
        ("key", "TOKENWIRE_CLIENT_KEY"),
        ("token_file", "TOKENWIRE_TOKEN_FILE"),
    ],
)
def test_a_file_that_is_not_there_is_told_with_where_it_was_named(tmp_path: Path, name: str, variable: str) -> None:
    authority = Authority()
    certificate, key = authority.sign("mine").write(tmp_path)
    (tmp_path / "token").write_text("t")
    (tmp_path / "ca").write_bytes(authority.pem)
    files: dict[str, Any] = {
        "ca": str(tmp_path / "ca"),
        "certificate": certificate,
        "key": key,
        "token_file": str(tmp_path / "token"),
    }
    environ = Identity(**files).environ()
    Connection("https://h", Identity.found({}, environ)).credentials()
    Path(files[name]).unlink()
    with pytest.raises(FileNotFoundError) as caught:
        Connection("https://h", Identity.found({}, environ)).credentials()
    assert (caught.value.filename, caught.value.strerror) == (
        files[name],
        f"No such file or directory (named by {variable})",
    )


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", " is empty: an API key or a JWT is wanted in it, on one line"),
        (" \n\n", " is empty: an API key or a JWT is wanted in it, on one line"),
        ("one-token\nother-token\n", " holds 2 lines: one token is wanted in it, on one line"),
    ],
)
def test_what_a_tokens_file_lacks_is_told_without_the_token(tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "token"
    path.write_text(content)
    with pytest.raises(ValueError, match=re.escape(f"{path} (TOKENWIRE_TOKEN_FILE){words}")) as caught:
        Connection("localhost:1", Identity.found({}, {"TOKENWIRE_TOKEN_FILE": str(path)}))
    assert "-token" not in str(caught.value)


@pytest.mark.parametrize(
    ("shown", "words"),
    [
        ({}, "you show no token (`token`, --token-file, `TOKENWIRE_TOKEN`) and no certificate."),
        ({"token": "secret-token"}, "the token (`token`) is wrong, has expired, or was revoked."),
        ({"token_file": "{}/token"}, "the token in {}/token (`token_file` or --token-file) is wrong, has expired, or"),
    ],
)
async def test_what_is_wrong_with_who_calls_is_told_by_what_was_shown(
    serve: Serve, tmp_path: Path, shown: dict[str, str], words: str
) -> None:
    (tmp_path / "token").write_text("secret-token")
    api_keys.new(str(tmp_path / "keys"), "app")
    serving = await serve(FakeProvider(HELLO), api_keys=str(tmp_path / "keys"))
    error = await told(serving.address, **{name: value.format(tmp_path) for name, value in shown.items()})
    assert type(error) is NotAllowedError
    assert words.format(tmp_path) in str(error)
    assert "secret" not in str(error)
