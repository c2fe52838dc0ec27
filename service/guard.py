"""The last line of defence: whatever a handler does, its call ends with exactly one typed status.

Requests are received and parsed here too. gRPC would wait for ever for one that never comes, would never answer a
caller that sends none, and would tell the parser's text to one whose bytes are no valid protobuf.
"""

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError
from grpc_status import rpc_status

from service import log, memory
from service.errors import (
    DeadlineExceeded,
    InternalError,
    InvalidRequest,
    QuotaExceeded,
    ServerBusy,
    TokenwireError,
    Violation,
)

_MOMENT_SECONDS = 0.05

# Enough for the largest request on a slow line. Until then a call has no slot: it costs us a few KB.
RECEIVE_SECONDS = 10.0

# Of a request that is worth giving memory back for.
_LARGE_BYTES = 256 * 1024

Handler = Callable[[Any, "grpc.aio.ServicerContext[Any, Any]"], Awaitable[Any]]


class Guard(grpc.aio.ServerInterceptor):
    """Stands around every handler of our own services; health and reflection keep their own ways."""

    def __init__(self) -> None:
        self._guarded: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
        """By method, those that have been asked for."""

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
        if handler is None or not method.startswith("/tokenwire."):
            return handler
        self._guarded[method] = _wrapped(handler, method.rpartition("/")[2])
        return self._guarded[method]


def _wrapped(handler: Any, method: str) -> "grpc.RpcMethodHandler[Any, Any]":
    behaviour = handler.unary_stream if handler.response_streaming else handler.unary_unary
    # To gRPC both sides are streams: the request is one of a single message, which is ours to read.
    return grpc.stream_stream_rpc_method_handler(
        _guarded(behaviour, handler.request_deserializer, method), response_serializer=handler.response_serializer
    )


def _guarded(behaviour: Handler, parse: Callable[[bytes], Any], method: str) -> Handler:
    async def run(_: Any, context: "grpc.aio.ServicerContext[Any, Any]") -> None:
        log.begin_call()
        begin = time.perf_counter()
        code = "CANCELLED"
        try:
            failure = await _failure(behaviour, parse, context)
            if failure is not None:
                try:
                    _tell(context, failure)
                except Exception as error:  # noqa: BLE001 - a bug in making a status is a bug like any other
                    failure = _bug(error)
                    _tell(context, failure)
                log.note(reason=failure.reason)
            code = "OK" if failure is None else failure.code.name
        finally:
            log.end_call(method, code, time.perf_counter() - begin)

    return run


async def _failure(
    behaviour: Handler,
    parse: Callable[[bytes], Any],
    context: "grpc.aio.ServicerContext[Any, Any]",
) -> TokenwireError | None:
    """Have the handler answer; what its caller is told if it fails."""
    try:
        answer = await behaviour(_parsed(await _received(context), parse), context)
        if answer is not None:  # of a unary method; a streaming one writes by itself
            await context.write(answer)
    except (Exception, asyncio.CancelledError) as error:  # a bug in any layer ends as INTERNAL, told only by its id
        if isinstance(error, grpc.aio.InternalError):
            # A write that meets a cancellation fails a moment before the cancellation itself gets here, and ends this.
            await asyncio.sleep(_MOMENT_SECONDS)
        # Somebody cancelled this call: its caller left, its deadline passed, or the server stops. gRPC has told the
        # caller, or will. A CancelledError that merely escaped from somewhere is a bug: gRPC would send no status
        # at all for it, and the caller would wait for ever.
        if _cancelled():
            raise
        return error if isinstance(error, TokenwireError) else _bug(error)
    return None


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


def _tell(context: "grpc.aio.ServicerContext[Any, Any]", error: TokenwireError) -> None:
    """Have gRPC send this status once the handler has returned.

    Not by `context.abort`: what it raises stays in a cycle with the call, the request and all.
    """
    status = rpc_status.to_status(error.status())
    trailing = list(status.trailing_metadata or ())
    if isinstance(error, ServerBusy | QuotaExceeded) and error.retry_after is not None:
        # The same as RetryInfo, for gRPC's own retries (proposal A6).
        trailing.append(("grpc-retry-pushback-ms", str(round(error.retry_after * 1000))))
    context.set_trailing_metadata(tuple(trailing))
    context.set_code(status.code)
    context.set_details(status.details)
