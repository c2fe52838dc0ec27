"""The caller goes, in every way and at every moment: the call upstream ends at once. No orphan, ever."""

import asyncio
import random
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import grpc
import pytest
from google.rpc.error_details_pb2 import RetryInfo

from tests.faults.forkserver import ForkServer
from tests.faults.processes import NARROW, Caller, ServerChild, eventually, pieces, stalled, written_at
from tests.faults.recorder import milliseconds, record
from vertex_emulator.call_records import Call
from vertex_emulator.emulator import Emulator
from vertex_emulator.protos import prediction_pb2
from vertex_emulator.script import answer, repeat, silence, status

TRIES = 100


@pytest.fixture(scope="session")
async def gc_off(forkserver: ForkServer, the_upstream: Emulator) -> AsyncIterator[ServerChild]:
    async with forkserver.serving(the_upstream.address, collected=False) as running:
        yield running


@pytest.fixture(params=["", " (garbage collection off)"], ids=["as_shipped", "gc_off"])
async def setting(request: pytest.FixtureRequest, served: ServerChild, gc_off: ServerChild) -> tuple[ServerChild, str]:
    """A server, and what to add to a row's name: nothing of this may hang on the garbage collector."""
    return (gc_off if request.param else served), request.param


Setting = tuple[ServerChild, str]


def prompt(call: Call) -> str:
    assert isinstance(call.request, prediction_pb2.GenerateContentRequest)
    return call.request.contents[-1].parts[0].text


async def cancel(call: Any, upstream: Emulator) -> float:
    """Cancel the only call; the seconds until upstream saw it."""
    (record,) = upstream.open_calls
    begin = time.monotonic()
    call.cancel()
    await upstream.wait_until(lambda upstream: not upstream.open_calls)
    assert record.by_caller
    assert record.code is grpc.StatusCode.CANCELLED
    assert record.ended is not None
    return record.ended - begin


async def test_a_cancel_before_the_first_chunk_ends_the_call_upstream(upstream: Emulator, setting: Setting) -> None:
    served, suffix = setting
    upstream.script.play(answer(silence(), uses=0))
    seconds = []
    async with served.caller() as caller:
        for _ in range(TRIES):
            call = caller.start()
            await upstream.wait_until(lambda upstream: len(upstream.open_calls) == 1)
            seconds.append(await cancel(call, upstream))
    record(f"cancel before the first chunk{suffix}", *milliseconds(seconds))


@pytest.mark.parametrize(
    ("row", "interval"), [("cancel while reading", 0.02), ("cancel at 2 ms chunks", 0.002)], ids=["20_ms", "2_ms"]
)
async def test_a_cancel_while_reading_ends_the_call_upstream(
    upstream: Emulator, setting: Setting, row: str, interval: float
) -> None:
    served, suffix = setting
    upstream.script.play(answer(repeat(0, "word ", interval=interval), uses=0))
    seconds = []
    async with served.caller() as caller:
        for _ in range(TRIES):
            call = caller.start()
            await pieces(call, random.randint(1, 4))
            await asyncio.sleep(random.uniform(0, interval))  # at any moment between two chunks
            seconds.append(await cancel(call, upstream))
    record(row + suffix, *milliseconds(seconds))


async def test_a_cancel_during_a_retry_wait_leaves_the_call_and_asks_no_more(
    upstream: Emulator, setting: Setting
) -> None:
    served, suffix = setting
    wish = RetryInfo()
    wish.retry_delay.FromMilliseconds(500)
    upstream.script.play(
        answer(status(grpc.StatusCode.UNAVAILABLE, "away", wish), user_text="fail", uses=0), answer("ok", uses=0)
    )
    seconds = []
    async with served.caller() as caller:
        for turn in range(TRIES):
            # Each failure costs the retry budget a token, and a success earns a tenth of it back.
            await asyncio.gather(*(caller.ask("earn") for _ in range(10)))
            call = caller.start("fail", request_id=f"waiting-{turn}")
            await upstream.wait_until(partial(have_failed, turn + 1))
            await asyncio.sleep(0.02)  # for the server to have begun to wait; nothing outside tells when it has
            since = len(served.log)
            begin = time.time()
            call.cancel()
            _, line = await served.said(f"request_id=waiting-{turn} ", since=since)
            assert "code=CANCELLED" in line
            seconds.append(written_at(line) - begin)  # it is handed on up to 50 ms later: lines gather
        await asyncio.sleep(0.75)  # in which the last of them would have been asked again
    assert len(failed(upstream)) == TRIES
    record(f"cancel during a retry wait{suffix}", *milliseconds(seconds))


def have_failed(count: int, upstream: Emulator) -> bool:
    return len(failed(upstream)) == count


def has_ended(call: Call, _: Emulator) -> bool:
    return not call.open


def failed(upstream: Emulator) -> list[Call]:
    return [call for call in upstream.calls if call.code is grpc.StatusCode.UNAVAILABLE]


async def test_a_cancel_by_a_caller_that_does_not_read_ends_the_call_upstream(
    upstream: Emulator, setting: Setting
) -> None:
    served, suffix = setting
    upstream.script.play(answer(repeat(0, "x" * 16384, interval=0.002), uses=0))
    seconds = []
    async with served.caller(*NARROW) as caller:
        for _ in range(TRIES // 10):
            calls = {f"stall-{number}": caller.start(f"stall-{number}") for number in range(10)}
            await stalled(upstream, len(calls))
            for open_call in upstream.open_calls:
                begin = time.monotonic()
                calls[prompt(open_call)].cancel()
                await upstream.wait_until(partial(has_ended, open_call))
                assert open_call.ended is not None
                assert open_call.by_caller
                seconds.append(open_call.ended - begin)
    assert len(seconds) == TRIES
    record(f"cancel without reading{suffix}", *milliseconds(seconds))


async def test_a_cancel_that_meets_a_write_is_a_quiet_cancellation(upstream: Emulator, served: ServerChild) -> None:
    upstream.script.play(answer(repeat(0, "word ", interval=0.0005), uses=0))
    since = len(served.log)
    async with served.caller() as caller:

        async def leave(number: int) -> None:
            call = caller.start(request_id=f"race-{number}")
            await pieces(call, random.randint(1, 20))
            call.cancel()

        for batch in range(0, 300, 4):
            await asyncio.gather(*(leave(number) for number in range(batch, batch + 4)))
        for number in range(300):
            _, line = await served.said(f"request_id=race-{number} ", since=since)
            assert "code=CANCELLED" in line
        await leave(300)
        await served.said("request_id=race-300 ", since=since)  # lines gather: each complaint has come before
    assert not [line for _, line in served.log[since:] if " ERROR " in line or "Traceback" in line]


@pytest.mark.parametrize("streams", [1, 10])
async def test_a_caller_that_is_killed_leaves_nothing_open_upstream(
    upstream: Emulator, served: ServerChild, streams: int
) -> None:
    upstream.script.play(answer(repeat(0, "word ", interval=0.02), uses=0))
    seconds = []
    for _ in range(3):
        async with reader(served, streams) as process:
            calls = upstream.open_calls
            assert len(calls) == streams
            begin = time.monotonic()
            process.kill()
            await upstream.wait_until(lambda upstream: not upstream.open_calls)
            seconds += [call.ended - begin for call in calls if call.ended is not None]
    assert len(seconds) == 3 * streams
    record("caller killed", *milliseconds(seconds))


@asynccontextmanager
async def reader(served: ServerChild, streams: int) -> AsyncIterator[asyncio.subprocess.Process]:
    """A caller in a process of its own, reading so many streams."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.faults.reader", served.address, str(streams)), stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        assert await asyncio.wait_for(process.stdout.readline(), 30) == b"reading\n"
        await asyncio.sleep(0.1)
        assert process.returncode is None
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@pytest.fixture(scope="module")
async def narrow_upstream() -> AsyncIterator[Emulator]:
    async with Emulator(max_concurrent_streams=10) as running:
        yield running


@pytest.fixture(scope="module")
async def pinging(forkserver: ForkServer, narrow_upstream: Emulator) -> AsyncIterator[ServerChild]:
    """A server that looks after its callers each second, on an upstream that takes ten streams at once."""
    async with forkserver.serving(narrow_upstream.address, "--keepalive", "1", "--keepalive-timeout", "1") as running:
        yield running


async def test_a_caller_that_is_stopped_is_given_up_after_a_ping(
    narrow_upstream: Emulator, pinging: ServerChild
) -> None:
    narrow_upstream.reset()
    narrow_upstream.script.play(answer(repeat(0, "word ", interval=0.1), uses=0))
    async with reader(pinging, 3) as process:
        begin = time.monotonic()
        process.send_signal(signal.SIGSTOP)
        await narrow_upstream.wait_until(lambda upstream: not upstream.open_calls, timeout=30)
        record("caller stopped", *milliseconds([call.ended - begin for call in narrow_upstream.calls if call.ended]))


async def test_after_a_hundred_cancels_an_upstream_of_ten_streams_answers_at_once(
    narrow_upstream: Emulator, pinging: ServerChild
) -> None:
    narrow_upstream.reset()
    narrow_upstream.script.play(
        answer("hello", user_text="next", uses=0), answer(repeat(0, "word ", interval=0.02), uses=0)
    )
    seconds = []
    async with pinging.caller() as caller:
        for _ in range(TRIES // 10):
            calls = [caller.start() for _ in range(10)]
            for call in calls:
                await pieces(call, 1)
            for call in calls:
                call.cancel()
            begin = time.monotonic()
            await pieces(caller.start("next"), 1)
            seconds.append(time.monotonic() - begin)
    record("upstream of ten streams", *milliseconds(seconds))


async def test_a_thousand_cancels_leave_nothing_behind(upstream: Emulator, served: ServerChild) -> None:
    await leave_nothing_behind(upstream, served, 1000)


@pytest.mark.soak
@pytest.mark.timeout(600)
async def test_ten_thousand_cancels_leave_nothing_behind(upstream: Emulator, served: ServerChild) -> None:
    await leave_nothing_behind(upstream, served, 10_000)


async def leave_nothing_behind(upstream: Emulator, served: ServerChild, cancels: int) -> None:
    upstream.script.play(answer(repeat(0, "word ", interval=0.01), uses=0))
    async with served.caller() as caller:
        await leave(upstream, caller, 200)  # caches, pools and first allocations
        tasks, sockets, memory = await served.tasks(), served.sockets(), served.memory()
        await leave(upstream, caller, cancels)
        async with asyncio.timeout(10):
            while await served.tasks() > tasks:  # noqa: ASYNC110 - nobody tells when it changes
                await asyncio.sleep(0.05)
        await eventually(lambda: served.sockets() <= sockets)
        record(f"{cancels:,} cancels", served.memory() - memory)


async def leave(upstream: Emulator, caller: Caller, cancels: int) -> None:
    """So many callers come and go, twenty at a time, at any moment of a call."""

    async def come_and_go() -> None:
        call = caller.start()
        await asyncio.sleep(random.uniform(0, 0.04))
        call.cancel()

    for _ in range(cancels // 20):
        await asyncio.gather(*(come_and_go() for _ in range(20)))
    await upstream.wait_until(lambda upstream: not upstream.open_calls)
