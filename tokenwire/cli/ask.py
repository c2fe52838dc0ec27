"""`tokenwire ask`: the answer in the terminal, piece by piece."""

import argparse
import io
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence

from google.protobuf.json_format import MessageToDict

from tokenwire import Client, TokenwireError, default_address, file, user
from tokenwire.cli import arguments
from tokenwire.cli.meter import Meter
from tokenwire.endings import ending
from tokenwire.v1.config_pb2 import GenerationConfig
from tokenwire.v1.generation_service_pb2 import GenerateResponse

DEFAULT_PROMPT = "What is baseball?"

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_UNFINISHED = 3
EXIT_INTERRUPTED = 130
# The reader of our output went away: 128 + SIGPIPE.
EXIT_BROKEN_PIPE = 141

_EPILOG = f"""\
exit codes:
  0    the answer is complete
  {EXIT_FAILED}    it failed, or was cut; why is on stderr
  {EXIT_USAGE}    the command line is wrong
  {EXIT_UNFINISHED}    the model ended it for another reason than being done (token limit, a filter); on stderr too
  {EXIT_INTERRUPTED}  Ctrl-C; the call was cancelled
  {EXIT_BROKEN_PIPE}  the reader of the output went away; the call was cancelled
"""


def main(argv: Sequence[str] | None = None, *, prog: str = "tokenwire ask") -> int:
    """Ask, print the answer as it comes, and return the exit code."""
    options = _parser(prog).parse_args(argv)
    try:
        return _ask(options)
    except KeyboardInterrupt:
        _say("Stopped. The call was cancelled; what you see is incomplete.")
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Python flushes stdout once more on its way out; there must be something behind it then.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE


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
        help=f'the question; "-" reads it from stdin (default: "{DEFAULT_PROMPT}")',
    )
    parser.add_argument(
        "--address",
        type=arguments.address,
        default=default_address(),
        metavar="HOST:PORT",
        help="where the service is (default: TOKENWIRE_ADDRESS, else localhost:50051; now %(default)s)",
    )
    parser.add_argument("--model", default="", metavar="NAME", help="which model (default: the service's)")
    parser.add_argument("--system", default="", metavar="TEXT", help="how the model is to behave")
    parser.add_argument(
        "--image",
        action="append",
        default=[],
        metavar="FILE",
        dest="images",
        help="show it to the model, which has to take images; a PDF or audio likewise; as often as you like",
    )
    parser.add_argument("--temperature", type=float, metavar="NUMBER", help="0.0 to 2.0; lower is more predictable")
    parser.add_argument("--max-output-tokens", type=arguments.tokens, metavar="N", help="cut the answer after N tokens")
    parser.add_argument(
        "--timeout",
        type=arguments.seconds,
        metavar="SECONDS",
        help="give up when the answer isn't complete by then (default: the service's limit)",
    )
    parser.add_argument("--thoughts", action="store_true", help="ask for the model's thoughts too; they go to stderr")
    parser.add_argument("--stats", action="store_true", help="afterwards, print how fast it came on stderr")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--chunks", action="store_true", help="rule a line between the chunks, to see the pieces")
    form.add_argument("--json", action="store_true", help="print every event as a JSON object on its own line")
    return parser


def _ask(options: argparse.Namespace) -> int:
    prompt = sys.stdin.read() if options.prompt == "-" else options.prompt
    screen = _Screen(_form(options), thoughts=options.thoughts and not options.json)
    with Client(options.address) as client:
        meter = Meter(asked_at=time.monotonic())
        try:
            images = [file(path) for path in options.images]
            answer = client.generate(
                "" if images else prompt,
                messages=[user(*images, prompt)] if images else [],
                system_instruction=options.system,
                model=options.model,
                config=_config(options),
                timeout=options.timeout,
            )
        except ValueError as error:
            _say(f"This cannot be asked: {error}")
            return EXIT_USAGE
        except OSError as error:
            _say(f"{error.filename} can't be read: {error.strerror}.")
            return EXIT_USAGE
        try:
            with answer:
                for message in answer:
                    meter.saw(message, time.monotonic())
                    screen.show(message)
        except TokenwireError as error:
            screen.end_line()
            _say(str(error))
            return EXIT_FAILED
        finally:
            # Also after Ctrl-C: whatever comes next starts on a line of its own.
            screen.end_line()
            if options.stats:
                _say(" · ".join(meter.figures()))
    unfinished = ending(answer.completed)
    if unfinished:
        _say(unfinished)
        return EXIT_UNFINISHED
    return 0


def _config(options: argparse.Namespace) -> GenerationConfig:
    return GenerationConfig(
        temperature=options.temperature,
        max_output_tokens=options.max_output_tokens,
        include_thoughts=options.thoughts or None,
    )


class _Screen:
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


def _say(text: str) -> None:
    sys.stdout.flush()
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
