"""The server as users run it: a process, its variables, its signals, its exit codes."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from grpc_health.v1 import health_pb2, health_pb2_grpc

from service import app
from service.settings import SettingError, Settings
from tests.conftest import StartProcess, detail, failure
from tokenwire.v1 import generation_service_pb2 as pb
from tokenwire.v1.generation_service_pb2_grpc import GenerationServiceStub
from vertex_emulator.emulator import Emulator
from vertex_emulator.script import answer, silence, status, wait_for


def run(*flags: str, **environ: str) -> "subprocess.CompletedProcess[str]":
    clean = {
        name: value for name, value in os.environ.items() if not name.startswith(("GOOGLE", "TOKENWIRE", "VERTEX"))
    }
    return subprocess.run(
        [sys.executable, "-m", "service", *flags],
        env=clean | {"NO_GCE_CHECK": "true"} | environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_without_an_upstream_it_says_what_to_set_and_exits() -> None:
    ended = run()
    assert ended.returncode == 2
    assert "neither GOOGLE_CLOUD_PROJECT nor VERTEX_EMULATOR_HOST is set" in ended.stderr
    assert "gcloud auth application-default login" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_without_credentials_it_says_how_to_get_them_and_exits(tmp_path: Path) -> None:
    ended = run(GOOGLE_CLOUD_PROJECT="a-project", HOME=str(tmp_path), CLOUDSDK_CONFIG=str(tmp_path))
    assert ended.returncode == 2
    assert "there are no application default credentials" in ended.stderr
    assert "a-project" not in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_setting_that_cannot_be_taken_is_told_in_one_line() -> None:
    ended = run(TOKENWIRE_PORT="x")
    assert ended.returncode == 2
    assert ended.stderr == "python -m service: TOKENWIRE_PORT is 'x': a whole number from 0 to 65535 is wanted\n"


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize(
    ("host", "wanted"),
    [("nowhere.invalid", "TOKENWIRE_HOST"), ("192.0.2.1", "TOKENWIRE_HOST"), ("127.0.0.1", "TOKENWIRE_PORT")],
)
def test_an_address_that_cannot_be_had_is_told_by_the_setting_that_is_wrong(
    workers: str, host: str, wanted: str
) -> None:
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", 0))
        stranger.listen()
        port = str(stranger.getsockname()[1])
        flags = ["--host", host, "--port", port, "--workers", workers, "--insecure", "true"]
        ended = run(*flags, VERTEX_EMULATOR_HOST="127.0.0.1:9")
    assert ended.returncode == 2
    assert f"cannot listen on {host}:{port}" in ended.stderr
    assert {name for name in ("TOKENWIRE_HOST", "TOKENWIRE_PORT") if name in ended.stderr} == {wanted}
    assert "Traceback" not in ended.stderr


async def health(channel: grpc.aio.Channel) -> Any:
    stub: Any = health_pb2_grpc.HealthStub(channel)
    return (await stub.Check(health_pb2.HealthCheckRequest())).status


async def running(channel: grpc.aio.Channel) -> Any:
    """A stream that has said its first piece and then waits."""
    call: Any = GenerationServiceStub(channel).Generate(pb.GenerateRequest(prompt="hi"))
    assert (await call.read()).HasField("started")
    assert (await call.read()).text == "one"
    return call


async def test_it_starts_serves_and_lets_a_running_stream_finish_at_sigterm(
    emulator: Emulator, start_process: StartProcess
) -> None:
    emulator.script.play(answer("one", wait_for("two"), "two"))
    server = await start_process()
    async with grpc.aio.insecure_channel(server.address) as channel:
        assert await health(channel) == health_pb2.HealthCheckResponse.NOT_SERVING
        await server.said("ready after")
        assert await health(channel) == health_pb2.HealthCheckResponse.SERVING
        call = await running(channel)
        server.signal(signal.SIGTERM)
        async with grpc.aio.insecure_channel(server.address, options=[("grpc.use_local_subchannel_pool", 1)]) as late:
            await server.said("draining")
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await GenerationServiceStub(late).Generate(pb.GenerateRequest(prompt="hi")).read()
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        emulator.open_gate("two")
        assert (await call.read()).text == "two"
        assert (await call.read()).HasField("completed")
    assert await asyncio.wait_for(server.process.wait(), 30) == 0
    assert "Traceback" not in "\n".join(server.log)


async def test_a_second_signal_ends_running_streams_at_once(emulator: Emulator, start_process: StartProcess) -> None:
    emulator.script.play(answer("one", silence()))
    server = await start_process("--grace", "3600")
    await server.said("ready after")
    async with grpc.aio.insecure_channel(server.address) as channel:
        call = await running(channel)
        server.signal(signal.SIGTERM)
        await server.said("draining")
        server.signal(signal.SIGINT)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert await asyncio.wait_for(server.process.wait(), 30) == 0
    await emulator.wait_until(lambda e: not e.open_calls)


async def test_a_delay_beyond_the_setting_is_not_waited_for(emulator: Emulator, start_process: StartProcess) -> None:
    wish = RetryInfo()
    wish.retry_delay.FromMilliseconds(300)
    emulator.script.play(default=answer(status("UNAVAILABLE", "away", wish)))
    server = await start_process("--workers", "1", "--max-retry-delay", "0.2")
    await server.said("ready after")
    async with grpc.aio.insecure_channel(server.address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await GenerationServiceStub(channel).Generate(pb.GenerateRequest(prompt="hi")).read()
    assert failure(caught.value) == (grpc.StatusCode.UNAVAILABLE, "UPSTREAM_UNAVAILABLE")
    assert detail(caught.value, RetryInfo).retry_delay.ToMilliseconds() == 300
    assert detail(caught.value, ErrorInfo).metadata["upstream_attempts"] == "1"
    assert len(emulator.calls) == 1


@pytest.mark.parametrize(
    ("variables", "sends", "told"),
    [
        ({}, False, 0),
        ({"ENDPOINT": "http://127.0.0.1:4318"}, True, 0),
        ({"TRACES_ENDPOINT": "http://127.0.0.1:4318/v1/traces"}, True, 0),
        ({"ENDPOINT": "http://127.0.0.1:4317", "PROTOCOL": "grpc"}, False, 1),
        ({"ENDPOINT": "http://127.0.0.1:4318", "PROTOCOL": "http/protobuf"}, True, 0),
    ],
)
def test_traces_are_sent_where_opentelemetrys_variables_ask_for_them(
    monkeypatch: pytest.MonkeyPatch, lines: list[str], variables: dict[str, str], sends: bool, told: int
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(f"OTEL_EXPORTER_OTLP_{name}", value)
    assert app._sends_traces() is sends
    assert len(lines) == told


@pytest.mark.parametrize("off", [("OTEL_SDK_DISABLED", "true"), ("OTEL_TRACES_EXPORTER", "none")])
def test_and_not_where_they_turn_it_off(monkeypatch: pytest.MonkeyPatch, off: tuple[str, str]) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318")
    monkeypatch.setenv(*off)
    assert not app._sends_traces()


def test_a_process_that_cannot_begin_says_so_as_an_error(caplog: pytest.LogCaptureFixture) -> None:
    async def fails() -> None:
        raise SettingError("cannot listen on 127.0.0.1:1: it is refused")

    with caplog.at_level("INFO", logger="tokenwire"):
        assert app._run(fails(), processes=1) == app.EXIT_SETTING
    assert [(one.levelname, one.getMessage()) for one in caplog.records] == [
        ("ERROR", "cannot listen on 127.0.0.1:1: it is refused")
    ]


def test_a_file_that_cannot_be_used_is_told_by_the_setting_as_it_was_given(tmp_path: Path) -> None:
    callers = tmp_path / "callers.toml"
    callers.write_text("[callers.billing]\ntypo = 1\n")
    flags = ["--api-keys", "keyz", "--tls-certificate", "server.crt", "--port", "0"]
    ended = run(
        *flags, TOKENWIRE_TLS_KEY="server.key", TOKENWIRE_CALLERS=str(callers), VERTEX_EMULATOR_HOST="127.0.0.1:9"
    )
    assert ended.returncode == 2
    told = [line.removeprefix("python -m service: ") for line in ended.stderr.splitlines()]
    assert told[:2] == [
        "--tls-certificate is 'server.crt': No such file or directory",
        "--api-keys is 'keyz': No such file or directory; `tokenwire keys new` makes it",
    ]
    assert told[2].startswith(f"{callers}:2: [callers.billing] there is no 'typo'")
    assert all(line.endswith("(TOKENWIRE_CALLERS)") for line in told[2:])


def test_names_of_settings_are_those_by_which_they_were_set() -> None:
    names = Settings.names(["--port", "1", "--host="], {"TOKENWIRE_PORT": "2", "TOKENWIRE_WORKERS": "3"})
    assert (names["port"], names["workers"], names["host"]) == ("--port", "TOKENWIRE_WORKERS", "TOKENWIRE_HOST")
