"""Command lines that can't be taken say what is wanted."""

from collections.abc import Callable

import pytest

from gateway_ui.__main__ import main as ui
from tokenwire.cli import ask
from vertex_emulator.__main__ import main as emulator


@pytest.mark.parametrize(
    ("command", "argv", "wanted"),
    [
        (ask.main, ["--timeout", "soon"], "'soon' is not a number of seconds above 0"),
        (ask.main, ["--timeout", "0"], "'0' is not a number of seconds above 0"),
        (ask.main, ["--max-output-tokens", "99999999999"], "'99999999999' is not a number of tokens: 1 to 2147483647"),
        (ask.main, ["--address", "nonsense"], "'nonsense' is no address: HOST:PORT is wanted, such as localhost:50051"),
        (ui, ["--address", "nonsense"], "'nonsense' is no address: HOST:PORT is wanted, such as localhost:50051"),
        (ui, ["--port", "x"], "'x' is not a port: 1 to 65535 is wanted"),
        (emulator, ["--port", "x"], "'x' is not a whole number from 0 to 65535"),
        (emulator, ["--threads", "0"], "'0' is not a whole number from 1 to 1000000"),
    ],
)
def test_a_value_that_cannot_be_taken_says_what_is_wanted(
    command: Callable[[list[str]], int], argv: list[str], wanted: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        command(argv)
    assert caught.value.code == 2
    assert f"{argv[0]}: {wanted}" in capsys.readouterr().err


@pytest.mark.parametrize("target", ["localhost:1", "[::1]:50051", "dns:///a.example:443", "unix:/tmp/a", "10.0.0.1:80"])
def test_grpcs_own_targets_are_addresses(target: str) -> None:
    from tokenwire.cli.arguments import address  # noqa: PLC0415 - one name for one test

    assert address(target) == target
