"""The log: one line for each call, and never a prompt, an answer or a credential."""

import json
import logging
import os
import re
import select
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Any

from .call_record import CallRecord

_logger = logging.getLogger("tokenwire")

_WORD = re.compile(r"[\w.:/-]+", re.ASCII)


# What the server's owner has to mend by reasons of errors; and what is to be looked at if it goes on.
_LEVELS = {
    **dict.fromkeys(("INTERNAL", "UPSTREAM_CREDENTIALS", "UPSTREAM_FAULT", "UPSTREAM_MODEL_NOT_FOUND"), logging.ERROR),
    **dict.fromkeys(
        (
            "SERVER_BUSY",
            "UPSTREAM_CUT",
            "UPSTREAM_DEADLINE",
            "UPSTREAM_PRECONDITION",
            "UPSTREAM_QUOTA",
            "UPSTREAM_UNAVAILABLE",
        ),
        logging.WARNING,
    ),
}


def configure(level: str, form: str = "auto") -> None:
    """Write the log to standard error, a line an event, times in UTC.

    `form`: "text", "json" (an object a line), or "auto": text at a terminal, else JSON.
    """
    if form == "auto":
        form = "text" if sys.stderr is not None and sys.stderr.isatty() else "json"
    formatter = _Json if form == "json" else _Formatter
    _logger.addHandler(_handler(formatter()))
    _logger.setLevel(level.upper())
    _logger.propagate = False
    logging.getLogger().addHandler(_handler(_Discreet(formatter())))
    logging.captureWarnings(capture=True)
    # Of no use to our lines, and found out anew for each.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    sys.unraisablehook = _ignored


_worker: int | None = None
"""Which of several workers this process is."""


def join(worker: int) -> None:
    """Say in each line that it comes from this worker."""
    global _worker  # noqa: PLW0603 - one process is one worker, and logging is one for all of it
    _worker = worker


def is_first() -> bool:
    """Whether this is the first of several workers, or the only one: it tells what is so for all of them."""
    return not _worker


_handlers: "list[logging.StreamHandler[Any]]" = []
"""The handlers that `configure` has made."""


def _handler(formatter: logging.Formatter) -> logging.Handler:
    handler = logging.StreamHandler()
    handler.setFormatter(formatter)
    _handlers.append(handler)
    return handler


@contextmanager
def never_waiting(*, forks: bool = False) -> Iterator[None]:
    """Within, writing a line never waits for whatever reads standard error; a thread does.

    A pipe that nobody empties would stop the event loop, and every stream with it. To be entered behind the fork.
    A process that `forks` has no thread: there, a line for which there is no room is lost, and counted.
    """
    if sys.stderr is None:  # it was closed before this process started
        yield
        return
    lines = _IfThereIsRoom(sys.stderr.fileno()) if forks else _Lines(sys.stderr.fileno())
    before = [(handler, handler.setStream(lines)) for handler in _handlers]
    try:
        yield
    finally:
        for handler, stream in before:
            handler.setStream(stream)
        lines.close()


_MOST_LINES = 10_000
_LAST_LINES_SECONDS = 1.0

# Waking the thread for each line would cost 8 % of a short request. It lets lines gather instead.
_GATHERING_SECONDS = 0.05

# Several processes write to one pipe. What is no longer than this gets there in one piece (POSIX).
_PIECE_BYTES = getattr(select, "PIPE_BUF", 512)


class _Lines:
    """A stream that takes what is written at once; a thread hands it on, twenty times a second at most."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._lines: SimpleQueue[str | None] = SimpleQueue()
        self._refused = 0
        """Lines for which there was no room; counted by the thread that writes."""
        # Not to be waited for at the end: nobody may ever take what it holds.
        self._thread = threading.Thread(target=self._hand_on, daemon=True, name="log")
        self._thread.start()

    def write(self, text: str) -> None:
        """Never waits. While 10,000 lines have not been taken, further ones are lost, and counted."""
        if self._lines.qsize() < _MOST_LINES:
            self._lines.put(text)
        else:
            self._refused += 1

    def flush(self) -> None:
        """Nothing to do: lines are handed on as fast as they are taken."""

    def close(self) -> None:
        """Wait a second at most until all has been handed on."""
        self._lines.put(None)
        self._thread.join(_LAST_LINES_SECONDS)

    def _hand_on(self) -> None:
        end, seen, unsaid = False, 0, 0
        while not end:
            found = [self._lines.get()]
            with suppress(Empty):
                while True:
                    found.append(self._lines.get_nowait())
            end = None in found
            unsaid += sum(_failed(self._fd, piece) for piece in _pieces(filter(None, found)))
            refused = self._refused
            unsaid, seen = unsaid + refused - seen, refused
            if unsaid and not _failed(self._fd, _lost(unsaid)):
                unsaid = 0
            if not end:
                time.sleep(_GATHERING_SECONDS)


class _IfThereIsRoom:
    """A stream that hands on at once what finds room, and else counts it as lost."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._unsaid = 0

    def write(self, text: str) -> None:
        """Never waits for a reader that has stopped reading."""
        told = _lost(self._unsaid) if self._unsaid else b""
        if select.select([], [self._fd], [], 0)[1] and not _failed(self._fd, told + text.encode(errors=_ERRORS)):
            self._unsaid = 0
        else:
            self._unsaid += 1

    def flush(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to do."""


_ERRORS = "backslashreplace"  # file names may hold bytes that are no text


def _lost(count: int) -> bytes:
    return f"{count} lines of the log are lost: nobody has taken them for too long\n".encode()


def _pieces(lines: Iterable[str]) -> Iterator[bytes]:
    """As many whole lines at a time as get into a pipe in one piece."""
    piece = b""
    for line in lines:
        data = line.encode(errors=_ERRORS)
        if piece and len(piece) + len(data) > _PIECE_BYTES:
            yield piece
            piece = b""
        piece += data
    if piece:
        yield piece


def _failed(fd: int, lines: bytes) -> int:
    """Write lines; gives how many of them are lost.

    Not through `sys.stderr`: a thread that waits in there holds its lock, and the process could not flush it and end.
    """
    left = lines
    while left:
        try:
            left = left[os.write(fd, left) :]
        except BlockingIOError:  # another process has made the pipe non-blocking, for all that share it
            select.select([], [fd], [])
        except OSError:  # a disk that is full, or nobody reads any more
            return left.count(b"\n")
    return 0


class _Formatter(logging.Formatter):
    def __init__(self, message: str = "%(message)s") -> None:
        super().__init__(f"%(asctime)s.%(msecs)03dZ %(levelname)s %(name)s {message}", "%Y-%m-%dT%H:%M:%S")
        self.converter = time.gmtime

    def formatMessage(self, record: logging.LogRecord) -> str:
        """A line, without an error's trace; that of a call says by itself from which worker it comes."""
        facts = {} if isinstance(record.msg, _Line) else _whose()
        return " ".join([super().formatMessage(record), *(f"{name}={value}" for name, value in facts.items())])


class _Json(_Formatter):
    """An object a line: its time, its level, and the facts of a call or a `message`."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": f"{self.formatTime(record, self.datefmt)}.{record.msecs:03.0f}Z",
            "level": record.levelname.lower(),
        }
        if record.name != _logger.name:
            line["logger"] = record.name
        if isinstance(record.msg, _Line):
            line |= record.msg.facts
        else:
            line["message"] = record.getMessage()
            line |= _whose()
        return json.dumps(line)


class _Discreet(logging.Formatter):
    """Tells that a library has spoken, not what: its messages and traces may hold what must not be logged."""

    def __init__(self, form: _Formatter) -> None:
        super().__init__()
        self._form = form

    def format(self, record: logging.LogRecord) -> str:
        text = f"says something that is not shown, from {record.pathname}:{record.lineno}"
        if record.exc_info and record.exc_info[0] is not None:
            text += f" {_kind(record.exc_info[0])}"
        shown = logging.LogRecord(record.name, record.levelno, record.pathname, record.lineno, text, None, None)
        shown.created, shown.msecs = record.created, record.msecs
        return self._form.format(shown)


def _whose() -> dict[str, object]:
    return {} if _worker is None else {"worker": _worker}


class _Line:
    """The facts of one call. A formatter makes text or JSON of them."""

    def __init__(self, record: CallRecord, code: str, facts: list[tuple[str, object]]) -> None:
        seconds = round(time.perf_counter() - record.begin, 3)
        known = {name: round(value, 3) if isinstance(value, float) else value for name, value in facts}
        self.facts: dict[str, object] = {
            "method": record.method,
            "code": code,
            "seconds": seconds,
            **known,
            **_whose(),
        }

    def __str__(self) -> str:
        known = iter(self.facts.items())
        return f"{next(known)[1]}{''.join([f' {name}={_one_word(value)}' for name, value in known])}"


def end_call(record: CallRecord, code: str) -> None:
    """Write the call's line; for one that was given up before anything was known of it, only at level debug."""
    known = record.facts()
    empty = code == "CANCELLED" and all(name == "cause" for name, _ in known)
    level = _LEVELS.get(record.reason, logging.DEBUG if empty else logging.INFO)
    if _logger.isEnabledFor(level):
        line = _Line(record, code, known)
        # Not by `log`, which spends a third of the time on finding out that it was called from here.
        _logger.handle(logging.LogRecord(_logger.name, level, __file__, 0, line, None, None))


def _one_word(value: object) -> str:
    """A caller's own words in quotes, so that they don't look like further facts."""
    text = f"{value:.3f}" if isinstance(value, float) else str(value)
    return text if _WORD.fullmatch(text) else ascii(text)


def bug(error: BaseException, error_id: str) -> None:
    """Write where a bug is. Not its message: that may hold what the caller or the model said."""
    _logger.error("bug id=%s error=%s at=%s", error_id, _kind(type(error)), _places(error.__traceback__))


def _ignored(unraisable: "sys.UnraisableHookArgs") -> None:
    """Write where an error was that nobody could catch, such as one in a finalizer; Python would write its message."""
    _logger.warning("ignored error=%s at=%s", _kind(unraisable.exc_type), _places(unraisable.exc_traceback))


def _kind(error: type[BaseException]) -> str:
    return f"{error.__module__}.{error.__qualname__}"


def _places(trace: TracebackType | None) -> str:
    places = []
    while trace is not None:
        places.append(f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}")
        trace = trace.tb_next
    return " > ".join(places)


def say(text: str, *arguments: object) -> None:
    """Write what the server's owner should know, such as where it listens."""
    _logger.info(text, *arguments)


def fail(text: str, *arguments: object) -> None:
    """Write where the server itself fails: it gives up, or a part of it has ended by itself."""
    _logger.error(text, *arguments)


def warn(text: str, *arguments: object) -> None:
    """Write what the server's owner should look at, though the server goes on."""
    _logger.warning(text, *arguments)
