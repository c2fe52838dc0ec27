"""`tokenwire keys`: makes, lists and revokes API keys. A server follows the file by itself."""

import argparse
import os
import sys
from collections.abc import Sequence

from .admission import api_keys

EXIT_FAILED = 1


def main(argv: Sequence[str] | None = None, *, prog: str = "tokenwire keys") -> int:
    """Run it; gives the exit code."""
    options = _parser(prog).parse_args(argv)
    if not options.file:
        return _fail(prog, "which file? --file FILE or TOKENWIRE_API_KEYS is wanted, as for tokenwire serve")
    try:
        options.run(options)
    except api_keys.KeysError as error:
        return _fail(prog, str(error))
    except OSError as error:
        return _fail(prog, f"{error.filename}: {error.strerror}")
    return 0


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog, description="Make, list and revoke API keys, which callers show as `authorization: Bearer KEY`."
    )
    file = argparse.ArgumentParser(add_help=False)
    file.add_argument(
        "--file",
        metavar="FILE",
        default=os.environ.get("TOKENWIRE_API_KEYS", ""),
        help="where they are kept, as hashes (default: TOKENWIRE_API_KEYS)",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    new = commands.add_parser("new", parents=[file], help="make a key, and tell it once")
    new.add_argument("name", metavar="NAME", help="whose it is: the caller's name in the callers file and in the log")
    new.set_defaults(run=lambda options: _new(options.file, options.name))
    shown = commands.add_parser("list", parents=[file], help="tell all keys by their ids; not the keys themselves")
    shown.set_defaults(run=lambda options: _list(options.file))
    revoke = commands.add_parser("revoke", parents=[file], help="take a key away")
    revoke.add_argument("id", metavar="ID", help="as list tells it")
    revoke.set_defaults(run=lambda options: _revoke(options.file, options.id))
    return parser


def _new(path: str, name: str) -> None:
    key, secret = api_keys.new(path, name)
    print(secret)  # noqa: T201 - the one time that it is told, and alone on standard output
    print(f"Key {key.id} of {name} is in {path}, as a hash. It is not told again.", file=sys.stderr)  # noqa: T201 - for a person


def _revoke(path: str, key_id: str) -> None:
    key = api_keys.revoke(path, key_id)
    print(f"{key.id} of {key.name} is revoked; a running server knows within seconds.")  # noqa: T201 - for a person


def _list(path: str) -> None:
    rows = [("ID", "NAME", "MADE"), *((key.id, key.name, key.made) for key in api_keys.listed(path))]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())  # noqa: T201 - for a person


def _fail(prog: str, text: str) -> int:
    for line in text.splitlines():
        print(f"{prog}: {line}", file=sys.stderr)  # noqa: T201 - for a person
    return EXIT_FAILED


if __name__ == "__main__":
    sys.exit(main())
