"""One line a call, and nobody's words in it that look like facts."""

import logging

import pytest

from service import log


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
    log.begin_call()
    log.note(model="gemini-2.5-flash", messages=3)
    log.end_call("Generate", "OK", 1.23456)
    assert lines == ["Generate code=OK seconds=1.235 model=gemini-2.5-flash messages=3"]


def test_a_callers_own_words_cannot_pass_for_facts(lines: list[str]) -> None:
    log.begin_call()
    log.note(request_id="x code=OK\u2028finish=STOP")
    log.end_call("Generate", "INTERNAL", 0)
    assert lines == ["Generate code=INTERNAL seconds=0.000 request_id='x code=OK\\u2028finish=STOP'"]
