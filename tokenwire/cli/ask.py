"""`tokenwire ask`: the answer in the terminal, piece by piece."""

import argparse
import json
import shutil
import sys
import time
from collections.abc import Callable, Sequence

from google.protobuf.json_format import MessageToDict

from tokenwire import Client, TokenwireError
from tokenwire.cli import question
from tokenwire.cli.meter import Meter
from tokenwire.cli.terminal import (
    EXIT_BROKEN_PIPE,
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_UNFINISHED,
    EXIT_USAGE,
    Notes,
    Screen,
    say,
    unbroken,
)
from tokenwire.v1.generation_service_pb2 import GenerateRequest, GenerateResponse

DEFAULT_PROMPT = "What is baseball?"

_EPILOG = f"""\
The answer goes to stdout; thoughts, tool calls, sources and everything else go to stderr. With --json all events go to
stdout.

exit codes:
  0    the answer is complete
  {EXIT_FAILED}    it failed, or was cut; why is on stderr
  {EXIT_USAGE}    the command line is wrong
  {EXIT_UNFINISHED}    the model ended it for another reason than being done (token limit, a filter), or it says
       nothing and calls no tool; on stderr too
  {EXIT_INTERRUPTED}  Ctrl-C; the call was cancelled
  {EXIT_BROKEN_PIPE}  the reader of the output went away; the call was cancelled
"""


def main(argv: Sequence[str] | None = None, *, prog: str = "tokenwire ask") -> int:
    """Ask, print the answer as it comes, and return the exit code."""
    options = _parser(prog).parse_args(argv)
    try:
        return unbroken(lambda: _ask(options))
    except KeyboardInterrupt:
        say("Stopped. The call was cancelled; what you see is incomplete.")
        return EXIT_INTERRUPTED


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Ask a model and print its answer as it is being written.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "prompt",
        nargs="?",
        default=DEFAULT_PROMPT,
        metavar="PROMPT",
        help=f'the question; "-" reads it from stdin (default: "{DEFAULT_PROMPT}")',
    )
    question.add_address(parser)
    question.add_model(parser)
    question.add_files(parser)
    question.add_sampling(parser)
    question.add_timeout(parser)
    parser.add_argument("--stats", action="store_true", help="afterwards, print how fast it came on stderr")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--chunks", action="store_true", help="rule a line between the chunks, to see the pieces")
    form.add_argument("--json", action="store_true", help="print every event as a JSON object on its own line")
    return parser


def _ask(options: argparse.Namespace) -> int:
    screen = Screen(_form(options), thoughts=options.thoughts and not options.json)
    notes = Notes()
    try:
        request = _request(options)
    except question.WrongQuestionError as error:
        say(str(error))
        return EXIT_USAGE
    with Client(options.address) as client:
        meter = Meter(asked_at=time.monotonic())
        try:
            answer, messages, meter.asked_at = question.asked(client, request, timeout=options.timeout)
            for message in messages:
                meter.saw(message, time.monotonic())
                notes.saw(message)
                screen.show(message)
        except TokenwireError as error:
            screen.end_line()
            say(str(error))
            return EXIT_FAILED
        finally:
            # Also after Ctrl-C: whatever comes next starts on a line of its own.
            screen.end_line()
            if not options.json:
                notes.tell()
            if options.stats:
                say(" · ".join(meter.figures()))
    why = notes.shortfall(answer.completed, hint=not (options.thoughts or options.json))
    if why:
        say(why)
    return EXIT_UNFINISHED if why else 0


def _request(options: argparse.Namespace) -> GenerateRequest:
    if options.images:
        return question.request(options, [question.turn(options)])
    return question.request(options, prompt=question.prompt(options))


def _form(options: argparse.Namespace) -> Callable[[GenerateResponse], str]:
    if options.json:
        return _json_line
    return _Ruled() if options.chunks else _text


def _text(message: GenerateResponse) -> str:
    return message.text


def _json_line(message: GenerateResponse) -> str:
    # protobuf's JSON leaves zeros out, and the first message is number 0.
    return json.dumps({"sequence": message.sequence, **MessageToDict(message)}, ensure_ascii=False) + "\n"


class _Ruled:
    """The text, with a line between every two pieces."""

    def __init__(self) -> None:
        self._rule = ""

    def __call__(self, message: GenerateResponse) -> str:
        if message.WhichOneof("event") != "text":
            return ""
        piece = self._rule + message.text
        self._rule = "\n" + "─" * min(shutil.get_terminal_size().columns, 80) + "\n"
        return piece


if __name__ == "__main__":
    sys.exit(main())
