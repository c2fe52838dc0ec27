"""The model that says what a test tells it to."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from .generation.capabilities import ModelCard
from .generation.events import Event
from .generation.prompt import Prompt


class FakeProvider:
    """A model that says what it is told to, for tests of everything above the seam.

    An exception among the events is raised in its place. `open` counts the streams that nobody has left yet.
    """

    def __init__(
        self,
        events: Sequence[Event | BaseException],
        *,
        cards: Sequence[ModelCard] = (ModelCard(name="gemini-2.5-flash", provider="gcp.vertex_ai"),),
        tokens: int = 0,
        endless: bool = False,
    ) -> None:
        """`endless`: behind the last event it says nothing more, and doesn't end."""
        self.events = events
        self.endless = endless
        self.cards = cards
        self.tokens = tokens
        """What every prompt counts."""
        self.asked: list[Prompt] = []
        self.open = 0

    async def count_tokens(self, prompt: Prompt, *, deadline: float) -> int:  # noqa: ARG002 - as in Provider
        self.asked.append(prompt)
        return self.tokens

    @asynccontextmanager
    async def stream(self, prompt: Prompt, *, deadline: float) -> AsyncIterator[AsyncIterator[Event]]:  # noqa: ARG002 - as in Provider
        self.asked.append(prompt)
        self.open += 1
        try:
            yield self._play()
        finally:
            self.open -= 1

    async def _play(self) -> AsyncIterator[Event]:
        for event in self.events:
            if isinstance(event, BaseException):
                raise event
            yield event
        if self.endless:
            await asyncio.Event().wait()
