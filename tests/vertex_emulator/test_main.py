"""`python -m vertex_emulator` as a real process."""

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import httpx
import pytest

from tests.signals import repeat
from tests.vertex_emulator.conftest import Client, Write, next_text
from vertex_emulator import __main__ as command
from vertex_emulator.__main__ import main
from vertex_emulator.control.client import ControlClient
from vertex_emulator.emulator import Emulator
from vertex_emulator.script import answer

Start = Callable[..., tuple["subprocess.Popen[str]", str]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts it with these arguments, and returns the process and its address once it listens."""
    processes = []

    def run(*arguments: str) -> tuple["subprocess.Popen[str]", str]:
        command = [sys.executable, "-m", "vertex_emulator", "--port", "0", *arguments]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        processes.append(process)
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.fullmatch(r"Vertex emulator listening on (\S+)\n", line)
        assert found, line
        return process, found[1]

    yield run
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=10)


def run(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "vertex_emulator", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=60, env={**os.environ, **environment}, check=False
    )


async def test_it_plays_a_script_file(start: Start, script_file: Write) -> None:
    path = script_file({"answers": [{"steps": [{"text": "from"}, {"text": " JSON"}]}]})
    _, address = start("--script", str(path))
    async with grpc.aio.insecure_channel(address) as channel:
        assert (await Client(channel).ask()).text == "from JSON"


def test_it_serves_googles_rest_form_too(start: Start) -> None:
    process, _ = start("--mind", "script", "--rest-port", "0")
    assert process.stdout is not None
    found = re.fullmatch(
        r"Google's REST form and OpenAI's protocol on (http://127\.0\.0\.1:\d+)\n", process.stdout.readline()
    )
    assert found
    told = httpx.post(
        f"{found[1]}/v1/models/m:generateContent", json={"contents": [{"parts": [{"text": "Hi"}]}]}, timeout=10
    )
    assert told.json()["candidates"][0]["finishReason"] == "STOP"


@pytest.mark.parametrize(
    ("arguments", "ports"),
    [
        ((), (8087, 8088)),
        (("--port", "1"), (1, None)),
        (("--port", "8087"), (8087, None)),
        (("--port", "1", "--rest-port", "2"), (1, 2)),
        (("--rest-port", "2"), (8087, 2)),
    ],
)
def test_the_default_ports(arguments: tuple[str, ...], ports: tuple[int, int | None]) -> None:
    parsed = command._parse(arguments, "emulator")
    assert (parsed.port, parsed.rest_port) == ports


def test_without_uvicorn_it_serves_grpc_alone(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "uvicorn.py").write_text("raise ModuleNotFoundError('uvicorn', name='uvicorn')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    _, address = start("--mind", "script")
    assert address
    ended = run("--mind", "script", "--port", "0", "--rest-port", "0")
    assert ended.stderr.splitlines()[-1] == (
        "python -m vertex_emulator: HTTP needs uvicorn, of tokenwire's extra 'local'; or serve gRPC alone"
    )


def test_it_is_steered_from_here(start: Start) -> None:
    _, address = start("--mind", "script")
    with ControlClient(address) as control, grpc.insecure_channel(address) as channel:
        control.play(answer("a", "b"))
        method: Any = channel.unary_stream("/google.cloud.aiplatform.v1.PredictionService/StreamGenerateContent")
        assert len(list(method(b"", timeout=10))) == 2
        assert control.wait_until(lambda calls: len(calls) == 1)[0].ending.code == "OK"


def test_a_script_that_cuts_brings_the_relay(start: Start, script_file: Write) -> None:
    path = script_file({"answers": [{"steps": [{"cut": {}}]}]})
    _, address = start("--script", str(path))
    with grpc.insecure_channel(address) as channel:
        method: Any = channel.unary_stream("/google.cloud.aiplatform.v1.PredictionService/StreamGenerateContent")
        with pytest.raises(grpc.RpcError) as caught:
            list(method(b"", timeout=10))
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_in_peace(start: Start, number: signal.Signals) -> None:
    process, _ = start("--mind", "script")
    repeat(number, process)
    _, errors = process.communicate(timeout=10)
    assert (process.returncode, errors) == (0, "")


@pytest.mark.smollm2
async def test_a_signal_ends_it_in_the_middle_of_a_real_answer(start: Start) -> None:
    process, address = start("--mind", "smollm2")
    async with grpc.aio.insecure_channel(address) as channel:
        call = Client(channel).stream("Write a very long story about a dragon.")
        assert await next_text(call)
        process.send_signal(signal.SIGTERM)
        _, errors = await asyncio.to_thread(process.communicate, timeout=10)
        assert process.returncode == 0, errors


def test_a_port_in_use_is_told_in_one_line(start: Start) -> None:
    _, address = start("--mind", "script")
    ended = run("--mind", "script", "--port", address.rsplit(":", 1)[1])
    assert ended.returncode == 1
    assert ended.stderr == (
        f"python -m vertex_emulator: can't listen on {address}: Address already in use. "
        "Take another port (0 is a free one), or end what listens there\n"
    )


def test_a_bad_script_is_told_in_one_line(script_file: Write) -> None:
    path = script_file('{"answers": [{"steps": [{"txt": "a"}]}]}')
    ended = run("--script", str(path))
    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()
    assert line.startswith(f"python -m vertex_emulator: {path}: ")
    assert '"txt" at "Script.answers[0].steps[0]"' in line


@pytest.mark.parametrize(
    ("trouble", "words"),
    [
        (
            "ModuleNotFoundError('xllamacpp')",
            "SmolLM2 needs xllamacpp, of tokenwire's extra 'local'; or use --mind script",
        ),
        (
            "ImportError('libgomp.so.1: cannot open shared object file')",
            (
                "xllamacpp can't be loaded: libgomp.so.1: cannot open shared object file. It needs the system's OpenMP "
                "library: apt install libgomp1, or dnf install libgomp"
            ),
        ),
    ],
)
def test_a_missing_runtime_says_what_to_install_before_any_download(tmp_path: Path, trouble: str, words: str) -> None:
    (tmp_path / "xllamacpp.py").write_text(f"raise {trouble}")
    ended = run("--port", "0", PYTHONPATH=str(tmp_path), TOKENWIRE_CACHE=str(tmp_path / "cache"))
    assert (ended.returncode, ended.stderr) == (1, f"python -m vertex_emulator: {words}\n")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--port", "70000"), "'70000' is not a whole number from 0 to 65535"),
        (("--port", "x"), "'x' is not a whole number"),
        (("--threads", "0"), "'0' is not a whole number from 1 to 1000000"),
        (("--mind", "oracle"), "invalid choice"),
        (("--mind", "smollm2", "--script", "x.json"), "exclude each other"),
    ],
)
def test_wrong_usage_exits_with_2(arguments: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert words in capsys.readouterr().err


def test_help_speaks_in_its_callers_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"], prog="tokenwire emulator")
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert "tokenwire emulator --script answers.json" in text
    assert "VERTEX_EMULATOR_HOST=localhost:8087" in text
    assert 'base_url="http://localhost:8088/v1"' in text


async def test_it_listens_where_it_is_told() -> None:
    async with Emulator(host="localhost") as emulator:
        assert emulator.address == f"localhost:{emulator.port}"
        async with grpc.aio.insecure_channel(emulator.address) as channel:
            assert (await Client(channel).ask()).text
