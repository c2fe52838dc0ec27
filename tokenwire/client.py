"""A small typed client: one call, answered piece by piece.

    with Client() as client, client.generate("What is baseball?") as answer:
        for piece in answer.text():
            print(piece, end="", flush=True)
        print(answer.completed.usage.output_tokens)

What a request is made of is here too: `user("What is this?", file("photo.png"))`, and `answer.message` is the model's
turn for the next request, with its thoughts, tool calls and signatures.

Blocking; safe to share between threads. Its errors are those of tokenwire.errors.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from types import TracebackType
from typing import Protocol, Self

import grpc

from tokenwire.errors import NO_COMPLETED, SEQUENCE_GAP, IncompleteError, explain, put
from tokenwire.messages import Turn, file, file_uri, function, inline, model, struct, tool, tool_result, user
from tokenwire.v1.config_pb2 import GenerationConfig, SafetySetting, Tool, ToolChoice
from tokenwire.v1.content_pb2 import Message
from tokenwire.v1.generation_service_pb2 import (
    Completed,
    CountTokensRequest,
    GenerateRequest,
    GenerateResponse,
    ListModelsRequest,
    Model,
)
from tokenwire.v1.generation_service_pb2_grpc import GenerationServiceStub

__all__ = [
    "DEFAULT_ADDRESS",
    "Answer",
    "Client",
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

DEFAULT_ADDRESS = "localhost:50051"

_SECOND_MS = 1_000
# A machine that answers neither yes nor no is given up after so long; gRPC's own limit is 20 s.
_CONNECT_TIMEOUT_MS = 3 * _SECOND_MS
# A connection that died silently is noticed in the sum of the two.
_KEEPALIVE_MS = 30 * _SECOND_MS
_PING_TIMEOUT_MS = 10 * _SECOND_MS

_CHANNEL_OPTIONS = (
    # Core's name for the time that one attempt to connect may take.
    ("grpc.min_reconnect_backoff_ms", _CONNECT_TIMEOUT_MS),
    # A service that has just been started is found at once, and calls fail fast until then.
    ("grpc.initial_reconnect_backoff_ms", _SECOND_MS // 5),
    ("grpc.max_reconnect_backoff_ms", _SECOND_MS),
    ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
    ("grpc.keepalive_timeout_ms", _PING_TIMEOUT_MS),
    # Without it the ping's own timeout of a minute decides.
    ("grpc.http2.ping_timeout_ms", _PING_TIMEOUT_MS),
    # A caller sends nothing while it reads; by default it would stop pinging after two.
    ("grpc.http2.max_pings_without_data", 0),
)


def default_address() -> str:
    """Where the service is: TOKENWIRE_ADDRESS, or localhost:50051."""
    return os.environ.get("TOKENWIRE_ADDRESS") or DEFAULT_ADDRESS


class _Call(Protocol):
    """What a stub's stream is; grpc has no public name for it."""

    def __next__(self) -> GenerateResponse: ...

    def cancel(self) -> object: ...


class Answer:
    """One answer while it is being written. Iterate once; leaving its `with` block cancels the call."""

    def __init__(self, call: _Call, *, address: str, timeout: float | None) -> None:
        self._call = call
        self._address = address
        self._timeout = timeout
        self._expected = 0
        self._completed: Completed | None = None
        self._turn = Turn()
        self._events = self._read()
        self.pieces = 0
        # Pieces of text that came so far.

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

    def text(self) -> Iterator[str]:
        """Only the pieces of the answer's text, as they come. Raises as iterating does."""
        for message in self._events:
            if message.WhichOneof("event") == "text":
                yield message.text

    def cancel(self) -> None:
        """End the call, and with it the model's work. From any thread, at any time, as often as you like."""
        self._call.cancel()

    @property
    def completed(self) -> Completed:
        """How it ended: there once the answer has been read to its end. Raises IncompleteError before."""
        if self._completed is None:
            raise self._broken(NO_COMPLETED)
        return self._completed

    @property
    def message(self) -> Message:
        """What has come so far as the model's turn, for `messages` of the next request: thoughts, text, tool calls.

        Without parts where nothing came: no request may hold it then.
        """
        return self._turn.message

    def _read(self) -> Iterator[GenerateResponse]:
        while (message := self._next()) is not None:
            if message.WhichOneof("event") == "completed":
                # Only the status behind it makes it true, so it is handed out after the status has been seen.
                if self._next() is not None:
                    self.cancel()
                    raise self._broken(SEQUENCE_GAP, "something came after its end")
                self._completed = message.completed
                yield message
                return
            self._turn.saw(message)
            self.pieces += message.WhichOneof("event") == "text"
            yield message
        raise self._broken(NO_COMPLETED)

    def _next(self) -> GenerateResponse | None:
        try:
            message = next(self._call)
        except StopIteration:
            return None
        except grpc.RpcError as error:
            raise explain(
                error,
                address=self._address,
                timeout=self._timeout,
                started=self._expected > 0,
                pieces=self.pieces,
            ) from error
        if message.sequence != self._expected:
            self.cancel()
            raise self._broken(SEQUENCE_GAP, f"message {message.sequence} came where {self._expected} was due")
        self._expected += 1
        return message

    def _broken(self, reason: str, said: str = "") -> IncompleteError:
        error = put(grpc.StatusCode.OK, reason, address=self._address, said=said, pieces=self.pieces)
        assert isinstance(error, IncompleteError)  # the table says so
        return error


class Client:
    """Calls one service. Connects with the first call; leaving its `with` block ends every call."""

    def __init__(self, address: str | None = None, *, channel: grpc.Channel | None = None) -> None:
        """`address` is host:port, by default TOKENWIRE_ADDRESS or localhost:50051.

        A `channel` of your own (TLS, interceptors, a fake) is used as it is and left open; `address` is then
        only what errors call it.
        """
        self.address = address or default_address()
        self._channel = channel or grpc.insecure_channel(self.address, _options(self.address))
        self._borrowed = channel is not None
        self._stub = GenerationServiceStub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; running calls are cancelled."""
        if not self._borrowed:
            self._channel.close()

    def generate(
        self,
        prompt: str = "",
        *,
        messages: Iterable[Message] = (),
        system_instruction: str = "",
        model: str = "",
        config: GenerationConfig | None = None,
        tools: Iterable[Tool] = (),
        tool_choice: ToolChoice | None = None,
        safety_settings: Iterable[SafetySetting] = (),
        labels: Mapping[str, str] | None = None,
        request_id: str = "",
        timeout: float | None = None,
    ) -> Answer:
        """Ask; the fields are those of GenerateRequest, `timeout` is the call's deadline in seconds.

        How chunks are merged and how long the model may be silent is for `stream`, as all of GenerateRequest is.
        Returns at once; errors of the call come with its first message. Raises ValueError for what no request
        can hold: text that isn't Unicode, a number beyond its field's size.
        """
        request = GenerateRequest(
            prompt=prompt,
            messages=messages,
            system_instruction=system_instruction,
            model=model,
            config=config,
            tools=tools,
            tool_choice=tool_choice,
            safety_settings=safety_settings,
            labels=labels,
            request_id=request_id,
        )
        return self.stream(request, timeout=timeout)

    def stream(self, request: GenerateRequest, *, timeout: float | None = None) -> Answer:
        """Ask with a request of your own making: everything that the contract knows."""
        return Answer(self._stub.Generate(request, timeout=timeout), address=self.address, timeout=timeout)

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
        try:
            return self._stub.CountTokens(request, timeout=timeout).total_tokens
        except grpc.RpcError as error:
            raise explain(error, address=self.address, timeout=timeout) from error

    def models(self, *, timeout: float = 5) -> list[Model]:
        """The models that the service offers, its default first. Raises TokenwireError."""
        try:
            return list(self._stub.ListModels(ListModelsRequest(), timeout=timeout).models)
        except grpc.RpcError as error:
            raise explain(error, address=self.address, timeout=timeout) from error


def _options(address: str) -> tuple[tuple[str, int], ...]:
    host = address.rpartition(":")[0].strip("[]")
    if host == "localhost" or host.startswith("127.") or host == "::1":
        # http_proxy is for the way out, and a proxy can't reach this machine's own loopback.
        return (*_CHANNEL_OPTIONS, ("grpc.enable_http_proxy", 0))
    return _CHANNEL_OPTIONS
