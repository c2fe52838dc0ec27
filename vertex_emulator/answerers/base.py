"""The seam between the server and whatever thinks up the answers."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import grpc
from google.protobuf.any_pb2 import Any

from ..call_records import Call
from ..protos import prediction_pb2 as pb


class VertexError(Exception):
    """Raised by a mind to end the call with a status, as Vertex would."""

    def __init__(
        self,
        code: grpc.StatusCode,
        message: str,
        details: Sequence[Any] = (),
        trailing_metadata: Mapping[str, str] | None = None,
        http_status: int = 0,
    ) -> None:
        """`http_status` is for callers over HTTP; 0: the one that stands for the code."""
        super().__init__(f"{code.name}: {message}")
        self.code = code
        self.message = message
        self.details = tuple(details)
        self.trailing_metadata = dict(trailing_metadata or {})
        self.http_status = http_status


class MindError(Exception):
    """A mind can't start; the message says what to do."""


class Reply(Protocol):
    """The way back to one caller."""

    async def headers(self, metadata: Mapping[str, str]) -> None:
        """Send the initial metadata now instead of with the first message."""

    async def write(self, message: bytes) -> None:
        """Send a serialized GenerateContentResponse; waits while the caller doesn't read."""

    def waits_for(self, gate: str) -> None:
        """Record that the answer waits at a gate; empty: it goes on."""

    def cut(self) -> None:
        """Reset the caller's TCP connection."""

    def blackhole(self) -> None:
        """Let nothing pass any more on the caller's TCP connection, without closing it."""


class Mind(Protocol):
    """Answers the calls of one emulator."""

    async def start(self, *, relay: bool) -> None:
        """Get ready; `relay` says whether connections can be cut."""

    async def stop(self) -> None:
        """Let go of everything; no call is open any more."""

    async def generate(self, call: Call, reply: Reply) -> None:
        """Answer a GenerateContentRequest; returns when the answer has ended OK."""

    async def count_tokens(self, call: Call, reply: Reply) -> pb.CountTokensResponse:
        """Answer a CountTokensRequest."""

    @property
    def models(self) -> Sequence[str]:
        """The names under which models are listed; whatever name is asked for is answered."""

    @property
    def active_generations(self) -> int:
        """Answers a model is writing now."""

    @property
    def generated_tokens(self) -> int:
        """Tokens a model has written since it was started."""
