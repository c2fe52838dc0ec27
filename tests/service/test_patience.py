"""Deadlines and time limits: which one has passed is what the caller is told."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from service.errors import DeadlineExceeded, Draining, UpstreamDeadline
from service.patience import Deadline, Patience


def soon(seconds: float, longest: float = 600) -> Deadline:
    return Deadline.of(seconds, default=100, longest=longest)


class Limits(Patience):
    """All limits said at once."""

    def __init__(self, deadline: Deadline, *, first_chunk: float | None, idle: float | None, write: float) -> None:
        super().__init__(deadline, write=write)
        self._waits = {"first_chunk": first_chunk, "idle": idle}

    def watch(self, source: AsyncIterator[str]) -> AsyncIterator[str]:
        return self.upstream(source, **self._waits)


async def never() -> AsyncIterator[str]:
    await asyncio.Event().wait()
    yield "never"


async def once() -> AsyncIterator[str]:
    yield "once"
    await asyncio.Event().wait()


async def ended(
    patience: Limits,
    source: AsyncIterator[str] | None = None,
    *,
    write: bool = False,
    error: BaseException | None = None,
) -> tuple[str, str]:
    """The reason and the text with which it ends to wait for `source`, a write, or for nothing."""

    async def wait() -> None:
        async with asyncio.timeout(10), patience:
            if write:
                patience.writing(last=False)
            if source is not None:
                async for _ in patience.watch(source):
                    pass
            if error is not None:
                raise error
            await asyncio.Event().wait()

    with pytest.raises(DeadlineExceeded) as caught:
        await wait()
    return caught.value.reason, caught.value.text


def patience(
    deadline: Deadline | None = None, *, first_chunk: float | None = None, idle: float | None = None, write: float = 60
) -> Limits:
    return Limits(deadline or soon(60), first_chunk=first_chunk, idle=idle, write=write)


async def test_no_deadline_is_the_servers_default() -> None:
    now = asyncio.get_running_loop().time()
    deadline = Deadline.of(None, default=5, longest=10)
    assert deadline.reason == "SERVER_DEADLINE"
    assert 0 <= deadline.at - now - 5 < 1


async def test_a_deadline_beyond_the_longest_is_the_longest() -> None:
    now = asyncio.get_running_loop().time()
    deadline = soon(11, longest=10)
    assert deadline.reason == "SERVER_DEADLINE"
    assert 0 <= deadline.at - now - 10 < 1


@pytest.mark.parametrize(("seconds", "margin"), [(10, 0.05), (0.3, 0.03), (0.01, 0.001)])
async def test_of_the_callers_time_a_little_is_kept_to_say_so(seconds: float, margin: float) -> None:
    now = asyncio.get_running_loop().time()
    deadline = soon(seconds)
    assert deadline.reason == "CALLER_DEADLINE"
    assert deadline.at - now == pytest.approx(seconds - margin, abs=0.005)


async def test_the_deadline_ends_every_wait() -> None:
    assert (await ended(patience(soon(0.02))))[0] == "CALLER_DEADLINE"
    assert (await ended(patience(soon(0.02)), never()))[0] == "CALLER_DEADLINE"
    assert (await ended(patience(soon(0.02)), once(), write=True))[0] == "CALLER_DEADLINE"


async def test_a_deadline_that_has_passed_ends_at_once() -> None:
    assert (await ended(patience(soon(-1))))[0] == "CALLER_DEADLINE"


async def test_a_model_that_does_not_begin_is_given_up() -> None:
    reason, text = await ended(patience(first_chunk=0.01, idle=60), never())
    assert reason == "FIRST_CHUNK_TIMEOUT"
    assert text == "The model has not begun to answer within 0.01 s"


async def test_a_model_that_falls_silent_is_given_up() -> None:
    assert (await ended(patience(first_chunk=60, idle=0.01), once()))[0] == "IDLE_TIMEOUT"
    assert (await ended(patience(idle=0.01), once()))[0] == "IDLE_TIMEOUT"


async def test_a_reader_that_stalls_is_given_up_whatever_the_model_does() -> None:
    assert (await ended(patience(write=0.01), write=True))[0] == "READER_STALLED"
    assert (await ended(patience(write=0.01, first_chunk=60), never(), write=True))[0] == "READER_STALLED"


async def test_a_model_that_falls_silent_is_given_up_whatever_the_reader_does() -> None:
    assert (await ended(patience(write=60, first_chunk=0.01), never(), write=True))[0] == "FIRST_CHUNK_TIMEOUT"


async def test_each_wait_counts_for_itself() -> None:
    async def steady() -> AsyncIterator[str]:
        for _ in range(5):
            await asyncio.sleep(0.06)
            yield "x"

    waits = patience(first_chunk=0.2, idle=0.2, write=0.2)
    async with asyncio.timeout(10), waits:
        async for _ in waits.watch(steady()):
            waits.writing(last=False)
            await asyncio.sleep(0.06)
            waits.written()


async def test_what_is_not_waited_for_any_more_does_not_end_the_call() -> None:
    async def two() -> AsyncIterator[str]:
        yield "x"
        yield "y"

    waits = patience(first_chunk=0.01, idle=0.01, write=0.01)
    async with asyncio.timeout(10), waits:
        async for _ in waits.watch(two()):
            waits.writing(last=False)
            waits.written()
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.05)


async def test_a_call_can_be_ended_from_outside() -> None:
    waits = patience()

    async def wait() -> None:
        async with asyncio.timeout(10), waits:
            await asyncio.Event().wait()

    waiting = asyncio.ensure_future(wait())
    await asyncio.sleep(0)
    waits.end(Draining("bye"))
    with pytest.raises(Draining):
        await waiting


async def test_upstreams_own_clock_may_be_a_moment_ahead() -> None:
    assert (await ended(patience(soon(0.02)), error=UpstreamDeadline("x")))[0] == "CALLER_DEADLINE"
    with pytest.raises(UpstreamDeadline):
        async with patience(soon(60)):
            raise UpstreamDeadline("x")


async def test_other_errors_and_cancellation_pass() -> None:
    for error in (ZeroDivisionError, TimeoutError, asyncio.CancelledError):
        with pytest.raises(error):
            async with patience():
                raise error
