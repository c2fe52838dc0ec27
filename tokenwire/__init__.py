"""Asks models over gRPC and reads their answers while they are being written.

    from tokenwire import Client

    with Client("localhost:50051") as client, client.generate("What is baseball?", timeout=60) as answer:
        for piece in answer.text():
            print(piece, end="", flush=True)

`AsyncClient` is the same for asyncio. `text()` raises for every answer that isn't whole: see `tokenwire.errors`.

Each name is loaded when it is first asked for: callers that need only the generated stubs, `tokenwire.v1`, load nothing
else.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenwire.aio import AsyncAnswer, AsyncClient
    from tokenwire.client import Answer, Client
    from tokenwire.config import GenerationConfigDict
    from tokenwire.connection import DEFAULT_ADDRESS, default_address
    from tokenwire.errors import (
        BlocklistError,
        BusyError,
        CallCancelledError,
        DeadlineError,
        EmptyAnswerError,
        IncompleteError,
        InvalidRequestError,
        MalformedFunctionCallError,
        ModelArmorError,
        NotAllowedError,
        OtherFinishError,
        PersonalDataError,
        ProhibitedContentError,
        PromptBlockedError,
        RecitationError,
        RefusedError,
        SafetyError,
        ServiceError,
        TokenLimitError,
        TokenwireError,
        UnavailableError,
        UnfinishedError,
        UnknownModelError,
        Violation,
    )
    from tokenwire.messages import Turn, file, file_uri, function, inline, model, struct, tool, tool_result, user

__all__ = [
    "DEFAULT_ADDRESS",
    "Answer",
    "AsyncAnswer",
    "AsyncClient",
    "BlocklistError",
    "BusyError",
    "CallCancelledError",
    "Client",
    "DeadlineError",
    "EmptyAnswerError",
    "GenerationConfigDict",
    "IncompleteError",
    "InvalidRequestError",
    "MalformedFunctionCallError",
    "ModelArmorError",
    "NotAllowedError",
    "OtherFinishError",
    "PersonalDataError",
    "ProhibitedContentError",
    "PromptBlockedError",
    "RecitationError",
    "RefusedError",
    "SafetyError",
    "ServiceError",
    "TokenLimitError",
    "TokenwireError",
    "Turn",
    "UnavailableError",
    "UnfinishedError",
    "UnknownModelError",
    "Violation",
    "default_address",
    "file",
    "file_uri",
    "function",
    "inline",
    "model",
    "struct",
    "tool",
    "tool_result",
    "user",
]

# The modules of names, beside errors and what messages are made of.
_HOMES = {
    "AsyncAnswer": "aio",
    "AsyncClient": "aio",
    "DEFAULT_ADDRESS": "connection",
    "default_address": "connection",
    "Answer": "client",
    "Client": "client",
    "GenerationConfigDict": "config",
    "Violation": "errors",
}


if not TYPE_CHECKING:  # which would take every name for one of ours

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        home = _HOMES.get(name) or ("errors" if name.endswith("Error") else "messages")
        value = globals()[name] = getattr(import_module(f"{__name__}.{home}"), name)
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
