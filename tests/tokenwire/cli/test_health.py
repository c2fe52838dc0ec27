"""`tokenwire health`, against the health service of the protocol's own authors."""

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from tests.certificates import Authority
from tests.tokenwire.fake_service import FakeService
from tokenwire.cli.health import main

Said = pytest.CaptureFixture[str]
State = health_pb2.HealthCheckResponse


class Servicer(health.HealthServicer):  # type: ignore[misc] # grpc_health has no types
    """Says what it was told last, once it may."""

    def __init__(self) -> None:
        super().__init__()
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.shown: list[str] = []
        """What callers have shown."""

    def Check(self, request: Any, context: Any) -> Any:
        assert request == health_pb2.HealthCheckRequest()
        self.shown += [value for key, value in context.invocation_metadata() if key == "authorization"]
        while not self.may_answer.wait(0.01) and context.is_active():
            pass
        return super().Check(request, context)

    def say(self, state: Any) -> None:
        self.set("", state)


Start = Callable[..., str]


@pytest.fixture
def servicer() -> Servicer:
    return Servicer()


@pytest.fixture
def start(servicer: Servicer) -> Iterator[Start]:
    """`start(credentials)`: serves, and gives the port."""
    server = grpc.server(ThreadPoolExecutor(4))
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)

    def begin(credentials: grpc.ServerCredentials | None = None) -> str:
        address = "127.0.0.1:0"
        port = server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
        server.start()
        return str(port)

    yield begin
    servicer.may_answer.set()
    server.stop(None).wait()


def test_a_service_that_serves_is_healthy(servicer: Servicer, start: Start, capsys: Said) -> None:
    servicer.say(State.SERVING)
    assert main(["--address", f"127.0.0.1:{start()}"]) == 0
    assert capsys.readouterr() == ("SERVING\n", "")


@pytest.mark.parametrize(
    "state", [State.NOT_SERVING, State.UNKNOWN, State.SERVICE_UNKNOWN], ids=State.ServingStatus.Name
)
def test_any_other_state_is_told_and_is_none(state: Any, servicer: Servicer, start: Start, capsys: Said) -> None:
    servicer.say(state)
    address = f"127.0.0.1:{start()}"
    assert main(["--address", address]) == 1
    name = State.ServingStatus.Name(state)
    assert capsys.readouterr() == ("", f"The service at {address} does not serve: it says {name}.\n")


def test_a_service_that_is_away_is_not_healthy(nobody: str, capsys: Said) -> None:
    assert main(["--address", nobody]) == 1
    assert capsys.readouterr() == ("", f"The service is not running at {nobody}. Start it with `tokenwire serve`.\n")


def test_neither_is_one_that_tells_nothing_of_its_health(service: FakeService, capsys: Said) -> None:
    assert main(["--address", service.address]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"What runs at {service.address} cannot do this:")


def test_nor_one_that_does_not_answer_in_time(servicer: Servicer, start: Start, capsys: Said) -> None:
    servicer.say(State.SERVING)
    servicer.may_answer.clear()
    assert main(["--address", f"127.0.0.1:{start()}", "--timeout", "0.2"]) == 1
    assert "within 0.2 s" in capsys.readouterr().err


def test_over_tls_the_name_of_the_certificate_may_be_another_one(
    servicer: Servicer, start: Start, capsys: Said, tmp_path: Path
) -> None:
    authority = Authority()
    servicer.say(State.SERVING)
    pair = authority.sign("tokenwire.example")
    port = start(grpc.ssl_server_credentials([(pair.key, pair.certificate)]))
    (tmp_path / "ca.pem").write_bytes(authority.pem)
    flags = ["--address", f"https://127.0.0.1:{port}", "--ca", str(tmp_path / "ca.pem")]
    assert main(flags) == 1
    assert "is for another name" in capsys.readouterr().err
    assert main([*flags, "--server-name", "other.example"]) == 1
    assert "is for another name" in capsys.readouterr().err
    assert main([*flags, "--server-name", "tokenwire.example"]) == 0
    assert capsys.readouterr() == ("SERVING\n", "")


def test_a_caller_shows_its_certificate_where_one_is_wanted(
    servicer: Servicer, start: Start, capsys: Said, tmp_path: Path
) -> None:
    authority = Authority()
    servicer.say(State.SERVING)
    pair = authority.sign("127.0.0.1")
    credentials = grpc.ssl_server_credentials([(pair.key, pair.certificate)], authority.pem, require_client_auth=True)
    port = start(credentials)
    (tmp_path / "ca.pem").write_bytes(authority.pem)
    flags = ["--address", f"https://127.0.0.1:{port}", "--ca", str(tmp_path / "ca.pem")]
    assert main(flags) == 1
    capsys.readouterr()
    certificate, key = authority.sign("caller").write(tmp_path, "caller")
    assert main([*flags, "--client-certificate", certificate, "--client-key", key]) == 0
    assert capsys.readouterr() == ("SERVING\n", "")


def test_a_token_goes_along(servicer: Servicer, start: Start, capsys: Said, tmp_path: Path) -> None:
    servicer.say(State.SERVING)
    (tmp_path / "token").write_text("secret\n")
    assert main(["--address", f"127.0.0.1:{start()}", "--token-file", str(tmp_path / "token")]) == 0
    assert capsys.readouterr() == ("SERVING\n", "")
    assert servicer.shown == ["Bearer secret"]


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--server-name", "a.example"], "--server-name is for TLS"),
        (["--address", "https://localhost:1", "--ca", "none.pem"], "none.pem can't be read: No such file or directory"),
        (["--address", "https://localhost:1", "--client-key", "none.key"], "the certificate is missing"),
    ],
    ids=["name", "ca", "key"],
)
def test_what_cannot_be_used_is_a_wrong_command_line(flags: list[str], told: str, nobody: str, capsys: Said) -> None:
    assert main(["--address", nobody, *flags]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert told in err
    assert len(err.splitlines()) == 1


def test_it_needs_no_extra(servicer: Servicer, start: Start) -> None:
    servicer.say(State.SERVING)
    code = (
        "import sys\n"
        "sys.modules['grpc_health'] = None\n"
        "from tokenwire.cli.__main__ import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    command = [sys.executable, "-c", code, "health", "--address", f"127.0.0.1:{start()}"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "SERVING\n", "")
