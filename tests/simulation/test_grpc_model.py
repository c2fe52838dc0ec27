"""What `grpc_model` says of grpc.aio is what the real library does: each script runs against both.

The real caller is HTTP/2 by hand, with a window of 0 that takes headers but no message until it is opened.
"""

import asyncio
import struct
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import grpc
import grpc.aio
import pytest

from tests.hostile import http2
from tests.simulation import grpc_model
from tests.simulation.loop import Loop, every

METHOD = "/test.Test/Run"


class Caller(Protocol):
    """The other side of a call, as a handler of these tests may move it."""

    def reads(self) -> None: ...

    def cancel(self) -> None: ...


Script = Callable[[Any, Caller, list[str]], Awaitable[None]]


async def give_up(operation: Awaitable[None]) -> None:
    """Begin an operation, and cancel it while it is in flight."""
    task = asyncio.ensure_future(operation)
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait((task,))
    assert task.cancelled()


async def first_write_given_up(context: Any, caller: Caller, seen: list[str]) -> None:
    await give_up(context.write(b"first"))
    caller.reads()
    seen.append("returned")


async def headers_first(context: Any, caller: Caller, seen: list[str]) -> None:
    await context.send_initial_metadata(())
    await give_up(context.write(b"first"))
    caller.reads()
    seen.append("returned")


async def second_write_in_flight(context: Any, caller: Caller, seen: list[str]) -> None:
    await context.send_initial_metadata(())
    await give_up(context.write(b"first"))
    try:
        await context.write(b"second")
    except grpc.aio.InternalError:
        seen.append("refused")
    caller.reads()


async def headers_twice(context: Any, caller: Caller, seen: list[str]) -> None:
    await context.send_initial_metadata(())
    try:
        await context.send_initial_metadata(())
    except grpc.aio.UsageError:
        seen.append("refused")
    caller.reads()


async def a_write_that_is_read(context: Any, caller: Caller, seen: list[str]) -> None:
    caller.reads()
    await context.write(b"first")
    seen.append("written")
    context.set_code(grpc.StatusCode.ABORTED)


async def the_caller_cancels_a_write(context: Any, caller: Caller, seen: list[str]) -> None:
    await context.send_initial_metadata(())
    caller.cancel()
    try:
        await context.write(b"first")
    except grpc.aio.InternalError:  # it may fail first; the cancellation comes in any case
        await asyncio.sleep(5)
    except asyncio.CancelledError:
        seen.append("cancelled")
        raise
    finally:
        if not seen:
            seen.append("cancelled" if _cancelled() else "not cancelled")


async def the_request_is_read(context: Any, caller: Caller, seen: list[str]) -> None:
    caller.reads()
    seen.append(str(await context.read()))
    seen.append("EOF" if await context.read() is grpc.aio.EOF else "more")


async def a_cancellation_from_nowhere(_: Any, caller: Caller, seen: list[str]) -> None:
    caller.reads()
    seen.append("raised")
    raise asyncio.CancelledError


def _cancelled() -> bool:
    task = asyncio.current_task()
    assert task is not None
    return task.cancelling() > 0


FACTS: dict[Script, tuple[list[str], list[str]]] = {
    # what the handler sees, and what the caller hears
    first_write_given_up: (["returned"], ["headers", "first"]),
    headers_first: (["returned"], ["headers", "first", "status 0"]),
    second_write_in_flight: (["refused"], ["headers", "first", "status 0"]),
    headers_twice: (["refused"], ["headers", "status 0"]),
    a_write_that_is_read: (["written"], ["headers", "first", "status 10"]),
    the_caller_cancels_a_write: (["cancelled"], ["headers"]),
    the_request_is_read: (["b'request'", "EOF"], ["headers", "status 0"]),
    a_cancellation_from_nowhere: (["raised"], []),
}


@pytest.mark.parametrize("script", FACTS, ids=lambda script: script.__name__)
def test_the_model_does_so_in_every_order(script: Script) -> None:
    for choices in every(interruptions=2):
        assert modelled(script, Loop(choices)) == FACTS[script], choices.taken


def modelled(script: Script, loop: Loop) -> tuple[list[str], list[str]]:
    seen: list[str] = []
    server = grpc_model.Server(loop)

    async def handler(_: Any, context: Any) -> None:
        await script(context, call, seen)

    server.add(METHOD, grpc.stream_stream_rpc_method_handler(handler))
    call = server.call(METHOD, b"request", room=0)
    loop.run_forever()
    loop.close()
    heard = [one.decode() if isinstance(one, bytes) else f"status {one.code.value[0]}" for one in call.heard]
    return seen, ["headers"] * call.core.headers + heard


class Wire:
    """A real caller whose window is closed until `reads`."""

    def __init__(self, address: str) -> None:
        self.connection = http2.Connection(address).hello((http2.INITIAL_WINDOW_SIZE, 0))

    def call(self) -> None:
        headers = http2.header_block(
            (":method", "POST"),
            (":scheme", "http"),
            (":path", METHOD),
            (":authority", "localhost"),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
        )
        data = http2.grpc_message(b"request")
        self.connection.send(
            http2.frame(http2.HEADERS, http2.END_HEADERS, 1, headers)
            + http2.frame(http2.DATA, http2.END_STREAM, 1, data)
        )

    def reads(self) -> None:
        self.connection.send(http2.frame(http2.WINDOW_UPDATE, 0, 1, struct.pack(">I", 1 << 20)))

    def cancel(self) -> None:
        self.connection.send(http2.frame(http2.RST_STREAM, 0, 1, struct.pack(">I", 8)))

    def heard(self) -> list[str]:
        """All that comes before the answers to two pings: what isn't there by then doesn't come."""
        heard: list[str] = []
        pings = 2
        self.connection.send(http2.frame(http2.PING, 0, 0, bytes(8)))
        for kind, flags, stream, payload in self.connection.frames():
            if kind == http2.PING and flags & http2.ACK:
                pings -= 1
                if not pings:
                    break
                self.connection.send(http2.frame(http2.PING, 0, 0, bytes(8)))
            elif stream == 1 and kind == http2.DATA and payload:
                heard.append(payload[5:].decode())
            elif stream == 1 and kind == http2.HEADERS:
                status = http2.status_in(payload)
                heard += ["headers"] * ("headers" not in heard)
                heard += [] if status is None else [f"status {status}"]
        return heard


@pytest.mark.parametrize("script", FACTS, ids=lambda script: script.__name__)
async def test_grpc_does_so(script: Script) -> None:
    seen: list[str] = []
    ended = asyncio.Event()
    server = grpc.aio.server()

    async def handler(_: Any, context: Any) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.add_done_callback(lambda _: ended.set())
        await script(context, wire, seen)

    handlers = grpc.method_handlers_generic_handler(
        "test.Test", {"Run": grpc.stream_stream_rpc_method_handler(handler)}
    )
    server.add_generic_rpc_handlers((handlers,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    wire = Wire(f"127.0.0.1:{port}")
    try:
        with wire.connection:
            wire.call()
            async with asyncio.timeout(20):
                await ended.wait()
            heard = await asyncio.to_thread(wire.heard)
    finally:
        await server.stop(0)
    assert (seen, heard) == FACTS[script]
