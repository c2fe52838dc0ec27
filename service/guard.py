"""The last line of defence: whatever a handler does, its call ends with exactly one typed status.

Every call of every service comes by here, and lives under the same limits: its request has to arrive, it has a
deadline, its caller has to read. Requests are received and parsed here too. gRPC would wait for ever for one that never
comes, would never answer a caller that sends none, and would tell the parser's text to one whose bytes are no valid
protobuf.
"""

import asyncio
import math
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError
from grpc_status import rpc_status

from service import log, memory
from service.call import Call
from service.config import Settings
from service.errors import (
    DeadlineExceeded,
    Draining,
    InternalError,
    InvalidRequest,
    QuotaExceeded,
    ServerBusy,
    TokenwireError,
    Violation,
)
from service.patience import Deadline, Patience

_MOMENT_SECONDS = 0.05
_COMING_IN_SECONDS = 0.1

# Enough for the largest request on a slow line. Until then a call has no slot: it costs us a few KB.
RECEIVE_SECONDS = 10.0

# Of a request that is worth giving memory back for.
_LARGE_BYTES = 256 * 1024

# A watch is meant to last.
_ENDLESS = "/grpc.health.v1.Health/Watch"

Context = grpc.aio.ServicerContext[Any, Any]
Answer = Callable[[Call, Context], Awaitable[None]]
"""Receives the request of one method, and has its handler answer."""


class Guard(grpc.aio.ServerInterceptor):
    """Stands around every handler, and knows every call that hasn't ended yet."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._guarded: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
        """By method, those that have been asked for."""
        self._calls: dict[asyncio.Task[Any], Call] = {}
        """By the task of each call, which ends once its status has been sent."""
        self._running: set[Call | None] = set()
        """Calls of our own services whose handlers are at work."""
        self._quiet = asyncio.Event()
        """Set while there are none."""
        self._quiet.set()

    async def finish(self, seconds: float) -> None:
        """Wait until no handler of ours is at work any more, so long at most."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._quiet.wait()

    async def end(self, seconds: float) -> int:
        """End all calls that still run, and wait until every status is out, so long at most.

        Gives the number of callers that haven't read theirs.
        """
        if not self._calls:
            return 0
        for call in self._calls.values():
            call.patience.end(
                Draining("The server is going away, and the answer took longer than it could wait", retry_after=1)
            )
        await asyncio.sleep(_COMING_IN_SECONDS)  # who is just coming in is refused in words as well
        if self._calls:
            await asyncio.wait(self._calls, timeout=seconds)
        return len(self._calls)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable["grpc.RpcMethodHandler[Any, Any] | None"]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "grpc.RpcMethodHandler[Any, Any] | None":
        """Wrap the handler, if there is one: an unknown method is answered by gRPC itself."""
        method = handler_call_details.method
        if method in self._guarded:
            return self._guarded[method]
        handler = await continuation(handler_call_details)
        if handler is None:
            return handler
        # To gRPC both sides are streams, so that both are ours to read and to write.
        self._guarded[method] = grpc.stream_stream_rpc_method_handler(
            self._guarding(handler, method), response_serializer=handler.response_serializer
        )
        return self._guarded[method]

    def _guarding(self, handler: Any, method: str) -> Callable[[Any, Context], Awaitable[None]]:
        ours = _is_ours(method)
        name = method.rpartition("/")[2]
        answer = _answering(handler)

        async def run(_: Any, context: Context) -> None:
            log.begin_call()
            begin = time.perf_counter()
            code = "CANCELLED"
            try:
                failure = await self._ended(answer, context, method)
                if failure is not None:
                    failure = _told(context, failure)
                    log.note(reason=failure.reason)
                code = "OK" if failure is None else failure.code.name
            finally:
                if ours:
                    log.end_call(name, code, time.perf_counter() - begin)

        return run

    async def _ended(self, answer: Answer, context: Context, method: str) -> TokenwireError | None:
        """Have the handler answer; what its caller is told if it fails."""
        call = None
        try:
            call = self._opened(context, method)
            async with call.patience:
                await answer(call, context)
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - a bug in any layer ends as INTERNAL
            failure = await _failure(error, call)
        else:
            failure = None
        finally:
            self._left(call)
        if call is not None:
            await call.headers_out()
        return failure

    def _opened(self, context: Context, method: str) -> Call:
        settings = self._settings
        remaining = context.time_remaining()
        if method == _ENDLESS:
            deadline = Deadline.of(remaining, default=math.inf, longest=math.inf)
        else:
            deadline = Deadline.of(remaining, default=settings.default_deadline, longest=settings.max_deadline)
        call = Call(context, Patience(deadline, write=settings.write_timeout))
        task = asyncio.current_task()
        assert task is not None
        self._calls[task] = call
        task.add_done_callback(self._calls.pop)
        if _is_ours(method):
            self._running.add(call)
            self._quiet.clear()
        return call

    def _left(self, call: Call | None) -> None:
        """Its handler has been left."""
        self._running.discard(call)
        if not self._running:
            self._quiet.set()
            if call is not None and call.written:
                memory.give_back()


def _is_ours(method: str) -> bool:
    return method.startswith("/tokenwire.")


def _answering(handler: Any) -> Answer:
    parse = handler.request_deserializer

    async def each(context: Context) -> AsyncIterator[Any]:
        yield _parsed(await _received(context), parse)
        while (data := await context.read()) is not grpc.aio.EOF:
            yield _parsed(data, parse)

    async def stream_to_stream(call: Call, context: Context) -> None:
        async for answer in handler.stream_stream(each(context), call):
            await call.write(answer)

    async def unary_to_stream(call: Call, context: Context) -> None:
        await handler.unary_stream(_parsed(await _received(context), parse), call)

    async def unary_to_unary(call: Call, context: Context) -> None:
        await call.write(await handler.unary_unary(_parsed(await _received(context), parse), call), last=True)

    if handler.request_streaming:
        return stream_to_stream
    return unary_to_stream if handler.response_streaming else unary_to_unary


async def _failure(error: BaseException, call: Call | None) -> TokenwireError | None:
    """What the caller is told of this error; None: nothing. Raises it if the call was cancelled."""
    if isinstance(error, grpc.aio.InternalError):
        # A write that meets a cancellation fails a moment before the cancellation itself gets here, and ends this.
        await asyncio.sleep(_MOMENT_SECONDS)
    # Somebody cancelled this call: its caller left, its deadline passed, or the server stops. gRPC has told the
    # caller, or will. A CancelledError that merely escaped from somewhere is a bug: gRPC would send no status
    # at all for it, and the caller would wait for ever.
    if _cancelled():
        raise error
    if call is None or not isinstance(error, TokenwireError):
        return _bug(error)
    if call.answered:  # the last message is on its way, and no error may come behind it
        log.note(unread=error.reason)
        return None
    return error.after(call.written)


def _cancelled() -> bool:
    task = asyncio.current_task()
    assert task is not None
    return task.cancelling() > 0


async def _received(context: "grpc.aio.ServicerContext[Any, Any]") -> bytes:
    task = asyncio.current_task()
    assert task is not None
    late: list[bool] = []
    # By hand: `asyncio.timeout` takes four times as long, and thousands of calls may be opened at once and left.
    timer = asyncio.get_running_loop().call_later(RECEIVE_SECONDS, lambda: late.append(task.cancel()))
    data: Any = None
    try:
        data = await context.read()
    except asyncio.CancelledError:
        if not late or task.uncancel():
            raise
        text = f"The request has not arrived within {RECEIVE_SECONDS:g} s"
        raise DeadlineExceeded(text, reason="REQUEST_STALLED") from None
    finally:
        timer.cancel()
        # One that is far too large is not even given to us.
        if data is None or data is grpc.aio.EOF or len(data) > _LARGE_BYTES:
            task.add_done_callback(memory.give_back)
    if data is grpc.aio.EOF:
        # A caller that has left looks the same, until the cancellation gets here.
        await asyncio.sleep(_MOMENT_SECONDS)
        raise InvalidRequest([Violation("request", "is missing: one message is wanted")], reason="MALFORMED_REQUEST")
    return bytes(data)


def _parsed(data: bytes, parse: Callable[[bytes], Any]) -> Any:
    try:
        return parse(data)
    except DecodeError:
        violation = Violation(
            "request", "is no valid protobuf of its type: well-formed fields and UTF-8 text are wanted"
        )
        raise InvalidRequest([violation], reason="MALFORMED_REQUEST") from None


def _bug(error: BaseException) -> TokenwireError:
    error_id = uuid.uuid4().hex
    log.bug(error, error_id)
    return InternalError(f"The server failed; its log knows more under id {error_id}", metadata={"error_id": error_id})


def _told(context: Context, error: TokenwireError) -> TokenwireError:
    """Have gRPC send this status once the handler has returned; gives what really is sent.

    Not by `context.abort`: what it raises stays in a cycle with the call, the request and all.
    """
    try:
        status = rpc_status.to_status(error.status())
    except Exception as wrong:  # noqa: BLE001 - a bug in making a status is a bug like any other
        return _told(context, _bug(wrong))
    trailing = list(status.trailing_metadata or ())
    if isinstance(error, ServerBusy | QuotaExceeded) and error.retry_after is not None:
        # The same as RetryInfo, for gRPC's own retries (proposal A6).
        trailing.append(("grpc-retry-pushback-ms", str(round(error.retry_after * 1000))))
    context.set_trailing_metadata(tuple(trailing))
    context.set_code(status.code)
    context.set_details(status.details)
    return error
