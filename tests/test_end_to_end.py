"""All of it together: page or client -> server process -> the real ChatVertexAI -> the local Vertex."""

import asyncio
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path

import grpc
import pytest
from google.protobuf.message import Message
from playwright.async_api import Page, expect

from tests.browser import SCREENSHOTS, PageAt
from tests.conftest import ServerProcess, StartProcess
from tests.gateway_ui.chat import Chat
from tokenwire import Client, model, user
from tokenwire.v1.config_pb2 import GenerationConfig
from vertex_emulator import Emulator
from vertex_emulator.answerers.smollm2 import SmolLM2
from vertex_emulator.protos import prediction_pb2 as google
from vertex_emulator.script import answer, silence, usage, wait_for


@pytest.fixture
async def server(start_process: StartProcess) -> ServerProcess:
    running = await start_process()
    await running.said("ready after")
    return running


@pytest.fixture
async def chat(server: ServerProcess, tab: Page, page_at: PageAt) -> Chat:
    await tab.goto(await asyncio.to_thread(page_at, server.address))
    page = Chat(tab)
    await expect(page.input).to_be_visible(timeout=20_000)
    return page


def turns(request: Message | None) -> list[tuple[str, str]]:
    assert isinstance(request, google.GenerateContentRequest)
    return [(content.role, "".join(part.text for part in content.parts)) for content in request.contents]


@pytest.mark.browser
async def test_the_page_shows_words_while_the_model_writes_stops_it_and_remembers(
    emulator: Emulator, server: ServerProcess, chat: Chat
) -> None:
    emulator.script.play(
        answer("Baseball is ", wait_for("rest"), "a game.", usage=usage(5, 6)), answer("It takes ", silence())
    )
    await chat.ask("What is baseball?")
    await expect(chat.answer()).to_contain_text("Baseball is")
    assert [call.waiting_for for call in emulator.open_calls] == ["rest"]
    await chat.photograph("end-to-end-streaming")
    emulator.open_gate("rest")
    await expect(chat.answer()).to_contain_text("Baseball is a game.")
    await expect(chat.answer()).to_contain_text("5 tokens in, 6 out")

    await chat.ask("How long does it take?")
    await expect(chat.answer()).to_contain_text("It takes")
    await chat.stop.click()
    await emulator.wait_until(lambda e: not e.open_calls)
    assert emulator.calls[-1].code is grpc.StatusCode.CANCELLED
    assert turns(emulator.calls[-1].request) == [
        ("user", "What is baseball?"),
        ("model", "Baseball is a game."),
        ("user", "How long does it take?"),
    ]
    await chat.photograph("end-to-end-stopped")
    assert {path.name for path in SCREENSHOTS.glob("end-to-end-*.png")} >= {"end-to-end-streaming.png"}

    server.signal(signal.SIGKILL)
    await server.process.wait()
    await chat.ask("Are you there?")
    await expect(chat.problem()).to_contain_text("not running")


async def test_ask_streams_to_the_terminal_and_ctrl_c_ends_the_call_upstream(
    emulator: Emulator, server: ServerProcess
) -> None:
    emulator.script.play(answer("one ", silence()))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tokenwire.cli", "ask", "Count.", "--address", server.address),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    assert await asyncio.wait_for(process.stdout.readexactly(4), 30) == b"one "
    process.send_signal(signal.SIGINT)
    await emulator.wait_until(lambda e: not e.open_calls)
    assert await asyncio.wait_for(process.wait(), 30) == 130
    assert emulator.calls[0].code is grpc.StatusCode.CANCELLED


@pytest.mark.smollm2
async def test_a_real_model_answers_follows_up_and_stops_when_its_caller_leaves(start_process: StartProcess) -> None:
    mind = SmolLM2()
    async with Emulator(mind) as emulator:
        server = await start_process("--emulator", emulator.address)
        await server.said("ready after")
        with Client(server.address) as client:
            followed_up = await asyncio.to_thread(converse, client)
            assert "Ada" in followed_up
            await asyncio.to_thread(leave_early, client)
        await emulator.wait_until(lambda e: not e.open_calls)
        assert emulator.calls[-1].code is grpc.StatusCode.CANCELLED
        async with asyncio.timeout(10):
            while mind.active_generations:  # noqa: ASYNC110 - the model lives in threads of its own and tells nobody
                await asyncio.sleep(0.01)
        written = mind.generated_tokens
        await asyncio.sleep(0.2)
        assert mind.generated_tokens == written


def converse(client: Client) -> str:
    """Two answers; the second to a question that the history answers."""
    config = GenerationConfig(temperature=0, seed=1, max_output_tokens=24)
    with client.generate("What is baseball?", config=config) as answer:
        pieces = list(answer.text(check=False))  # 24 tokens are too few for it
    assert len(pieces) > 1
    assert answer.completed.usage.output_tokens >= len(pieces)
    history = [user("My name is Ada."), model("Nice to meet you, Ada!")]
    with client.generate("What is my name?", messages=history, config=config) as answer:
        return "".join(answer.text(check=False))


def leave_early(client: Client) -> None:
    with client.generate("Write a very long story about a dragon.", config=GenerationConfig(seed=1)) as answer:
        for _ in range(3):
            next(answer.text())


@pytest.mark.smollm2
def test_the_demo_streams_an_answer_and_leaves_nothing_running(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "tokenwire.cli", "demo", "--once"],
        env=os.environ | {"TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "What is baseball?" in ended.stdout
    assert "tokens/s" in ended.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.smollm2
@pytest.mark.parametrize("flags", [[], ["--edge"]])
def test_the_demo_tells_its_addresses_and_ctrl_c_ends_all_of_it(tmp_path: Path, flags: list[str]) -> None:
    demo = subprocess.Popen(
        [sys.executable, "-m", "tokenwire.cli", "demo", *flags],
        env=os.environ | {"TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert demo.stdout is not None
        told = ""
        for line in demo.stdout:  # the test's own time limit ends a demo that never comes so far
            told += line
            if "Ctrl-C stops everything" in line:
                break
        ports = {int(port) for port in re.findall(r"localhost:(\d+)$", told, re.MULTILINE)}
        assert len(ports) == 3 + len(flags), told
        for port in ports:
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
        if flags:
            (typed,) = re.findall(r"^  (curl -N .*)$", told, re.MULTILINE)
            done = subprocess.run(shlex.split(typed), capture_output=True, text=True, check=True)
            assert '"completed":' in done.stdout.splitlines()[-1]
        demo.send_signal(signal.SIGINT)
        assert demo.wait(30) == 130
        for port in ports:
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port), timeout=5)
        assert not list(tmp_path.iterdir())
    finally:
        demo.kill()
        demo.communicate()
