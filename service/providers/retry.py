"""Asking upstream again, when that can help and can do no harm.

Only before anything was sent, only after UNAVAILABLE and RESOURCE_EXHAUSTED, never past the deadline, and within a
budget for each model: in an outage, retries must not be what keeps upstream down.
"""

import asyncio
import mmap
import random
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import dataclass, replace

from ..errors import UpstreamError, UpstreamQuota, UpstreamUnavailable
from ..generation.capabilities import ModelCard
from ..generation.events import Event, Finished
from ..generation.prompt import Prompt
from ..generation.provider import Provider
from ..telemetry.metrics import Metrics
from ..telemetry.watch import Watch


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How to retry."""

    max_attempts: int = 3
    """For one model; 1 is no retry."""
    base_seconds: float = 0.1
    """The n-th pause is random, from 0 to base * 2**(n-1): "full jitter"."""
    cap_seconds: float = 5.0
    """No pause is longer, but for jitter: waiting calls hold slots. A model that asks for more isn't asked again."""
    fallback: str = ""
    """The model to ask once the first has failed for good; empty: none."""


class Budget:
    """gRPC's retry throttling (proposal A6) for one model: a failure costs a token, a success earns a tenth.

    Retries stop while half of the tokens are gone: a few in an outage, then at most one for ten successes.

    The tokens are in shared memory: processes forked after it was made spend from the same ones. There is no lock that
    a dying worker could keep, so of two changes at the very same moment one may be lost: a budget, not an account.
    """

    def __init__(self, tokens: float = 10.0, ratio: float = 0.1) -> None:
        self._most = tokens
        self._left = memoryview(mmap.mmap(-1, 8)).cast("d")
        self._left[0] = tokens
        self._ratio = ratio

    def success(self) -> None:
        self._left[0] = min(self._most, self._left[0] + self._ratio)

    def failure(self) -> None:
        self._left[0] = max(0.0, self._left[0] - 1)

    @property
    def allows(self) -> bool:
        return self._left[0] > self._most / 2


def budgets(models: Iterable[str]) -> Mapping[str, Budget]:
    """A budget for each model. To be made before workers are forked, so that it is one for all of them."""
    return {name: Budget() for name in models}


class Retrying:
    """A model that asks another one, again if need be; a `service.generation.provider.Provider`."""

    def __init__(
        self,
        model: Provider,
        policy: Policy,
        budget: Mapping[str, Budget] | None = None,
        *,
        watch: Watch | None = None,
        jitter: Callable[[float, float], float] = random.uniform,
    ) -> None:
        """`budget` has one for each model on offer; None: they are this process's own, as without `watch`."""
        self._model = model
        self._policy = policy
        self._budgets = budget or budgets(card.name for card in model.cards)
        self._watch = watch or Watch(Metrics({card.name: card.provider for card in model.cards}))
        self._jitter = jitter

    @property
    def cards(self) -> Sequence[ModelCard]:
        """See `service.generation.provider.Provider`."""
        return self._model.cards

    async def count_tokens(self, prompt: Prompt, *, deadline: float) -> int:
        """See `service.generation.provider.Provider`. Not asked again: callers can do so themselves."""
        with self._watch.attempt(prompt.model):
            return await self._model.count_tokens(prompt, deadline=deadline)

    def stream(self, prompt: Prompt, *, deadline: float) -> AbstractAsyncContextManager[AsyncIterator[Event]]:
        """See `service.generation.provider.Provider`."""
        return aclosing(self._events(prompt, deadline))

    async def _events(self, prompt: Prompt, deadline: float) -> AsyncGenerator[Event, None]:
        attempts = 0
        failures = 0  # of the model that is being asked
        begun = False
        while True:
            attempts += 1
            try:
                with self._watch.attempt(prompt.model) as says:
                    async with self._model.stream(prompt, deadline=deadline) as events:
                        async for event in events:
                            if not begun:
                                begun = True
                                says()
                                self._budgets[prompt.model].success()
                            if attempts > 1 and isinstance(event, Finished):
                                yield replace(event, attempts=attempts)
                            else:
                                yield event
                return  # noqa: TRY300 - nothing may come between the stream's end and ours
            except UpstreamError as error:
                error.model = prompt.model
                if begun or not isinstance(error, UpstreamUnavailable | UpstreamQuota):
                    raise
                failures += 1
                budget = self._budgets[prompt.model]
                budget.failure()
                pause = self._pause(failures, error, budget)
                if pause is not None and pause < deadline - asyncio.get_running_loop().time():
                    self._watch.metrics.retries.add(prompt.model)
                    await asyncio.sleep(pause)
                elif self._falls_back(prompt):  # no retry: this model has not been asked yet
                    self._watch.metrics.fallbacks.add(prompt.model)
                    prompt = replace(prompt, model=self._policy.fallback)
                    failures = 0
                else:
                    error.metadata["upstream_attempts"] = str(attempts)
                    raise

    def _falls_back(self, prompt: Prompt) -> bool:
        """Whether another model is left to ask, and could take this prompt whole."""
        fallback = self._policy.fallback
        if prompt.models is not None and fallback not in prompt.models:
            return False
        return fallback != prompt.model and any(card.name == fallback and card.takes(prompt) for card in self.cards)

    def _pause(self, failures: int, error: UpstreamError, budget: Budget) -> float | None:
        """Seconds to wait before the next attempt; None: there is no next attempt."""
        wish = error.retry_after or 0.0
        if failures >= self._policy.max_attempts or not budget.allows or wish > self._policy.cap_seconds:
            return None
        most = min(self._policy.cap_seconds, self._policy.base_seconds * 2 ** (failures - 1))
        # Upstream's own wish is the least; jitter on top keeps callers who failed together from coming back together.
        return wish + self._jitter(0.0, most)
