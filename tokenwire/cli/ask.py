"""`tokenwire ask`: the answer in the terminal, piece by piece."""

import argparse
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
from tokenwire.cli.terminal import (
    EXIT_BROKEN_PIPE,
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_UNFINISHED,
    EXIT_USAGE,
    Screen,
    say,
)
from tokenwire.endings import ending
from tokenwire.v1.config_pb2 import GenerationConfig
from tokenwire.v1.generation_service_pb2 import GenerateResponse

DEFAULT_PROMPT = "What is baseball?"

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
        say("Stopped. The call was cancelled; what you see is incomplete.")
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
    screen = Screen(_form(options), thoughts=options.thoughts and not options.json)
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
            say(f"This cannot be asked: {error}")
            return EXIT_USAGE
        except OSError as error:
            say(f"{error.filename} can't be read: {error.strerror}.")
            return EXIT_USAGE
        try:
            with answer:
                for message in answer:
                    meter.saw(message, time.monotonic())
                    screen.show(message)
        except TokenwireError as error:
            screen.end_line()
            say(str(error))
            return EXIT_FAILED
        finally:
            # Also after Ctrl-C: whatever comes next starts on a line of its own.
            screen.end_line()
            if options.stats:
                say(" · ".join(meter.figures()))
    unfinished = ending(answer.completed)
    if unfinished:
        say(unfinished)
        return EXIT_UNFINISHED
    return 0


def _config(options: argparse.Namespace) -> GenerationConfig:
    return GenerationConfig(
        temperature=options.temperature,
        max_output_tokens=options.max_output_tokens,
        include_thoughts=options.thoughts or None,
    )


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
