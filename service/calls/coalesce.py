"""Merging the pieces of an answer that wait for their reader."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext

from ..cleanup import finished
from ..contract.delivery import Coalesce
from ..generation.events import Event, Finished, Grounding, Logprobs, Started, Text
from ..generation.prompt import Reasoning, ToolCall


def coalesced(events: AsyncIterator[Event], how: Coalesce | None) -> AbstractAsyncContextManager[AsyncIterator[Event]]:
    """The same events, with neighbouring texts merged; None: as they are, each passed on as it comes."""
    return nullcontext(events) if how is None else _merged(events, how)


@asynccontextmanager
async def _merged(events: AsyncIterator[Event], how: Coalesce) -> AsyncIterator[AsyncIterator[Event]]:
    """Upstream is read ahead by about `max_bytes` of text, so a slow reader slows the model down, as it should."""
    buffer = _Buffer(how)
    reading = asyncio.ensure_future(buffer.fill(events))
    try:
        yield buffer.drain()
    finally:
        reading.cancel()
        await finished(reading)


class _Buffer:
    """Filled by one task, drained by another."""

    def __init__(self, how: Coalesce) -> None:
        self._how = how
        self._events: deque[tuple[Event, int]] = deque()
        """Each with the bytes of its text."""
        self._held = 0
        """Bytes of text in all."""
        self._due = 0.0
        """Until when the oldest may be held back, on the loop's clock."""
        self._at_once = False
        """Whether something came that is not to be held back: anything but text, or the end."""
        self._ended = False
        self._error: BaseException | None = None
        self._changed = asyncio.Event()
        self._room = asyncio.Event()

    async def fill(self, events: AsyncIterator[Event]) -> None:
        try:
            async for event in events:
                while self._held >= self._how.max_bytes:
                    self._room.clear()
                    await self._room.wait()
                self._put(event)
        except BaseException as error:  # noqa: BLE001 - `drain` raises it, behind the text that came before it
            self._error = error
        self._ended = self._at_once = True
        self._changed.set()

    async def drain(self) -> AsyncIterator[Event]:
        while await self._due_now():
            while self._events:
                yield self._take()
        if self._error is not None:
            raise self._error

    def _put(self, event: Event) -> None:
        if not self._events:
            self._due = asyncio.get_running_loop().time() + self._how.max_delay
        match event:
            case Text():
                size = len(event.text.encode())
            case Reasoning():
                size = len(event.text.encode())
                self._at_once = True
            case ToolCall() | Grounding() | Logprobs() | Started() | Finished():
                size = 0
                self._at_once = True
        self._events.append((event, size))
        self._held += size
        self._changed.set()

    async def _due_now(self) -> bool:
        """Wait until something is to be sent; False once there is nothing more."""
        while not (self._events or self._ended):
            self._changed.clear()
            await self._changed.wait()
        while not self._at_once and self._held < self._how.max_bytes:
            self._changed.clear()
            try:
                async with asyncio.timeout_at(self._due):
                    await self._changed.wait()
            except TimeoutError:
                break
        return bool(self._events)

    def _take(self) -> Event:
        """The oldest event, together with the texts right behind it if it is one."""
        event, size = self._events.popleft()
        if isinstance(event, Text):
            texts = [event.text]
            while self._events and isinstance(following := self._events[0][0], Text):
                size += self._events.popleft()[1]
                texts.append(following.text)
            event = Text("".join(texts))
        self._held -= size
        self._at_once = self._ended or any(not isinstance(other, Text) for other, _ in self._events)
        self._room.set()
        return event
