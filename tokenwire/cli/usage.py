"""`tokenwire usage`: what a caller has used of its quotas."""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from datetime import timedelta

from google.protobuf.json_format import MessageToDict

from tokenwire import TokenwireError
from tokenwire.cli import arguments, question
from tokenwire.cli.terminal import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USAGE, plain, say, unbroken
from tokenwire.v1.generation_service_pb2 import CallerUsage

_HEADS = ("CALLER", "QUOTA", "USED", "LIMIT", "BEGINS ANEW IN", "")


def main(argv: Sequence[str] | None = None, *, prog: str = "tokenwire usage") -> int:
    """Print it, and return the exit code."""
    parser = argparse.ArgumentParser(prog=prog, description="Tell what this caller has used, and how much it may.")
    arguments.add_address(parser)
    parser.add_argument("--all", action="store_true", help="of all callers; for administrators")
    parser.add_argument("--json", action="store_true", help="print each caller as a JSON object on its own line")
    parser.add_argument(
        "--timeout", type=arguments.seconds, default=5.0, metavar="SECONDS", help="how long it may take (default: 5)"
    )
    options = parser.parse_args(argv)
    try:
        return unbroken(lambda: _usage(options))
    except question.WrongQuestionError as error:
        say(str(error))
        return EXIT_USAGE
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def _usage(options: argparse.Namespace) -> int:
    with question.client(options) as client:
        try:
            callers = client.usage(all_callers=options.all, timeout=options.timeout)
        except TokenwireError as error:
            say(str(error))
            return EXIT_FAILED
    if options.json:
        for one in callers:
            print(json.dumps(MessageToDict(one), ensure_ascii=False))
        return 0
    rows = [_HEADS, *(row for one in callers for row in _rows(one))]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return 0


def _rows(one: CallerUsage) -> Iterator[tuple[str, ...]]:
    for quota in one.quotas:
        seconds = round(quota.resets_in.ToTimedelta().total_seconds())
        estimated = one.estimated_tokens_today if quota.name == "tokens_per_day" else 0
        yield (
            plain(one.caller),
            plain(quota.name.replace("_", " ")),
            f"{quota.used:,}",
            f"{quota.limit:,}" if quota.HasField("limit") else "-",
            str(timedelta(seconds=seconds)) if quota.HasField("resets_in") else "-",
            f"{estimated:,} of them estimated" if estimated else "",
        )


if __name__ == "__main__":
    sys.exit(main())
