"""The story of one request, from top to bottom."""

import asyncio
import uuid
from typing import Any

import grpc.aio
from tokenwire.v1 import generation_service_pb2 as pb
from tokenwire.v1.generation_service_pb2_grpc import GenerationServiceServicer

from service import log, memory, wire
from service.admission import Admission
from service.coalesce import coalesced
from service.config import Settings
from service.errors import Draining, NotReady, TokenwireError
from service.mistakes import Limits, good_request_id
from service.model import Finished, Model
from service.patience import Deadline, Patience
from service.slots import Slots

Context = grpc.aio.ServicerContext[Any, Any]


class Servicer(GenerationServiceServicer):
    """Answers tokenwire.v1.GenerationService. Failures are raised; `Guard` makes statuses of them."""

    def __init__(self, settings: Settings, slots: Slots) -> None:
        self._settings = settings
        self._limits = Limits(prompt=settings.max_prompt_bytes, inline=settings.max_inline_bytes)
        self._admission = Admission(slots, queue=settings.queue, wait=settings.queue_timeout)
        self._model: Model | None = None
        self._draining = False
        self._running: dict[asyncio.Task[Any], Patience] = {}
        """By the task of each call, which ends once its status has been sent."""

    def serve(self, model: Model) -> None:
        """From now on, answer with `model`."""
        self._model = model

    def drain(self) -> None:
        """From now on, refuse new calls."""
        self._draining = True

    async def finish(self, seconds: float) -> None:
        """Wait until the running calls have ended, so long at most."""
        if self._running:
            await asyncio.wait(self._running, timeout=seconds)

    def end(self) -> None:
        """End those that still run."""
        for patience in self._running.values():
            patience.end(
                Draining("The server is going away, and the answer took longer than it could wait", retry_after=1)
            )

    async def Generate(self, request: pb.GenerateRequest, context: Context) -> None:  # type: ignore[override] # a coroutine that writes: only its own await of a write sees a cancel
        """Parse, ask, relay. Leaving the model's stream, in whatever way, ends the call upstream."""
        answer = wire.Answer(generation_id=uuid.uuid4().hex, request_id=request.request_id)
        # Before anything is refused: its owner looks for the refusal under the same id.
        logged = request.request_id if good_request_id(request.request_id) else ""
        log.note(generation_id=answer.generation_id, request_id=logged or "-")
        model = self._ready()
        prompt = wire.parse(request, cards=model.cards, limits=self._limits)
        wishes = wire.delivery(request)
        deadline = self._deadline(context)
        try:
            async with self._patience(deadline, wishes) as patience:
                answer.admission_wait = await self._admission.enter(_caller(context))
                async with (
                    model.stream(prompt, deadline=deadline.at) as raw,
                    coalesced(patience.upstream(raw), wishes.coalesce) as events,
                ):
                    async for event in events:
                        patience.writing(last=isinstance(event, Finished))
                        await context.write(answer.encode(event))
                        patience.written()
        except TokenwireError as error:
            raise error.after(answer.sequence) from error.__cause__
        finally:
            log.note(model=answer.model or prompt.model, messages=answer.sequence, finish=answer.finish or "-")

    async def CountTokens(self, request: pb.CountTokensRequest, context: Context) -> pb.CountTokensResponse:
        """Parse, ask. It takes a slot as well: a flood of counts would reach upstream like any other."""
        model = self._ready()
        prompt = wire.parse_count(request, cards=model.cards, limits=self._limits)
        deadline = self._deadline(context)
        log.note(model=prompt.model)
        async with self._patience(deadline, wire.Delivery()):
            await self._admission.enter(_caller(context))
            total = await model.count_tokens(prompt, deadline=deadline.at)
        return pb.CountTokensResponse(total_tokens=total, model=prompt.model)

    async def ListModels(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse:  # noqa: ARG002
        """The models on offer, the default first, and what each can take."""
        return wire.model_list(self._ready().cards)

    def _ready(self) -> Model:
        if self._draining:
            raise Draining("The server is going away; ask another one, or again in a moment", retry_after=1)
        if self._model is None:
            raise NotReady("The server is starting; ask again in a moment", retry_after=1)
        return self._model

    def _deadline(self, context: Context) -> Deadline:
        settings = self._settings
        return Deadline.of(context.time_remaining(), default=settings.default_deadline, longest=settings.max_deadline)

    def _patience(self, deadline: Deadline, wishes: wire.Delivery) -> Patience:
        patience = Patience(
            deadline,
            first_chunk=wishes.first_chunk_timeout,
            idle=wishes.idle_timeout,
            write=self._settings.write_timeout,
        )
        task = asyncio.current_task()
        assert task is not None
        self._running[task] = patience
        task.add_done_callback(self._ended)
        return patience

    def _ended(self, task: asyncio.Task[Any]) -> None:
        del self._running[task]
        if not self._running:
            memory.give_back()


def _caller(context: Context) -> str:
    """The peer's address without its port: "ipv4:127.0.0.1" of "ipv4:127.0.0.1:40000"."""
    return str(context.peer()).rpartition(":")[0]
