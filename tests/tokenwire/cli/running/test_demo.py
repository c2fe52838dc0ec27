"""The demo says in one line why it can't begin."""

import builtins
import contextlib
import io
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Self

import pytest

from tests.marks import needs_terminal
from tokenwire.cli import ask
from tokenwire.cli.running import demo
from vertex_emulator.answerers import weights

ROOT = Path(__file__).parents[4]


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    """It takes signals over."""
    before = {number: signal.getsignal(number) for number in demo.STOP}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_weights_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fetch(**_: object) -> None:
        raise weights.WeightsError("no network; copy them")

    monkeypatch.setattr(weights, "fetch", fetch)
    assert demo.main(["--once"]) == 1
    assert capsys.readouterr().err == "\ntokenwire demo: no network; copy them\n"


@pytest.mark.parametrize(("code", "ended", "told"), [(0, 0, True), (3, 0, True), (130, 130, False), (1, 1, False)])
def test_only_an_answer_that_came_to_its_end_has_taken_a_time(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], code: int, ended: int, told: bool
) -> None:
    class Children:
        def __init__(self, *_: object) -> None: ...
        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None: ...
        def start(self, *_: object) -> None: ...
        def wait(self, *_: object) -> None: ...

    monkeypatch.setattr(weights, "fetch", lambda **_: None)
    monkeypatch.setattr(demo, "_Children", Children)
    monkeypatch.setattr(ask, "main", lambda _: code)
    assert demo.main(["--once"]) == ended
    assert ("All of it took" in capsys.readouterr().out) == told


def test_the_question_is_called_as_in_every_other_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        demo.main(["--help"])
    assert "[PROMPT]" in (out := capsys.readouterr().out)
    assert 'PROMPT      the question (default: "What is baseball?")' in out


def test_without_the_servers_extra_the_service_says_which_one_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> ModuleType:
        if name.startswith("grpc_health"):
            raise ModuleNotFoundError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    assert not demo._serving(1)


@pytest.mark.parametrize(
    ("called", "command"),
    [
        (".venv/bin/tokenwire", ".venv/bin/tokenwire"),
        ("/some where/tokenwire", "'/some where/tokenwire'"),
        ("/x/tokenwire/cli/__main__.py", f"{sys.executable} -m tokenwire.cli"),
    ],
)
def test_what_to_type_next_is_what_was_typed(monkeypatch: pytest.MonkeyPatch, called: str, command: str) -> None:
    monkeypatch.setattr(sys, "argv", [called])
    assert demo._command() == command


def make_demo(folder: Path, code: str, terminal: int) -> "subprocess.Popen[bytes]":
    """`make demo` of a `tokenwire` that runs this code, in a terminal of its own."""
    command = folder / "tokenwire"
    command.write_text(f"#!{sys.executable}\nimport signal, sys, time\n{code}\n")
    command.chmod(0o755)
    (folder / ".run").touch()
    flags = ["demo", f"BIN={folder}", f"VENV={folder}", "-o", f"{folder}/.run"]
    return subprocess.Popen(
        ["setsid", "--ctty", "make", *flags], cwd=ROOT, stdin=terminal, stdout=terminal, stderr=terminal
    )


@needs_terminal
def test_ctrl_c_of_make_demo_is_no_error(tmp_path: Path) -> None:
    """The terminal's Ctrl-C goes to make as well."""
    # It takes a moment, as the real one does: make gets confused by a child that has ended before make hears of Ctrl-C.
    code = "signal.signal(signal.SIGINT, lambda *_: time.sleep(0.5) or sys.exit(130)); print('ready'); time.sleep(60)"
    ours, theirs = os.openpty()
    process = make_demo(tmp_path, code.replace("'ready'", "'ready', flush=True"), theirs)
    os.close(theirs)
    seen = b""
    with io.FileIO(ours, "r+") as terminal:
        while b"ready" not in seen:
            seen += terminal.read(1000)
        terminal.write(b"\x03")
        with contextlib.suppress(OSError):  # a terminal's own way to say that nobody has it open any more
            while piece := terminal.read(1000):
                seen += piece
    process.wait(10)
    assert seen.decode().replace("\r\n", "\n").partition("ready\n")[2].removeprefix("^C").strip() == ""


@needs_terminal
def test_a_demo_that_fails_fails_make_demo(tmp_path: Path) -> None:
    ours, theirs = os.openpty()
    assert make_demo(tmp_path, "sys.exit(1)", theirs).wait(60) != 0
    os.close(ours)
    os.close(theirs)
