"""The last line of defence: whatever a handler does, its call ends with exactly one typed status.

Every call of every service comes by here, and lives under the same limits: its request has to arrive, it has a
deadline, its caller has to read. Requests are received and parsed here too, by `receive.py`. gRPC would wait for ever
for one that never comes, would never answer a caller that sends none, and would tell the parser's text to one whose
bytes are no valid protobuf.
"""

import asyncio
import math
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any, cast

import grpc
import grpc.aio
from grpc_status import rpc_status

from ..admission.identity import Identity, Proof, refusal
from ..errors import CallError, Draining, InternalError, UpstreamError
from ..telemetry import call_log
from ..telemetry.call_record import CallRecord
from ..telemetry.watch import Watch
from . import memory
from .call import Call
from .call_settings import CallSettings
from .health import NAME as HEALTH
from .receive import Receiver
from .refusals import Refusals
from .stopping.connections import connections, host, key
from .stopping.recent import Recent
from .stopping.unsent import Unsent
from .time_limits import TimeLimits

# For how long new calls are held at most, when a server stops.
LONGEST_HOLD_SECONDS = 0.8

# A caller whose call has ended may send the next one that much later, on a busy machine.
_RETURN_SECONDS = 0.5

_MOMENT_SECONDS = 0.05
_COMING_IN_SECONDS = 0.1
_LATE_SECONDS = 0.1

# Of the time in which calls end at last: for callers that may still read what was sent before their statuses.
_HOPEFUL_PART = 0.8

# What is kept of a caller's own deadline for a status to get there in time.
_IN_TIME_SECONDS = 0.05

# Upstream may say anything.
_MOST_SAID_CHARACTERS = 500

_HEALTH = f"/{HEALTH}/"

# A watch is meant to last.
_ENDLESS = f"{_HEALTH}Watch"

Context = grpc.aio.ServicerContext[Any, Any]
Answer = Callable[[Call, Context], Awaitable[None]]
"""Receives the request of one method, and has its handler answer."""


class Guard(grpc.aio.ServerInterceptor):
    """Stands around every handler, and knows every call that hasn't ended yet."""

    def __init__(
        self,
        settings: CallSettings,
        identity: Identity,
        receiver: Receiver,
        health_receiver: Receiver,
        watch: Watch,
    ) -> None:
        """Health checks have a `Receiver` of their own, so that they are answered whatever else is arriving.

        They need no proof of who asks.
        """
        self._settings = settings
        self._identity = identity
        self._watch = watch
        self._refusals = Refusals(identity, watch)
        self._hosts = settings.hosts
        self._receiver = receiver
        self._health_receiver = health_receiver
        self._guarded: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
        """By method, those that have been asked for."""
        self._calls: dict[asyncio.Task[Any], Call] = {}
        """By the task of each call, which ends once its status has been sent."""
        self._recent = Recent(_RETURN_SECONDS)
        self._running: set[Call | None] = set()
        """Calls of our own services that are being answered."""
        self._quiet = asyncio.Event()
        """Set while there are none."""
        self._quiet.set()
        self._open = asyncio.Event()
        """Set unless new calls are held."""
        self._open.set()
        self._may_end = asyncio.Event()
        """Set unless statuses are held."""
        self._may_end.set()
        self._held = 0
        """How many are."""
        self._draining = False
        self._given_up = False
        """Whether the time is over in which calls could end by themselves."""
        self._unsent: Unsent | None = None
        """From `hold` on, when gRPC is told to close connections."""

    def drain(self) -> None:
        """From now on, refuse new calls of our own services, before their requests are read."""
        self._draining = True
        self._refusals.end_period()

    async def hold(self) -> None:
        """Take new calls in, but answer none, and send no status; returns once hardly any call is on its way to us.

        gRPC cancels calls without a word of ours if it has received them, and has not handed them to us, when it is
        told to stop (grpc/grpc#41785). A caller that waits for an answer doesn't send the next call; one whose call has
        just ended may, so all such are waited for, a while. To a caller that hears how its call ended after it has
        heard that we stop, it doesn't happen.
        """
        self._open.clear()
        self._may_end.clear()
        if self._unsent is None:
            self._unsent = Unsent()
            for task, call in self._calls.items():
                self._unsent.opened(call.connection, task)
        loop = asyncio.get_running_loop()
        quiet = False
        with suppress(TimeoutError):
            async with asyncio.timeout(LONGEST_HOLD_SECONDS):
                while not quiet or await self._may_return():
                    seen, begin = (self._held, len(self._calls)), loop.time()
                    await asyncio.sleep(_COMING_IN_SECONDS)
                    late = loop.time() - begin > _COMING_IN_SECONDS + _LATE_SECONDS  # callers are as busy as we are
                    quiet = not late and seen == (self._held, len(self._calls))

    async def _may_return(self) -> bool:
        """Whether any caller still has its connection, and not yet as many calls as it had a moment ago."""
        missed = set(map(key, self._recent.missed(asyncio.get_running_loop().time()))) - {None}
        if not missed:
            return False
        try:
            return not missed.isdisjoint(await asyncio.to_thread(connections))
        except RuntimeError:  # there is no thread to be had, and the server has to stop all the same
            return False

    def let_end(self) -> None:
        """Send the statuses that are held, and those to come: gRPC has been told to stop."""
        self._may_end.set()

    def release(self) -> None:
        """Answer the calls that are held, and those to come."""
        self._open.set()

    async def finish(self, seconds: float) -> None:
        """Wait until no call of ours is being answered any more, so long at most."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._quiet.wait()

    def interrupt(self) -> None:
        """Have all calls end that still run, those that are held too."""
        for call in self._calls.values():
            call.time_limits.end(
                Draining("The server is going away, and the answer took longer than it could wait", retry_after=1)
            )

    async def end(self, seconds: float) -> int:
        """End all calls that still run, and wait until every status is out, so long at most.

        Gives the number of callers that haven't read theirs.
        """
        if not self._calls:
            return 0
        self.interrupt()
        await asyncio.sleep(_COMING_IN_SECONDS)  # who is just coming in is refused in words as well
        for part, hopeful in ((_HOPEFUL_PART, True), (1 - _HOPEFUL_PART, False)):
            if self._unsent is not None and not hopeful:
                self._unsent.give_up()  # a status that may be lost is better than none
            if self._calls:
                await asyncio.wait(self._calls, timeout=part * seconds)
        self._given_up = True
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
        receiver = self._health_receiver if method.startswith(_HEALTH) else self._receiver
        answer = _answering(handler, receiver)
        asks = self._identity.is_asked and not method.startswith(_HEALTH)
        if asks:
            answer = self._known(answer)

        async def run(_: Any, context: Context) -> None:
            proof = None
            # While the server stops, a refused call takes the usual way too: its status may have to wait.
            if asks and not (self._draining or self._unsent is not None):
                proof = self._refusals.proof(name, context)
                if proof is not None and proof.refused:
                    return
            record = CallRecord(name)
            self._watch.opened(record, context.invocation_metadata() or ())
            code = "CANCELLED"
            try:
                failure = await self._ended(answer, context, method, record, proof)
                if failure is not None:
                    failure = _told(context, failure)
                    record.reason, record.quota = failure.reason, failure.metadata.get("quota", "")
                    if isinstance(failure, UpstreamError):
                        self._blame(failure, record)
                ending = "OK" if failure is None else failure.code.name
                failure = None  # and all that its traceback holds
                await self._delivered(context)
                code = ending
            finally:
                self._left()
                if code == "CANCELLED":
                    record.cause = self._cause(context)
                self._watch.ended(record, code, logged=ours or bool(record.refused))

        return run

    def _cause(self, context: Context) -> str:
        """Why gRPC has cancelled a call."""
        if self._given_up:
            return "shutdown"
        remaining = cast("float | None", context.time_remaining())
        return "caller" if remaining is None or remaining > 0 else "deadline"

    def _known(self, answer: Answer) -> Answer:
        """The same for callers only that say who they are, before anything of their request is read."""

        async def known(call: Call, context: Context) -> None:
            call.caller, call.record.refused = call.proof or self._identity.proof(context)
            if call.record.refused:
                call.record.peer = host(call.connection)
                raise refusal()
            call.record.caller = call.caller.name
            if call.caller.longest_deadline is not None:
                call.time_limits.at_most(call.caller.longest_deadline)
            await answer(call, context)

        return known

    def _blame(self, failure: UpstreamError, record: CallRecord) -> None:
        """Keep for the log what callers get in the error's metadata, and what they don't."""
        known = (failure.metadata.get(f"upstream_{name}", "") for name in ("code", "status", "reason"))
        record.upstream = "/".join(filter(None, known))
        if attempts := failure.metadata.get("upstream_attempts"):
            record.attempts = int(attempts)
        record.host = self._hosts.get(failure.model or record.model, "")
        if self._settings.log_upstream_text:
            record.said = failure.said.encode("ascii", "backslashreplace").decode()[:_MOST_SAID_CHARACTERS]

    async def _ended(
        self, answer: Answer, context: Context, method: str, record: CallRecord, proof: Proof | None
    ) -> CallError | None:
        """Have the handler answer; what its caller is told if it fails. `proof`: None: it isn't known yet."""
        call = None
        try:
            call = self._opened(context, method, record)
            call.proof = proof
            async with call.time_limits:
                if self._draining or not self._open.is_set():
                    await self._held_back(method)
                await answer(call, context)
        except (Exception, asyncio.CancelledError) as error:  # a bug in any layer ends as INTERNAL
            self._left()
            if isinstance(error, grpc.aio.InternalError):
                # A write that meets a cancellation fails a moment before the cancellation itself gets here.
                await asyncio.sleep(_MOMENT_SECONDS)
            # Somebody cancelled this call: its caller left, its deadline passed, or the server stops. gRPC has told the
            # caller, or will. A CancelledError that merely escaped from somewhere is a bug: gRPC would send no status
            # at all for it, and the caller would wait for ever.
            if _cancelled():
                raise
            return await _failure(error, call)
        return None

    async def _delivered(self, context: Context) -> None:
        """Wait until the status may follow: no sooner than statuses may.

        If the caller's connection may be closed behind it, the caller needs what it was sent before.
        """
        if self._unsent is None:
            return
        seconds: float | None = None
        if (remaining := context.time_remaining()) is not None:
            seconds = remaining - _IN_TIME_SECONDS
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._may_end.wait()
                    await self._unsent.delivered(context.peer(), patience=self._settings.write_timeout)
        except Exception as error:  # noqa: BLE001 - a bug in here must not change the status
            _bug(error)

    async def _held_back(self, method: str) -> None:
        """Wait until calls are held no more. Raises Draining."""
        self._held += 1
        try:
            await self._open.wait()
        finally:
            self._held -= 1
        if self._draining and _is_ours(method):
            raise Draining("The server is going away; ask another one, or again in a moment", retry_after=1)

    def _opened(self, context: Context, method: str, record: CallRecord) -> Call:
        settings = self._settings
        default, longest = settings.default_deadline, settings.max_deadline
        if method == _ENDLESS:
            default = longest = math.inf
        limits = TimeLimits.of(context.time_remaining(), default=default, longest=longest, write=settings.write_timeout)
        call = Call(context, limits, record)
        task = asyncio.current_task()
        assert task is not None
        self._calls[task] = call
        self._recent.opened(call.connection)
        task.add_done_callback(self._closed)
        if self._unsent is not None:
            self._unsent.opened(call.connection, task)
        if _is_ours(method):
            self._running.add(call)
            self._quiet.clear()
        return call

    def _closed(self, task: "asyncio.Task[Any]") -> None:
        self._recent.ended(self._calls.pop(task).connection, asyncio.get_running_loop().time())

    def _left(self) -> None:
        """The handler of this task's call has been left."""
        task = asyncio.current_task()
        assert task is not None
        call = self._calls.get(task)
        self._running.discard(call)
        if not self._running:
            self._quiet.set()
        if call is not None and call.written:
            memory.give_back()


def _is_ours(method: str) -> bool:
    return method.startswith("/tokenwire.")


def _answering(handler: Any, receiver: Receiver) -> Answer:
    parse = handler.request_deserializer

    async def each(context: Context) -> AsyncIterator[Any]:
        yield await receiver.receive(context, parse)
        while (request := await receiver.following(context, parse)) is not None:
            yield request

    async def stream_to_stream(call: Call, context: Context) -> None:
        async for answer in handler.stream_stream(each(context), call):
            await call.write(answer)

    async def unary_to_stream(call: Call, context: Context) -> None:
        await handler.unary_stream(await receiver.receive(context, parse), call)

    async def unary_to_unary(call: Call, context: Context) -> None:
        await call.write(await handler.unary_unary(await receiver.receive(context, parse), call), last=True)

    if handler.request_streaming:
        return stream_to_stream
    return unary_to_stream if handler.response_streaming else unary_to_unary


async def _failure(error: BaseException, call: Call | None) -> CallError | None:
    """What the caller is told of this error, once that can be told; None: nothing."""
    failure: CallError | None
    if call is not None and call.answered:  # the last message is on its way, and no error may come behind it
        call.record.unread = error.reason if isinstance(error, CallError) else _bug(error).reason
        failure = None
    elif call is None or not isinstance(error, CallError):
        failure = _bug(error)
    else:
        failure = error.after(call.written)
    if call is not None:
        await call.may_end()
        if failure is not None:
            await call.say_failed(failure)
    return failure


def _cancelled() -> bool:
    task = asyncio.current_task()
    assert task is not None
    return task.cancelling() > 0


def _bug(error: BaseException) -> CallError:
    error_id = uuid.uuid4().hex
    call_log.bug(error, error_id)
    return InternalError(f"The server failed; its log knows more under id {error_id}", metadata={"error_id": error_id})


def _told(context: Context, error: CallError) -> CallError:
    """Have gRPC send this status once the handler has returned; gives what really is sent.

    Not by `context.abort`: what it raises stays in a cycle with the call, the request and all.
    """
    try:
        status = rpc_status.to_status(error.status())
    except Exception as wrong:  # noqa: BLE001 - a bug in making a status is a bug like any other
        return _told(context, _bug(wrong))
    trailing = list(status.trailing_metadata or ())
    if error.delay is not None:
        # The same as RetryInfo, for gRPC's own retries (proposal A6).
        trailing.append(("grpc-retry-pushback-ms", str(round(error.delay * 1000))))
    if error.elsewhere and "last_sequence" not in error.metadata:
        # For a proxy, which can tell by a header what it may send to another server. Behind a message it is no header.
        trailing.append(("tokenwire-retry", "elsewhere"))
    context.set_trailing_metadata(tuple(trailing))
    context.set_code(status.code)
    context.set_details(status.details)
    return error
