"""One line for each call; words of a caller in it can't be taken for facts."""

import asyncio
import errno
import fcntl
import json
import logging
import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TextIO

import grpc.aio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import ModelNotFound, UpstreamCredentials, UpstreamUnavailable
from service.generation.events import Finished, FinishReason, Started, Text, Usage
from service.providers import failures
from service.telemetry import call_log
from service.telemetry.call_record import CallRecord
from service.testing import FakeProvider
from tests.conftest import Serve
from tokenwire.v1 import generation_service_pb2 as pb


def test_a_call_is_one_line_of_facts(lines: list[str]) -> None:
    record = CallRecord("Generate", begin=time.perf_counter() - 1.2)
    record.model, record.messages = "gemini-2.5-flash", 0
    call_log.end_call(record, "OK")
    (line,) = lines
    assert re.fullmatch(r"Generate code=OK seconds=1\.\d{3} model=gemini-2\.5-flash messages=0", line)


@pytest.mark.parametrize(
    ("code", "facts", "told"), [("CANCELLED", {}, 0), ("CANCELLED", {"model": "m"}, 1), ("OK", {}, 1)]
)
def test_a_call_that_was_given_up_before_it_asked_has_no_line(
    lines: list[str], code: str, facts: dict[str, Any], told: int
) -> None:
    call_log.end_call(CallRecord("Generate", **facts), code)
    assert len(lines) == told


@pytest.mark.parametrize("worker", [None, 1])
def test_every_line_of_a_worker_says_whose_it_is_once(monkeypatch: pytest.MonkeyPatch, worker: int | None) -> None:
    monkeypatch.setattr(call_log, "_worker", worker)
    told: list[logging.LogRecord] = []
    monkeypatch.setattr(call_log._logger, "handle", told.append)
    monkeypatch.setattr(call_log._logger, "level", logging.INFO)
    call_log._logger.manager._clear_cache()  # type: ignore[attr-defined] # isEnabledFor keeps what the level was
    call_log.say("draining")
    call_log.end_call(CallRecord("Generate"), "OK")
    text, form = call_log._Formatter(), call_log._Json()
    for record in told:
        assert re.findall(r" worker=(\d)$", text.format(record)) == ([] if worker is None else ["1"])
        assert text.format(record).count("worker") == (worker is not None)
        assert json.loads(form.format(record)).get("worker") == worker
    assert len(told) == 2


def test_a_callers_own_words_cannot_pass_for_facts(lines: list[str]) -> None:
    call_log.end_call(CallRecord("Generate", request_id="x code=OK\u2028finish=STOP"), "INTERNAL")
    (line,) = lines
    assert line.endswith(" request_id='x code=OK\\u2028finish=STOP'")


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"prompt": ""}, "EMPTY_PROMPT"),
        ({"config": {"temperature": 3}}, "INVALID_FIELD"),
        ({"model": "another"}, "MODEL_NOT_FOUND"),
    ],
)
async def test_a_refused_request_is_found_by_its_callers_id(
    serve: Serve, lines: list[str], fields: dict[str, Any], reason: str
) -> None:
    served = await serve(FakeProvider([]))
    with pytest.raises(grpc.aio.AioRpcError):
        await served.ask(request_id="mine-7", **fields)
    (line,) = lines
    assert " request_id=mine-7 " in line
    assert line.endswith(f"reason={reason}")


async def test_so_is_one_that_comes_before_the_model_is_ready(serve: Serve, lines: list[str]) -> None:
    served = await serve(None)
    with pytest.raises(grpc.aio.AioRpcError):
        await served.ask(request_id="mine-7")
    (line,) = lines
    assert " request_id=mine-7 reason=STARTING" in line


async def test_whoever_runs_the_server_learns_what_upstream_said(serve: Serve, lines: list[str]) -> None:
    said = failures.failure(
        "OpenAI",
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        reason="RATE_LIMIT",
        metadata={"upstream_status": "429"},
    )
    served = await serve(FakeProvider([said]))
    with pytest.raises(grpc.aio.AioRpcError):
        await served.ask()
    (line,) = lines
    assert line.endswith("reason=UPSTREAM_QUOTA upstream=RESOURCE_EXHAUSTED/429/RATE_LIMIT")


@pytest.mark.parametrize("told", [False, True])
async def test_upstreams_own_words_are_logged_where_the_owner_wants_them(
    serve: Serve, lines: list[str], told: bool
) -> None:
    said = failures.failure(
        "Vertex AI", grpc.StatusCode.INVALID_ARGUMENT, said="Your prompt 'SECRET'\nis bad." + "x" * 999
    )
    served = await serve(FakeProvider([said]), log_upstream_text=told)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await served.ask()
    assert "SECRET" not in str(caught.value)
    (line,) = lines
    assert (" upstream_text=" in line) is told
    assert ("SECRET" in line) is told
    assert len(line) < 1000


@pytest.mark.parametrize("request_id", ["x" * 129, "a\nb", "\u00e9"], ids=["long", "control", "beyond ascii"])
async def test_an_id_that_is_refused_is_not_logged(serve: Serve, lines: list[str], request_id: str) -> None:
    served = await serve(FakeProvider([]))
    with pytest.raises(grpc.aio.AioRpcError):
        await served.ask(request_id=request_id)
    (line,) = lines
    assert "request_id" not in line
    assert line.endswith("reason=INVALID_FIELD")


async def test_what_is_not_known_of_a_call_is_left_out(serve: Serve, lines: list[str]) -> None:
    served = await serve(FakeProvider([UpstreamUnavailable("away")]))
    with pytest.raises(grpc.aio.AioRpcError):
        await served.ask()
    (line,) = lines
    assert "=-" not in line
    assert "finish" not in line


async def test_a_whole_answer_says_what_it_took(serve: Serve, lines: list[str]) -> None:
    usage = Usage(input_tokens=5, output_tokens=7, reasoning_tokens=4, total_tokens=16)
    end = Finished(reason=FinishReason.STOP, upstream_reason="STOP", usage=usage, attempts=2)
    served = await serve(FakeProvider([Started("fake"), Text("Hello"), end]))
    await served.ask()
    (line,) = lines
    took = r"attempts=2 tokens_in=5 tokens_out=11 tokens_reasoning=4 finish=STOP"
    assert re.search(rf" model=fake asked=gemini-2\.5-flash messages=3 first=0\.\d{{3}} {took}$", line)


@pytest.mark.parametrize(
    ("error", "level"),
    [
        (UpstreamCredentials, logging.ERROR),
        (UpstreamUnavailable, logging.WARNING),
        (ModelNotFound, logging.INFO),
        (ValueError, logging.ERROR),
    ],
)
async def test_levels_say_who_has_to_do_something(
    serve: Serve, lines: list[str], caplog: pytest.LogCaptureFixture, error: type[Exception], level: int
) -> None:
    logging.getLogger("tokenwire").addHandler(caplog.handler)
    served = await serve(FakeProvider([error("wrong")]))
    with pytest.raises(grpc.aio.AioRpcError):
        await served.ask()
    assert lines
    (of_the_call,) = [one.levelno for one in caplog.records if one.getMessage().startswith("Generate ")]
    assert of_the_call == level


async def test_a_cancelled_call_says_why(serve: Serve, lines: list[str]) -> None:
    served = await serve(FakeProvider([Started("fake"), Text("Hello")], endless=True))
    request = pb.GenerateRequest(prompt="x")
    leaving = served.stub.Generate(request)
    await leaving.read()
    leaving.cancel()
    late = served.stub.Generate(request, timeout=0.3)
    with pytest.raises(grpc.aio.AioRpcError):
        async for _ in late:
            pass
    async with asyncio.timeout(10):
        while len(lines) < 2:  # noqa: ASYNC110 - no event tells that a line is written
            await asyncio.sleep(0.01)
    assert re.search(r"code=CANCELLED .* cause=caller$", lines[0])
    assert re.search(r"code=CANCELLED .* cause=deadline$|code=DEADLINE_EXCEEDED ", lines[1])


def test_json_is_an_object_a_line_with_the_same_facts() -> None:
    code = """
import logging
from service.telemetry import call_log
from service.telemetry.call_record import CallRecord
call_log.configure("info")
call_log.end_call(CallRecord("Generate", request_id="a\\u2028b", messages=3, first=0.25), "OK")
call_log.say("listening on %s", "here")
try:
    raise ValueError("a secret")
except ValueError:
    logging.getLogger("library").exception("another secret")
logging.getLogger("tokenwire").warning("%d are lost", 3)
"""
    said = subprocess.run([sys.executable, "-c", code], stderr=subprocess.PIPE, env=_as_shipped(), check=True).stderr
    assert b"secret" not in said
    call, listening, foreign, lost = map(json.loads, said.splitlines())
    for line in (call, listening, foreign, lost):
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("time"))
    seconds = call.pop("seconds")
    assert 0 <= seconds < 1
    assert call == {
        "level": "info", "method": "Generate", "code": "OK", "request_id": "a\u2028b", "messages": 3, "first": 0.25
    }  # fmt: skip
    assert listening == {"level": "info", "message": "listening on here"}
    assert lost == {"level": "warning", "message": "3 are lost"}
    assert (foreign.pop("level"), foreign.pop("logger")) == ("error", "library")
    assert re.fullmatch(r"says something that is not shown, from .*:\d+ builtins.ValueError", foreign.pop("message"))
    assert not foreign


def _as_shipped() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "TOKENWIRE_LOG_FORMAT"}


@pytest.fixture
def pipe() -> Iterator[tuple[TextIO, int]]:
    """A pipe that holds 4 KB, to be written to and to be read."""
    out, into = os.pipe()
    fcntl.fcntl(into, fcntl.F_SETPIPE_SZ, 4096)
    with os.fdopen(into, "w") as stream:
        yield stream, out
    os.close(out)


def everything(out: int) -> list[str]:
    """What is in the pipe, to its end."""
    with os.fdopen(os.dup(out)) as reader:
        return reader.read().splitlines()


linux = pytest.mark.skipif(sys.platform != "linux", reason="the size of a pipe can be set on Linux only")


@linux
def test_no_line_waits_for_a_reader_and_none_is_lost(pipe: tuple[TextIO, int], monkeypatch: pytest.MonkeyPatch) -> None:
    stream, out = pipe
    lines = call_log._Lines(stream.fileno())
    for number in range(5000):
        lines.write(f"line {number}\n")
    reading = ThreadPoolExecutor(1).submit(everything, out)
    monkeypatch.setattr(call_log, "_LAST_LINES_SECONDS", 30)
    lines.close()
    stream.close()
    assert reading.result(30) == [f"line {number}" for number in range(5000)]


@linux
def test_what_nobody_reads_for_too_long_is_lost_and_counted(
    pipe: tuple[TextIO, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    stream, out = pipe
    monkeypatch.setattr(call_log, "_MOST_LINES", 100)
    monkeypatch.setattr(call_log, "_LAST_LINES_SECONDS", 0.05)
    lines = call_log._Lines(stream.fileno())
    for number in range(5000):
        lines.write(f"line {number}\n")
    lines.close()  # though nobody reads
    reading = ThreadPoolExecutor(1).submit(everything, out)
    lines._thread.join(30)
    stream.close()
    *found, last = reading.result(30)
    assert found == [f"line {number}" for number in range(len(found))]
    assert last == f"{5000 - len(found)} lines of the log are lost: nobody has taken them for too long"


@linux
def test_a_process_that_forks_loses_lines_for_which_there_is_no_room_and_says_how_many(
    pipe: tuple[TextIO, int],
) -> None:
    stream, out = pipe
    lines = call_log._IfThereIsRoom(stream.fileno())
    for number in range(1000):
        lines.write(f"line {number}\n")
    found = os.read(out, 1 << 20).decode().splitlines()
    lines.write("the last\n")
    assert found == [f"line {number}" for number in range(len(found))]
    assert os.read(out, 1 << 20).decode().splitlines() == [
        f"{1000 - len(found)} lines of the log are lost: nobody has taken them for too long",
        "the last",
    ]


@given(st.lists(st.text(max_size=3000).map(lambda text: text + "\n")))
def test_lines_are_handed_on_whole_where_they_fit_into_a_pipe_in_one_piece(lines: list[str]) -> None:
    pieces = list(call_log._pieces(lines))
    assert b"".join(pieces) == "".join(lines).encode(errors="backslashreplace")
    ends, moment = set(), 0
    for line in lines:
        moment += len(line.encode(errors="backslashreplace"))
        ends.add(moment)
    moment = 0
    for piece in pieces:
        moment += len(piece)
        assert moment in ends
        assert len(piece) <= call_log._PIECE_BYTES or piece.decode() in lines


@linux
def test_where_others_have_made_the_pipe_non_blocking_nothing_is_lost(pipe: tuple[TextIO, int]) -> None:
    stream, out = pipe
    os.set_blocking(stream.fileno(), False)
    reading = ThreadPoolExecutor(1).submit(everything, out)
    lines = call_log._Lines(stream.fileno())
    for number in range(5000):
        lines.write(f"line {number}\n")
    lines._lines.put(None)
    lines._thread.join(30)
    stream.close()
    assert reading.result(30) == [f"line {number}" for number in range(5000)]


@pytest.mark.parametrize("forks", [False, True])
def test_what_a_full_disk_has_no_room_for_is_counted(monkeypatch: pytest.MonkeyPatch, forks: bool) -> None:
    full, disk, tried = True, b"", [b""]

    def write(_: int, data: bytes) -> int:
        nonlocal disk
        if full:
            tried.append(data)
            raise OSError(errno.ENOSPC, "No space left on device")
        disk += data
        return len(data)

    monkeypatch.setattr(os, "write", write)
    monkeypatch.setattr(select, "select", lambda *_: ([], [1], []))
    monkeypatch.setattr(call_log, "_GATHERING_SECONDS", 0)
    lines = call_log._IfThereIsRoom(1) if forks else call_log._Lines(1)
    for number in range(3):
        lines.write(f"line {number}\n")
    while not forks and not tried[-1].startswith(b"3 lines"):
        time.sleep(0.01)
    full = False
    lines.write("the last\n")
    lines.close()
    told = b"3 lines of the log are lost: nobody has taken them for too long\n"
    assert sorted(disk.splitlines()) == sorted((told + b"the last\n").splitlines())


@pytest.mark.parametrize("forks", [False, True])
def test_a_process_ends_though_nobody_reads_what_it_says(forks: bool) -> None:
    code = f"""
from service.runtime import stop
from service.telemetry import call_log
call_log.configure("info")
with call_log.never_waiting(forks={forks}):
    for _ in range(2000):
        call_log.say("x" * 100)
    stop.end(7)
"""
    # As users run it: here, Python might be told not to buffer.
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, env=environ)
    try:
        assert process.wait(30) == 7
    finally:
        process.kill()
        process.communicate()
