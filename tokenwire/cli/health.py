"""`tokenwire health`: whether the service serves, for whatever has to know that from outside."""

import argparse
import sys
from collections.abc import Sequence

import grpc
from google.protobuf.wrappers_pb2 import Int32Value, StringValue

from tokenwire import TokenwireError
from tokenwire.cli import arguments, question
from tokenwire.cli.terminal import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USAGE, say, unbroken
from tokenwire.connection import Connection, default_address
from tokenwire.statuses import explain

SERVING = "SERVING"

_CHECK = "/grpc.health.v1.Health/Check"
_STATES = ("UNKNOWN", SERVING, "NOT_SERVING", "SERVICE_UNKNOWN")  # by the numbers of ServingStatus


def main(argv: Sequence[str] | None = None, *, prog: str = "tokenwire health") -> int:
    """Ask, and return the exit code."""
    options = _parser(prog).parse_args(argv)
    try:
        return unbroken(lambda: _health(options))
    except question.WrongQuestionError as error:
        say(str(error))
        return EXIT_USAGE
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Ask the service whether it serves, as load balancers do (grpc.health.v1).",
        epilog="exit codes: 0 it serves; 1 it doesn't, or can't be reached; 2 a wrong command line",
    )
    arguments.add_address(parser)
    parser.add_argument(
        "--server-name",
        default="",
        metavar="HOST",
        help="of TLS: whose certificate is wanted, where the address is another name of the same machine, such as "
        "https://localhost:50051 (default: that of the address)",
    )
    parser.add_argument(
        "--timeout", type=arguments.seconds, default=5.0, metavar="SECONDS", help="how long it may take (default: 5)"
    )
    return parser


def _health(options: argparse.Namespace) -> int:
    address = options.address or default_address()
    connection = question.connection(options)
    if options.server_name and not connection.target.secure:
        raise question.WrongQuestionError("--server-name is for TLS: an address that begins with https:// is wanted.")
    try:
        with question.usable():
            found = state(address, connection, server_name=options.server_name, timeout=options.timeout)
    except TokenwireError as error:
        say(str(error))
        return EXIT_FAILED
    if found != SERVING:
        say(f"The service at {address} does not serve: it says {found}.")
        return EXIT_FAILED
    print(found)
    return 0


def state(address: str, connection: Connection, *, server_name: str = "", timeout: float) -> str:
    """What the server as a whole says of itself, such as "SERVING"; `address` is what errors call it.

    Raises TokenwireError; ValueError or OSError for a certificate that can't be used.
    """
    with connection.channel(server_name) as channel:
        # The stubs come with an extra that callers don't need. A HealthCheckRequest is written as a StringValue is, and
        # a HealthCheckResponse as an Int32Value.
        check = channel.unary_unary(
            _CHECK, request_serializer=StringValue.SerializeToString, response_deserializer=Int32Value.FromString
        )
        try:
            number = check(StringValue(), timeout=timeout, metadata=connection.metadata()).value
        except grpc.RpcError as error:
            raise explain(error, address=address, connection=connection, timeout=timeout) from error
    return _STATES[number] if 0 <= number < len(_STATES) else str(number)


if __name__ == "__main__":
    sys.exit(main())
