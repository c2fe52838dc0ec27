"""SIGTERM while everybody is busy: nobody inside is cut, nobody new is let in, and the world is told first."""

import asyncio
import signal
import time
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2

from tests.conftest import failure
from tests.faults.processes import fate, pieces, server
from tests.faults.recorder import record
from vertex_emulator.emulator import Emulator
from vertex_emulator.script import answer, repeat

STREAMS = 50


async def test_at_sigterm_running_streams_finish_and_health_tells_at_once(upstream: Emulator) -> None:
    upstream.script.play(answer(repeat(60, "word ", interval=0.05), uses=0))
    async with server(upstream.address, "--drain-delay", "1", "--grace", "20") as leaving:
        async with leaving.caller() as caller, leaving.caller() as watcher, leaving.caller() as late:
            watch = watcher.health.Watch(health_pb2.HealthCheckRequest())
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
            calls = [caller.start() for _ in range(STREAMS)]
            await asyncio.gather(*(pieces(call, 2) for call in calls))
            begin = time.monotonic()
            leaving.signal(signal.SIGTERM)
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
            record("SIGTERM: health", 1000 * (time.monotonic() - begin))
            errors = [(await fate(late.start()))[1] for _ in range(10)]
            assert {failure(error) for error in errors} == {(grpc.StatusCode.UNAVAILABLE, "DRAINING")}
            record("SIGTERM: late calls", 0)
            whole = await asyncio.gather(*map(rest, calls))
        assert await asyncio.wait_for(leaving.process.wait(), 30) == 0
        assert "Traceback" not in leaving.words, leaving.words
    assert whole == [58] * STREAMS
    record("SIGTERM: streams", STREAMS - len(whole))


async def rest(call: Any) -> int:
    """How many pieces of text are still to come; the last message has to be `completed`."""
    texts = 0
    last = None
    while (message := await call.read()) is not grpc.aio.EOF:
        texts += bool(message.text)
        last = message
    assert last is not None
    assert last.HasField("completed")
    return texts


async def test_a_stream_beyond_the_grace_is_ended_here_and_upstream(upstream: Emulator) -> None:
    upstream.script.play(answer(repeat(0, "word ", interval=0.05), uses=0))
    async with server(upstream.address, "--drain-delay", "0", "--grace", "1") as leaving, leaving.caller() as caller:
        call = caller.start()
        await pieces(call, 1)
        leaving.signal(signal.SIGTERM)
        _, error = await fate(call)
        assert failure(error) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
        assert await asyncio.wait_for(leaving.process.wait(), 30) == 0
    await upstream.wait_until(lambda upstream: not upstream.open_calls)
