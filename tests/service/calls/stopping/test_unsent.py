"""What the kernel holds for a caller, seen on real connections."""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest

from service.calls.stopping.unsent import Unsent

# More than two kernels can hold for a caller that reads nothing.
MORE_THAN_FITS = bytes(16 << 20)


class Pair:
    """A connection of this process with itself."""

    def __init__(self, host: str) -> None:
        """An IPv4 address in IPv6 is that of a server which listens on both; gRPC calls its peer by the IPv4 one."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        both = host.startswith("::ffff:")
        with socket.create_server(("::" if both else host, 0), family=family, dualstack_ipv6=both) as server:
            self.caller = socket.create_connection((host.removeprefix("::ffff:"), server.getsockname()[1]))
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


@pytest.fixture(params=["127.0.0.1", "::1", "::ffff:127.0.0.1"])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    made = Pair(request.param)
    yield made
    made.close()


async def begun(unsent: Unsent, pair: Pair, *, patience: float = 60) -> "asyncio.Task[None]":
    """A call that is about to end: it waits."""
    task = asyncio.ensure_future(unsent.delivered(pair.peer, patience=patience))
    unsent.opened(pair.peer, task)
    await asyncio.sleep(0.05)
    return task


async def read_until(pair: Pair, task: "asyncio.Task[None]") -> None:
    async with asyncio.timeout(10):
        while not task.done():
            pair.read()
            await asyncio.sleep(0.001)


async def test_a_status_waits_until_the_caller_has_taken_what_came_before(pair: Pair) -> None:
    unsent = Unsent()
    await unsent.delivered(pair.peer, patience=60)  # nothing to wait for
    pair.fill()
    task = await begun(unsent, pair)
    assert not task.done()
    await read_until(pair, task)


async def test_a_status_does_not_wait_for_a_caller_that_takes_nothing(pair: Pair) -> None:
    pair.fill()
    await asyncio.wait_for(Unsent().delivered(pair.peer, patience=0.05), 10)


@pytest.mark.parametrize("pair", ["127.0.0.1"], indirect=True)
async def test_a_status_waits_for_a_caller_that_takes_it_slowly(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    pair.fill()
    held = iter([*range(40, 0, -1), 0, 0, 0])
    monkeypatch.setattr("service.calls.stopping.unsent._held", lambda *_: next(held))
    await asyncio.wait_for(Unsent().delivered(pair.peer, patience=1), 60)  # it takes twice as much
    assert next(held, None) is None


async def test_a_status_waits_for_what_grpc_writes_later(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    held = iter([1, 0, 0, 2, 0, 1, 0, 0, 0])
    monkeypatch.setattr("service.calls.stopping.unsent._held", lambda *_: next(held))
    await asyncio.wait_for(Unsent().delivered(pair.peer, patience=60), 60)
    assert next(held, None) is None


async def test_a_search_that_finds_no_end_is_not_waited_for(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its thread may wait for one of those that are busy."""
    free = threading.Event()
    monkeypatch.setattr("service.calls.stopping.unsent.connections", free.wait)
    monkeypatch.setattr("service.calls.stopping.unsent._LONGEST_SEARCH_SECONDS", 0.05)
    pair.fill()
    try:
        await asyncio.wait_for(Unsent().delivered(pair.peer, patience=60), 10)
    finally:
        free.set()


async def test_a_connection_that_is_gone_keeps_nobody_waiting(pair: Pair) -> None:
    pair.fill()
    task = await begun(Unsent(), pair)
    assert not task.done()
    pair.close()
    await asyncio.wait_for(task, 10)


async def test_only_the_last_open_call_of_a_connection_waits(pair: Pair) -> None:
    unsent = Unsent()
    other = asyncio.ensure_future(asyncio.sleep(60))
    unsent.opened(pair.peer, other)
    pair.fill()
    first = await begun(unsent, pair)
    assert first.done()  # the other one holds the connection open
    other.cancel()
    await asyncio.wait([other])
    last = await begun(unsent, pair)
    assert not last.done()
    await read_until(pair, last)


async def test_a_call_that_is_opened_meanwhile_is_the_last_one_then(pair: Pair) -> None:
    unsent = Unsent()
    pair.fill()
    first = await begun(unsent, pair)
    assert not first.done()
    other = asyncio.ensure_future(asyncio.sleep(60))
    unsent.opened(pair.peer, other)
    await asyncio.wait_for(first, 10)
    other.cancel()


async def test_who_gives_up_has_nobody_wait(pair: Pair) -> None:
    unsent = Unsent()
    pair.fill()
    task = await begun(unsent, pair)
    assert not task.done()
    unsent.give_up()
    await asyncio.wait_for(task, 10)


@pytest.mark.parametrize("peer", ["unix:/run/any", "unix:", "", "ipv4:", "vsock:3:40000", "ipv4:192.0.2.1:1"])
async def test_nobody_waits_for_what_is_no_connection_of_ours(peer: str) -> None:
    await asyncio.wait_for(Unsent().delivered(peer, patience=60), 1)
