"""The record of what reached the emulator, and waiting for it to change."""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import grpc

from .protos import prediction_pb2 as pb

Request = pb.GenerateContentRequest | pb.CountTokensRequest
# Vertex takes inline data up to this size in all.
MAX_REQUEST_BYTES = 64 * 1024 * 1024

Transport = Literal["grpc", "rest", "openai"]


@dataclass(slots=True, eq=False)
class Call:
    """One call that reached the emulator."""

    number: int
    """Calls are counted 1, 2, 3, ... in order of arrival."""

    method: str
    """StreamGenerateContent, GenerateContent or CountTokens; over OpenAI's protocol what it amounts to."""

    api_version: str
    """Such as v1 or v1beta1; over OpenAI's protocol v1, or what the query says in api-version."""

    request: Request | None
    """None: the bytes were no valid message."""

    metadata: tuple[tuple[str, str | bytes], ...]
    """The metadata of the request; keys ending in -bin have bytes; over HTTP its headers, with lower-case names."""

    deadline: float | None
    """Seconds left of the caller's deadline on arrival; over HTTP what X-Server-Timeout says; None: it gave none."""

    transport: Transport = "grpc"
    """`rest` is Google's REST form, `openai` OpenAI's protocol."""

    body: bytes | None = None
    """As it came over HTTP; None over gRPC."""

    started: float = field(default_factory=time.monotonic)
    """`time.monotonic()` on arrival, in seconds."""

    ended: float | None = None
    """When it ended, by the same clock; None while the call is open."""

    code: grpc.StatusCode | None = None
    """Its status; None while the call is open. When the caller ended it: CANCELLED, or DEADLINE_EXCEEDED if that came
    behind its deadline by the emulator's clock, which begins with the request's arrival."""

    by_caller: bool = False
    """Whether the caller cancelled, disconnected or ran out of its deadline before the answer had ended."""

    pieces_sent: int = 0
    """Messages handed to the transport."""

    waiting_for: str = ""
    """The gate of the script at which it waits now."""

    @property
    def open(self) -> bool:
        return self.ended is None

    @property
    def model(self) -> str:
        """The last part of the model's name: gemini-2.5-flash of projects/.../models/gemini-2.5-flash."""
        return self.request.model.rsplit("/", 1)[-1] if self.request is not None else ""

    def header(self, key: str) -> str | bytes | None:
        """The first value of this request metadata key, which is lower case."""
        return next((value for name, value in self.metadata if name == key), None)


class CallLog:
    """All calls, oldest first; forgets the oldest ended ones beyond `keep`."""

    def __init__(self, keep: int) -> None:
        self._keep = keep
        self._calls: dict[int, Call] = {}
        self._open: dict[int, Call] = {}
        self._count = 0
        self._waiting: list[asyncio.Future[None]] = []
        self._watchers: list[Watcher] = []
        self.closing = False  # then the emulator itself ends what is still open

    @property
    def calls(self) -> tuple[Call, ...]:
        return tuple(self._calls.values())

    @property
    def open_calls(self) -> tuple[Call, ...]:
        return tuple(self._open.values())

    @property
    def count(self) -> int:
        """How many calls came since the last reset, forgotten ones included."""
        return self._count

    def begin(
        self,
        method: str,
        api_version: str,
        request: Request | None,
        metadata: tuple[tuple[str, str | bytes], ...],
        deadline: float | None,
        *,
        transport: Transport = "grpc",
        body: bytes | None = None,
    ) -> Call:
        self._count += 1
        call = Call(self._count, method, api_version, request, metadata, deadline, transport, body)
        self._calls[call.number] = self._open[call.number] = call
        if len(self._calls) > self._keep:
            oldest = next((number for number, old in self._calls.items() if not old.open), None)
            if oldest is not None:
                del self._calls[oldest]
        self.changed(call)
        return call

    def end(self, call: Call, code: grpc.StatusCode, *, by_caller: bool = False) -> None:
        """Record how `call` ended; only the first word counts."""
        if call.ended is not None:
            return
        call.ended = time.monotonic()
        call.code = code
        call.by_caller = by_caller
        call.waiting_for = ""
        self._open.pop(call.number, None)
        self.changed(call)

    def end_early(self, call: Call) -> None:
        """Record that `call` ended before its answer: the caller left, unless the emulator is closing."""
        if self.closing:
            self.end(call, grpc.StatusCode.UNAVAILABLE)
            return
        late = call.deadline is not None and time.monotonic() >= call.started + call.deadline
        self.end(call, grpc.StatusCode.DEADLINE_EXCEEDED if late else grpc.StatusCode.CANCELLED, by_caller=True)

    def sent(self, call: Call) -> None:
        call.pieces_sent += 1
        if self._waiting or self._watchers:
            self.changed(call)

    def forget(self) -> None:
        """Drop ended calls and count anew, behind those that are still open."""
        self._calls = dict(self._open)
        self._count = max(self._open, default=0)

    def changed(self, call: Call) -> None:
        for watcher in self._watchers:
            watcher.add(call)
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)

    async def wait_until(self, predicate: Callable[[], bool]) -> None:
        while not predicate():
            future = asyncio.get_running_loop().create_future()
            self._waiting.append(future)
            await future

    @contextmanager
    def watch(self) -> "Iterator[Watcher]":
        """Borrow a watcher that starts with all calls there are."""
        watcher = Watcher(self.calls)
        self._watchers.append(watcher)
        try:
            yield watcher
        finally:
            self._watchers.remove(watcher)


class Watcher:
    """Collects the calls that changed since it was last asked."""

    def __init__(self, calls: tuple[Call, ...]) -> None:
        self._changed = {call.number: call for call in calls}
        self._event = asyncio.Event()
        self._event.set()

    def add(self, call: Call) -> None:
        self._changed[call.number] = call
        self._event.set()

    async def next(self) -> list[Call]:
        await self._event.wait()
        self._event.clear()
        changed, self._changed = self._changed, {}
        return list(changed.values())
