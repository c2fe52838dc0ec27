"""`tokenwire models`: what the service offers."""

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Sequence

from google.protobuf.json_format import MessageToDict

from tokenwire import TokenwireError
from tokenwire.cli import arguments, question
from tokenwire.cli.terminal import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USAGE, plain, say, unbroken
from tokenwire.v1.generation_service_pb2 import Model

_HEADS = ("MODEL", "PROVIDER", "TAKES", "TOKENS IN", "OUT", "")


def main(argv: Sequence[str] | None = None, *, prog: str = "tokenwire models") -> int:
    """Print the models on offer, and return the exit code."""
    parser = argparse.ArgumentParser(
        prog=prog, description="List the models that the service offers, its default first."
    )
    arguments.add_address(parser)
    parser.add_argument(
        "--timeout", type=arguments.seconds, default=5.0, metavar="SECONDS", help="how long it may take (default: 5)"
    )
    parser.add_argument("--json", action="store_true", help="print each model as a JSON object on its own line")
    options = parser.parse_args(argv)
    try:
        return unbroken(lambda: _models(options))
    except question.WrongQuestionError as error:
        say(str(error))
        return EXIT_USAGE
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def _models(options: argparse.Namespace) -> int:
    with question.client(options) as client:
        try:
            models = client.models(timeout=options.timeout)
        except TokenwireError as error:
            say(str(error))
            return EXIT_FAILED
    for line in map(_json, models) if options.json else _table(models):
        print(line)
    return 0


def _json(model: Model) -> str:
    return json.dumps(MessageToDict(model), ensure_ascii=False)


def _table(models: Iterable[Model]) -> Iterator[str]:
    rows = [_HEADS, *map(_row, models)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _row(model: Model) -> tuple[str, ...]:
    """What a model can take; "-" for what the service doesn't know of it."""
    able = ["default"] * model.default + ["thinks"] * model.thinking + ["calls tools"] * model.tools
    return (
        plain(model.name),
        plain(model.provider) or "-",
        plain(", ".join(model.input_kinds)) or "-",
        f"{model.max_input_tokens:,}" if model.max_input_tokens else "-",
        f"{model.max_output_tokens:,}" if model.max_output_tokens else "-",
        ", ".join(able),
    )


if __name__ == "__main__":
    sys.exit(main())
