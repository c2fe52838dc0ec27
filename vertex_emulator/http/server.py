"""The HTTP port: takes a request to the protocol that knows its path, and ends it when its caller goes.

It stands on uvicorn's protocol alone: that tells of a lost connection at once, holds a fast writer back, and is there
wherever Streamlit is. (aiohttp can do the same, but google-genai changes its transport where it finds it installed.)
"""

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

import grpc
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from ..answerers.base import VertexError
from ..call_records import MAX_REQUEST_BYTES, Call, CallLog
from ..tcp_relay import Relay

log = logging.getLogger("vertex_emulator")

# As long as Google's front ends: a caller's pool must not meet a connection that closes under its hands.
KEEP_ALIVE_SECONDS = 240

MAX_HEADER_BYTES = 256 * 1024

# google/rpc/code.proto has this table.
HTTP_STATUS: Mapping[grpc.StatusCode, int] = {
    grpc.StatusCode.CANCELLED: 499,
    grpc.StatusCode.UNKNOWN: 500,
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.ALREADY_EXISTS: 409,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.FAILED_PRECONDITION: 400,
    grpc.StatusCode.ABORTED: 409,
    grpc.StatusCode.OUT_OF_RANGE: 400,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.INTERNAL: 500,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DATA_LOSS: 500,
}

Headers = Iterable[tuple[str, str]]


def status_of(error: VertexError) -> int:
    """What HTTP says of it."""
    return error.http_status or HTTP_STATUS[error.code]


@dataclass(slots=True)
class Exchange:
    """One HTTP request, and the way back to its caller."""

    path: str
    # percent-decoded, without the query

    query: Mapping[str, str]

    headers: tuple[tuple[str, str], ...]
    # lower-case names

    body: bytes

    peer_port: int
    # of the connection as this server sees it

    relay: Relay | None

    send: Callable[[Any], Awaitable[None]]
    # ASGI's; waits while the caller doesn't read

    begun: bool = False
    # the status and the headers are sent

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key == name), None)

    async def begin(self, status: int, headers: Headers) -> None:
        """Send the status and the headers."""
        self.begun = True
        encoded = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers]
        await self.send({"type": "http.response.start", "status": status, "headers": encoded})

    async def write(self, data: bytes) -> None:
        await self.send({"type": "http.response.body", "body": data, "more_body": True})
        # uvicorn drops what is sent to a caller that left, without waiting: an endless answer would never hear of it.
        await asyncio.sleep(0)

    async def end(self, data: bytes = b"") -> None:
        await self.send({"type": "http.response.body", "body": data, "more_body": False})

    async def tell(self, status: int, headers: Headers, data: bytes) -> None:
        """Answer with this body and nothing else."""
        await self.begin(status, [*headers, ("content-length", str(len(data)))])
        await self.end(data)


Handler = Callable[[Exchange, re.Match[str]], Awaitable[None]]
Routes = Sequence[tuple[re.Pattern[str], Handler]]


class Door:
    """Serves `routes` (patterns of whole paths, by method) on one port; everything else is `lost`."""

    def __init__(self, routes: Mapping[str, Routes], lost: Callable[[Exchange], Awaitable[None]]) -> None:
        self._routes = routes
        self._lost = lost
        self._state = ServerState()
        self._server: asyncio.Server | None = None
        self._answers: set[asyncio.Task[None]] = set()
        self.relay: Relay | None = None
        # in front of this port, where connections can be cut

    async def start(self, host: str, port: int) -> int:
        """Listen, and return the port; raises OSError if it can't be had."""
        config = uvicorn.Config(
            self,
            http="h11",
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            h11_max_incomplete_event_size=MAX_HEADER_BYTES,
        )
        config.load()
        self._server = await asyncio.get_running_loop().create_server(
            lambda: H11Protocol(config=config, server_state=self._state, app_state={}), host, port
        )
        found: int = self._server.sockets[0].getsockname()[1]
        return found

    async def stop(self) -> None:
        """End what is still being answered, and every connection."""
        if self.relay is not None:
            await self.relay.stop()
        if self._server is not None:
            self._server.close()
        for task in self._answers:
            task.cancel()
        await asyncio.gather(*self._answers, return_exceptions=True)
        for connection in list(self._state.connections):
            connection.transport.abort()

    async def __call__(self, scope: Any, receive: Callable[[], Awaitable[Any]], send: Any) -> None:
        body = await self._body(receive)
        if body is None:
            return
        exchange = Exchange(
            path=scope["path"],
            query=dict(parse_qsl(scope["query_string"].decode("latin-1"))),
            headers=tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]),
            body=body,
            peer_port=scope["client"][1],
            relay=self.relay,
            send=send,
        )
        answering = asyncio.ensure_future(self._answer(scope["method"], exchange))
        self._answers.add(answering)
        leaving = asyncio.ensure_future(_left(receive))
        try:
            await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            # Nobody listens any more, or the answer has been told.
            answering.cancel()
            leaving.cancel()
            await asyncio.gather(answering, leaving, return_exceptions=True)
            self._answers.discard(answering)

    async def _answer(self, method: str, exchange: Exchange) -> None:
        for pattern, handler in self._routes.get(method, ()):
            if (found := pattern.fullmatch(exchange.path)) is not None:
                await handler(exchange, found)
                return
        await self._lost(exchange)

    async def _body(self, receive: Callable[[], Awaitable[Any]]) -> bytes | None:
        """The request's body, at most one byte over MAX_REQUEST_BYTES; None: the caller left before it was whole."""
        body = bytearray()
        while True:
            event = await receive()
            if event["type"] == "http.disconnect":
                return None
            if len(body) <= MAX_REQUEST_BYTES:
                body += event["body"]
            if not event["more_body"]:
                return bytes(body[: MAX_REQUEST_BYTES + 1])


async def _left(receive: Callable[[], Awaitable[Any]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class HttpReply:
    """What the replies of every protocol over HTTP have in common."""

    def __init__(self, log: CallLog, call: Call, exchange: Exchange) -> None:
        self._log = log
        self._call = call
        self._exchange = exchange

    def waits_for(self, gate: str) -> None:
        self._call.waiting_for = gate
        self._log.changed(self._call)

    def cut(self) -> None:
        self._relay.cut(self._exchange.peer_port)

    def blackhole(self) -> None:
        self._relay.blackhole(self._exchange.peer_port)

    @property
    def _relay(self) -> Relay:
        relay = self._exchange.relay
        assert relay is not None, "a script that needs the relay is refused without one"
        return relay


async def recorded(
    calls: CallLog,
    call: Call,
    answer: Callable[[], Awaitable[None]],
    refuse: Callable[[VertexError], Awaitable[None]],
) -> None:
    """Let `answer` answer the call, or `refuse` tell why not, and record how it ended."""
    try:
        await answer()
    except VertexError as error:
        calls.end(call, error.code)
        await refuse(error)
    except asyncio.CancelledError:
        calls.end_early(call)
        raise
    except Exception:
        log.exception("call %d failed", call.number)
        calls.end(call, grpc.StatusCode.INTERNAL)
        await refuse(VertexError(grpc.StatusCode.INTERNAL, "The emulator failed; its log says why."))
    else:
        calls.end(call, grpc.StatusCode.OK)
