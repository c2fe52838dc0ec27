"""The client for asyncio: the same names, fields and errors as the blocking one.

    async with AsyncClient() as client, client.generate("What is baseball?") as answer:
        async for piece in answer.text():
            print(piece, end="", flush=True)
    print(answer.completed.usage.output_tokens)

Only leaving the `async with` block of an answer, cancelling the task that reads it, or reading it to its end stops the
model: a `break` without the block lets it write, and be billed, to the end.

For one event loop and its thread; asyncio's own or uvloop's.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self, TypeVar

import grpc
import grpc.aio

from tokenwire.base import AnswerBase, ClientBase
from tokenwire.connection import Connection
from tokenwire.v1.config_pb2 import Tool
from tokenwire.v1.content_pb2 import Message
from tokenwire.v1.generation_service_pb2 import (
    CallerUsage,
    CountTokensRequest,
    GenerateRequest,
    GenerateResponse,
    GetUsageRequest,
    ListModelsRequest,
    Model,
)
from tokenwire.v1.generation_service_pb2_grpc import GenerationServiceStub

if TYPE_CHECKING:  # the generated stub has it for type checkers only
    from tokenwire.v1.generation_service_pb2_grpc import GenerationServiceAsyncStub

__all__ = ["AsyncAnswer", "AsyncClient"]

Received = TypeVar("Received")


class _Call(Protocol):
    """What a stub's stream is. grpc.aio gives None for a message that can't be read."""

    def __aiter__(self) -> AsyncIterator[GenerateResponse | None]: ...

    def cancel(self) -> object: ...


class AsyncAnswer(AnswerBase):
    """One answer while it is being written. Iterate once; leaving its `async with` block cancels the call.

    `cancel` is for the event loop's thread.
    """

    def __init__(self, call: _Call, client: "AsyncClient", *, timeout: float | None) -> None:
        super().__init__(call, client, timeout=timeout)
        self._events = self._read(call)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()

    def __aiter__(self) -> AsyncIterator[GenerateResponse]:
        """Every message as it comes, `completed` last.

        Raises TokenwireError; IncompleteError where the stream ends, even well, before its `completed`.
        """
        return self._events

    async def text(self, *, check: bool = True) -> AsyncIterator[str]:
        """Only the pieces of the answer's text, as they come.

        Raises as iterating does; and when all pieces have come, UnfinishedError for every finish reason but STOP: the
        token limit, a filter, a blocked prompt (see `raise_for_finish`). With `check=False` it ends quietly then, for
        those who look at `completed` themselves.
        """
        async for message in self._events:
            if message.WhichOneof("event") == "text":
                yield message.text
        if check:
            self.raise_for_finish()

    async def _read(self, call: _Call) -> AsyncIterator[GenerateResponse]:
        try:
            # Not `call.read()`, which drops what has come once the status is there.
            async for message in call:
                if message is None:
                    self.cancel()
                    raise self._error(grpc.StatusCode.INTERNAL)
                if self._take(message):
                    yield message
        except grpc.RpcError as error:
            raise self._failed(error) from error
        except asyncio.CancelledError:
            if _cancelled():
                raise
            raise self._error(grpc.StatusCode.CANCELLED) from None
        yield self._end()


class AsyncClient(ClientBase[AsyncAnswer]):
    """Calls one service. Connects with the first call; leaving its `async with` block ends every call."""

    def __init__(
        self,
        address: str | None = None,
        *,
        ca: str | None = None,
        certificate: str | None = None,
        key: str | None = None,
        token: str | None = None,
        token_file: str | None = None,
        channel: grpc.aio.Channel | None = None,
    ) -> None:
        """`address` is https://HOST[:PORT] for TLS, HOST:PORT or unix:/PATH for plain text.

        By default TOKENWIRE_ADDRESS or localhost:50051. `ca`, `certificate` and `key` are PEM files: whom to trust
        instead of the system's authorities, and what this caller shows. `token` is an API key or a JWT, `token_file` a
        file that holds it and may change. What isn't given comes from TOKENWIRE_CA, TOKENWIRE_CLIENT_CERTIFICATE,
        TOKENWIRE_CLIENT_KEY, TOKENWIRE_TOKEN and TOKENWIRE_TOKEN_FILE; "" is nothing. A token is never sent in plain
        text to another machine.

        A `channel` of your own (interceptors, a fake) is used as it is and left open; `address` is then only what
        errors call it. Raises ValueError for what doesn't fit together, and OSError for a file that can't be read.

        May be made before there is an event loop. Belongs to the one that its first call runs in.
        """
        identity = {"ca": ca, "certificate": certificate, "key": key, "token": token, "token_file": token_file}
        super().__init__(address, identity, borrowed=channel is not None)
        self._channel = channel
        self._borrowed = channel is not None
        self._credentials = self.connection.credentials() if self.connection is not None else None
        self._stub: GenerationServiceAsyncStub | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection; running calls are cancelled."""
        self.closed = True
        if self._channel is not None and not self._borrowed:
            await self._channel.close()

    def stream(self, request: GenerateRequest, *, timeout: float | None = None) -> AsyncAnswer:
        return AsyncAnswer(
            self._connected().Generate(request, timeout=timeout, metadata=self._metadata()), self, timeout=timeout
        )

    async def count_tokens(
        self,
        prompt: str = "",
        *,
        messages: Iterable[Message] = (),
        system_instruction: str = "",
        model: str = "",
        tools: Iterable[Tool] = (),
        timeout: float = 10,  # noqa: ASYNC109 - the call's deadline, which the service is told
    ) -> int:
        """Count the tokens that the same question would take as input. Raises as `generate` and its answer do."""
        request = CountTokensRequest(
            prompt=prompt, messages=messages, system_instruction=system_instruction, model=model, tools=tools
        )
        with self._errors(timeout):
            call = self._connected().CountTokens(request, timeout=timeout, metadata=self._metadata())
            return self._readable(await call).total_tokens

    async def models(self, *, timeout: float = 5) -> list[Model]:  # noqa: ASYNC109 - the call's deadline
        """The models that the service offers, its default first. Raises TokenwireError."""
        with self._errors(timeout):
            call = self._connected().ListModels(ListModelsRequest(), timeout=timeout, metadata=self._metadata())
            return list(self._readable(await call).models)

    async def usage(self, *, all_callers: bool = False, timeout: float = 5) -> list[CallerUsage]:  # noqa: ASYNC109 - the call's deadline
        """What this caller has used of its quotas; for administrators, what all have. Raises TokenwireError."""
        request = GetUsageRequest(all_callers=all_callers)
        with self._errors(timeout):
            call = self._connected().GetUsage(request, timeout=timeout, metadata=self._metadata())
            return list(self._readable(await call).callers)

    def _connected(self) -> "GenerationServiceAsyncStub":
        self._check_open()
        loop = asyncio.get_running_loop()
        if self._stub is None:
            if self._channel is None:
                assert self.connection is not None
                self._channel = _channel(self.connection, self._credentials)
            self._stub, self._loop = GenerationServiceStub(self._channel), loop
        if loop is not self._loop:
            raise RuntimeError("This AsyncClient belongs to another event loop: make one for each.")
        return self._stub

    @contextmanager
    def _errors(self, timeout: float) -> Iterator[None]:
        try:
            yield
        except grpc.RpcError as error:
            raise self._failed(error, timeout) from error
        except asyncio.CancelledError:
            if _cancelled():
                raise
            raise self._error(grpc.StatusCode.CANCELLED) from None

    def _readable(self, response: Received | None) -> Received:
        if response is None:
            raise self._error(grpc.StatusCode.INTERNAL)
        return response


def _channel(connection: Connection, credentials: grpc.ChannelCredentials | None) -> grpc.aio.Channel:
    if credentials is None:
        return grpc.aio.insecure_channel(connection.target.name, connection.options())
    return grpc.aio.secure_channel(connection.target.name, credentials, connection.options())


def _cancelled() -> bool:
    """Whether it is this task that was cancelled. gRPC raises CancelledError for a call that was, too."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
