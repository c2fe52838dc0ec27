"""A small typed client: one call, answered piece by piece.

    with Client() as client, client.generate("What is baseball?") as answer:
        for piece in answer.text():
            print(piece, end="", flush=True)
    print(answer.completed.usage.output_tokens)

tokenwire.messages makes turns of a conversation: `user("What is this?", file("photo.png"))`. `answer.message` is the
model's turn for the next request, with its thoughts, tool calls and signatures.

Blocking; safe to share between threads. Its errors are those of tokenwire.errors.
"""

from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Protocol, Self

import grpc

from tokenwire.base import AnswerBase, ClientBase
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

__all__ = ["Answer", "Client"]


class _Call(Protocol):
    """What a stub's stream is; grpc has no public name for it."""

    def __iter__(self) -> Iterator[GenerateResponse]: ...

    def cancel(self) -> object: ...


class Answer(AnswerBase):
    """One answer while it is being written. Iterate once; leaving its `with` block cancels the call.

    `cancel` may be called from any thread.
    """

    def __init__(self, call: _Call, client: "Client", *, timeout: float | None) -> None:
        super().__init__(call, client, timeout=timeout)
        self._events = self._read(call)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()

    def __iter__(self) -> Iterator[GenerateResponse]:
        """Every message as it comes, `completed` last.

        Raises TokenwireError; IncompleteError where the stream ends, even well, before its `completed`.
        """
        return self._events

    def text(self, *, check: bool = True) -> Iterator[str]:
        """Only the pieces of the answer's text, as they come.

        Raises as iterating does; and when all pieces have come, UnfinishedError for every finish reason but STOP: the
        token limit, a filter, a blocked prompt (see `raise_for_finish`). With `check=False` it ends quietly then, for
        those who look at `completed` themselves.
        """
        for message in self._events:
            if message.WhichOneof("event") == "text":
                yield message.text
        if check:
            self.raise_for_finish()

    def _read(self, call: _Call) -> Iterator[GenerateResponse]:
        try:
            for message in call:
                if self._take(message):
                    yield message
        except grpc.RpcError as error:
            raise self._failed(error) from error
        yield self._end()


class Client(ClientBase[Answer]):
    """Calls one service. Connects with the first call; leaving its `with` block ends every call."""

    def __init__(
        self,
        address: str | None = None,
        *,
        ca: str | None = None,
        certificate: str | None = None,
        key: str | None = None,
        token: str | None = None,
        token_file: str | None = None,
        channel: grpc.Channel | None = None,
    ) -> None:
        """`address` is https://HOST[:PORT] for TLS, HOST:PORT or unix:/PATH for plain text.

        By default TOKENWIRE_ADDRESS or localhost:50051. `ca`, `certificate` and `key` are PEM files: whom to trust
        instead of the system's authorities, and what this caller shows. `token` is an API key or a JWT, `token_file` a
        file that holds it and may change. What isn't given comes from TOKENWIRE_CA, TOKENWIRE_CLIENT_CERTIFICATE,
        TOKENWIRE_CLIENT_KEY, TOKENWIRE_TOKEN and TOKENWIRE_TOKEN_FILE; "" is nothing. A token is never sent in plain
        text to another machine.

        A `channel` of your own (interceptors, a fake) is used as it is and left open; `address` is then only what
        errors call it. Raises ValueError for what doesn't fit together, and OSError for a file that can't be read.
        """
        identity = {"ca": ca, "certificate": certificate, "key": key, "token": token, "token_file": token_file}
        super().__init__(address, identity, borrowed=channel is not None)
        self._borrowed = channel is not None
        if channel is None:
            assert self.connection is not None
            channel = self.connection.channel()
        self._channel = channel
        self._stub = GenerationServiceStub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; running calls are cancelled."""
        self.closed = True
        if not self._borrowed:
            self._channel.close()

    def stream(self, request: GenerateRequest, *, timeout: float | None = None) -> Answer:
        self._check_open()
        return Answer(self._stub.Generate(request, timeout=timeout, metadata=self._metadata()), self, timeout=timeout)

    def count_tokens(
        self,
        prompt: str = "",
        *,
        messages: Iterable[Message] = (),
        system_instruction: str = "",
        model: str = "",
        tools: Iterable[Tool] = (),
        timeout: float = 10,
    ) -> int:
        """Count the tokens that the same question would take as input. Raises as `generate` and its answer do."""
        request = CountTokensRequest(
            prompt=prompt, messages=messages, system_instruction=system_instruction, model=model, tools=tools
        )
        self._check_open()
        try:
            return self._stub.CountTokens(request, timeout=timeout, metadata=self._metadata()).total_tokens
        except grpc.RpcError as error:
            raise self._failed(error, timeout) from error

    def models(self, *, timeout: float = 5) -> list[Model]:
        """The models that the service offers, its default first. Raises TokenwireError."""
        self._check_open()
        try:
            answer = self._stub.ListModels(ListModelsRequest(), timeout=timeout, metadata=self._metadata())
            return list(answer.models)
        except grpc.RpcError as error:
            raise self._failed(error, timeout) from error

    def usage(self, *, all_callers: bool = False, timeout: float = 5) -> list[CallerUsage]:
        """What this caller has used of its quotas; for administrators, what all have. Raises TokenwireError."""
        self._check_open()
        request = GetUsageRequest(all_callers=all_callers)
        try:
            return list(self._stub.GetUsage(request, timeout=timeout, metadata=self._metadata()).callers)
        except grpc.RpcError as error:
            raise self._failed(error, timeout) from error
