"""What the kernel holds for a caller, seen on real connections."""

import asyncio
import contextlib
import socket
from collections.abc import Iterator

import pytest

from service.calls.unsent import Unsent

# More than two kernels can hold for a caller that reads nothing.
MORE_THAN_FITS = bytes(16 << 20)


class Pair:
    """A connection of this process with itself."""

    def __init__(self, host: str, family: socket.AddressFamily) -> None:
        with socket.create_server((host, 0), family=family, dualstack_ipv6=family is socket.AF_INET6) as server:
            self.caller = socket.socket(socket.AF_INET if host == "::ffff:127.0.0.1" else family)
            self.caller.connect(("127.0.0.1" if "." in host else host, server.getsockname()[1]))
            self.served, _ = server.accept()
        self.served.setblocking(False)

    @property
    def peer(self) -> str:
        """In gRPC's words."""
        host, port = self.caller.getsockname()[:2]
        return f"ipv6:%5B{host}%5D:{port}" if ":" in host else f"ipv4:{host}:{port}"

    def fill(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self.served.send(MORE_THAN_FITS):
                pass

    def read(self) -> None:
        self.caller.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while self.caller.recv(1 << 20):
                pass

    def close(self) -> None:
        self.caller.close()
        self.served.close()


@pytest.fixture(params=[("127.0.0.1", socket.AF_INET), ("::1", socket.AF_INET6)], ids=["ipv4", "ipv6"])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    made = Pair(*request.param)
    yield made
    made.close()


async def begun(unsent: Unsent, pair: Pair, *, seconds: float = 60) -> "asyncio.Task[None]":
    task = asyncio.ensure_future(unsent.delivered(pair.peer, seconds=seconds))
    for _ in range(3):
        await asyncio.sleep(0.01)
    return task


async def read_until(pair: Pair, task: "asyncio.Task[None]") -> None:
    async with asyncio.timeout(10):
        while not task.done():
            pair.read()
            await asyncio.sleep(0.001)


async def test_a_status_waits_until_the_caller_has_taken_what_came_before(pair: Pair) -> None:
    unsent = Unsent()
    await unsent.delivered(pair.peer, seconds=60)  # nothing to wait for
    pair.fill()
    task = await begun(unsent, pair)
    assert not task.done()
    await read_until(pair, task)


async def test_a_status_waits_no_longer_than_it_may(pair: Pair) -> None:
    pair.fill()
    await asyncio.wait_for(Unsent().delivered(pair.peer, seconds=0.05), 10)


async def test_a_connection_that_is_gone_keeps_nobody_waiting(pair: Pair) -> None:
    unsent = Unsent()
    pair.fill()
    task = await begun(unsent, pair)
    pair.close()
    await asyncio.wait_for(task, 10)


async def test_of_several_calls_only_the_last_waits_again(pair: Pair) -> None:
    unsent = Unsent()

    async def call() -> None:
        await unsent.delivered(pair.peer, seconds=60)
        pair.fill()  # as its status does

    pair.fill()
    calls = {asyncio.ensure_future(call()) for _ in range(5)}
    await asyncio.sleep(0.03)
    async with asyncio.timeout(10):
        while not any(task.done() for task in calls):
            pair.read()
            await asyncio.sleep(0.001)
    await asyncio.sleep(0.05)
    (last,) = (task for task in calls if not task.done())
    await read_until(pair, last)


@pytest.mark.parametrize("peer", ["unix:/run/any", "unix:", "", "ipv4:", "vsock:3:40000", "ipv4:192.0.2.1:1"])
async def test_nobody_waits_for_what_is_no_connection_of_ours(peer: str) -> None:
    await asyncio.wait_for(Unsent().delivered(peer, seconds=60), 1)
