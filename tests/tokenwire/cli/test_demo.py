"""The demo says in one line why it can't begin."""

import builtins
import signal
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

from tokenwire.cli import demo
from vertex_emulator.answerers import weights


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
