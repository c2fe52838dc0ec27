"""What the blocking client and the one for asyncio share: everything but how they wait."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, Generic, Protocol, TypeVar, cast

import grpc

from tokenwire.config import GenerationConfigDict
from tokenwire.connection import Connection, Identity, default_address
from tokenwire.endings import unfinished
from tokenwire.errors import NO_COMPLETED, SEQUENCE_GAP, TokenwireError
from tokenwire.messages import Turn
from tokenwire.statuses import explain, put
from tokenwire.v1.config_pb2 import GenerationConfig, SafetySetting, Tool, ToolChoice
from tokenwire.v1.content_pb2 import Message
from tokenwire.v1.generation_service_pb2 import Completed, GenerateRequest, GenerateResponse


class Cancellable(Protocol):
    """What a stub's stream is here; grpc has no public name for it."""

    def cancel(self) -> object: ...


class AnswerBase:
    """One answer while it is being written: what has come so far, and how it ended."""

    def __init__(self, call: Cancellable, client: "ClientBase[Any]", *, timeout: float | None) -> None:
        self._call = call
        self._client = client
        self._timeout = timeout
        self._cancelled = False
        self._expected = 0
        self._last: GenerateResponse | None = None
        self._completed: Completed | None = None
        self._turn = Turn()
        self.pieces = 0
        """Pieces of text that came so far."""

    def cancel(self) -> None:
        """End the call, and with it the model's work. At any time, as often as you like."""
        self._cancelled = True
        self._call.cancel()

    @property
    def completed(self) -> Completed:
        """How it ended: there once the answer has been read to its end. Raises IncompleteError before."""
        if self._completed is None:
            raise self._error(grpc.StatusCode.OK, NO_COMPLETED)
        return self._completed

    def raise_for_finish(self) -> None:
        """Raise unless the model was done: for those who read messages, and `text(check=False)`, to its end.

        As `raise_for_status` of an HTTP client: UnfinishedError for every finish reason but STOP, a class for each
        (TokenLimitError, PromptBlockedError, SafetyError, ...), with `.text`, what had come, and `.completed`.
        IncompleteError while the answer has not been read to its end.
        """
        error = unfinished(self.completed, pieces=self.pieces, text=self._turn.text)
        if error is not None:
            raise error

    @property
    def message(self) -> Message:
        """What has come so far as the model's turn, for `messages` of the next request: thoughts, text, tool calls.

        Without parts where nothing came: no request may hold it then.
        """
        return self._turn.message

    def _take(self, message: GenerateResponse) -> bool:
        """Take in a message; true if it is to be handed out now. Raises IncompleteError where it is out of order."""
        if self._last is not None:
            self.cancel()
            raise self._error(grpc.StatusCode.OK, SEQUENCE_GAP, "something came after its end")
        if message.sequence != self._expected:
            self.cancel()
            raise self._error(
                grpc.StatusCode.OK, SEQUENCE_GAP, f"message {message.sequence} came where {self._expected} was due"
            )
        self._expected += 1
        event = message.WhichOneof("event")
        if event == "completed":
            # Only the status behind it makes it true, so it is handed out after the status has been seen.
            self._last = message
            return False
        self._turn.saw(message)
        self.pieces += event == "text"
        return True

    def _end(self) -> GenerateResponse:
        """The call has ended well: give its last message, `completed`. Raises IncompleteError without one."""
        if self._last is None:
            raise self._error(grpc.StatusCode.OK, NO_COMPLETED)
        self._completed = self._last.completed
        return self._last

    def _failed(self, error: grpc.RpcError) -> TokenwireError:
        return explain(
            error,
            address=self._client.address,
            connection=self._client.connection,
            timeout=self._timeout,
            started=self._expected > 0,
            cancelled=self._cancelled or self._client.closed,
            pieces=self.pieces,
            text=self._turn.text,
        )

    def _error(self, code: grpc.StatusCode, reason: str = "", said: str = "") -> TokenwireError:
        """What this side finds by itself."""
        return put(code, reason, address=self._client.address, said=said, pieces=self.pieces, text=self._turn.text)


AnswerT = TypeVar("AnswerT", bound=AnswerBase)


class ClientBase(ABC, Generic[AnswerT]):
    """Asks one service: what doesn't depend on how a caller waits."""

    def __init__(self, address: str | None, identity: Mapping[str, str | None], *, borrowed: bool) -> None:
        """`borrowed`: the channel is the caller's own, and so is what it shows."""
        self.address = address or default_address()
        """What errors call the service."""
        if borrowed and any(identity.values()):
            raise ValueError("a channel of your own has credentials of its own: the client can't add any")
        self.connection = None if borrowed else Connection(address, Identity.found(identity))
        self.closed = False
        """Whether `close` has been called: it takes no more calls then."""

    def generate(
        self,
        prompt: str = "",
        *,
        messages: Iterable[Message] = (),
        system_instruction: str = "",
        model: str = "",
        config: GenerationConfig | GenerationConfigDict | None = None,
        tools: Iterable[Tool] = (),
        tool_choice: ToolChoice | None = None,
        safety_settings: Iterable[SafetySetting] = (),
        labels: Mapping[str, str] | None = None,
        request_id: str = "",
        timeout: float | None = None,
    ) -> AnswerT:
        """Ask; the fields are those of GenerateRequest, `timeout` is the call's deadline in seconds.

        How chunks are merged and how long the model may be silent is for `stream`, as all of GenerateRequest is.
        Returns at once; errors of the call come with its first message. Raises ValueError for what no request
        can hold: text that isn't Unicode, a number beyond its field's size, a key that `config` doesn't know;
        TypeError for a value of the wrong type.
        """
        request = GenerateRequest(
            prompt=prompt,
            messages=messages,
            system_instruction=system_instruction,
            model=model,
            config=cast("GenerationConfig | None", config),  # protobuf takes a dict as well; its types don't say so
            tools=tools,
            tool_choice=tool_choice,
            safety_settings=safety_settings,
            labels=labels,
            request_id=request_id,
        )
        return self.stream(request, timeout=timeout)

    def _check_open(self) -> None:
        if self.closed:
            raise RuntimeError("This client is closed: make another one.")

    def _metadata(self) -> tuple[tuple[str, str], ...]:
        """What each call says of its caller."""
        return self.connection.metadata() if self.connection is not None else ()

    def _failed(self, error: grpc.RpcError, timeout: float) -> TokenwireError:
        return explain(error, address=self.address, connection=self.connection, timeout=timeout, cancelled=self.closed)

    def _error(self, code: grpc.StatusCode) -> TokenwireError:
        return put(code, "", address=self.address)

    @abstractmethod
    def stream(self, request: GenerateRequest, *, timeout: float | None = None) -> AnswerT:
        """Ask with a request of your own making: everything that the contract knows."""
