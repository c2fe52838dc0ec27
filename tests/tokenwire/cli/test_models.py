"""`tokenwire models` and `tokenwire count`, against the scripted service."""

import json
import subprocess
import sys
from pathlib import Path

import grpc
import pytest

from tests.tokenwire.fake_service import FakeService, Refusal
from tokenwire import inline, user
from tokenwire.cli import count, models
from tokenwire.v1 import generation_service_pb2 as pb

Said = pytest.CaptureFixture[str]


def test_the_models_on_offer_are_a_table(service: FakeService, capsys: Said) -> None:
    assert models.main(["--address", service.address]) == 0
    assert capsys.readouterr().out == (
        "MODEL   PROVIDER       TAKES                    TOKENS IN  OUT\n"
        "fake-1  -              -                        -          -       default\n"
        "fake-2  gcp.vertex_ai  text, image, pdf, audio  1,048,576  65,535  thinks, calls tools\n"
        "fake-3  openai         text                     -          -       thinks\n"
    )


def test_in_json_each_model_is_a_line(service: FakeService, capsys: Said) -> None:
    assert models.main(["--address", service.address, "--json"]) == 0
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["name"] for one in told] == ["fake-1", "fake-2", "fake-3"]
    assert told[1]["maxInputTokens"] == 1_048_576


def test_a_service_cannot_command_the_terminal(service: FakeService, capsys: Said) -> None:
    service.models[:] = [pb.Model(name="a\x1b]0;owned\x07\nb")]
    assert models.main(["--address", service.address]) == 0
    assert "\x1b" not in (out := capsys.readouterr().out)
    assert len(out.splitlines()) == 2


@pytest.mark.parametrize("command", [models.main, lambda argv: count.main(["x", *argv])], ids=["models", "count"])
def test_a_service_that_is_away_is_said_so(command: object, nobody: str, capsys: Said) -> None:
    assert callable(command)
    assert command(["--address", nobody]) == 1
    assert capsys.readouterr() == ("", f"The service is not running at {nobody}. Start it with `tokenwire serve`.\n")


def test_tokens_are_counted(service: FakeService, capsys: Said, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"\x89PNG")
    options = ["--model", "fake-2", "--system", "brief", "--image", str(tmp_path / "a.png")]
    assert count.main(["What is this?", *options, "--address", service.address]) == 0
    assert capsys.readouterr() == ("42\n", "")
    asked = user(inline(b"\x89PNG", "image/png"), "What is this?")
    assert service.counted == [
        pb.CountTokensRequest(messages=[asked], system_instruction="brief", model="fake-2"),
    ]


def test_what_is_no_question_is_counted_as_it_is_asked(service: FakeService, capsys: Said, tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(b"%PDF")
    files = ["--image", str(tmp_path / "a.pdf"), "--address", service.address]
    assert count.main(["", *files]) == 0
    assert service.counted[0].messages == [user(inline(b"%PDF", "application/pdf"))]
    service.refuses_to_count = Refusal(grpc.StatusCode.INVALID_ARGUMENT, "EMPTY_PROMPT")
    capsys.readouterr()
    assert count.main(["", "--address", service.address]) == 1
    assert not service.counted[1].messages
    assert capsys.readouterr().err == "There is no question to answer: the prompt is empty.\n"


def test_a_count_that_is_refused_says_why(service: FakeService, capsys: Said) -> None:
    service.refuses_to_count = Refusal(grpc.StatusCode.UNIMPLEMENTED, "NOT_SERVED", "nobody counts")
    assert count.main(["x", "--address", service.address]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1


def test_a_file_that_is_none_is_a_wrong_command_line(service: FakeService, capsys: Said, tmp_path: Path) -> None:
    assert count.main(["x", "--image", str(tmp_path / "none.png"), "--address", service.address]) == 2
    assert capsys.readouterr().err.endswith("none.png can't be read: No such file or directory.\n")
    assert not service.counted


def test_what_no_request_can_hold_is_a_wrong_command_line(service: FakeService, capsys: Said) -> None:
    assert count.main(["x", "--system", "\udcff", "--address", service.address]) == 2
    assert capsys.readouterr().err.startswith("This cannot be asked:")
    assert not service.counted


def test_a_reader_that_goes_away_is_no_error(service: FakeService) -> None:
    command = [sys.executable, "-m", "tokenwire.cli.models", "--address", service.address]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    with process:
        assert process.wait(30) == 141
        assert process.stderr.read() == b""
