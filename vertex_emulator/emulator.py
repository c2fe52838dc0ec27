"""The server: Google's PredictionService under v1 and v1beta1, on one port with the Control service.

Over HTTP, if that is wanted too, on a second port: see door.py.
"""

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import DecodeError
from google.rpc.status_pb2 import Status
from grpc_status import rpc_status

from .answerers.base import Mind, MindError, VertexError
from .answerers.scripted import Scripted, script_of
from .call_records import MAX_REQUEST_BYTES, Call, CallLog, Request
from .control.servicer import ControlServicer
from .protos import control_pb2_grpc
from .protos import prediction_pb2 as pb
from .responses import merge
from .tcp_relay import Relay

if TYPE_CHECKING:
    from .http.server import Door

log = logging.getLogger("vertex_emulator")

API_VERSIONS = ("v1", "v1beta1")

Context = grpc.aio.ServicerContext[bytes, bytes]
Handler = Callable[[bytes, Context], Awaitable[Any]]
T = TypeVar("T")


class Emulator:
    """A local Vertex AI. Use it as an async context manager; everything lives on the running event loop.

    `mind` answers; None: a script. `port` 0 takes a free one, and so does `rest_port`, where HTTP is served (None: it
    isn't). `relay` puts a TCP relay in front of both, which the script's `cut` and `blackhole` need.
    `max_concurrent_streams` is what one gRPC connection may have open; the rest waits on the caller's side.
    `keep_calls`: how many records are kept.
    """

    def __init__(
        self,
        mind: Mind | None = None,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        rest_port: int | None = None,
        relay: bool = False,
        max_concurrent_streams: int | None = None,
        keep_calls: int = 10_000,
    ) -> None:
        self.mind: Mind = mind if mind is not None else Scripted()
        self._host = host
        self._port = port
        self._rest_port = rest_port
        self._with_relay = relay
        self._max_concurrent_streams = max_concurrent_streams
        self._log = CallLog(keep_calls)
        self._server: grpc.aio.Server | None = None
        self._relay: Relay | None = None
        self._door: Door | None = None

    # ---- life ----------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Serve; raises OSError if a port can't be had, and whatever keeps the mind from starting."""
        await self.mind.start(relay=self._with_relay)
        try:
            await self._listen()
            if self._rest_port is not None:
                await self._open_door(self._rest_port)
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """End every open call with UNAVAILABLE and let go of the ports."""
        self._log.closing = True
        if self._server is not None:
            await self._server.stop(None)
        if self._relay is not None:
            await self._relay.stop()
        if self._door is not None:
            await self._door.stop()
        for call in self._log.open_calls:  # whose handlers haven't yet heard of it
            self._log.end_early(call)
        await self.mind.stop()

    async def wait_for_termination(self) -> None:
        assert self._server is not None
        await self._server.wait_for_termination()

    async def _listen(self) -> None:
        server = grpc.aio.server(options=self._options())
        server.add_generic_rpc_handlers([self._handlers(version) for version in API_VERSIONS])
        control_pb2_grpc.add_ControlServicer_to_server(ControlServicer(self.mind, self._log, reset=self.reset), server)
        port = 0 if self._with_relay else self._port
        with self._taking(self._port, RuntimeError):
            port = server.add_insecure_port(f"{self._host}:{port}")
        self._server = server
        await server.start()
        if self._with_relay:
            self._relay = Relay(self._host, self._port, port)
            with self._taking(self._port, OSError):
                await self._relay.start()
            port = self._relay.port
        self._port = port

    async def _open_door(self, wanted: int) -> None:
        # Here, because who wants gRPC alone needn't have uvicorn.
        try:
            from .http import chat_completions, google_rest  # noqa: PLC0415
            from .http.server import Door, Routes  # noqa: PLC0415
        except ModuleNotFoundError as error:
            raise MindError(f"HTTP needs {error.name}, of tokenwire's extra 'local'; or serve gRPC alone") from error

        google, others = google_rest.Rest(self.mind, self._log), chat_completions.OpenAI(self.mind, self._log)
        names = self.mind.models
        routes: dict[str, Routes] = {
            "POST": [(google_rest.PATH, google), (chat_completions.PATH, others)],
            "GET": [
                (google_rest.MODELS, google_rest.Models(names)),
                (google_rest.MODEL, google_rest.tell_model),
                (chat_completions.MODELS, chat_completions.Models(names)),
                (chat_completions.MODEL, chat_completions.tell_model),
            ],
        }
        door = self._door = Door(routes, google_rest.lost)
        with self._taking(wanted, OSError):
            port = await door.start(self._host, 0 if self._with_relay else wanted)
            if self._with_relay:
                door.relay = Relay(self._host, wanted, port)
                await door.relay.start()
                port = door.relay.port
        self._rest_port = port

    @contextmanager
    def _taking(self, port: int, kind: type[Exception]) -> Iterator[None]:
        try:
            if port:
                # gRPC would write lines of its own to standard error, and not tell why.
                with socket.create_server((self._host.strip("[]"), port), family=_family(self._host)):
                    pass
            yield
        except (OSError, kind) as error:
            # Python adds the address in brackets, and it is said already.
            why = (getattr(error, "strerror", None) or "it is refused").partition(" (")[0]
            raise OSError(
                f"can't listen on {self._host}:{port}: {why}. "
                "Take another port (0 is a free one), or end what listens there"
            ) from error

    def _options(self) -> list[tuple[str, int]]:
        options = [
            ("grpc.so_reuseport", 0),  # a port in use is an error, not a share of its callers
            ("grpc.max_receive_message_length", MAX_REQUEST_BYTES),
            # Thousands of calls at once are the caller's test, not ours to refuse.
            ("grpc.server.max_pending_requests", 100_000),
            ("grpc.server.max_pending_requests_hard_limit", 100_000),
            # Callers may ping as often as they like.
            ("grpc.http2.max_ping_strikes", 0),
            ("grpc.http2.min_recv_ping_interval_without_data_ms", 0),
            ("grpc.keepalive_permit_without_calls", 1),
        ]
        if self._max_concurrent_streams is not None:
            options.append(("grpc.max_concurrent_streams", self._max_concurrent_streams))
        return options

    def _handlers(self, version: str) -> grpc.GenericRpcHandler:
        # Requests and responses stay bytes here: broken ones are recorded too, prepared ones cost nothing.
        return grpc.method_handlers_generic_handler(
            f"google.cloud.aiplatform.{version}.PredictionService",
            {
                "StreamGenerateContent": grpc.unary_stream_rpc_method_handler(self._stream(version)),
                "GenerateContent": grpc.unary_unary_rpc_method_handler(self._generate(version)),
                "CountTokens": grpc.unary_unary_rpc_method_handler(self._count_tokens(version)),
            },
        )

    # ---- what tests use ------------------------------------------------------------------------------------------

    @property
    def address(self) -> str:
        """The host:port to dial."""
        return f"{self._host}:{self._port}"

    @property
    def port(self) -> int:
        return self._port

    @property
    def rest_address(self) -> str:
        """The host:port of Google's REST form, for http://; raises RuntimeError if HTTP isn't served."""
        if self._rest_port is None:
            raise RuntimeError("this emulator doesn't serve HTTP; it needs Emulator(rest_port=0), for a free port")
        return f"{self._host}:{self._rest_port}"

    @property
    def script(self) -> Scripted:
        """The script that answers; raises TypeError if a model does."""
        return script_of(self.mind)

    @property
    def calls(self) -> tuple[Call, ...]:
        """All calls, oldest first."""
        return self._log.calls

    @property
    def open_calls(self) -> tuple[Call, ...]:
        return self._log.open_calls

    @property
    def log(self) -> CallLog:
        return self._log

    def open_gate(self, name: str) -> None:
        """Let answers pass that wait, or will wait, for this gate."""
        self.script.open_gate(name)

    def reset(self) -> None:
        """Forget ended calls and the script, close the gates; open calls go on."""
        self._log.forget()
        if isinstance(self.mind, Scripted):
            self.mind.reset()

    async def wait_until(self, predicate: "Callable[[Emulator], bool]", *, timeout: float = 10) -> None:  # noqa: ASYNC109  # callers want it named in the error
        """Wait until something about the calls is true; TimeoutError, which lists them, after `timeout` seconds."""
        try:
            async with asyncio.timeout(timeout):
                await self._log.wait_until(lambda: predicate(self))
        except TimeoutError:
            raise TimeoutError(f"not within {timeout} s; the calls are {self.calls}") from None

    # ---- one call ------------------------------------------------------------------------------------------------

    def _stream(self, version: str) -> Handler:
        async def stream(message: bytes, context: Context) -> None:
            call = self._begin("StreamGenerateContent", version, pb.GenerateContentRequest, message, context)
            await self._serve(call, context, lambda: self.mind.generate(call, _Streamed(self, call, context)))

        return stream

    def _generate(self, version: str) -> Handler:
        async def generate(message: bytes, context: Context) -> bytes:
            call = self._begin("GenerateContent", version, pb.GenerateContentRequest, message, context)
            reply = _Whole(self, call, context)
            await self._serve(call, context, lambda: self.mind.generate(call, reply))
            return reply.message()

        return generate

    def _count_tokens(self, version: str) -> Handler:
        async def count_tokens(message: bytes, context: Context) -> bytes:
            call = self._begin("CountTokens", version, pb.CountTokensRequest, message, context)
            reply = _Whole(self, call, context)
            counted = await self._serve(call, context, lambda: self.mind.count_tokens(call, reply))
            return counted.SerializeToString()

        return count_tokens

    def _begin(self, method: str, version: str, kind: type[Request], message: bytes, context: Context) -> Call:
        request: Request | None
        try:
            request = kind.FromString(message)
        except DecodeError:
            request = None
        metadata = tuple((str(key), value) for key, value in context.invocation_metadata() or ())
        call = self._log.begin(method, version, request, metadata, context.time_remaining())
        # The handler is told of a cancellation at its next await; this comes first even if it is busy.
        context.add_done_callback(lambda _: self._log.end_early(call))  # type: ignore[arg-type]  # the stub isn't a Protocol
        return call

    async def _serve(self, call: Call, context: Context, answer: Callable[[], Awaitable[T]]) -> T:
        try:
            if call.request is None:
                raise VertexError(grpc.StatusCode.INVALID_ARGUMENT, "Request contains an invalid argument.")  # noqa: TRY301  # one place turns it into a status
            result = await answer()
        except VertexError as error:
            self._log.end(call, error.code)
            await context.abort(error.code, error.message, _trailing(error))
        except asyncio.CancelledError:
            self._log.end_early(call)
            raise
        except _CallerGoneError as error:
            self._log.end_early(call)
            raise asyncio.CancelledError from error  # which is what gRPC itself is about to say
        except Exception:
            log.exception("call %d failed", call.number)
            self._log.end(call, grpc.StatusCode.INTERNAL)
            await context.abort(grpc.StatusCode.INTERNAL, "The emulator failed; its log says why.")
        else:
            self._log.end(call, grpc.StatusCode.OK)
            return result


class _CallerGoneError(Exception):
    """A write failed because the call is over; its cancellation is on the way."""


@contextmanager
def _gone_if_it_fails() -> Iterator[None]:
    # A write that races with a cancellation raises one of gRPC's private errors.
    try:
        yield
    except Exception as error:
        raise _CallerGoneError from error


class _Base:
    def __init__(self, emulator: Emulator, call: Call, context: Context) -> None:
        self._emulator = emulator
        self._log = emulator._log  # noqa: SLF001  # same module
        self._call = call
        self._context = context

    async def headers(self, metadata: Mapping[str, str]) -> None:
        with _gone_if_it_fails():
            await self._context.send_initial_metadata(tuple(metadata.items()))

    def waits_for(self, gate: str) -> None:
        self._call.waiting_for = gate
        self._log.changed(self._call)

    def cut(self) -> None:
        self._relay.cut(self._peer_port)

    def blackhole(self) -> None:
        self._relay.blackhole(self._peer_port)

    @property
    def _relay(self) -> Relay:
        relay = self._emulator._relay  # noqa: SLF001  # same module
        assert relay is not None, "a script that needs the relay is refused without one"
        return relay

    @property
    def _peer_port(self) -> int:
        return int(self._context.peer().rsplit(":", 1)[-1])


class _Streamed(_Base):
    async def write(self, message: bytes) -> None:
        with _gone_if_it_fails():
            await self._context.write(message)
        self._log.sent(self._call)


class _Whole(_Base):
    """Collects the pieces for a method that answers with one message."""

    def __init__(self, emulator: Emulator, call: Call, context: Context) -> None:
        super().__init__(emulator, call, context)
        self._pieces: list[bytes] = []

    async def write(self, message: bytes) -> None:
        self._pieces.append(message)

    def message(self) -> bytes:
        self._log.sent(self._call)
        return merge(self._pieces)


def _trailing(error: VertexError) -> tuple[tuple[str, str | bytes], ...]:
    trailing: tuple[tuple[str, str | bytes], ...] = tuple(error.trailing_metadata.items())
    if error.details:
        status = Status(code=error.code.value[0], message=error.message, details=error.details)
        trailing += tuple(rpc_status.to_status(status).trailing_metadata)
    return trailing


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
