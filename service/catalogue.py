"""The models of several providers as one."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager

from service.model import Card, Event, Model, Prompt


class Catalogue:
    """Asks the one that offers what a prompt names; a `service.model.Model`."""

    def __init__(self, models: Sequence[Model], *, order: Sequence[str]) -> None:
        """`order`: every public name, the default first; each is on exactly one model's cards."""
        found = {card.name: (card, model) for model in models for card in model.cards}
        self.cards: Sequence[Card] = [found[name][0] for name in order]
        self._models = {name: model for name, (_, model) in found.items()}

    def stream(self, prompt: Prompt, *, deadline: float) -> AbstractAsyncContextManager[AsyncIterator[Event]]:
        """See `service.model.Model`."""
        return self._models[prompt.model].stream(prompt, deadline=deadline)

    async def count_tokens(self, prompt: Prompt, *, deadline: float) -> int:
        """See `service.model.Model`."""
        return await self._models[prompt.model].count_tokens(prompt, deadline=deadline)
