"""The story of one request, from top to bottom."""

import uuid

from tokenwire.v1 import generation_service_pb2 as pb
from tokenwire.v1.generation_service_pb2_grpc import GenerationServiceServicer

from ..admission.identity import Identity
from ..admission.quotas import Home, Quotas
from ..admission.slot_queue import Admission
from ..admission.slots import Slots
from ..contract import decode, encode
from ..contract.delivery import wants_failed
from ..contract.rules import Limits, good_request_id
from ..errors import NotReady
from ..generation.events import Finished
from ..generation.provider import Provider
from .account import Accounts, allowed
from .call import Call
from .call_settings import CallSettings
from .coalesce import coalesced


class Servicer(GenerationServiceServicer):
    """Answers tokenwire.v1.GenerationService. Failures are raised; `Guard` makes statuses of them."""

    def __init__(self, settings: CallSettings, slots: Slots, identity: Identity, counts: Home | None) -> None:
        """`counts`: what callers have used; None where nobody has to say who calls."""
        self._limits = Limits(prompt=settings.max_prompt_bytes, inline=settings.max_inline_bytes)
        self._admission = Admission(slots, queue=settings.queue, wait=settings.queue_timeout)
        self._accounts = Accounts(identity, Quotas(counts) if counts is not None else None)
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
        prompt, wishes = decode.generate(
            request, cards=allowed(request.model, model.cards, call.caller), limits=self._limits
        )
        time_limits = call.time_limits
        call.failed = encode.failed if wants_failed(call.metadata) else None
        try:
            async with (
                self._accounts.charged(request, prompt, call, answer) as prompt,
                self._admission.slot(call.peer) as answer.admission_wait,
                model.stream(prompt, deadline=time_limits.deadline.at) as raw,
                coalesced(
                    time_limits.upstream(raw, first_chunk=wishes.first_chunk_timeout, idle=wishes.idle_timeout),
                    wishes.coalesce,
                ) as events,
            ):
                async for event in events:
                    await call.write(answer.encode(event), last=isinstance(event, Finished))
        finally:
            record.model, record.messages = answer.model or prompt.model, answer.sequence
            record.asked = prompt.model if record.model != prompt.model else ""
            record.finish, record.first = answer.finish or "-", answer.first
            record.attempts = answer.attempts
            if answer.usage is not None:
                record.tokens_in = answer.usage.input_tokens
                record.tokens_out = answer.usage.output_tokens + answer.usage.reasoning_tokens
                record.tokens_cached = answer.usage.cached_tokens or None
                record.tokens_reasoning = answer.usage.reasoning_tokens or None

    async def CountTokens(self, request: pb.CountTokensRequest, call: Call) -> pb.CountTokensResponse:  # type: ignore[override] # what a context can do, and more
        """Parse, ask. It takes a slot as well: a flood of counts would reach upstream like any other."""
        model = self._ready()
        prompt = decode.parse_count(
            request, cards=allowed(request.model, model.cards, call.caller), limits=self._limits
        )
        call.record.model = prompt.model
        async with self._accounts.counted(call), self._admission.slot(call.peer):
            total = await model.count_tokens(prompt, deadline=call.time_limits.deadline.at)
        return pb.CountTokensResponse(total_tokens=total, model=prompt.model)

    async def ListModels(self, request: pb.ListModelsRequest, call: Call) -> pb.ListModelsResponse:  # type: ignore[override] # noqa: ARG002 - as above
        """The models that this caller may use, the default first, and what each can take."""
        return encode.model_list(allowed("", self._ready().cards, call.caller))

    async def GetUsage(self, request: pb.GetUsageRequest, call: Call) -> pb.GetUsageResponse:  # type: ignore[override] # what a context can do, and more
        """What the caller has used, or all have."""
        self._ready()
        return encode.usage(await self._accounts.usage(call.caller, of_all=request.all_callers))

    def _ready(self) -> Provider:
        if self._model is None:
            raise NotReady("The server is starting; ask again in a moment", retry_after=1)
        return self._model
