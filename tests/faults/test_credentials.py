"""Google's credentials take their time: `gcloud` and the token server a second each. Others don't feel it."""

import asyncio
from pathlib import Path

import pytest
from grpc_health.v1 import health_pb2

from service.runtime import workers
from tests.faults.forkserver import ForkServer
from tests.faults.processes import eventually, pieces
from tests.faults.recorder import record
from tests.google_identity import gcloud, identity, token_server
from vertex_emulator.emulator import Emulator
from vertex_emulator.script import answer, repeat

pytestmark = pytest.mark.skipif(not workers.possible(), reason="the fork server forks, which is for Linux")

STREAMS = 4  # on one upstream connection
NEW_CALLS = 2 * STREAMS  # for which upstream connections have to be made


async def test_a_stream_and_health_go_on_while_credentials_are_slow(forkserver: ForkServer, tmp_path: Path) -> None:
    async with Emulator(max_concurrent_streams=STREAMS) as upstream, token_server() as tokens:
        upstream.script.play(default=answer(repeat(100_000, "word ", interval=0.005)))
        tokens.lifetime = 0  # so each call finds that the token has expired
        gcloud(tmp_path, "sleep 1; echo project")
        around = {**identity(tmp_path, tokens), "GOOGLE_APPLICATION_CREDENTIALS": "", "VERTEX_EMULATOR_HOST": ""}
        flags = ("--port", "0", "--workers", "1")
        async with forkserver.started(*flags, environ=around, google=upstream.address) as server:
            await server.ready()
            async with server.caller() as caller:
                running = caller.start("running")
                await pieces(running, 1)
                tokens.open.clear()
                others = [caller.start(timeout=30) for _ in range(NEW_CALLS)]
                await eventually(lambda: tokens.asked == 2)
                async with asyncio.timeout(20):
                    begin, rounds = asyncio.get_running_loop().time(), 0
                    # The token server is silent for all that time, so each piece and each answer came meanwhile.
                    while rounds < 20 or asyncio.get_running_loop().time() < begin + 1:
                        await pieces(running, 1)
                        await caller.health.Check(health_pb2.HealthCheckRequest(), timeout=5)
                        rounds += 1
                assert len(upstream.calls) == 1
                tokens.open.set()
                await asyncio.gather(*(pieces(call, 1) for call in others))
                assert [call.header("authorization") for call in upstream.calls] == [
                    "Bearer t1",
                    *["Bearer t2"] * NEW_CALLS,
                ]
                for call in (running, *others):
                    call.cancel()
                await upstream.wait_until(lambda upstream: not upstream.open_calls)
            record("event loop blocked: credentials", *await server.blocked())
    assert (tmp_path / "runs").read_text() == "run\n"
