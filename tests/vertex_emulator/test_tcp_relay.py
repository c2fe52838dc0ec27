"""What the relay does to one connection."""

import asyncio
from typing import Any

import grpc
import grpc.aio
import pytest

from tests.vertex_emulator.conftest import Client, next_text
from vertex_emulator import script as s
from vertex_emulator.emulator import Emulator
from vertex_emulator.script import ScriptError, answer
from vertex_emulator.tcp_relay import Relay


async def test_a_cut_resets_this_callers_connection_and_no_other(emulator: Emulator, client: Client) -> None:
    emulator.script.play(
        answer("a", s.wait_for("read"), s.cut(), user_text="cut me"), answer("b", s.wait_for("on"), "c")
    )
    async with grpc.aio.insecure_channel(emulator.address, options=[("grpc.use_local_subchannel_pool", 1)]) as own:
        other = Client(own).stream()
        await other.read()
        call = client.stream("cut me")
        assert await next_text(call) == "a"
        emulator.open_gate("read")
        assert await call.code() is grpc.StatusCode.UNAVAILABLE
        assert "reset" in (await call.details() or "")
        emulator.open_gate("on")
        assert await next_text(other) == "c"
        assert await other.code() is grpc.StatusCode.OK
    await emulator.wait_until(lambda emulator: not emulator.open_calls)


async def test_after_a_cut_the_caller_can_connect_again(emulator: Emulator, client: Client) -> None:
    emulator.script.play(answer(s.cut()), answer("a"))
    told = await client.ask()
    assert told.error is not None
    assert told.error.code() is grpc.StatusCode.UNAVAILABLE
    while not (told := await client.ask()).text:  # noqa: ASYNC110  # gRPC waits a moment before it dials again
        await asyncio.sleep(0.05)
    assert told.text == "a"


async def test_a_blackhole_swallows_everything_but_closes_nothing(emulator: Emulator) -> None:
    emulator.script.play(answer("a", s.wait_for("read"), s.blackhole()))
    channel = grpc.aio.insecure_channel(emulator.address)
    call = Client(channel).stream()
    await call.read()
    emulator.open_gate("read")
    await emulator.wait_until(lambda emulator: not emulator.calls[0].waiting_for)
    await asyncio.sleep(0.1)  # past the moment at which it falls silent
    later = Client(channel).stream(timeout=0.3)
    assert await later.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert len(emulator.calls) == 1, "a call through the blackhole arrived"
    call.cancel()
    assert await call.code() is grpc.StatusCode.CANCELLED
    assert len(emulator.open_calls) == 1, "a cancellation through the blackhole arrived"
    await channel.close()
    del call, later  # they hold the connection
    await emulator.wait_until(lambda emulator: not emulator.open_calls)


async def test_a_script_that_cuts_is_refused_without_the_relay() -> None:
    cutting = answer("a", s.cut())
    async with Emulator() as emulator:
        with pytest.raises(ScriptError, match=r"answers\[0\] cuts connections, which needs the relay"):
            emulator.script.play(cutting)
        with pytest.raises(ScriptError, match="default_answer cuts connections"):
            emulator.script.play(default=cutting)
    late = Emulator()
    late.script.play(cutting)
    with pytest.raises(ScriptError, match="needs the relay"):
        await late.start()


async def test_large_answers_pass_whole(emulator: Emulator, client: Client) -> None:
    piece = "x" * 100_000
    emulator.script.play(answer(s.repeat(100, piece)))
    assert (await client.ask()).text == piece * 100


async def test_a_caller_that_does_not_read_holds_the_answer_back(emulator: Emulator, client: Client) -> None:
    emulator.script.play(answer(s.repeat(1000, "x" * 100_000)))
    call = client.stream()
    await call.read()
    sent = -1
    while sent != emulator.calls[0].pieces_sent:  # until it stands still
        sent = emulator.calls[0].pieces_sent
        await asyncio.sleep(0.2)
    assert sent < 500
    call.cancel()
    await emulator.wait_until(lambda emulator: not emulator.open_calls)


async def test_what_a_caller_sends_before_the_servers_end_is_there_arrives(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python 3.11.2 reads from a connection that was paused as it was made: the first bytes were lost there."""
    connect = Relay._link

    async def connect_late(relay: Relay, link: Any) -> None:
        link.caller.data_received(b"early, ")
        await connect(relay, link)

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readexactly(len(b"early, late")))
        writer.close()

    monkeypatch.setattr(Relay, "_link", connect_late)
    async with await asyncio.start_server(echo, "127.0.0.1", 0) as server:
        relay = Relay("127.0.0.1", 0, server.sockets[0].getsockname()[1])
        await relay.start()
        reader, writer = await asyncio.open_connection("127.0.0.1", relay.port)
        writer.write(b"late")
        assert await reader.read() == b"early, late"
        writer.close()
        await relay.stop()
