"""SIGTERM while everybody is busy: nobody inside is cut, nobody new is let in, and the world is told first."""

import asyncio
import signal
import time
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2

from tests.conftest import failure
from tests.faults.processes import ending, fate, outcome, pieces, server
from tests.faults.recorder import record
from vertex_emulator.emulator import Emulator
from vertex_emulator.script import answer, repeat

STREAMS = 50

DRAINING = (grpc.StatusCode.UNAVAILABLE, "DRAINING")
WHOLE = (58, "completed", (grpc.StatusCode.OK, ""))


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
            late_ones = [ending((await outcome(late.start()))[1]) for _ in range(10)]
            running = await asyncio.gather(*map(rest, calls))
        record("SIGTERM: late calls", *(float(one != DRAINING) for one in late_ones))
        record("SIGTERM: streams", *(float(one != WHOLE) for one in running))
        assert late_ones == [DRAINING] * 10
        assert running == [WHOLE] * STREAMS
        assert await asyncio.wait_for(leaving.process.wait(), 30) == 0
        assert "Traceback" not in leaving.words, leaving.words


async def rest(call: Any) -> tuple[int, str, tuple[grpc.StatusCode, str]]:
    """How many pieces of text were still to come, of which kind the last message was, and how the call ended."""
    messages, error = await outcome(call)
    kind = messages[-1].WhichOneof("event") if messages else None
    return sum(bool(message.text) for message in messages), str(kind), ending(error)


async def test_a_stream_beyond_the_grace_is_ended_here_and_upstream(upstream: Emulator) -> None:
    upstream.script.play(answer(repeat(0, "word ", interval=0.05), uses=0))
    async with server(upstream.address, "--drain-delay", "0", "--grace", "1") as leaving, leaving.caller() as caller:
        call = caller.start()
        await pieces(call, 1)
        leaving.signal(signal.SIGTERM)
        _, error = await fate(call)
        assert failure(error) == DRAINING
        assert await asyncio.wait_for(leaving.process.wait(), 30) == 0
    await upstream.wait_until(lambda upstream: not upstream.open_calls)
