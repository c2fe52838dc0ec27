"""What one caller may do with a call, and what the call takes of its quotas."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

from tokenwire.v1 import generation_service_pb2 as pb

from ..admission.callers import Caller
from ..admission.identity import Identity
from ..admission.quotas import Quota, Quotas
from ..contract import decode, encode
from ..errors import CallNotAllowed, ModelNotAllowed, NotServed, UpstreamError
from ..generation.capabilities import ModelCard
from ..generation.prompt import Prompt
from .call import Call

_ASKED_AT_ONCE = 100
"""Of so many callers it is found out at once what they have used, so that calls needn't stand behind thousands."""


def allowed(name: str, cards: Sequence[ModelCard], caller: Caller) -> Sequence[ModelCard]:
    """The models that this caller may use. Raises ModelNotAllowed where it may use none, or not the one it names."""
    may = caller.models
    if may is None:
        return cards
    found = [card for card in cards if card.name in may]
    if not found or (name and name not in may and any(card.name == name for card in cards)):
        told = ", ".join(card.name for card in found) or "none"
        raise ModelNotAllowed(f"Models that this caller may use: {told}", metadata={"models": told})
    return found


class Accounts:
    """Counts what callers use. Where nobody has to say who calls, it counts nothing."""

    def __init__(self, identity: Identity, quotas: Quotas | None) -> None:
        """`quotas` is None where nobody has to say who calls."""
        self._identity = identity
        self._quotas = quotas

    @asynccontextmanager
    async def charged(
        self, request: pb.GenerateRequest, prompt: Prompt, call: Call, answer: encode.Answer
    ) -> AsyncIterator[Prompt]:
        """Count a call of Generate, and settle it in the end. Raises QuotaExceeded.

        Gives the prompt with what the server's owner has said of this caller: its labels, and the models that may stand
        in. Once the caller's budget of the day is used up, the call ends with BudgetExhausted.
        """
        if self._quotas is None:
            yield prompt
            return
        caller = call.caller
        charge = await self._quotas.charge(caller, *decode.tokens(request))
        charge.end = call.time_limits.end
        watched = charge.saw if caller.tokens_per_day is not None else None
        # Whether a model may have taken it, and somebody has to pay.
        taken = True
        try:
            yield replace(prompt, owner_labels=caller.labels, models=caller.models, usage_seen=watched)
        except UpstreamError:
            taken = answer.sequence > 0
            raise
        except BaseException:
            taken = answer.admission_wait is not None
            raise
        finally:
            charge.settle(answer.tokens, characters=answer.characters) if taken else charge.nothing()

    @asynccontextmanager
    async def counted(self, call: Call) -> AsyncIterator[None]:
        """Count a call that takes no tokens. Raises QuotaExceeded."""
        if self._quotas is None:
            yield
            return
        charge = await self._quotas.charge(call.caller, 0, 0)
        try:
            yield
        finally:
            charge.nothing()

    async def usage(self, caller: Caller, *, of_all: bool) -> list[tuple[str, Sequence[Quota], int]]:
        """What this caller has used, or all have, by their names; as `encode.usage` takes it.

        Raises NotServed and CallNotAllowed.
        """
        if self._quotas is None:
            raise NotServed("This server asks nobody who calls, so it counts nobody's usage")
        callers = {caller.name: caller}
        if of_all:
            if not caller.admin:
                raise CallNotAllowed(
                    "The usage of all callers is for administrators: `admin = true` in the callers file"
                )
            callers |= {one.name: one for one in self._identity.named}
        everyone, told = list(callers.values()), list[tuple[Sequence[Quota], int]]()
        for begin in range(0, len(everyone), _ASKED_AT_ONCE):
            several = everyone[begin : begin + _ASKED_AT_ONCE]
            told += await asyncio.gather(*map(self._quotas.told, several))
        return sorted((name, *one) for name, one in zip(callers, told, strict=True))
