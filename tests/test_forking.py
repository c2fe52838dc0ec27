"""What the tests themselves rely on: a child that is forked beside gRPC's threads lives."""

import asyncio
import os
from contextlib import suppress

import grpc
import pytest

from service.testing import FakeProvider
from tests.conftest import Serve
from tests.marks import needs_fork


@pytest.mark.thorough
@needs_fork
async def test_a_child_that_is_forked_while_calls_run_lives(serve: Serve) -> None:
    served = await serve(FakeProvider([]))

    async def ask() -> None:
        while True:
            with suppress(grpc.aio.AioRpcError):
                await served.ask()

    asking = [asyncio.ensure_future(ask()) for _ in range(16)]
    endings = []
    for _ in range(100):
        await asyncio.sleep(0.003)
        child = os.fork()
        if not child:
            os._exit(0)
        endings.append(os.waitpid(child, 0)[1])  # noqa: ASYNC222 - it ends at once
    for one in asking:
        one.cancel()
    await asyncio.wait(asking)
    assert endings == [0] * 100
