"""Several processes on one port, as users run them."""

import asyncio
import os
import random
import re
import select
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from service.runtime import workers
from tests.collector import collecting
from tests.conftest import ServerProcess, StartProcess, failure
from tests.service.test_main import health
from tokenwire.v1 import generation_service_pb2 as pb
from tokenwire.v1.generation_service_pb2_grpc import GenerationServiceStub
from vertex_emulator import Emulator
from vertex_emulator.script import answer, silence, status, wait_for

pytestmark = pytest.mark.skipif(not workers.possible(), reason="workers are forked, which is for Linux")

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture
async def channels() -> AsyncIterator[Any]:
    """`await channels(server)`: a connection of its own each time, so that the kernel may give it to any worker."""
    async with AsyncExitStack() as stack:

        async def connect(server: ServerProcess) -> grpc.aio.Channel:
            options = [("grpc.use_local_subchannel_pool", 1)]
            return await stack.enter_async_context(grpc.aio.insecure_channel(server.address, options=options))

        yield connect


def children(server: ServerProcess) -> set[int]:
    return below(server.process.pid)


def below(pid: int) -> set[int]:
    return {int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}


async def stream(channel: grpc.aio.Channel) -> Any:
    """A stream that has said its first piece."""
    call: Any = GenerationServiceStub(channel).Generate(pb.GenerateRequest(prompt="hi"))
    assert (await call.read()).HasField("started")
    assert (await call.read()).text == "one"
    return call


async def test_health_tells_the_truth_from_the_first_second_and_a_dead_worker_is_replaced(
    emulator: Emulator, start_process: StartProcess, channels: Any
) -> None:
    emulator.script.play(default=answer("one", wait_for("two"), "two"))
    server = await start_process("--workers", "2")
    assert await health(await channels(server)) == NOT_SERVING
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await GenerationServiceStub(await channels(server)).Generate(pb.GenerateRequest(prompt="hi")).read()
    assert failure(caught.value) == (grpc.StatusCode.UNAVAILABLE, "STARTING")
    await server.said("ready after")
    while len(children(server)) != 2:  # noqa: ASYNC110 - the greeter says nothing when it goes
        await asyncio.sleep(0.01)
    before = children(server)

    # The kernel spreads connections over the workers; with twenty, each has some but once in half a million.
    streams = [await stream(await channels(server)) for _ in range(20)]
    victim = min(before)
    os.kill(victim, signal.SIGKILL)
    await server.said("starting another")
    assert all(" ERROR " in line for line in server.log if "starting another" in line)
    emulator.open_gate("two")
    ends = [await end(call) for call in streams]
    assert set(ends) == {"completed", "UNAVAILABLE"}

    await server.said("in place of")
    (successor,) = children(server) - before
    assert victim != successor
    assert await eventually_serving(channels, server)
    answered = [await end(await stream(await channels(server))) for _ in range(20)]
    assert set(answered) == {"completed"}


async def test_serving_is_true_wherever_the_next_connection_lands(
    emulator: Emulator, start_process: StartProcess, channels: Any
) -> None:
    emulator.script.play(default=answer("one"))
    server = await start_process("--workers", "2")
    async with asyncio.timeout(60):
        while len(children(server)) != 3:  # noqa: ASYNC110 - beside the greeter; a fork tells nobody
            await asyncio.sleep(0.001)
        late = max(children(server))
        os.kill(late, signal.SIGSTOP)  # it hasn't opened its model yet
        while len(listeners(server)) != 2:  # noqa: ASYNC110 - a process that begins to listen tells nobody
            await asyncio.sleep(0.001)
    assert {await health(await channels(server)) for _ in range(20)} == {NOT_SERVING}
    os.kill(late, signal.SIGCONT)
    async with asyncio.timeout(60):
        while await health(await channels(server)) != SERVING:
            pass
    assert await fates(channels, server, 60) == {"completed"}

    os.kill(late, signal.SIGKILL)
    await server.said("starting another")
    assert len(listeners(server)) == 1
    async with asyncio.timeout(60):
        while len(listeners(server)) < 2:
            assert await fates(channels, server, 10) == {"completed"}
            assert {await health(await channels(server)) for _ in range(10)} == {SERVING}
    assert await fates(channels, server, 20) == {"completed"}


def listeners(server: ServerProcess) -> set[str]:
    """The sockets that listen on its port."""
    port = f":{int(server.address.rpartition(':')[2]):04X}"
    tables = (Path("/proc/net") / name for name in ("tcp", "tcp6"))  # gRPC listens on ::ffff:127.0.0.1
    rows = [line.split() for table in tables for line in table.read_text().splitlines()]
    return {row[9] for row in rows if row[1].endswith(port) and row[3] == "0A"}


async def fates(channels: Any, server: ServerProcess, count: int) -> set[str]:
    """How so many calls end that are made at once, each on a connection of its own."""

    async def fate() -> str:
        call: Any = GenerationServiceStub(await channels(server)).Generate(pb.GenerateRequest(prompt="hi"))
        return await end(call)

    return set(await asyncio.gather(*(fate() for _ in range(count))))


async def end(call: Any) -> str:
    try:
        while True:
            message = await call.read()
            if message is grpc.aio.EOF:
                return "nothing"
            if message.HasField("completed"):
                return "completed"
    except grpc.aio.AioRpcError as error:
        return error.code().name


async def eventually_serving(channels: Any, server: ServerProcess) -> bool:
    """Whether both workers answer by now: many connections in a row do."""
    async with asyncio.timeout(30):
        in_a_row = 0
        while in_a_row < 20:
            in_a_row = in_a_row + 1 if await health(await channels(server)) == SERVING else 0
    return True


async def test_sigterm_drains_all_workers(emulator: Emulator, start_process: StartProcess, channels: Any) -> None:
    emulator.script.play(default=answer("one", wait_for("two"), "two"))
    server = await start_process("--workers", "2")
    await server.said("ready after")
    streams = [await stream(await channels(server)) for _ in range(20)]
    server.signal(signal.SIGTERM)
    async with asyncio.timeout(30):
        while sum("draining" in line for line in server.log) < 2:
            async with server.more:
                await server.more.wait()
    emulator.open_gate("two")
    assert {await end(call) for call in streams} == {"completed"}
    assert await asyncio.wait_for(server.process.wait(), 30) == 0
    assert not emulator.open_calls


def _said(server: ServerProcess) -> list[str]:
    """Its lines without their time, and without where it listens and how long it took."""
    lines = [line.partition("Z ")[2] for line in server.log]
    return [re.sub(r"(?<=INFO tokenwire )(listening on|ready after) .*", r"\1", line) for line in lines]


async def test_each_step_of_a_servers_life_is_told_once_and_by_name(
    emulator: Emulator, start_process: StartProcess
) -> None:
    del emulator  # it is asked nothing
    server = await start_process("--workers", "2")
    await server.said("ready after")
    while len(children(server)) != 2:  # noqa: ASYNC110 - the greeter says nothing when it goes
        await asyncio.sleep(0.01)
    os.kill(random.choice(sorted(children(server))), signal.SIGKILL)
    await server.said("in place of")
    server.signal(signal.SIGTERM)
    await server.said("stopped", times=2)
    assert await asyncio.wait_for(server.process.wait(), 30) == 0
    (name,) = re.findall(r"worker (\d) ended", "\n".join(server.log))
    assert sorted(_said(server)) == sorted(
        [
            "INFO tokenwire listening on",
            "INFO tokenwire ready after",
            f"ERROR tokenwire worker {name} ended with -9; starting another",
            f"INFO tokenwire serving, in place of the worker that ended worker={name}",
            *(f"INFO tokenwire draining: running streams have 30 s worker={one}" for one in range(2)),
            *(f"INFO tokenwire stopped worker={one}" for one in range(2)),
        ]
    )


async def test_each_worker_that_dies_while_it_drains_is_told_of(
    emulator: Emulator, start_process: StartProcess, channels: Any
) -> None:
    emulator.script.play(default=answer("one", silence()))
    server = await start_process("--workers", "2", "--grace", "3600")
    await server.said("ready after")
    for _ in range(20):  # so that either has some, but once in half a million runs
        await stream(await channels(server))
    server.signal(signal.SIGTERM)
    await server.said("draining", times=2)
    for worker in children(server):
        os.kill(worker, signal.SIGKILL)
    await server.said("instead of draining", times=2)
    assert await asyncio.wait_for(server.process.wait(), 30) == 1
    told = [line for line in _said(server) if "ended" in line]
    assert sorted(told) == [f"ERROR tokenwire worker {one} ended with -9 instead of draining" for one in range(2)]


async def test_a_second_signal_ends_all_workers_at_once(
    emulator: Emulator, start_process: StartProcess, channels: Any
) -> None:
    emulator.script.play(default=answer("one", silence()))
    server = await start_process("--workers", "2", "--grace", "3600")
    await server.said("ready after")
    streams = [await stream(await channels(server)) for _ in range(4)]
    server.signal(signal.SIGTERM)
    await server.said("draining")
    server.signal(signal.SIGTERM)
    assert {await end(call) for call in streams} == {"UNAVAILABLE"}
    assert await asyncio.wait_for(server.process.wait(), 30) == 0


async def test_workers_drain_when_their_parent_is_killed(
    emulator: Emulator, start_process: StartProcess, channels: Any
) -> None:
    emulator.script.play(default=answer("one", wait_for("two"), "two"))
    server = await start_process("--workers", "2")
    await server.said("ready after")
    call = await stream(await channels(server))
    server.signal(signal.SIGKILL)
    await server.said("draining")
    emulator.open_gate("two")
    assert await end(call) == "completed", "\n".join(server.log)


async def test_slots_are_those_of_the_server_not_of_each_worker(
    emulator: Emulator, start_process: StartProcess, channels: Any
) -> None:
    emulator.script.play(default=answer("one", silence()))
    server = await start_process("--workers", "2", "--slots", "6", "--queue", "0")
    await server.said("ready after")
    for _ in range(6):
        await stream(await channels(server))
    for _ in range(20):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stream(await channels(server))
        assert failure(caught.value) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "SERVER_BUSY")
    assert len(emulator.calls) == 6


async def test_the_retry_budget_is_that_of_the_server_not_of_each_worker(
    emulator: Emulator, start_process: StartProcess, channels: Any
) -> None:
    emulator.script.play(default=answer(status("UNAVAILABLE", "away")))
    server = await start_process("--workers", "4")
    await server.said("ready after")
    requests = 100
    for _ in range(requests // 10):
        assert await fates(channels, server, 10) == {"UNAVAILABLE"}
    assert requests < len(emulator.calls) <= 1.1 * requests


def test_a_port_that_is_taken_is_not_shared() -> None:
    with socket.socket() as stranger:
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        stranger.bind(("127.0.0.1", 0))
        stranger.listen()
        with pytest.raises(OSError, match="in use"):
            workers.reserve("127.0.0.1", stranger.getsockname()[1])


def test_a_free_port_is_held() -> None:
    with workers.reserve("127.0.0.1", 0) as held, pytest.raises(OSError, match="in use"), socket.socket() as stranger:
        stranger.bind(held.getsockname())


async def test_a_log_that_nobody_reads_stops_neither_a_replacement_nor_the_end(emulator: Emulator) -> None:
    out, into = os.pipe()
    # As users run it: here, Python might be told not to buffer.
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "service", "--port", "0", "--workers", "2", "--emulator", emulator.address),
        stderr=into,
        env=environ,
    )
    try:
        async with asyncio.timeout(60):
            told = b""
            while b"ready after" not in told:
                told += await asyncio.to_thread(os.read, out, 4096)
            while len(before := below(process.pid)) != 2:  # noqa: ASYNC110 - the greeter says nothing when it goes
                await asyncio.sleep(0.01)
            while select.select([], [into], [], 0)[1]:
                os.write(into, bytes(select.PIPE_BUF))
            os.kill(min(before), signal.SIGKILL)
            while len(below(process.pid) - before) != 1:  # noqa: ASYNC110 - it can say nothing
                await asyncio.sleep(0.01)
            process.terminate()
            assert await process.wait() == 0
    finally:
        for pid in (*below(process.pid), process.pid) if process.returncode is None else ():
            os.kill(pid, signal.SIGKILL)
        await process.wait()
        os.close(out)
        os.close(into)


async def test_every_worker_sends_its_spans_before_it_ends(
    emulator: Emulator, start_process: StartProcess, channels: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    emulator.script.play(default=answer("one", "two"))
    with collecting() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.address)
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "60000")  # so that they are all sent at the end
        server = await start_process("--workers", "2")
        await server.said("ready after")
        answered = [await end(await stream(await channels(server))) for _ in range(10)]
        assert set(answered) == {"completed"}
        assert not collector.bodies
        server.signal(signal.SIGTERM)
        assert await server.process.wait() == 0
        assert sum(span.kind == Span.SPAN_KIND_SERVER for span in collector.spans) == 10
