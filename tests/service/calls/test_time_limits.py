"""Deadlines and time limits: which one has passed is what the caller is told. On both event loops."""

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest
import uvloop

from service.calls.time_limits import Deadline, TimeLimits
from service.errors import DeadlineExceeded, Draining, UpstreamDeadline

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}


def on_both_loops(body: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[str], None]:
    """A test for each event loop: their timers differ."""

    @pytest.mark.parametrize("loop", LOOPS)
    def test(loop: str) -> None:
        with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
            runner.run(body())

    return test


def soon(seconds: float, longest: float = 600) -> Deadline:
    return Deadline.of(seconds, default=100, longest=longest)


class Limits(TimeLimits):
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


def stop_the_clock() -> None:
    """It is 0 from now on, for the rest of the test."""
    loop: Any = asyncio.get_running_loop()
    loop.time = lambda: 0.0


@on_both_loops
async def test_no_deadline_is_the_servers_default() -> None:
    stop_the_clock()
    deadline = Deadline.of(None, default=5, longest=10)
    assert (deadline.at, deadline.reason) == (5, "SERVER_DEADLINE")


@on_both_loops
async def test_a_deadline_beyond_the_longest_is_the_longest() -> None:
    stop_the_clock()
    deadline = soon(10.01, longest=10)
    assert (deadline.at, deadline.reason) == (10, "SERVER_DEADLINE")
    assert soon(10, longest=10).reason == "CALLER_DEADLINE"


@on_both_loops
async def test_of_the_callers_time_a_little_is_kept_to_say_so() -> None:
    stop_the_clock()
    for seconds, margin in ((10, 0.05), (0.6, 0.05), (0.4, 0.04), (0.01, 0.001)):
        deadline = soon(seconds)
        assert deadline.at == pytest.approx(seconds - margin, abs=1e-9)
        assert deadline.reason == "CALLER_DEADLINE"


@on_both_loops
async def test_the_deadline_ends_every_wait() -> None:
    assert (await ended(patience(soon(0.02))))[0] == "CALLER_DEADLINE"
    assert (await ended(patience(soon(0.02)), never()))[0] == "CALLER_DEADLINE"
    assert (await ended(patience(soon(0.02)), once(), write=True))[0] == "CALLER_DEADLINE"


@on_both_loops
async def test_a_deadline_that_has_passed_ends_at_once() -> None:
    assert (await ended(patience(soon(-1))))[0] == "CALLER_DEADLINE"


@on_both_loops
async def test_a_model_that_does_not_begin_is_given_up() -> None:
    reason, text = await ended(patience(first_chunk=0.01, idle=60), never())
    assert reason == "FIRST_CHUNK_TIMEOUT"
    assert text == "The model has not begun to answer within 0.01 s"


@on_both_loops
async def test_a_model_that_falls_silent_is_given_up() -> None:
    assert (await ended(patience(first_chunk=60, idle=0.01), once()))[0] == "IDLE_TIMEOUT"
    assert (await ended(patience(idle=0.01), once()))[0] == "IDLE_TIMEOUT"


@on_both_loops
async def test_a_reader_that_stalls_is_given_up_whatever_the_model_does() -> None:
    assert (await ended(patience(write=0.01), write=True))[0] == "READER_STALLED"
    assert (await ended(patience(write=0.01, first_chunk=60), never(), write=True))[0] == "READER_STALLED"


@on_both_loops
async def test_a_model_that_falls_silent_is_given_up_whatever_the_reader_does() -> None:
    assert (await ended(patience(write=60, first_chunk=0.01), never(), write=True))[0] == "FIRST_CHUNK_TIMEOUT"


@on_both_loops
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


@on_both_loops
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


@on_both_loops
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


@on_both_loops
async def test_the_first_to_end_a_call_says_why() -> None:
    waits = patience()

    async def wait() -> None:
        async with waits:
            await asyncio.Event().wait()

    waiting = asyncio.ensure_future(wait())
    await asyncio.sleep(0)
    waits.end(Draining("first"))
    waits.end(Draining("second"))
    await asyncio.sleep(0)
    assert not waiting.done()
    waits.end(Draining("third"))
    with pytest.raises(Draining, match="first"):
        await waiting
    waits.end(Draining("last"))


@on_both_loops
async def test_a_call_that_has_ended_well_is_not_ended_again() -> None:
    async with patience() as waits:
        pass
    waits.end(Draining("bye"))


@on_both_loops
async def test_nothing_ends_a_call_whose_last_message_is_being_written_but_its_reader() -> None:
    async with patience(soon(-1)) as waits:  # else it would end in the next turn
        waits.writing(last=True)
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    async def stalls() -> None:
        async with asyncio.timeout(10), patience(write=0.01) as waits:
            waits.writing(last=True)
            await asyncio.Event().wait()

    with pytest.raises(DeadlineExceeded, match="has not read"):
        await stalls()


@on_both_loops
async def test_a_limit_that_is_now_is_one_like_any_other() -> None:
    # uvloop has another kind of timer for it.
    assert (await ended(patience(write=0, first_chunk=60), never(), write=True))[0] == "READER_STALLED"
    assert (await ended(patience(write=60, first_chunk=0), never(), write=True))[0] == "FIRST_CHUNK_TIMEOUT"


@on_both_loops
async def test_no_timer_keeps_a_call_that_has_ended() -> None:
    async with patience() as waits:
        waits.writing(last=False)
    left = weakref.ref(waits)
    del waits
    gc.collect()
    assert left() is None


@on_both_loops
async def test_nor_does_one_that_a_nearer_limit_has_replaced() -> None:
    async with patience(write=30, idle=10) as waits:
        waits.writing(last=False)
        source = waits.watch(once())
        await anext(source)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(source), 0.01)
    left = weakref.ref(waits)
    del waits, source
    gc.collect()
    assert left() is None


@on_both_loops
async def test_a_limit_counts_again_whatever_became_of_its_first_timer() -> None:
    async def waiting_twice(waits: Limits, first: float, between: float) -> None:
        async with asyncio.timeout(10), waits:
            waits.writing(last=False)
            await asyncio.sleep(first)
            waits.written()
            await asyncio.sleep(between)
            waits.writing(last=False)
            await asyncio.Event().wait()

    for first, between in ((0, 0.1), (0.05, 0)):  # it has rung while nobody waited, or rings in the second wait
        with pytest.raises(DeadlineExceeded) as caught:
            await waiting_twice(patience(write=0.08), first, between)
        assert caught.value.reason == "READER_STALLED"


@on_both_loops
async def test_without_limits_upstream_is_read_directly() -> None:
    source = once()
    assert patience().watch(source) is source
    assert patience(first_chunk=60).watch(source) is not source
    assert patience(idle=60).watch(source) is not source


@on_both_loops
async def test_upstreams_own_clock_may_be_a_moment_ahead() -> None:
    stop_the_clock()

    async def fails(error: Exception, at: float) -> None:
        async with patience(Deadline(at, "CALLER_DEADLINE", "passed")):
            raise error

    with pytest.raises(DeadlineExceeded) as caught:
        await fails(UpstreamDeadline("x"), at=0.049)
    assert caught.value.reason == "CALLER_DEADLINE"
    with pytest.raises(UpstreamDeadline):
        await fails(UpstreamDeadline("x"), at=0.051)
    with pytest.raises(ZeroDivisionError):
        await fails(ZeroDivisionError(), at=0.049)


@on_both_loops
async def test_other_errors_and_cancellation_pass() -> None:
    for error in (ZeroDivisionError, TimeoutError, asyncio.CancelledError):
        with pytest.raises(error):
            async with patience():
                raise error
