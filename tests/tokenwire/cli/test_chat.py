"""`tokenwire chat` as a process of its own, against the scripted service."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import grpc
import pytest

from tests.marks import needs_terminal
from tests.tokenwire.fake_service import FakeService, Refusal, completed, thought, tool_call
from tokenwire import model, user
from tokenwire.v1 import generation_service_pb2 as pb

Chat = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def chat(service: FakeService) -> Iterator[Chat]:
    running: list[subprocess.Popen[bytes]] = []

    def start(*arguments: str, stdin: int = subprocess.PIPE, stdout: int = subprocess.PIPE) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-m", "tokenwire.cli.chat", *arguments],
            stdin=stdin,
            stdout=stdout,
            stderr=subprocess.PIPE,
            env={
                **os.environ,
                "TOKENWIRE_ADDRESS": service.address,
                "LC_ALL": "C.UTF-8",
                "PYTHONIOENCODING": "utf-8:strict",
                "TERM": "dumb",
            },
        )
        running.append(process)
        return process

    yield start
    for process in running:
        process.kill()
        process.communicate()


def outcome(process: "subprocess.Popen[bytes]", stdin: str = "") -> tuple[int, str, str]:
    out, err = process.communicate(stdin.encode(), timeout=30)
    return process.returncode, out.decode(), err.decode()


def test_each_question_goes_with_all_that_was_said_before(chat: Chat, service: FakeService) -> None:
    service.will_answer("A ga", "me.", completed())
    service.will_answer("Yes.", completed())
    code, out, err = outcome(chat("--model", "fake-2", "--system", "brief"), "What is baseball?\n\nReally?\n")
    assert (code, out, err) == (0, "A game.\nYes.\n", "")
    first, second = service.requests
    assert list(first.messages) == [user("What is baseball?")]
    assert list(second.messages) == [user("What is baseball?"), model("A game."), user("Really?")]
    assert (second.model, second.system_instruction) == ("fake-2", "brief")


def test_new_forgets_what_was_said(chat: Chat, service: FakeService) -> None:
    code, _, err = outcome(chat(), "one\n/new\ntwo\n/nwe\n/help\n")
    assert code == 0
    assert list(service.requests[1].messages) == [user("two")]
    assert "A new conversation.\nThere is no /nwe: /new, /help or a question is wanted.\nEach line is" in err


def test_a_question_that_failed_is_no_part_of_the_conversation(chat: Chat, service: FakeService) -> None:
    service.will_answer(Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "SERVER_BUSY"))
    service.will_answer(tool_call("w", {}), completed())
    code, out, err = outcome(chat(), "one\ntwo\nthree\n")
    assert (code, out) == (0, "Hello there.\n")
    assert err.startswith("The service is busy. Try again in a moment.\nThe model calls w({}), id c-1.\n")
    assert list(service.requests[2].messages) == [user("three")]


def test_thoughts_are_no_part_of_what_goes_back(chat: Chat, service: FakeService) -> None:
    """Not every model takes them."""
    service.will_answer(thought("Hm.", b"s"), "Yes.", completed())
    service.will_answer(thought("Hm."), completed())
    outcome(chat(), "one\ntwo\nthree\n")
    assert list(service.requests[1].messages) == [user("one"), model("Yes."), user("two")]
    assert list(service.requests[2].messages) == [user("one"), model("Yes."), user("three")]


def test_a_line_that_is_no_text_ends_nothing(chat: Chat, service: FakeService) -> None:
    process = chat()
    out, err = process.communicate(b"\xff\none\n", timeout=30)
    assert (process.returncode, out) == (0, b"Hello there.\n")
    assert err.startswith(b"This cannot be asked:")
    assert list(service.requests[0].messages) == [user("one")]


def test_a_cut_answer_says_so_and_stays(chat: Chat, service: FakeService) -> None:
    service.will_answer("half", completed(pb.FINISH_REASON_MAX_TOKENS))
    _, out, err = outcome(chat(), "one\ntwo\n")
    assert out == "half\nHello there.\n"
    assert err == "The answer was cut: it reached the token limit.\n"
    assert list(service.requests[1].messages) == [user("one"), model("half"), user("two")]


def test_ctrl_c_stops_the_answer_and_nothing_else(chat: Chat, service: FakeService) -> None:
    service.will_answer("half", threading.Event())
    process = chat()
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"one\n")
    process.stdin.flush()
    assert os.read(process.stdout.fileno(), 100) == b"half"
    process.send_signal(signal.SIGINT)
    assert service.cancelled.wait(10)
    assert outcome(process, "two\n") == (0, "\nHello there.\n", "Stopped.\n")
    assert list(service.requests[1].messages) == [user("one"), model("half"), user("two")]


def test_ctrl_c_before_the_first_word_ends_the_call_as_well(chat: Chat, service: FakeService) -> None:
    service.will_answer(threading.Event())
    process = chat()
    assert process.stdin is not None
    process.stdin.write(b"one\n")
    process.stdin.flush()
    assert service.arrived.wait(10)
    process.send_signal(signal.SIGINT)
    assert service.cancelled.wait(10)
    assert outcome(process, "two\n") == (0, "Hello there.\n", "Stopped.\n")
    assert list(service.requests[1].messages) == [user("two")]


@needs_terminal
def test_in_a_terminal_it_prompts_and_ctrl_d_ends_it(chat: Chat, service: FakeService) -> None:
    ours, theirs = os.openpty()
    try:
        process = chat(stdin=theirs, stdout=theirs)
        shown = b""
        while not shown.endswith(b"> "):
            shown += os.read(ours, 100)
        os.write(ours, b"one\n")
        while b"Hello there.\r\n> " not in shown:
            shown += os.read(ours, 100)
        os.write(ours, b"\x04")
        assert process.wait(30) == 0
    finally:
        os.close(ours)
        os.close(theirs)
    assert process.stderr is not None
    assert process.stderr.read() == b"Ctrl-C stops an answer, Ctrl-D ends the conversation; /help tells more.\n"
    assert list(service.requests[0].messages) == [user("one")]
