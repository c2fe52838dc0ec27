import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import grpc
import pytest
from google.rpc.error_details_pb2 import RetryInfo

from tests.marks import needs_terminal
from tests.tokenwire.fake_service import FakeService, Refusal, Step, completed, thought, tool_call
from tokenwire import inline, user
from tokenwire.cli.ask import main
from tokenwire.v1 import generation_service_pb2 as pb
from tokenwire.v1.config_pb2 import GenerationConfig

Ask = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def ask(service: FakeService) -> Iterator[Ask]:
    """Run `tokenwire ask` as a process of its own, against the scripted service."""
    running: list[subprocess.Popen[bytes]] = []

    def start(
        *arguments: str,
        address: str = service.address,
        stdout: int = subprocess.PIPE,
        stderr: int = subprocess.PIPE,
    ) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-m", "tokenwire.cli.ask", *arguments],
            stdin=subprocess.PIPE,
            stdout=stdout,
            stderr=stderr,
            env={**os.environ, "TOKENWIRE_ADDRESS": address, "PYTHONUTF8": "1"},
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


def pipe(stream: IO[bytes] | None) -> int:
    assert stream is not None
    return stream.fileno()


def test_the_answer_is_printed_and_ends_with_a_newline(ask: Ask, service: FakeService) -> None:
    service.will_answer("Base", "ball.", completed())
    assert outcome(ask("Why?")) == (0, "Baseball.\n", "")
    assert service.requests == [pb.GenerateRequest(prompt="Why?", config=GenerationConfig())]


def test_without_a_prompt_it_asks_about_baseball(ask: Ask, service: FakeService) -> None:
    assert outcome(ask())[0] == 0
    assert service.requests[0].prompt == "What is baseball?"


def test_a_dash_reads_the_prompt_from_stdin(ask: Ask, service: FakeService) -> None:
    assert outcome(ask("-"), "from\nstdin ⚾")[0] == 0
    assert service.requests[0].prompt == "from\nstdin ⚾"


def test_every_option_reaches_the_service(ask: Ask, service: FakeService) -> None:
    options = [
        "--model",
        "fake-2",
        "--system",
        "brief",
        "--temperature",
        "0",
        "--max-output-tokens",
        "9",
        "--timeout",
        "60",
    ]
    assert outcome(ask("x", *options, "--address", service.address, address="unused:1"))[0] == 0
    request = service.requests[0]
    assert (request.model, request.system_instruction) == ("fake-2", "brief")
    assert request.config.HasField("temperature")
    assert request.config.max_output_tokens == 9
    assert service.deadlines[0] is not None
    assert service.deadlines[0] < 61


def test_the_first_piece_is_in_the_pipe_before_the_second_is_made(ask: Ask, service: FakeService) -> None:
    gate = threading.Event()
    service.will_answer("first", gate, " second", completed())
    process = ask("x")
    assert os.read(pipe(process.stdout), 100) == b"first"
    gate.set()
    assert outcome(process)[:2] == (0, " second\n")


def test_ctrl_c_cancels_the_call_and_says_so(ask: Ask, service: FakeService) -> None:
    service.will_answer("first", threading.Event())
    process = ask("x")
    assert os.read(pipe(process.stdout), 100) == b"first"
    process.send_signal(signal.SIGINT)
    assert service.cancelled.wait(10)
    code, out, err = outcome(process)
    assert (code, out) == (130, "\n")
    assert err == "Stopped. The call was cancelled; what you see is incomplete.\n"


def test_a_reader_that_goes_away_cancels_the_call(ask: Ask, service: FakeService) -> None:
    gate = threading.Event()
    service.will_answer("first", gate, *["more"] * 50, threading.Event())
    process = ask("x")
    assert os.read(pipe(process.stdout), 100) == b"first"
    assert process.stdout is not None
    process.stdout.close()
    gate.set()
    assert service.cancelled.wait(10)
    assert process.wait(30) == 141
    assert process.stderr is not None
    assert process.stderr.read() == b""


def test_an_error_is_one_plain_line_and_an_exit_code(ask: Ask, service: FakeService) -> None:
    service.will_answer(Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "SERVER_BUSY"))
    assert outcome(ask("x")) == (1, "", "The service is busy. Try again in a moment.\n")


def test_a_service_that_is_away_is_said_so(ask: Ask, nobody: str) -> None:
    code, out, err = outcome(ask("x", address=nobody))
    assert (code, out) == (1, "")
    assert err == f"The service is not running at {nobody} (TOKENWIRE_ADDRESS). Start it with `tokenwire serve`.\n"


def test_a_cut_answer_is_marked_below_what_came(ask: Ask, service: FakeService) -> None:
    service.will_answer("half", Refusal(grpc.StatusCode.UNAVAILABLE, "UPSTREAM_CUT"))
    code, out, err = outcome(ask("x"))
    assert (code, out) == (1, "half\n")
    assert err.endswith("The answer was cut after 1 piece; what you see is incomplete.\n")


def test_an_answer_that_hit_the_token_limit_says_so(ask: Ask, service: FakeService) -> None:
    service.will_answer("half", completed(pb.FINISH_REASON_MAX_TOKENS))
    assert outcome(ask("x")) == (3, "half\n", "The answer was cut: it reached the token limit.\n")


def test_an_empty_answer_says_so(ask: Ask, service: FakeService) -> None:
    service.will_answer(completed(pb.FINISH_REASON_EMPTY))
    assert outcome(ask("x")) == (3, "", "The answer is empty: the model was done and said nothing.\n")


def test_chunks_are_ruled_off_from_each_other(ask: Ask, service: FakeService) -> None:
    service.will_answer("one", "two", "three", completed())
    _, out, _ = outcome(ask("x", "--chunks"))
    first, rule, second, again, third = out.splitlines()
    assert (first, second, third) == ("one", "two", "three")
    assert rule == again == "─" * 80


def test_json_is_one_event_a_line(ask: Ask, service: FakeService) -> None:
    service.will_answer("one\ntwo ⚾", completed())
    _, out, _ = outcome(ask("x", "--json"))
    events = [json.loads(line) for line in out.splitlines()]
    assert [event["sequence"] for event in events] == [0, 1, 2]
    assert events[1]["text"] == "one\ntwo ⚾"
    assert events[2]["completed"]["finishReason"] == "FINISH_REASON_STOP"


def test_stats_are_told_on_stderr(ask: Ask, service: FakeService) -> None:
    service.will_answer("one", "two", completed(output_tokens=7))
    code, out, err = outcome(ask("x", "--stats"))
    assert (code, out) == (0, "onetwo\n")
    first, chunks, *_, usage = err.strip().split(" · ")
    assert re.fullmatch(r"first chunk (\d+ ms|\d+\.\d\d s)", first)
    assert chunks == "2 chunks"
    assert usage == "5 tokens in, 7 out"


def test_images_go_along_with_the_question(ask: Ask, service: FakeService, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"\x89PNG")
    (tmp_path / "b.pdf").write_bytes(b"%PDF")
    images = ["--image", str(tmp_path / "a.png"), "--image", str(tmp_path / "b.pdf")]
    assert outcome(ask("What is this?", *images))[0] == 0
    parts = [inline(b"\x89PNG", "image/png"), inline(b"%PDF", "application/pdf")]
    assert service.requests == [pb.GenerateRequest(messages=[user(*parts, "What is this?")], config=GenerationConfig())]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("none.png", "none.png can't be read: No such file or directory.\n"),
        ("photo", "photo: its name does not tell its type; one such as photo.png is wanted\n"),
    ],
)
def test_an_image_that_is_none_is_a_wrong_command_line(
    service: FakeService, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, words: str
) -> None:
    (tmp_path / "photo").touch()
    assert main(["x", "--address", service.address, "--image", str(tmp_path / name)]) == 2
    assert capsys.readouterr().err.endswith(words)
    assert not service.requests


def test_thoughts_are_asked_for_and_told_on_stderr(ask: Ask, service: FakeService) -> None:
    service.will_answer(thought("Let me "), thought("think."), "Base", "ball.", completed())
    assert outcome(ask("x", "--thoughts")) == (0, "Baseball.\n", "Let me think.\n\n")
    assert service.requests[0].config == GenerationConfig(include_thoughts=True)


def test_thoughts_that_were_not_asked_for_are_not_shown(ask: Ask, service: FakeService) -> None:
    service.will_answer(thought("Hm."), "Baseball.", completed())
    assert outcome(ask("x")) == (0, "Baseball.\n", "")


def test_in_json_thoughts_are_events_like_any_other(ask: Ask, service: FakeService) -> None:
    service.will_answer(thought("Hm.", b"s"), "Baseball.", completed())
    _, out, err = outcome(ask("x", "--thoughts", "--json"))
    assert json.loads(out.splitlines()[1])["reasoning"] == {"text": "Hm.", "signature": "cw=="}
    assert err == ""


@needs_terminal
def test_in_a_terminal_thoughts_are_dimmed_and_command_nothing(ask: Ask, service: FakeService) -> None:
    service.will_answer(thought("Hm\x1b[5m"), "ok", completed())
    ours, theirs = os.openpty()
    try:
        process = ask("x", "--thoughts", stderr=theirs)
        assert process.wait(30) == 0
        shown = os.read(ours, 1000)
    finally:
        os.close(ours)
        os.close(theirs)
    assert shown == "\x1b[2mHm\N{REPLACEMENT CHARACTER}[5m\x1b[0m\r\n\r\n".encode()


@needs_terminal
def test_a_model_cannot_command_the_terminal(ask: Ask, service: FakeService) -> None:
    service.will_answer("\x1b]0;owned\x07ok", completed())
    ours, theirs = os.openpty()
    try:
        process = ask("x", stdout=theirs)
        assert process.wait(30) == 0
        shown = os.read(ours, 1000)
    finally:
        os.close(ours)
        os.close(theirs)
    assert b"ok" in shown
    assert b"\x1b" not in shown


@pytest.mark.parametrize(
    "arguments",
    [["--timeout", "0"], ["--timeout", "nan"], ["--timeout", "soon"], ["--chunks", "--json"], ["a", "b"]],
    ids=" ".join,
)
def test_a_wrong_command_line_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert "usage: tokenwire ask" in capsys.readouterr().err


def test_a_prompt_that_is_no_text_is_a_wrong_command_line(
    service: FakeService, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["\ud800", "--address", service.address]) == 2
    assert capsys.readouterr().err.startswith("This cannot be asked:")
    assert not service.requests


def test_help_tells_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    assert "exit codes:" in capsys.readouterr().out


def test_tool_calls_and_sources_are_told_below_the_answer(ask: Ask, service: FakeService) -> None:
    pages = [
        pb.Grounding.Source(uri="https://a.example", title="A\x1b[5m"),
        pb.Grounding.Source(uri="https://b.example"),
        pb.Grounding.Source(title="Book"),
    ]
    service.will_answer(
        "Hm",
        pb.Grounding(sources=pages[:2]),
        tool_call("get_weather", {"city": "Rome"}),
        pb.Grounding(sources=pages),
        completed(),
    )
    told = (
        'The model calls get_weather({"city": "Rome"}), id c-1.\n'
        "Sources:\n"
        "  1. A\N{REPLACEMENT CHARACTER}[5m https://a.example\n"
        "  2. https://b.example\n"
        "  3. Book\n"
    )
    assert outcome(ask("x")) == (0, "Hm\n", told)


def test_an_answer_of_thoughts_alone_says_why_it_is_empty(ask: Ask, service: FakeService) -> None:
    service.will_answer(thought("Hm."), completed())
    service.will_answer(thought("Hm."), completed())
    code, out, err = outcome(ask("x"))
    assert (code, out) == (3, "")
    told = "The answer is empty: the model thought and said nothing."
    assert err == f"{told} --thoughts shows what it tells of that.\n"
    assert outcome(ask("x", "--thoughts"))[::2] == (3, f"Hm.\n\n{told}\n")


@pytest.mark.parametrize("options", [[], ["--json"], ["--thoughts"]], ids=" ".join)
@pytest.mark.parametrize("reason", [pb.FINISH_REASON_STOP, pb.FINISH_REASON_EMPTY], ids=pb.FinishReason.Name)
@pytest.mark.parametrize("nothing", [[], [thought("Hm.")], [" ", "\n"]], ids=["nothing", "thoughts", "blanks"])
def test_every_answer_that_says_nothing_ends_with_one_code(
    service: FakeService,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    reason: pb.FinishReason.ValueType,
    nothing: list[Step],
) -> None:
    service.will_answer(*nothing, completed(reason))
    assert main(["x", "--address", service.address, *options]) == 3
    assert "The answer is empty: the model " in capsys.readouterr().err


@pytest.mark.parametrize("options", [[], ["--json"]], ids=" ".join)
@pytest.mark.parametrize("reason", [pb.FINISH_REASON_STOP, pb.FINISH_REASON_EMPTY], ids=pb.FinishReason.Name)
def test_an_answer_that_calls_a_tool_is_not_empty(
    service: FakeService, capsys: pytest.CaptureFixture[str], options: list[str], reason: pb.FinishReason.ValueType
) -> None:
    service.will_answer(thought("Hm."), tool_call("w", {}), completed(reason))
    assert main(["x", "--address", service.address, *options]) == 0
    assert "empty" not in capsys.readouterr().err


def test_in_json_nothing_is_said_beside_the_events(ask: Ask, service: FakeService) -> None:
    service.will_answer(thought("Hm."), tool_call("w", {}), completed())
    code, out, err = outcome(ask("x", "--json"))
    assert (code, err) == (0, "")
    assert len(out.splitlines()) == 4


def test_a_service_that_is_starting_is_waited_for_visibly(ask: Ask, service: FakeService) -> None:
    soon = RetryInfo()
    soon.retry_delay.FromMilliseconds(10)
    for _ in range(3):
        service.will_answer(Refusal(grpc.StatusCode.UNAVAILABLE, "STARTING", details=(soon,)))
    assert outcome(ask("x", "--timeout", "30")) == (0, "Hello there.\n", "The service is starting; waiting for it.\n")
    assert len(service.requests) == 4


def test_a_service_that_starts_for_too_long_is_given_up(ask: Ask, service: FakeService) -> None:
    later = RetryInfo()
    later.retry_delay.FromSeconds(30)
    service.will_answer(Refusal(grpc.StatusCode.UNAVAILABLE, "STARTING", details=(later,)))
    code, out, err = outcome(ask("x", "--timeout", "20"))
    assert (code, out, err) == (1, "", "The service is still starting. Try again in 30 s.\n")
