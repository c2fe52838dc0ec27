"""`tokenwire chat`: a conversation in the terminal."""

import argparse
import io
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module

from tokenwire import Client, TokenwireError, model, user
from tokenwire.cli import question
from tokenwire.cli.terminal import EXIT_INTERRUPTED, Notes, Screen, say, unbroken
from tokenwire.v1.content_pb2 import Message

_HELP = """\
Each line is a question, asked with all that was said before. Ctrl-C stops an answer, and what has come of it stays;
Ctrl-D ends the conversation. The arrow keys bring earlier lines back.
  /new   begin a new conversation
  /help  show this"""

_EPILOG = f"""\
{_HELP}
"""


def main(argv: Sequence[str] | None = None, *, prog: str = "tokenwire chat") -> int:
    """Talk until stdin ends, and return the exit code."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Talk with a model in the terminal; its answers appear as they are being written.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    question.add_address(parser)
    question.add_model(parser)
    question.add_sampling(parser)
    question.add_timeout(parser)
    options = parser.parse_args(argv)
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # a line that is no text is refused as such
    with suppress(ImportError):  # not on Windows
        import_module("readline")  # `input` makes use of it: editing, and earlier lines
    try:
        return unbroken(lambda: _Conversation(options).run())
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


class _Conversation:
    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._terminal = sys.stdin.isatty()
        self._turns: list[Message] = []
        """All that has been said; the model's turn is the last."""

    def run(self) -> int:
        if self._terminal:
            say("Ctrl-C stops an answer, Ctrl-D ends the conversation; /help tells more.")
        while (line := self._line()) is not None:
            match line.strip():
                case "":
                    pass
                case "/help":
                    say(_HELP)
                case "/new":
                    self._turns.clear()
                    say("A new conversation.")
                case command if command.startswith("/") and command[1:].isalpha():
                    say(f"There is no {command}: /new, /help or a question is wanted.")
                case _:
                    self._ask(line)
        return 0

    def _line(self) -> str | None:
        """The next one; None at the end."""
        while True:
            try:
                return input("> " if self._terminal else "")
            except EOFError:
                if self._terminal:
                    print()
                return None
            except KeyboardInterrupt:
                if not self._terminal:
                    raise
                say("\nCtrl-D ends the conversation.")

    def _ask(self, line: str) -> None:
        """Ask, and remember question and answer; nothing of either where nothing came."""
        screen, notes = Screen(lambda message: message.text, thoughts=self._options.thoughts), Notes()
        answer = None
        try:
            turn = user(line)
            request = question.request(self._options, [*self._turns, turn])
            # A connection for each question: wherever Ctrl-C falls, nothing is left running behind it.
            with Client(self._options.address) as client:
                answer, messages, _ = question.asked(client, request, timeout=self._options.timeout)
                for message in messages:
                    notes.saw(message)
                    screen.show(message)
            why = notes.shortfall(answer.completed, hint=not self._options.thoughts)
        except KeyboardInterrupt:
            why = "Stopped."
        except (TokenwireError, question.WrongQuestionError) as error:
            why = str(error)
        except ValueError as error:
            why = f"This cannot be asked: {error}"
        finally:
            screen.end_line()
        notes.tell()
        if why:
            say(why)
        # Not all models take their thoughts back, and nobody here gives a tool's result.
        said = "" if answer is None else "".join(part.text for part in answer.message.parts)
        if said.strip():
            self._turns += [turn, model(said)]


if __name__ == "__main__":
    sys.exit(main())
