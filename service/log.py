"""The log: one line for each call, and never a prompt, an answer or a credential."""

import logging
import time
from contextvars import ContextVar

_logger = logging.getLogger("tokenwire")

_facts: ContextVar[dict[str, object]] = ContextVar("facts")


def configure(level: str) -> None:
    """Write the log to standard error, a line an event, times in UTC."""
    formatter = logging.Formatter("%(asctime)s.%(msecs)03dZ %(levelname)s %(name)s %(message)s", "%Y-%m-%dT%H:%M:%S")
    formatter.converter = time.gmtime
    handler = logging.StreamHandler()
    handler.setFormatter(formatter)
    # Only our own: other libraries' messages may hold what must not be logged.
    _logger.addHandler(handler)
    _logger.setLevel(level.upper())
    _logger.propagate = False


def begin_call() -> None:
    """From here on `note` gathers facts for this call's line."""
    _facts.set({})


def note(**facts: object) -> None:
    """Add to the line that `end_call` writes."""
    _facts.get().update(facts)


def end_call(method: str, code: str, seconds: float) -> None:
    """Write the call's line."""
    facts = "".join(f" {name}={value}" for name, value in _facts.get().items())
    _logger.info("%s code=%s seconds=%.3f%s", method, code, seconds, facts)


def bug(error: BaseException, error_id: str) -> None:
    """Write where a bug is. Not its message: that may hold what the caller or the model said."""
    places = []
    frame = error.__traceback__
    while frame is not None:
        places.append(f"{frame.tb_frame.f_code.co_filename}:{frame.tb_lineno}")
        frame = frame.tb_next
    kind = f"{type(error).__module__}.{type(error).__qualname__}"
    _logger.error("bug id=%s error=%s at=%s", error_id, kind, " > ".join(places))


def say(text: str, *arguments: object) -> None:
    """Write what the server's owner should know, such as where it listens."""
    _logger.info(text, *arguments)
