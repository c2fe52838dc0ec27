"""SIGTERM while everybody is busy: nobody inside is cut, nobody new is let in, and the world is told first."""

import asyncio
import signal
import time
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2

from tests.conftest import failure
from tests.faults.forkserver import ForkServer
from tests.faults.processes import ending, fate, outcome, pieces
from tests.faults.recorder import record
from tests.faults.windows import OPEN, connected
from tokenwire.v1 import generation_service_pb2 as pb
from vertex_emulator.emulator import Emulator
from vertex_emulator.script import answer, repeat

STREAMS = 50

DRAINING = (grpc.StatusCode.UNAVAILABLE, "DRAINING")
WHOLE = (58, "completed", (grpc.StatusCode.OK, ""))


async def test_at_sigterm_running_streams_finish_and_health_tells_at_once(
    forkserver: ForkServer, upstream: Emulator
) -> None:
    upstream.script.play(answer(repeat(60, "word ", interval=0.05), uses=0))
    async with forkserver.serving(upstream.address, "--drain-delay", "1", "--grace", "20") as leaving:
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


async def test_a_stream_beyond_the_grace_is_ended_here_and_upstream(forkserver: ForkServer, upstream: Emulator) -> None:
    upstream.script.play(answer(repeat(0, "word ", interval=0.05), uses=0))
    async with (
        forkserver.serving(upstream.address, "--drain-delay", "0", "--grace", "1") as leaving,
        leaving.caller() as caller,
    ):
        call = caller.start()
        await pieces(call, 1)
        leaving.signal(signal.SIGTERM)
        _, error = await fate(call)
        assert failure(error) == DRAINING
        assert await asyncio.wait_for(leaving.process.wait(), 30) == 0
    await upstream.wait_until(lambda upstream: not upstream.open_calls)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(("chunks", "grace"), [(10, 20), (0, 0.5)])
async def test_a_caller_on_a_slow_line_hears_the_end_of_each_call(
    forkserver: ForkServer, upstream: Emulator, chunks: int, grace: float, workers: int
) -> None:
    # gRPC closes a connection with its last call; whatever the caller says next makes the kernel forget the rest.
    upstream.script.play(answer(repeat(chunks, "x" * 3000, interval=0.05), uses=0))
    flags = ("--drain-delay", "0", "--grace", str(grace))
    async with forkserver.serving(upstream.address, *flags, workers=workers) as leaving:
        async with connected(leaving.address, window=OPEN, slow=True) as caller:
            streams = [caller.call(pb.GenerateRequest(prompt="slowly").SerializeToString()) for _ in range(12)]
            await asyncio.gather(*(stream.begun.wait() for stream in streams))
            leaving.signal(signal.SIGTERM)
            async with asyncio.timeout(60):
                await asyncio.gather(*(stream.over.wait() for stream in streams))
        assert await asyncio.wait_for(leaving.process.wait(), 30) == 0
    expected = grpc.StatusCode.OK if chunks else grpc.StatusCode.UNAVAILABLE
    record("SIGTERM: a slow line", *(float(stream.code is not expected) for stream in streams))
    assert [stream.code for stream in streams] == [expected] * len(streams)
    for stream in streams:
        messages = [pb.GenerateResponse.FromString(message) for message in stream.messages]
        assert [message.sequence for message in messages] == list(range(len(messages)))
        assert not chunks or len(messages) == chunks + 2


async def test_a_call_that_ends_is_told_at_once_where_others_of_its_connection_go_on(
    forkserver: ForkServer, upstream: Emulator
) -> None:
    upstream.script.play(answer(repeat(0, "x" * 3000, interval=0.05), uses=0))
    # Once the port is closed, gRPC itself says a bare CANCELLED: the late call must come before that.
    async with forkserver.serving(upstream.address, "--drain-delay", "2", "--grace", "20") as leaving:
        async with connected(leaving.address, window=OPEN, slow=True) as caller:
            endless = caller.call(pb.GenerateRequest(prompt="endless").SerializeToString())
            await endless.begun.wait()
            leaving.signal(signal.SIGTERM)
            await leaving.said("draining")
            refused = caller.call(pb.GenerateRequest(prompt="late").SerializeToString())
            async with asyncio.timeout(15):
                await refused.over.wait()
            assert refused.code is grpc.StatusCode.UNAVAILABLE
            assert not endless.over.is_set()
            caller.cancel(endless)
        assert await asyncio.wait_for(leaving.process.wait(), 30) == 0
