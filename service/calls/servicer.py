"""The story of one request, from top to bottom."""

import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from tokenwire.v1 import generation_service_pb2 as pb
from tokenwire.v1.generation_service_pb2_grpc import GenerationServiceServicer

from ..admission.identity import Identity
from ..admission.quotas import USUAL_OUTPUT_TOKENS, Charge, Quotas
from ..admission.shared import Shared
from ..admission.slot_queue import Admission
from ..contract import decode, encode
from ..contract.rules import Limits, good_request_id
from ..errors import CallNotAllowed, ModelNotAllowed, NotReady, NotServed, UpstreamError
from ..generation.capabilities import ModelCard
from ..generation.events import Finished
from ..generation.prompt import Prompt
from ..generation.provider import Provider
from .call import Call
from .call_settings import CallSettings
from .coalesce import coalesced

_BYTES_OF_A_TOKEN = 4
_TOKENS_OF_A_FILE = 258


class Servicer(GenerationServiceServicer):
    """Answers tokenwire.v1.GenerationService. Failures are raised; `Guard` makes statuses of them."""

    def __init__(self, settings: CallSettings, shared: Shared, identity: Identity) -> None:
        self._identity = identity
        self._limits = Limits(prompt=settings.max_prompt_bytes, inline=settings.max_inline_bytes)
        self._admission = Admission(shared.slots, queue=settings.queue, wait=settings.queue_timeout)
        self._quotas = Quotas(shared.counts) if shared.counts is not None else None
        self._model: Provider | None = None

    def use(self, model: Provider) -> None:
        """From now on, answer with `model`."""
        self._model = model

    async def Generate(self, request: pb.GenerateRequest, call: Call) -> None:  # type: ignore[override] # a coroutine that writes: only its own await of a write sees a cancel
        """Parse, ask, relay. Leaving the model's stream, in whatever way, ends the call upstream."""
        answer = encode.Answer(generation_id=uuid.uuid4().hex, request_id=request.request_id)
        # Before anything is refused: its owner looks for the refusal under the same id.
        record = call.record
        record.generation_id = answer.generation_id
        record.request_id = (request.request_id if good_request_id(request.request_id) else "") or "-"
        model = self._ready()
        prompt, wishes = decode.generate(request, cards=_allowed(request.model, model, call), limits=self._limits)
        time_limits = call.time_limits
        try:
            with self._charged(request, call, answer) as charge:
                prompt = _for_caller(prompt, call, charge)
                async with (
                    self._admission.slot(call.peer) as answer.admission_wait,
                    model.stream(prompt, deadline=time_limits.deadline.at) as raw,
                    coalesced(
                        time_limits.upstream(raw, first_chunk=wishes.first_chunk_timeout, idle=wishes.idle_timeout),
                        wishes.coalesce,
                    ) as events,
                ):
                    async for event in events:
                        if charge is not None and charge.exhausted is not None:
                            raise charge.exhausted
                        await call.write(answer.encode(event), last=isinstance(event, Finished))
        finally:
            record.model, record.messages = answer.model or prompt.model, answer.sequence
            record.finish = answer.finish or "-"

    async def CountTokens(self, request: pb.CountTokensRequest, call: Call) -> pb.CountTokensResponse:  # type: ignore[override] # what a context can do, and more
        """Parse, ask. It takes a slot as well: a flood of counts would reach upstream like any other."""
        model = self._ready()
        prompt = decode.parse_count(request, cards=_allowed(request.model, model, call), limits=self._limits)
        call.record.model = prompt.model
        with self._counted(call):
            async with self._admission.slot(call.peer):
                total = await model.count_tokens(prompt, deadline=call.time_limits.deadline.at)
        return pb.CountTokensResponse(total_tokens=total, model=prompt.model)

    async def ListModels(self, request: pb.ListModelsRequest, call: Call) -> pb.ListModelsResponse:  # type: ignore[override] # noqa: ARG002 - as above
        """The models that this caller may use, the default first, and what each can take."""
        return encode.model_list(_allowed("", self._ready(), call))

    async def GetUsage(self, request: pb.GetUsageRequest, call: Call) -> pb.GetUsageResponse:  # type: ignore[override] # what a context can do, and more
        """What the caller has used, or all have."""
        self._ready()
        if self._quotas is None:
            raise NotServed("This server asks nobody who calls, so it counts nobody's usage")
        callers = {call.caller.name: call.caller}
        if request.all_callers:
            if not call.caller.admin:
                raise CallNotAllowed(
                    "The usage of all callers is for administrators: `admin = true` in the callers file"
                )
            callers |= {one.name: one for one in self._identity.named}
        told = ((name, self._quotas.told(one), self._quotas.used(one).estimated_today) for name, one in callers.items())
        return encode.usage(sorted(told))

    @contextmanager
    def _charged(self, request: pb.GenerateRequest, call: Call, answer: encode.Answer) -> Iterator[Charge | None]:
        """Count a call, and settle it in the end; None where nobody has to say who calls. Raises QuotaExceeded."""
        if self._quotas is None:
            yield None
            return
        config = request.config
        output = config.max_output_tokens if config.HasField("max_output_tokens") else USUAL_OUTPUT_TOKENS
        charge = self._quotas.charge(call.caller, input_tokens=_input_tokens(request), output_tokens=output)
        charge.end = call.time_limits.end
        refused = False
        try:
            yield charge
        except UpstreamError:
            refused = not answer.sequence
            raise
        finally:
            if refused or answer.admission_wait is None:
                charge.nothing()
            else:
                charge.settle(answer.tokens, characters=answer.characters)

    @contextmanager
    def _counted(self, call: Call) -> Iterator[None]:
        """Count a call that takes no tokens. Raises QuotaExceeded."""
        charge = self._quotas.charge(call.caller, input_tokens=0, output_tokens=0) if self._quotas is not None else None
        try:
            yield
        finally:
            if charge is not None:
                charge.nothing()

    def _ready(self) -> Provider:
        if self._model is None:
            raise NotReady("The server is starting; ask again in a moment", retry_after=1)
        return self._model


def _allowed(name: str, model: Provider, call: Call) -> Sequence[ModelCard]:
    """Those that this caller may use; raises ModelNotAllowed where it may use none, or names one that it may not."""
    may = call.caller.models
    if may is None:
        return model.cards
    cards = [card for card in model.cards if card.name in may]
    if not cards or (name and name not in may and any(card.name == name for card in model.cards)):
        told = ", ".join(card.name for card in cards) or "none"
        raise ModelNotAllowed(f"Models that this caller may use: {told}", metadata={"models": told})
    return cards


def _for_caller(prompt: Prompt, call: Call, charge: Charge | None) -> Prompt:
    """The prompt with what the server's owner has said of this caller."""
    caller = call.caller
    if charge is None:
        return prompt
    watched = charge.saw if caller.tokens_per_day is not None else None
    return replace(prompt, owner_labels=caller.labels, models=caller.models, usage_seen=watched)


def _input_tokens(request: pb.GenerateRequest) -> int:
    """About how many the request has: what is said in four bytes a token, and each file as a picture."""
    size, files = request.ByteSize(), 0
    if request.messages:
        for message in request.messages:
            for part in message.parts:
                if part.HasField("inline_data"):
                    size -= len(part.inline_data.data)
                files += part.WhichOneof("data") in ("inline_data", "file_data")
    return size // _BYTES_OF_A_TOKEN + files * _TOKENS_OF_A_FILE
