"""Asking upstream again, when that can help and can do no harm.

Only before anything was sent, only after UNAVAILABLE and RESOURCE_EXHAUSTED, never past the deadline, and within a
budget: in an outage, retries must not be what keeps upstream down.
"""

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import dataclass, replace

from service.errors import UpstreamError, UpstreamQuota, UpstreamUnavailable
from service.model import Event, Finished, Model, Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How to retry."""

    max_attempts: int = 3
    """For one model; 1 is no retry."""
    base_seconds: float = 0.1
    """The n-th pause is random, from 0 to base * 2**(n-1): "full jitter"."""
    cap_seconds: float = 5.0
    """No pause is longer but for jitter; whoever waits holds a slot. An upstream that asks for more fails at once."""
    fallback: str = ""
    """The model to ask once the first has failed for good; empty: none."""


class Budget:
    """gRPC's retry throttling (proposal A6): a failure costs a token, a success earns a tenth.

    Retries stop while half of the tokens are gone: a few in an outage, then at most one for ten successes.
    """

    def __init__(self, tokens: float = 10.0, ratio: float = 0.1) -> None:
        self._most = self._tokens = tokens
        self._ratio = ratio

    def success(self) -> None:
        self._tokens = min(self._most, self._tokens + self._ratio)

    def failure(self) -> None:
        self._tokens = max(0.0, self._tokens - 1)

    @property
    def allows(self) -> bool:
        return self._tokens > self._most / 2


class Retrying:
    """A model that asks another one, again if need be; a `service.model.Model`."""

    def __init__(
        self,
        model: Model,
        policy: Policy,
        *,
        jitter: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._model = model
        self._policy = policy
        self._budget = Budget()
        self._jitter = jitter

    def stream(self, prompt: Prompt, *, deadline: float) -> AbstractAsyncContextManager[AsyncIterator[Event]]:
        """See `service.model.Model`."""
        return aclosing(self._events(prompt, deadline))

    async def _events(self, prompt: Prompt, deadline: float) -> AsyncGenerator[Event, None]:
        attempts = 0
        failures = 0  # of the model that is being asked
        begun = False
        while True:
            attempts += 1
            try:
                async with self._model.stream(prompt, deadline=deadline) as events:
                    async for event in events:
                        if not begun:
                            begun = True
                            self._budget.success()
                        if attempts > 1 and isinstance(event, Finished):
                            yield replace(event, attempts=attempts)
                        else:
                            yield event
                return  # noqa: TRY300 - nothing may come between the stream's end and ours
            except (UpstreamUnavailable, UpstreamQuota) as error:
                if begun:
                    raise
                failures += 1
                self._budget.failure()
                pause = self._pause(failures, error)
                if pause is not None and pause < deadline - asyncio.get_running_loop().time():
                    await asyncio.sleep(pause)
                elif self._policy.fallback not in ("", prompt.model) and self._budget.allows:
                    prompt = replace(prompt, model=self._policy.fallback)
                    failures = 0
                else:
                    error.metadata["upstream_attempts"] = str(attempts)
                    raise

    def _pause(self, failures: int, error: UpstreamError) -> float | None:
        """Seconds to wait before the next attempt; None if there shall be none."""
        wish = error.retry_after or 0.0
        if failures >= self._policy.max_attempts or not self._budget.allows or wish > self._policy.cap_seconds:
            return None
        most = min(self._policy.cap_seconds, self._policy.base_seconds * 2 ** (failures - 1))
        # Upstream's own wish is the least; jitter on top keeps callers who failed together from coming back together.
        return wish + self._jitter(0.0, most)
