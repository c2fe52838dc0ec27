"""`python -m tests.faults.leaky FLAGS`: the server with a bug that blurts out what it was asked in every way."""

import asyncio
import logging
import sys
import warnings
from typing import Any

from service.__main__ import main  # first: what libraries read when they are imported is set there

# isort: split
from service.contract import decode

parse = decode.parse

LOGGERS = ("", "grpc", "grpc._cython.cygrpc", "asyncio", "langchain_core", "langchain_google_vertexai", "google.auth")


class Finalized:
    """An error in a finalizer is written by Python itself."""

    def __init__(self, words: str) -> None:
        self.words = words

    def __del__(self) -> None:
        raise ValueError(self.words)


async def fail(words: str) -> None:
    raise ValueError(words)


def fails(words: str) -> None:
    try:
        int(words)
    except ValueError as error:
        raise RuntimeError(words) from error


def blurt(request: Any, **options: Any) -> Any:
    words = request.prompt
    if "bug" not in words:
        return parse(request, **options)
    for name in LOGGERS:
        try:
            fails(words)
        except RuntimeError:
            logging.getLogger(name).exception("%s", words, stack_info=True)
    warnings.warn(words, stacklevel=1)
    loop = asyncio.get_running_loop()
    loop.call_exception_handler({"message": words, "exception": ValueError(words)})
    loop.create_task(fail(words))  # noqa: RUF006 - nobody shall retrieve what becomes of it
    loop.call_soon(fails, words)
    Finalized(words)
    return fails(words)


if __name__ == "__main__":
    decode.parse = blurt
    sys.exit(main())
