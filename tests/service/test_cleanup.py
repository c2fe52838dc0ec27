"""What has begun to be closed is closed to the end."""

import asyncio

import pytest

from service.cleanup import finished


async def test_a_cancellation_waits_for_the_end() -> None:
    gate = asyncio.Event()
    closed = []

    async def close() -> None:
        await gate.wait()
        closed.append(True)

    closing = asyncio.ensure_future(finished(close()))
    for _ in range(3):
        await asyncio.sleep(0)
        closing.cancel()
    await asyncio.sleep(0)
    assert not closing.done()
    gate.set()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert closed


async def test_an_error_of_the_end_is_raised() -> None:
    async def fail() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await finished(fail())
