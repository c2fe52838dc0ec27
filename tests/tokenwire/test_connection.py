"""How callers reach the service: addresses, TLS, tokens."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from service.testing import FakeProvider
from tests.certificates import Authority
from tests.conftest import Serve
from tests.service.calls.test_servicer import HELLO
from tokenwire import AsyncClient, Client, TokenwireError, errors
from tokenwire.cli import ask, models
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
        (["--address", "https://h", "--ca", "/none.pem"], "/none.pem can't be read: No such file or directory."),
        (["--client-key", "k"], "stand together: the certificate is missing."),
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
    own, own_key = clients.sign("spiffe://example/app").write(tmp_path, "own")
    return {
        "plain": (await serve(FakeProvider(HELLO))).address,
        "tls": (await serve(FakeProvider(HELLO), **tls)).address,
        "mutual": (await serve(FakeProvider(HELLO), **tls, tls_client_ca=str(tmp_path / "clients.pem"))).address,
        "ca": {"ca": str(tmp_path / "ca.pem")},
        "other": {"ca": str(tmp_path / "other.pem")},
        "own": {"certificate": own, "key": own_key},
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


@pytest.mark.parametrize(
    ("kind", "secure", "shown", "reason"),
    [
        ("tls", True, "other", errors.NOT_TRUSTED),
        ("tls", True, "", errors.NOT_TRUSTED),
        ("tls", False, "", errors.TURNED_AWAY),
        ("plain", True, "ca", errors.NO_TLS),
        ("mutual", True, "ca", errors.TURNED_AWAY),
    ],
)
async def test_why_there_is_no_connection_is_told(
    addresses: dict[str, Any], kind: str, secure: bool, shown: str, reason: str
) -> None:
    address = ("https://" if secure else "") + addresses[kind]
    async with AsyncClient(address, **addresses.get(shown, {})) as client:
        with pytest.raises(TokenwireError) as caught:
            await client.models()
    assert caught.value.reason == reason
    assert address in str(caught.value)


async def test_a_certificate_for_another_name_is_told(addresses: dict[str, Any]) -> None:
    address = addresses["tls"].replace("127.0.0.1", "https://localhost")
    async with AsyncClient(address, **addresses["ca"]) as client:
        with pytest.raises(TokenwireError, match="is for another name") as caught:
            await client.models()
    assert caught.value.reason == errors.OTHER_NAME
