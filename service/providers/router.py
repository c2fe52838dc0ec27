"""The models of several providers as one."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager

from ..generation.capabilities import ModelCard
from ..generation.events import Event
from ..generation.prompt import Prompt
from ..generation.provider import Provider


class Router:
    """Asks the one that offers what a prompt names; a `service.generation.provider.Provider`."""

    def __init__(self, models: Sequence[Provider], *, order: Sequence[str]) -> None:
        """`order`: every public name, the default first; each is on exactly one model's cards."""
        found = {card.name: (card, model) for model in models for card in model.cards}
        self.cards: Sequence[ModelCard] = [found[name][0] for name in order]
        self._models = {name: model for name, (_, model) in found.items()}

    def stream(self, prompt: Prompt, *, deadline: float) -> AbstractAsyncContextManager[AsyncIterator[Event]]:
        """See `service.generation.provider.Provider`."""
        return self._models[prompt.model].stream(prompt, deadline=deadline)

    async def count_tokens(self, prompt: Prompt, *, deadline: float) -> int:
        """See `service.generation.provider.Provider`."""
        return await self._models[prompt.model].count_tokens(prompt, deadline=deadline)
