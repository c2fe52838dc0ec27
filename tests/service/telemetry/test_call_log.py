"""One line a call, and nobody's words in it that look like facts."""

import logging
import re
import time
from typing import Any

import grpc.aio
import pytest

from service.telemetry import call_log
from service.telemetry.call_record import CallRecord
from service.testing import FakeProvider
from tests.conftest import Serve


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    told: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            told.append(record.getMessage())

    logger = logging.getLogger("tokenwire")
    handler = Keep()
    monkeypatch.setattr(logger, "handlers", [handler])
    monkeypatch.setattr(logger, "propagate", False)
    monkeypatch.setattr(logger, "level", logging.INFO)
    logger.manager._clear_cache()  # type: ignore[attr-defined] # isEnabledFor keeps what the level was
    return told


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


@pytest.mark.parametrize("request_id", ["x" * 129, "a\nb", "\u00e9"], ids=["long", "control", "beyond ascii"])
async def test_an_id_that_is_refused_is_not_logged(serve: Serve, lines: list[str], request_id: str) -> None:
    served = await serve(FakeProvider([]))
    with pytest.raises(grpc.aio.AioRpcError):
        await served.ask(request_id=request_id)
    (line,) = lines
    assert " request_id=- " in line
    assert line.endswith("reason=INVALID_FIELD")
