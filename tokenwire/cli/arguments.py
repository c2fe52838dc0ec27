"""What command lines hold: each says what it wants where it can't take what it got."""

import argparse
import math
import re

_ADDRESS = re.compile(r"[\w.-]+:\d{1,5}|\[[0-9A-Fa-f:.%\w]+\]:\d{1,5}|[a-z0-9+.-]+:(//)?/\S*|unix:\S+")
"""host:port, or one of gRPC's own targets, such as dns:///host:port or unix:/path."""


def address(text: str) -> str:
    """Where a service is."""
    if not _ADDRESS.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no address: HOST:PORT is wanted, such as localhost:50051")
    return text


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
