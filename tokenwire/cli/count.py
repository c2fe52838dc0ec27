"""`tokenwire count`: how many tokens a question would take."""

import argparse
import sys
from collections.abc import Sequence

from tokenwire import Client, TokenwireError
from tokenwire.cli import arguments, question
from tokenwire.cli.terminal import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USAGE, say, unbroken


def main(argv: Sequence[str] | None = None, *, prog: str = "tokenwire count") -> int:
    """Print the number of tokens, and return the exit code."""
    parser = argparse.ArgumentParser(
        prog=prog, description="Count the tokens that a question would take as input, by its model's own count."
    )
    parser.add_argument("prompt", metavar="PROMPT", help='the question; "-" reads it from stdin')
    question.add_address(parser)
    question.add_model(parser)
    question.add_files(parser)
    parser.add_argument(
        "--timeout", type=arguments.seconds, default=10.0, metavar="SECONDS", help="how long it may take (default: 10)"
    )
    options = parser.parse_args(argv)
    try:
        return unbroken(lambda: _count(options))
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def _count(options: argparse.Namespace) -> int:
    with Client(options.address) as client:
        try:
            turn = question.turn(options)
            tokens = client.count_tokens(
                messages=[turn] if turn.parts else [],  # what is no question is refused as `ask` is
                system_instruction=options.system,
                model=options.model,
                timeout=options.timeout,
            )
        except question.WrongQuestionError as error:
            say(str(error))
            return EXIT_USAGE
        except ValueError as error:  # what no request can hold
            say(f"This cannot be asked: {error}")
            return EXIT_USAGE
        except TokenwireError as error:
            say(str(error))
            return EXIT_FAILED
    print(tokens)
    return 0


if __name__ == "__main__":
    sys.exit(main())
