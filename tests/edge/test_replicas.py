"""Several replicas behind one Envoy: one that goes away takes no new call with it."""

import asyncio
import os
import signal
from typing import Any

from tests.conftest import ServerProcess, StartProcess
from tests.edge.conftest import children, ended, running_edge, running_service, said
from tests.ports import free_port
from vertex_emulator.emulator import Emulator
from vertex_emulator.script import answer, wait_for


async def kill(replica: ServerProcess) -> None:
    """The whole of it: a worker whose parent is gone would drain."""
    found = await asyncio.to_thread(children, replica.process.pid)
    replica.signal(signal.SIGKILL)
    for worker in found:
        os.kill(worker, signal.SIGKILL)
    await replica.process.wait()


async def test_every_call_is_served_and_none_twice_while_one_of_two_replicas_drains(
    emulator: Emulator, lines: list[str]
) -> None:
    """Streams that run there come to their end, and new ones go to the other."""
    emulator.script.play(
        *(answer("Baseball ", wait_for("rest"), "is a game.") for _ in range(6)),
        default=answer("Baseball ", "is a game."),
    )
    settings: dict[str, Any] = {"drain_delay": 2, "slots": 200}
    async with (
        running_service(emulator, **settings) as going,
        running_service(emulator, **settings) as staying,
        running_edge("--replica", going.address, "--replica", staying.address) as edge,
        edge.client() as client,
    ):
        streams = [asyncio.create_task(ended(client)) for _ in range(6)]
        await emulator.wait_until(lambda e: [call.waiting_for for call in e.open_calls] == ["rest"] * 6)
        stopping = going.stop(60)
        outcomes: list[str] = []
        while len(outcomes) < 100 or not stopping.done():
            outcomes += await asyncio.gather(*(ended(client) for _ in range(10)))
            if len(outcomes) == 50:
                emulator.open_gate("rest")
        outcomes += await asyncio.gather(*streams)
        assert set(outcomes) == {"completed"}
        assert len(emulator.calls) == len(outcomes)
    assert any("draining" in line for line in lines)


async def test_a_killed_replica_takes_its_own_streams_with_it_and_no_new_call(
    emulator: Emulator, start_process: StartProcess
) -> None:
    emulator.script.play(
        *(answer("Baseball ", wait_for("rest"), "is a game.") for _ in range(8)),
        default=answer("Baseball ", "is a game."),
    )
    replica = await start_process()
    await replica.said("ready after")
    async with (
        running_service(emulator) as other,
        # One thread, so that it knows of all streams that each replica has.
        running_edge("--replica", replica.address, "--replica", other.address, "--threads", "1") as edge,
        edge.client() as client,
    ):
        streams = []
        for count in range(1, 9):
            streams.append(asyncio.create_task(ended(client)))
            await emulator.wait_until(lambda e, count=count: len(e.open_calls) == count)  # type: ignore[misc]
        await kill(replica)
        # At once: no health check can have told of it yet.
        assert {await ended(client) for _ in range(50)} == {"completed"}
        emulator.open_gate("rest")
        outcomes = sorted(await asyncio.gather(*streams))
    # Of two replicas drawn by chance for each call the one with fewer streams is taken: they needn't be quite even.
    assert set(outcomes) == {"completed", "cut"}
    assert 2 <= outcomes.count("cut") <= 6


async def test_the_command_says_once_that_no_replica_serves_any_more_and_once_that_one_does_again(
    emulator: Emulator,
) -> None:
    emulator.script.play(default=answer("Baseball."))
    port = free_port()
    async with running_edge("--replica", f"127.0.0.1:{port}", "--drain-delay", "3") as edge, edge.client() as client:
        await said(edge, "No replica answers at")
        for time in (1, 2):
            async with running_service(emulator, port=port, drain_delay=3) as replica:
                await said(edge, "A replica serves: callers get answers", times=time)
                assert await ended(client) == "completed"
                stopping = replica.stop(60)
                await said(edge, "No replica says that it serves: callers get 503 until one does", times=time)
                await stopping
        # Its own end is none of theirs.
        async with running_service(emulator, port=port):
            await said(edge, "A replica serves: callers get answers", times=3)
            edge.process.terminate()
            await edge.process.wait()
    told = "".join(edge.said)
    assert told.count("A replica serves") == 3
    assert told.count("No replica says") == 2
