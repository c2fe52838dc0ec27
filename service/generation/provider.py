"""The seam between answering a call and asking a model: one small protocol."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from .capabilities import ModelCard
from .events import Event
from .prompt import Prompt


class Provider(Protocol):
    """Something that answers prompts."""

    @property
    def cards(self) -> Sequence[ModelCard]:
        """The models on offer, the default first."""
        ...

    async def count_tokens(self, prompt: Prompt, *, deadline: float) -> int:
        """How many tokens the prompt would take as input. Raises as `stream` does; NotServed where nobody counts."""
        ...

    def stream(self, prompt: Prompt, *, deadline: float) -> AbstractAsyncContextManager[AsyncIterator[Event]]:
        """Ask, and stream the answer: `Started`, any number of pieces, `Finished` exactly once and last.

        Leaving the context ends the call to the model, wherever the stream stands, before the exit returns.
        `deadline` is on the event loop's clock; upstream is told what remains of it. Errors: those of `service.errors`.
        """
        ...
