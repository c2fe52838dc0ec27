"""What commands show in a terminal, or write into a pipe, and the codes that they end with."""

import io
import json
import os
import sys
from collections.abc import Callable

from google.protobuf.json_format import MessageToDict

from tokenwire.endings import ONLY_THOUGHTS, shortfall
from tokenwire.v1.content_pb2 import ToolCall
from tokenwire.v1.generation_service_pb2 import Completed, GenerateResponse, Grounding

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


class Notes:
    """stderr: what an answer holds beside its text, told once that has come."""

    def __init__(self) -> None:
        self._calls: list[ToolCall] = []
        self._sources: dict[str, str] = {}
        """Titles of pages, by their addresses, in the order in which they came."""
        self._said = False
        self._thought = False

    def saw(self, message: GenerateResponse) -> None:
        match message.WhichOneof("event"):
            case "text":
                self._said = self._said or bool(message.text.strip())
            case "reasoning":
                self._thought = True
            case "tool_call":
                self._calls.append(message.tool_call.tool_call)
            case "grounding":
                self._ground(message.grounding)
            case "started" | "logprobs" | "completed" | "failed" | None:
                pass

    def _ground(self, grounding: Grounding) -> None:
        for source in grounding.sources:
            self._sources.setdefault(source.uri or source.title, source.title)

    def tell(self) -> None:
        """Say which functions the model calls, and what the answer rests on."""
        for call in self._calls:
            arguments = json.dumps(MessageToDict(call.arguments), ensure_ascii=False)
            say(f"The model calls {call.name}({arguments}), id {call.id}.")
        if self._sources:
            say("Sources:")
        for number, (address, title) in enumerate(self._sources.items(), start=1):
            say(f"  {number}. {title} {address}" if title not in ("", address) else f"  {number}. {address}")

    def shortfall(self, completed: Completed, *, hint: bool) -> str:
        """Say why the answer isn't all that was asked for; empty where it is.

        `hint`: thoughts came that could be shown, and weren't asked for.
        """
        told = shortfall(completed, said=self._said, called=bool(self._calls), thought=self._thought)
        return f"{told} --thoughts shows what it tells of that." if told == ONLY_THOUGHTS and hint else told


_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"
_CONTROLS = dict.fromkeys({*range(0x20), *range(0x7F, 0xA0)} - {0x09, 0x0A}, "\N{REPLACEMENT CHARACTER}")


def plain(text: str) -> str:
    """On one line, and without what commands a terminal."""
    return text.translate(_CONTROLS).replace("\n", " ")


def say(text: str) -> None:
    """Write a line to stderr. What a model or a service says in it commands nothing there."""
    sys.stdout.flush()
    sys.stderr.write(text.translate(_CONTROLS) + "\n")
    sys.stderr.flush()


def unbroken(run: Callable[[], int]) -> int:
    """Run; gives its exit code, or that of a reader of the output who went away."""
    try:
        code = run()
        sys.stdout.flush()  # else Python does on its way out, where nobody could answer for it
    except BrokenPipeError:
        # Python flushes stdout once more on its way out; there must be something behind it then.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    return code
