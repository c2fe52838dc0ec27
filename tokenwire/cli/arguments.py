"""What command lines hold: each says what it wants where it can't take what it got."""

import argparse
import math
import re
from typing import TypedDict

from tokenwire import connection

_ADDRESS = re.compile(
    r"https://\S+|[\w.-]+:\d{1,5}|\[[0-9A-Fa-f:.%\w]+\]:\d{1,5}|unix(-abstract)?:\S+|(?!https?:)[a-z0-9+.-]+:(//)?/\S*"
)
"""As `tokenwire.connection` has it, or one of gRPC's own targets, such as dns:///host:port."""


def address(text: str) -> str:
    """Where a service is."""
    if not _ADDRESS.fullmatch(text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no address: HOST:PORT is wanted, such as localhost:50051, or https://HOST:PORT, or unix:/PATH"
        )
    try:
        connection.target(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def add_address(parser: argparse.ArgumentParser) -> None:
    """Add what every command takes that calls the service: where it is, whom to trust, and who calls."""
    parser.add_argument(
        "--address",
        type=address,
        metavar="ADDRESS",
        help="where the service is: HOST:PORT, https://HOST:PORT for TLS, unix:/PATH (default: TOKENWIRE_ADDRESS, else "
        f"localhost:50051; now {connection.default_address()})".replace("%", "%%"),
    )
    for flag, text in (
        ("--ca", "whom to trust instead of the system's authorities, in PEM (default: TOKENWIRE_CA)"),
        ("--client-certificate", "this caller's own certificate, in PEM (default: TOKENWIRE_CLIENT_CERTIFICATE)"),
        ("--client-key", "its key (default: TOKENWIRE_CLIENT_KEY)"),
        ("--token-file", "what holds this caller's API key or JWT (default: TOKENWIRE_TOKEN_FILE, or TOKENWIRE_TOKEN)"),
    ):
        parser.add_argument(flag, metavar="FILE", help=text)


class Shown(TypedDict):
    """Of what a client takes."""

    ca: str | None
    certificate: str | None
    key: str | None
    token_file: str | None


def identity(options: argparse.Namespace) -> Shown:
    """What `add_address` has added, as a client takes it; None: it wasn't given."""
    return Shown(
        ca=options.ca,
        certificate=options.client_certificate,
        key=options.client_key,
        token_file=options.token_file,
    )


def port(text: str) -> int:
    """Where to serve."""
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 1 << 16):
        raise argparse.ArgumentTypeError(f"{text!r} is not a port: 1 to 65535 is wanted")
    return int(text)


def seconds(text: str) -> float:
    """How long something may take."""
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not (found > 0 and math.isfinite(found)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return found


def tokens(text: str) -> int:
    """How many; what the contract's field holds."""
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 1 << 31):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of tokens: 1 to {(1 << 31) - 1} is wanted")
    return int(text)
