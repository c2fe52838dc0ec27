"""Ending things in good order, where several things may end a call at once."""

import asyncio
from collections.abc import Awaitable


async def finished(ending: Awaitable[None]) -> None:
    """Await the end of something, to the end, even if that is cancelled meanwhile; raises the cancellation then.

    A call may be cancelled twice: by a limit, and by its caller. The second time would strike in the middle of what the
    first has begun to close, and leave it half closed: a connection that goes on, a stream that somebody still reads.
    """
    task = asyncio.ensure_future(ending)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait((task,))
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
    task.result()
