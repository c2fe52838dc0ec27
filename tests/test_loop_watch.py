"""The watch on the event loop sees what it is for, on both loops."""

import asyncio
import resource
import time
from collections.abc import Callable

import pytest
import uvloop

from tests.loop_watch import LoopWatch


def sleep() -> None:
    time.sleep(0.1)


def work() -> None:
    end = time.thread_time() + 0.1
    while time.thread_time() < end:
        pass


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("block", [sleep, work])
def test_a_call_that_blocks_for_a_tenth_of_a_second_is_seen(
    new_loop: Callable[[], asyncio.AbstractEventLoop], block: Callable[[], None]
) -> None:
    async def run() -> LoopWatch:
        watch = LoopWatch()
        watch.start()
        await asyncio.sleep(0.05)
        block()
        await asyncio.sleep(0.05)
        return watch

    with asyncio.Runner(loop_factory=new_loop) as runner:
        watch = runner.run(run())
    assert 0.09 < watch.longest <= watch.late


async def test_a_process_that_may_open_no_more_files_is_watched_too() -> None:
    watch = LoopWatch()
    watch.start()
    few, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, most))
    try:
        await asyncio.sleep(0.05)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (few, most))
    assert 0 < watch.longest <= watch.late
