"""A question as command lines say it, and its answer, waited for where the service is only starting."""

import argparse
import itertools
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from tokenwire import Client, TokenwireError, file, user
from tokenwire.cli import arguments
from tokenwire.cli.terminal import say
from tokenwire.client import Answer
from tokenwire.connection import Connection, Identity
from tokenwire.v1.config_pb2 import GenerationConfig
from tokenwire.v1.content_pb2 import Message
from tokenwire.v1.generation_service_pb2 import GenerateRequest, GenerateResponse

# For a service that is starting, where the command line gives no limit.
START_SECONDS = 60.0

_MOMENT_SECONDS = 1.0


def add_timeout(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--timeout",
        type=arguments.seconds,
        metavar="SECONDS",
        help="give up when the answer isn't complete by then (default: the service's limit)",
    )


def add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", default="", metavar="NAME", help="which model (default: the service's); see tokenwire models"
    )
    parser.add_argument("--system", default="", metavar="TEXT", help="how the model is to behave")


def add_files(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--image",
        action="append",
        default=[],
        metavar="FILE",
        dest="images",
        help="show it to the model, which has to take images; a PDF or audio likewise; as often as you like",
    )


def add_sampling(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--temperature", type=float, metavar="NUMBER", help="0.0 to 2.0; lower is more predictable")
    parser.add_argument(
        "--max-output-tokens", type=arguments.tokens, metavar="TOKENS", help="cut the answer after so many tokens"
    )
    parser.add_argument("--thoughts", action="store_true", help="ask for the model's thoughts too; they go to stderr")


class WrongQuestionError(Exception):
    """It can't be asked; the message says why."""


@contextmanager
def usable() -> Iterator[None]:
    """Raise WrongQuestionError for what `arguments.add_address` has added and can't be used."""
    try:
        yield
    except ValueError as error:
        raise WrongQuestionError(f"The service can't be called: {error}.") from error
    except OSError as error:
        raise WrongQuestionError(f"{error.filename} can't be read: {error.strerror}.") from error


def client(options: argparse.Namespace) -> Client:
    """Make a client of what `arguments.add_address` has added. Raises WrongQuestionError where it can't be one."""
    with usable():
        return Client(options.address, **arguments.identity(options))


def connection(options: argparse.Namespace) -> Connection:
    """Make the same for calls of another service at that address. Raises WrongQuestionError."""
    with usable():
        return Connection(options.address, Identity.found(arguments.identity(options)))


def prompt(options: argparse.Namespace) -> str:
    """Give the question; "-" is all of stdin. Raises WrongQuestionError where that is no text."""
    try:
        return sys.stdin.read() if options.prompt == "-" else str(options.prompt)
    except UnicodeDecodeError as error:
        raise WrongQuestionError(f"This cannot be asked: {error}") from error


def turn(options: argparse.Namespace) -> Message:
    """Make the user's turn, with the files. Raises WrongQuestionError."""
    try:
        asked = prompt(options)
        # An empty text is none: with files they are the question, and without there is none.
        return user(*map(file, options.images), *[asked] * bool(asked))
    except ValueError as error:
        raise WrongQuestionError(f"This cannot be asked: {error}") from error
    except OSError as error:
        raise WrongQuestionError(f"{error.filename} can't be read: {error.strerror}.") from error


def request(options: argparse.Namespace, messages: Iterable[Message] = (), prompt: str = "") -> GenerateRequest:
    """Make the request. Raises WrongQuestionError for what none can hold."""
    try:
        return GenerateRequest(
            prompt=prompt,
            messages=messages,
            system_instruction=options.system,
            model=options.model,
            config=GenerationConfig(
                temperature=options.temperature,
                max_output_tokens=options.max_output_tokens,
                include_thoughts=options.thoughts or None,
            ),
        )
    except ValueError as error:
        raise WrongQuestionError(f"This cannot be asked: {error}") from error


class Asked(NamedTuple):
    """A question that is being answered."""

    answer: Answer
    messages: Iterator[GenerateResponse]
    """From the first on, which has come."""
    at: float
    """When it was asked, on the monotonic clock: waiting for a service that starts comes before."""


def asked(client: Client, request: GenerateRequest, *, timeout: float | None) -> Asked:
    """Ask. A service that says it is starting is asked again, visibly, until `timeout` seconds have passed in all.

    Raises TokenwireError.
    """
    end = time.monotonic() + (timeout or START_SECONDS)
    waiting = False
    left = timeout
    while True:
        at = time.monotonic()
        answer = client.stream(request, timeout=left)
        messages = iter(answer)
        try:
            first = next(messages)
        except TokenwireError as error:
            pause = error.retry_after or _MOMENT_SECONDS
            if error.reason != "STARTING" or time.monotonic() + pause >= end:
                raise
        else:
            return Asked(answer, itertools.chain((first,), messages), at)
        if not waiting:
            say("The service is starting; waiting for it.")
        waiting = True
        time.sleep(pause)
        left = None if timeout is None else max(round(end - time.monotonic(), 1), 0.1)  # as people write it
