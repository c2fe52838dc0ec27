"""`tokenwire edge` says in one sentence why it can't begin, ends without a trace, and tells nobody what was asked."""

import asyncio
import builtins
import importlib.util
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest

from service.admission import api_keys
from tests.certificates import Authority
from tests.edge.conftest import Edge, Running, children, ended, read, running_edge, running_service, said
from tests.marks import needs_file_modes
from tests.ports import free_port
from tests.signals import repeat
from tokenwire import AsyncClient, TokenwireError
from tokenwire.cli.running import edge
from vertex_emulator.emulator import Emulator
from vertex_emulator.script import answer, status, wait_for

ASK = {"prompt": "What is baseball?"}


def refusal(capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    """What it says where it doesn't even start Envoy."""
    assert edge.main(flags) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.count("\n") == 1
    return told.err


@pytest.fixture(autouse=True)
def signals() -> Any:
    """It takes signals over."""
    before = {number: signal.getsignal(number) for number in edge.STOP}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("module", ["envoy", "yaml"])
def test_without_its_extra(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], module: str) -> None:
    real = importlib.util.find_spec

    def find(name: str, *rest: Any) -> ModuleSpec | None:
        return None if name == module else real(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", find)
    assert "extra 'edge'" in refusal(capsys)


def test_help_needs_no_extra(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        assert name not in ("envoy", "yaml", "grpc")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(SystemExit, match="0"):
        edge.main(["--help"])
    assert "--replica HOST:PORT" in capsys.readouterr().out


@pytest.mark.parametrize("flag", ["--port", "--admin-port", "--metrics-port"])
def test_a_port_that_is_taken(capsys: pytest.CaptureFixture[str], flag: str) -> None:
    with socket.create_server(("127.0.0.1", 0), reuse_port=True) as taken:
        port = str(taken.getsockname()[1])
        flags = ["--port", str(free_port())] if flag != "--port" else []
        told = refusal(capsys, *flags, flag, port)
    assert f"{flag} {port} on 127.0.0.1 can't be used: Address already in use" in told
    assert f"Give {flag} another one" in told


@pytest.mark.parametrize("host", ["192.0.2.1", "nowhere.invalid"])
def test_a_host_that_is_not_this_machine(capsys: pytest.CaptureFixture[str], host: str) -> None:
    assert "Give --host an address of this machine" in refusal(capsys, "--host", host, "--port", str(free_port()))


def test_certificates_that_can_not_be_used(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    authority = Authority()
    certificate, key = authority.sign("localhost").write(tmp_path)
    _, other = authority.sign("localhost").write(tmp_path, "other")
    _, locked = authority.sign("localhost", encrypted=True).write(tmp_path, "locked")
    nothing = tmp_path / "nothing"
    nothing.write_text("nothing")
    pairs = [
        ((certificate,), "--tls-certificate and --tls-key are wanted together"),
        ((f"{tmp_path}/none", key), f"--tls-certificate {tmp_path}/none can't be read: No such file"),
        ((certificate, f"{tmp_path}/none"), f"--tls-key {tmp_path}/none can't be read: No such file"),
        ((certificate, other), "the key isn't that of the certificate"),
        ((str(nothing), key), "they aren't PEM"),
        ((certificate, str(nothing)), "they aren't PEM"),
        ((certificate, locked), "a key without one is wanted"),
    ]
    for paths, words in pairs:
        flags = [part for pair in zip(("--tls-certificate", "--tls-key"), paths, strict=False) for part in pair]
        assert words in refusal(capsys, *flags)


def test_authorities_that_can_not_be_used(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    nothing = tmp_path / "nothing"
    nothing.write_text("nothing")
    assert "can't be read: No such file" in refusal(capsys, "--replica-ca", f"{tmp_path}/none")
    assert "it has no certificates in PEM" in refusal(capsys, "--replica-ca", str(nothing))
    assert "--replica-ca is wanted with it" in refusal(capsys, "--replica-name", "a.internal")


@needs_file_modes
def test_a_page_that_can_not_be_read(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "--page" in (told := refusal(capsys, "--page", str(tmp_path)))
    assert "can't be read" in told


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--replica", "https://a:1"], "HOST:PORT is wanted"),
        (["--replica", "a:99999"], "HOST:PORT is wanted"),
        (["--replica-name", "a b"], "neither a host's name nor an address"),
        (["--allow-origin", "example.com"], "https://HOST"),
        (["--allow-origin", "https://example.com/page"], "without a path"),
        (["--threads", "0"], "1 to 1024"),
        (["--port", "0"], "1 to 65535"),
        (["--memory", "63"], "64 or more MB are wanted"),
        (["--memory", "1G"], "64 or more MB are wanted"),
        (["--grace", "long"], "0 to 3600 seconds are wanted"),
        (["--grace", "-1"], "0 to 3600 seconds are wanted"),
        (["--drain-delay", "3601"], "0 to 3600 seconds are wanted"),
    ],
)
def test_flags_that_are_wrong(capsys: pytest.CaptureFixture[str], flags: list[str], words: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        edge.main(flags)
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_it_ends_with_all_that_it_has_started(tmp_path: Path, number: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "tokenwire.cli", "edge", "--port", str(free_port())],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    ) as process:
        assert process.stdout is not None
        assert b"Envoy listening on" in process.stdout.readline()
        (envoy,) = children(process.pid)
        assert list(tmp_path.iterdir())
        repeat(number, process)
    assert process.returncode == 0
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ProcessLookupError):
        os.kill(envoy, 0)


@asynccontextmanager
async def draining(running: Running, vertex: Emulator, *flags: str) -> AsyncIterator[tuple[Edge, "asyncio.Task[str]"]]:
    """A signal has come while a call waits in the middle of its answer."""
    vertex.script.play(answer("Baseball ", wait_for("rest"), "is a game."), default=answer("Baseball."))
    async with running_edge("--replica", running.service, *flags) as edge, edge.client() as client:
        call = asyncio.create_task(ended(client))
        await vertex.wait_until(lambda e: [one.waiting_for for one in e.open_calls] == ["rest"])
        edge.process.terminate()
        await said(edge, "Draining")
        yield edge, call


@pytest.mark.parametrize("administered", [False, True])
async def test_with_a_grace_calls_come_to_their_end_and_callers_go(
    running: Running, vertex: Emulator, administered: bool
) -> None:
    flags = ("--admin-port", str(free_port())) if administered else ()
    async with draining(running, vertex, "--grace", "60", *flags) as (edge, call):
        async with edge.client() as client:
            # As soon as it has begun to drain.
            while (await client.post("/v1/generate", json=ASK)).headers.get("connection") != "close":
                pass
        assert not call.done()
        vertex.open_gate("rest")
        assert await call == "completed"
        async with asyncio.timeout(30):
            assert await edge.process.wait() == 0
    assert not any("cut" in line for line in edge.said)


async def test_a_second_signal_ends_it_at_once(running: Running, vertex: Emulator) -> None:
    async with draining(running, vertex, "--grace", "60") as (edge, call):
        edge.process.terminate()
        async with asyncio.timeout(30):
            assert await edge.process.wait() == 0
        assert await call == "cut"


async def test_when_the_grace_is_over_calls_are_cut(running: Running, vertex: Emulator) -> None:
    async with draining(running, vertex, "--grace", "0.5") as (edge, call):
        async with asyncio.timeout(30):
            assert await edge.process.wait() == 0
        assert await call == "cut"
    assert any("The grace is over: 1 calls are cut" in line for line in edge.said)


async def test_it_takes_calls_until_load_balancers_have_noticed_that_it_goes(
    running: Running, vertex: Emulator
) -> None:
    vertex.script.play(default=answer("Baseball."))
    async with running_edge("--replica", running.service, "--drain-delay", "3") as edge, edge.client() as client:
        assert (await client.get("/healthz")).status_code == 200
        began = time.monotonic()
        edge.process.terminate()
        while (health := await client.get("/healthz")).status_code == 200:
            pass
        assert health.status_code == 503
        assert await ended(client) == "completed"
        assert edge.process.returncode is None
        async with asyncio.timeout(30):
            assert await edge.process.wait() == 0
        assert time.monotonic() - began >= 3
    assert [line["path"] for line in access_log(edge)] == ["/v1/generate"]


async def test_if_envoy_dies_so_does_the_command() -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tokenwire.cli", "edge", "--port", str(free_port())),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    assert process.stdout is not None
    assert b"Envoy listening on" in await process.stdout.readline()
    (envoy,) = children(process.pid)
    os.kill(envoy, signal.SIGKILL)
    rest = (await process.stdout.read()).decode()
    assert await process.wait() == 1
    assert "Envoy has ended by itself, with -9" in rest


async def test_tls_and_both_of_its_protocols(running: Running, vertex: Emulator, tmp_path: Path) -> None:
    vertex.script.play(answer("a"), answer("b"))
    authority = Authority()
    certificate, key = authority.sign("localhost", "127.0.0.1").write(tmp_path)
    (tmp_path / "ca.pem").write_bytes(authority.pem)
    trusted = ssl.create_default_context(cadata=authority.pem.decode())
    flags = ("--replica", running.service, "--tls-certificate", certificate, "--tls-key", key)
    async with running_edge(*flags) as running_tls:
        async with running_tls.client(verify=trusted) as client:
            response = await client.post("/v1/generate", json=ASK)
            assert "completed" in read(response.text.splitlines()[-1])
        asked = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tokenwire.cli", "ask", "hi", "--address", running_tls.url),
            *("--ca", str(tmp_path / "ca.pem")),
            stdout=asyncio.subprocess.PIPE,
        )
        assert (await asked.communicate())[0] == b"b\n"


async def test_a_certificate_is_followed_and_no_stream_is_cut_for_it(
    running: Running, vertex: Emulator, tmp_path: Path
) -> None:
    """However the files are changed, and one after the other; what can't be used is told, and the one before stays."""
    vertex.script.play(answer("Base", wait_for("rotated"), "ball."))
    authority = Authority()
    certificate, key = authority.sign("localhost", "127.0.0.1").write(tmp_path)
    trusted = ssl.create_default_context(cadata=authority.pem.decode())
    flags = ("--replica", running.service, "--tls-certificate", certificate, "--tls-key", key)
    paths = Path(certificate), Path(key)
    goes_on, taken = "Envoy goes on with the certificate it has: ", "New connections get the new certificate"

    async def served() -> bytes:
        """What new connections get."""
        _, writer = await asyncio.open_connection("localhost", followed.port, ssl=trusted)
        shown: bytes = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        writer.close()
        return shown

    async def other_than(before: bytes) -> bytes:
        """What they get once Envoy has read it, which is a moment later."""
        async with asyncio.timeout(10):
            while (shown := await served()) == before:
                pass
        return shown

    async with running_edge(*flags) as followed, followed.client(verify=trusted) as client:
        async with client.stream("POST", "/v1/generate", json=ASK) as response:
            lines = response.aiter_lines()
            while "text" not in read(await anext(lines)):
                pass
            first = await served()
            authority.sign("localhost", "127.0.0.1").write(tmp_path)
            await said(followed, taken)
            second = await other_than(first)
            for path, content in zip(paths, authority.sign("localhost", "127.0.0.1"), strict=True):
                path.write_bytes(content)
            await said(followed, taken, times=2)
            third = await other_than(second)
            paths[1].write_text("nothing")
            await said(followed, goes_on)
            assert "they aren't PEM" in followed.said[-1]
            paths[1].unlink()
            await said(followed, goes_on, times=2)
            assert "can't be read: No such file" in followed.said[-1]
            paths[1].write_bytes(authority.sign("localhost")[1])
            await said(followed, goes_on, times=3)
            assert "the key isn't that of the certificate" in followed.said[-1]
            assert await served() == third
            vertex.open_gate("rotated")
            rest = [line async for line in lines]
        assert "completed" in read(rest[-1])


async def test_administration_is_of_this_machine_alone_and_off_unless_asked_for(running: Running) -> None:
    port = free_port()
    flags = ("--replica", running.service, "--admin-port", str(port))
    async with running_edge(*flags) as administered, administered.client() as client:
        assert "healthy" in (await client.get(f"http://127.0.0.1:{port}/clusters")).text
        told = (await client.get(f"http://127.0.0.1:{port}/config_dump")).json()
    assert told["configs"][0]["bootstrap"]["admin"]["address"]["socket_address"]["address"] == "127.0.0.1"
    with pytest.raises(SystemExit):
        edge.main(["--admin-host", "0.0.0.0"])


async def test_no_prompt_no_answer_and_no_key_in_what_envoy_writes(vertex: Emulator, tmp_path: Path) -> None:
    """Neither of calls that succeed, nor of those that fail, are refused, or are no calls at all."""
    keys = tmp_path / "keys"
    _, key = api_keys.new(str(keys), "somebody")
    vertex.script.play(default=answer("CANARY-ANSWER ", status("INTERNAL", "CANARY-ERROR")))
    headers = {"authorization": f"Bearer {key}"}
    asks: list[tuple[str, str, dict[str, Any]]] = [
        ("POST", "/v1/generate", {"json": {"prompt": "CANARY-PROMPT"}}),
        ("GET", "/v1/generate?prompt=CANARY-PROMPT", {}),
        ("GET", "/v1/generate?prompt=CANARY-PROMPT&CANARY-FIELD=1", {}),
        ("GET", "/v1/generate?prompt=CANARY-PROMPT&config.temperature=CANARY", {}),
        ("GET", "/v1/CANARY?prompt=CANARY-PROMPT", {}),
        ("GET", "/?prompt=CANARY-PROMPT", {}),
        ("POST", "/v1/generate", {"content": '{"prompt": "CANARY-PROMPT'}),
        ("POST", "/v1/generate", {"content": "CANARY-PROMPT"}),
        ("POST", "/v1/generate", {"content": '{"prompt": "a", "config": {"temperature": "CANARY-PROMPT"}}'}),
        ("POST", "/v1/countTokens", {"json": {"prompt": "CANARY-PROMPT"}}),
        ("POST", "/v1/generate?access_token=CANARY-KEY", {"json": {"prompt": "CANARY-PROMPT"}}),
        ("GET", "/v1/generate?prompt=CANARY-PROMPT", {"headers": {"sec-fetch-site": "cross-site"}}),
    ]
    async with (
        running_service(vertex, api_keys=str(keys)) as service,
        running_edge("--replica", service.address) as watched,
    ):
        async with watched.client(headers=headers) as client:
            answered = [(await client.request(method, path, **more)).text for method, path, more in asks]
        async with watched.client() as client:
            refused = await client.get(
                "/v1/generate?prompt=CANARY-PROMPT", headers={"authorization": "Bearer CANARY-KEY"}
            )
            assert refused.status_code == 401
    assert "CANARY-ANSWER" in answered[0]
    assert "CANARY-ANSWER" in answered[1]
    lines = access_log(watched)
    assert [line["path"] for line in lines] == [path.partition("?")[0] for _, path, _ in asks] + ["/v1/generate"]
    said = "".join(watched.said)
    # The path of a call that doesn't exist is told as it is.
    assert "CANARY" not in said.replace("/v1/CANARY", "")
    assert key not in said
    assert key.partition("_")[2] not in said


def access_log(edge: Edge) -> list[dict[str, Any]]:
    """A line for each call. All else that Envoy says is no JSON."""
    return [json.loads(line) for line in edge.said if line.startswith("{")]


TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


async def test_the_access_log_tells_who_called_and_how_it_went(running: Running, vertex: Emulator) -> None:
    vertex.script.play(answer("Baseball."), answer(status("INVALID_ARGUMENT")))
    async with running_edge("--replica", running.service) as watched, watched.client() as client:
        await client.post("/v1/generate", json=ASK, headers={"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"})
        await client.post("/v1/generate", json=ASK)
        await client.get("/nothing?a=b")
    (answered, failed, refused) = access_log(watched)
    assert answered["milliseconds"] >= 0
    assert answered["bytes_in"] == failed["bytes_in"] > 0
    assert answered["bytes_out"] > failed["bytes_out"] > 0
    assert datetime.fromisoformat(answered["time"]) <= datetime.fromisoformat(refused["time"])
    told = ("caller", "method", "path", "protocol", "status", "flags", "replica", "trace_id")
    assert [[line.get(name) for name in told] for line in (answered, failed, refused)] == [
        ["127.0.0.1", "POST", "/v1/generate", "HTTP/1.1", 200, "-", running.service, TRACE],
        ["127.0.0.1", "POST", "/v1/generate", "HTTP/1.1", 400, "-", running.service, None],
        ["127.0.0.1", "GET", "/nothing", "HTTP/1.1", 404, "-", None, None],
    ]


async def test_the_access_log_tells_the_status_of_grpc(running: Running, vertex: Emulator) -> None:
    vertex.script.play(answer("Baseball."), answer(status("INVALID_ARGUMENT")))
    async with running_edge("--replica", running.service) as watched, AsyncClient(watched.address) as client:
        async with client.generate("What is baseball?") as call:
            assert [word async for word in call.text()] == ["Baseball."]
        with pytest.raises(TokenwireError):
            async with client.generate("What is baseball?") as call:
                [word async for word in call.text()]
    answered, failed = access_log(watched)
    assert (answered["status"], answered["grpc_status"], answered["protocol"]) == (200, "0", "HTTP/2")
    assert (failed["status"], failed["grpc_status"]) == (200, "3")


@pytest.mark.parametrize(
    "traceparent",
    [
        'CANARY","status":200}',
        f"00-{TRACE}-00f067aa0ba902b7-01-CANARY",
        f"00-{TRACE}-00f067aa0ba902b7-01, 00-{TRACE}-CANARY",
        f"00-{TRACE.upper()}-00f067aa0ba902b7-01",
        f"00-{'0' * 32}-00f067aa0ba902b7-01",
    ],
)
async def test_nobody_forges_a_line_of_the_access_log(running: Running, traceparent: str) -> None:
    path = '/v1/a","status":200}{"%0a%22\\'
    async with running_edge("--replica", running.service) as watched:
        reader, writer = await asyncio.open_connection("localhost", watched.port)
        headers = f"Host: a\r\nX-Forwarded-For: 192.0.2.1\r\ntraceparent: {traceparent}\r\nConnection: close"
        writer.write(f"GET {path} HTTP/1.1\r\n{headers}\r\n\r\n".encode())
        await reader.read()
        writer.close()
    (line,) = access_log(watched)
    assert (line["path"], line["status"], line.get("trace_id"), line["caller"]) == (path, 404, None, "127.0.0.1")
    assert "CANARY" not in "".join(watched.said)
