"""What commands show in a terminal, or write into a pipe, and the codes that they end with."""

import io
import sys
from collections.abc import Callable

from tokenwire.v1.generation_service_pb2 import GenerateResponse

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_UNFINISHED = 3
EXIT_INTERRUPTED = 130
# The reader of our output went away: 128 + SIGPIPE.
EXIT_BROKEN_PIPE = 141


class Screen:
    """stdout: every event is shown at once, and the cursor is left at the start of a line."""

    def __init__(self, form: Callable[[GenerateResponse], str], *, thoughts: bool) -> None:
        self._form = form
        self._thoughts = _Thoughts() if thoughts else None
        self._line_is_open = False
        # What a terminal can't show must not end the answer.
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")
        self._terminal = sys.stdout.isatty()

    def show(self, message: GenerateResponse) -> None:
        if self._thoughts is not None:
            self._thoughts.show(message)
        text = self._form(message)
        if text:
            # A model must not command the terminal by escape sequences.
            # First, since Ctrl-C may fall between the two.
            self._line_is_open = not text.endswith("\n")
            sys.stdout.write(text.translate(_CONTROLS) if self._terminal else text)
            sys.stdout.flush()

    def end_line(self) -> None:
        if self._thoughts is not None:
            self._thoughts.end()
        if self._line_is_open:
            self._line_is_open = False
            sys.stdout.write("\n")
            sys.stdout.flush()


class _Thoughts:
    """stderr: the thoughts, dimmed in a terminal, with a blank line before the answer."""

    def __init__(self) -> None:
        self._open = False
        self._terminal = sys.stderr.isatty()

    def show(self, message: GenerateResponse) -> None:
        text = message.reasoning.text
        if not text:
            self.end()
            return
        self._open = True
        # Plain again after every piece: whatever ends the program leaves the terminal as it was.
        sys.stderr.write(f"{_DIM}{text.translate(_CONTROLS)}{_PLAIN}" if self._terminal else text)
        sys.stderr.flush()

    def end(self) -> None:
        if self._open:
            self._open = False
            sys.stderr.write("\n\n")
            sys.stderr.flush()


_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"
_CONTROLS = dict.fromkeys({*range(0x20), *range(0x7F, 0xA0)} - {0x09, 0x0A}, "\N{REPLACEMENT CHARACTER}")


def say(text: str) -> None:
    sys.stdout.flush()
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
