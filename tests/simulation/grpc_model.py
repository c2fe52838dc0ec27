"""What grpc.aio's server does with a call, without sockets: each completion is an event whose moment is chosen.

Made after `_cython/_cygrpc/aio/server.pyx.pxi` of grpcio; `test_grpc_model` compares each fact with the real library.
The core's half is `_Core`: it takes batches of operations, and completes them once the caller's window has room. What
has been handed to it is never taken back. `Call` is the Python half: the handler's task, cancellation, the status.
"""

import asyncio
import math
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import grpc
import grpc.aio

from tests.simulation.loop import Kind, Loop


class ExecuteBatchError(grpc.aio.InternalError):
    """The core refuses a batch, or one has failed."""


class ServerStopped(Exception):
    """The handler goes on although the server has stopped."""


@dataclass(frozen=True, slots=True)
class Status:
    """The end of a call, as its caller hears it."""

    code: grpc.StatusCode
    details: str
    trailing: tuple[tuple[str, str | bytes], ...]


class _Batch:
    """Operations that are begun together, and complete together."""

    def __init__(
        self, name: str, waiter: "asyncio.Future[bool]", *, message: bytes | None = None, status: Status | None = None
    ) -> None:
        self.name = name
        self.waiter = waiter
        self.message = message
        self.status = status

    def complete(self) -> None:
        if not self.waiter.cancelled():
            self.waiter.set_result(True)

    def fail(self) -> None:
        if not self.waiter.cancelled():
            self.waiter.set_exception(ExecuteBatchError(f"{self.name} failed"))


class _Core:
    """One call in gRPC's core and on its transport."""

    def __init__(self, loop: Loop, name: str, request: bytes | None, *, room: float) -> None:
        self._loop = loop
        self._name = name
        self._request: list[bytes] | None = None if request is None else [request]
        """What the caller sends and hasn't been read; None: nothing comes, not even its end."""
        self.room = room
        """How many messages the caller's window still takes."""
        self.heard: list[bytes | Status] = []
        """What the caller has received."""
        self.headers = False
        """Whether it has received initial metadata."""
        self.cut = ""
        """Why the call was cancelled in the core: nothing more reaches the caller then."""
        self.deaf = False
        """Whether it had no room for what was on its way when it was cut."""
        self._queue: deque[_Batch] = deque()
        """On its way out, oldest first."""
        self._completing = False
        self._sent_headers = False
        self._sent_status = False
        self._closed: asyncio.Future[bool] = loop.create_future()
        self._unanswered: Callable[[], None] | None = None
        """Ends a read that waits for what doesn't come."""

    def send(
        self, name: str, *, headers: bool, message: bytes | None = None, status: Status | None = None
    ) -> "asyncio.Future[bool]":
        """Begin a batch. Raises ExecuteBatchError where the core refuses it; what it holds is then not sent."""
        busy = message is not None and any(batch.message is not None for batch in self._queue)
        if (headers and self._sent_headers) or busy or self._sent_status:
            raise ExecuteBatchError(f"Failed grpc_call_start_batch: {name}: GRPC_CALL_ERROR_TOO_MANY_OPERATIONS")
        self._sent_headers = self._sent_headers or headers
        self._sent_status = status is not None
        batch = _Batch(name, self._loop.create_future(), message=message, status=status)
        if self.cut:
            self._later(f"{name} fails", batch.fail)
        else:
            self._queue.append(batch)
            self.pump()
        return batch.waiter

    def receive(self) -> "asyncio.Future[bytes | None]":
        """The next message; None: there is none, since the caller has said its last, or has gone."""
        waiter: asyncio.Future[bytes | None] = self._loop.create_future()

        def arrive() -> None:
            if not waiter.done():
                waiter.set_result(self._request.pop() if self._request and not self.cut else None)

        if self._request is not None or self.cut:
            self._later("the request arrives", arrive, Kind.PROMPT if self.cut else Kind.EXPECTED)
        else:
            self._unanswered = arrive
        return waiter

    async def closed(self) -> bool:
        """Wait until the call is over; True if it was cut short."""
        return await self._closed

    def pump(self) -> None:
        """Let the oldest batch complete, if the caller has room for it."""
        if self._queue and not (self._completing or self.cut):
            batch = self._queue[0]
            if batch.message is None or self.room > 0:
                self._completing = True
                self._later(f"{batch.name} completes", self._complete)

    def _complete(self) -> None:
        self._completing = False
        if self.cut:
            return
        batch = self._queue.popleft()
        self.headers = True
        if batch.message is not None:
            self.room -= 1
            self.heard.append(batch.message)
        batch.complete()
        if batch.status is not None:
            self.heard.append(batch.status)
            self._later("the call is over", lambda: self._close(cut=False))
        self.pump()

    def cancel(self, why: str) -> None:
        """End the call in the core: its caller has gone, its deadline has passed, or the server cancels it."""
        if self.cut or (self.heard and isinstance(self.heard[-1], Status)):
            return
        self.cut = why
        self.deaf = bool(self._queue) and self._queue[0].message is not None and self.room <= 0
        for batch in self._queue:
            self._later(f"{batch.name} fails", batch.fail)
        self._queue.clear()
        if self._unanswered is not None:
            self._later("nothing is received any more", self._unanswered)
        self._later("the core tells of the cancellation", lambda: self._close(cut=True))

    def _close(self, *, cut: bool) -> None:
        if not self._closed.done():
            self._closed.set_result(cut)

    def _later(self, what: str, happen: Callable[[], None], kind: Kind = Kind.PROMPT) -> None:
        self._loop.may_happen(f"{self._name}: {what}", happen, kind)


class Call:
    """The Python half of one call on the server."""

    def __init__(
        self,
        server: "Server",
        name: str,
        find: Callable[[], Coroutine[Any, Any, Any]],
        request: bytes | None,
        *,
        peer: str,
        room: float,
        deadline: float | None,
    ) -> None:
        """`find` gives the handler."""
        self._server = server
        self._loop = server.loop
        self.name = name
        self.peer = peer
        self._find = find
        self.core = _Core(self._loop, name, request, room=room)
        self._deadline = deadline
        self._client_closed = False
        self.status_sent = False
        self.metadata_sent = False
        self.code = grpc.StatusCode.OK
        self.details = ""
        self.trailing: tuple[tuple[str, str | bytes], ...] = ()
        self.callbacks: list[Callable[[], None]] = []
        self.refused: list[str] = []
        """What grpc.aio would have logged as an error."""
        self._timer = None if deadline is None else self._loop.call_at(deadline, self.cancel, "deadline")
        self.task: asyncio.Task[None] | None = None
        self.ended = self._loop.create_task(self._schedule())

    @property
    def heard(self) -> list[bytes | Status]:
        """What the caller has received so far."""
        return self.core.heard

    @property
    def cut(self) -> str:
        """ "caller", "deadline" or "stop" if the call was cancelled in the core before its status was out."""
        return self.core.cut

    def cancel(self, why: str = "caller") -> None:
        """The caller cancels, or has gone."""
        self.core.cancel(why)

    def reads(self, messages: float = math.inf) -> None:
        """The caller makes room for so many messages more."""
        self.core.room += messages
        self.core.pump()

    async def _schedule(self) -> None:
        self.task = self._loop.create_task(self._handle())
        self.task.add_done_callback(lambda _: [callback() for callback in self.callbacks])
        cut = await self.core.closed()
        self._client_closed = True
        if self._timer is not None:
            self._timer.cancel()
        if cut and not self.task.done() and not self.status_sent:
            self.task.cancel()
        try:
            await self.task
        except BaseException as error:  # noqa: BLE001 - as grpc.aio does
            self.refused.append(f"not handled: {error!r}")

    async def _handle(self) -> None:
        try:
            handler = await self._find()
            await handler.stream_stream(None, Context(self, handler))
            await self._send_status(self.code, self.details)
        except asyncio.CancelledError:
            pass
        except ServerStopped:
            self.refused.append("goes on although the server has stopped")
        except ExecuteBatchError as error:
            if not self._client_closed:
                self.refused.append(str(error))
        except Exception as error:  # noqa: BLE001 - as grpc.aio does
            self.refused.append(f"unexpected: {error!r}")
            if not self.status_sent:
                code = grpc.StatusCode.UNKNOWN if self.code is grpc.StatusCode.OK else self.code
                await self._send_status(code, f"Unexpected {type(error)}: {error}")

    async def _send_status(self, code: grpc.StatusCode, details: str) -> None:
        self.raise_for_termination()
        headers = not self.metadata_sent
        self.status_sent = self.metadata_sent = True
        await self.core.send("the status", headers=headers, status=Status(code, details, self.trailing))

    def raise_for_termination(self) -> None:
        if self.status_sent:
            raise grpc.aio.UsageError("RPC already finished.")
        if self._server.stopped:
            raise ServerStopped

    def time_remaining(self) -> float | None:
        return None if self._deadline is None else max(self._deadline - self._loop.time(), 0)


class Context:
    """What a handler is given: as much of grpc.aio.ServicerContext as can be asked of a server of ours."""

    def __init__(self, call: Call, handler: Any) -> None:
        self._call = call
        self._handler = handler

    async def read(self) -> Any:
        self._call.raise_for_termination()
        data = await self._call.core.receive()
        self._call.raise_for_termination()
        if data is None:
            return grpc.aio.EOF
        parse = self._handler.request_deserializer
        return data if parse is None else parse(data)

    async def write(self, message: Any) -> None:
        self._call.raise_for_termination()
        serialize = self._handler.response_serializer
        data = message if serialize is None else serialize(message)
        await self._call.core.send("a message", headers=not self._call.metadata_sent, message=data)
        self._call.metadata_sent = True

    async def send_initial_metadata(self, metadata: Any) -> None:  # noqa: ARG002 - none is looked at
        self._call.raise_for_termination()
        if self._call.metadata_sent:
            raise grpc.aio.UsageError("Send initial metadata failed: already sent")
        await self._call.core.send("initial metadata", headers=True)
        self._call.metadata_sent = True

    def set_trailing_metadata(self, metadata: tuple[tuple[str, str | bytes], ...]) -> None:
        self._call.trailing = metadata

    def set_code(self, code: grpc.StatusCode) -> None:
        self._call.code = code

    def set_details(self, details: str) -> None:
        self._call.details = details

    def peer(self) -> str:
        return self._call.peer

    def time_remaining(self) -> float | None:
        return self._call.time_remaining()

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return ()

    def done(self) -> bool:
        return self._call.status_sent

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        self._call.callbacks.append(lambda: callback(self))


class Server:
    """Stands in for what `grpc.aio.server()` gives."""

    def __init__(self, loop: Loop, interceptors: Sequence[grpc.aio.ServerInterceptor] = (), **_: Any) -> None:
        self.loop = loop
        self._interceptors = interceptors
        self._handlers: dict[str, Any] = {}
        self._calls: list[Call] = []
        self.stopping = False
        self.stopped = False

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        """The generated code registers every method by name as well."""

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Any]) -> None:
        self._handlers |= {f"/{service}/{name}": handler for name, handler in handlers.items()}

    def add_insecure_port(self, address: str) -> int:
        return int(address.rpartition(":")[2])

    async def start(self) -> None:
        """There is nothing to listen on."""

    def add(self, method: str, handler: Any) -> None:
        """Answer this method by a stream_stream handler."""
        self._handlers[method] = handler

    def call(
        self,
        method: str,
        request: bytes | None,
        *,
        name: str = "caller",
        peer: str = "ipv4:127.0.0.1:40000",
        room: float = math.inf,
        deadline: float | None = None,
    ) -> Call:
        """A call begins. None: its request never comes. `deadline` on the loop's clock."""

        async def found(details: Any) -> Any:
            return self._handlers[details.method]

        chain: Callable[[Any], Coroutine[Any, Any, Any]] = found
        for interceptor in reversed(self._interceptors):
            chain = _around(interceptor, chain)
        call = Call(self, name, partial(chain, _Details(method)), request, peer=peer, room=room, deadline=deadline)
        self._calls.append(call)
        return call

    async def stop(self, grace: float | None) -> None:
        """Take no more calls; cancel those that haven't ended within `grace` seconds."""
        self.stopping = True
        ends = [call.ended for call in self._calls if not call.ended.done()]
        if ends and grace:
            await asyncio.wait(ends, timeout=grace)
        for call in self._calls:
            call.cancel("stop")
        if ends:
            await asyncio.wait(ends)
        self.stopped = True


@dataclass(frozen=True, slots=True)
class _Details:
    method: str
    invocation_metadata: tuple[tuple[str, str], ...] = ()


def _around(
    interceptor: grpc.aio.ServerInterceptor, inner: Callable[[Any], Coroutine[Any, Any, Any]]
) -> Callable[[Any], Coroutine[Any, Any, Any]]:
    async def outer(details: Any) -> Any:
        return await interceptor.intercept_service(inner, details)

    return outer
