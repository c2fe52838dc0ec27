"""The whole service under a loop that chooses: everything is real but gRPC's server and the model upstream."""

import asyncio
import gc
import math
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2, status_pb2

from service.admission import slots
from service.admission.shared import Shared
from service.calls import guard, memory
from service.calls.stopping import unsent
from service.errors import CallError
from service.generation.capabilities import ModelCard
from service.generation.events import Event, Finished, FinishReason, Started, Text
from service.generation.prompt import Prompt
from service.providers.retry import Policy, Retrying
from service.runtime.server import Server
from service.settings import Settings
from service.telemetry import call_log
from service.telemetry.call_record import CallRecord
from tests.simulation import grpc_model
from tests.simulation.loop import Choices, Kind, Loop
from tests.simulation.loop import Event as Happening
from tokenwire.v1 import generation_service_pb2 as pb

NAME = "gemini-2.5-flash"
STARTED = Started(NAME)
FINISHED = Finished(reason=FinishReason.STOP, upstream_reason="STOP", usage=None)
PREFIX = "/tokenwire.v1.GenerationService/"


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """What one caller does, and what upstream says to it."""

    says: Sequence[Event | CallError] = (STARTED, Text("a"), FINISHED)
    """Upstream's words, each at any moment; behind them it is silent for ever, unless they end the answer."""
    method: str = "Generate"
    asks: bool = True
    """Whether the request comes at all."""
    coalesce: float | None = None
    """Seconds; None: pieces aren't merged."""
    first_chunk: float | None = None
    idle: float | None = None
    deadline: float | None = None
    """In seconds, as all of these."""
    room: float = math.inf
    """How many messages it has room for."""
    reads_on: bool = False
    """Whether it makes room for the others at some moment."""
    comes_late: bool = False
    """Whether it calls at some moment, unless the server takes no more calls by then; else it is there first."""
    leaves: bool = False
    """Whether it cancels at some moment."""

    def request(self, prompt: str) -> bytes:
        if self.method == "CountTokens":
            return pb.CountTokensRequest(prompt=prompt).SerializeToString()
        if self.method == "ListModels":
            return pb.ListModelsRequest().SerializeToString()
        request = pb.GenerateRequest(prompt=prompt)
        if self.coalesce is not None:
            request.coalesce.max_delay.FromMilliseconds(round(self.coalesce * 1000))
        if self.first_chunk is not None:
            request.first_chunk_timeout.FromMicroseconds(round(self.first_chunk * 1e6))
        if self.idle is not None:
            request.idle_timeout.FromMicroseconds(round(self.idle * 1e6))
        return request.SerializeToString()


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """Who calls, and what else happens."""

    callers: Sequence[Caller] = (Caller(),)
    settings: dict[str, Any] = field(default_factory=dict)
    stops: bool = False
    """Whether the server is told to stop at some moment."""
    hurries: bool = False
    """Whether it is told a second time, at any moment behind the first."""
    uvloop: bool = False


class Upstream:
    """A model whose every word is an event; it leaves a stream as `service.providers.gemini.over_grpc` does, by cancel
    and aclose.
    """

    cards = (ModelCard(name=NAME, provider="gcp.vertex_ai"),)

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self.scripts: dict[str, Sequence[Event | CallError]] = {}
        """By what the prompt says."""
        self.open = 0

    @asynccontextmanager
    async def stream(self, prompt: Prompt, *, deadline: float) -> AsyncIterator[AsyncIterator[Event]]:  # noqa: ARG002
        call = self._call(prompt)
        self.open += 1
        events = self._events(call)
        try:
            yield events
        finally:
            self.open -= 1
            call.cancel()
            await events.aclose()

    async def count_tokens(self, prompt: Prompt, *, deadline: float) -> int:  # noqa: ARG002
        call = self._call(prompt)
        self.open += 1
        try:
            await call.read()
        finally:
            self.open -= 1
            call.cancel()
        return 1

    def _call(self, prompt: Prompt) -> "_UpstreamCall":
        said = prompt.turns[-1].parts[0]
        assert isinstance(said, str)
        return _UpstreamCall(self._loop, iter(self.scripts[said]))

    async def _events(self, call: "_UpstreamCall") -> AsyncGenerator[Event, None]:
        """As with every provider, `Finished` comes once upstream's own stream has ended."""
        event: Event | None = None
        try:
            while not isinstance(event, Finished):
                event = await call.read()
                yield event
        finally:
            await asyncio.sleep(0)  # nor is it left in one step


class _UpstreamCall:
    def __init__(self, loop: Loop, script: Iterator[Event | CallError]) -> None:
        self._loop = loop
        self._script = script
        self._waiter: asyncio.Future[Event] | None = None
        self._next: Happening | None = None
        self._cancelled = False

    async def read(self) -> Event:
        """The next word, once it comes."""
        if self._cancelled:
            raise asyncio.CancelledError
        waiter = self._waiter = self._loop.create_future()
        word = next(self._script, None)
        if word is not None:
            name = f"upstream says {type(word).__name__}"
            self._next = self._loop.may_happen(name, partial(_say, waiter, word), Kind.EXPECTED)
        event: Event = await waiter
        return event

    def cancel(self) -> None:
        """A read that waits then ends by a cancellation that nobody asked its task for."""
        self._cancelled = True
        if self._next is not None:
            self._loop.cannot_happen(self._next)
        if self._waiter is not None and not self._waiter.done():
            self._loop.may_happen("upstream's call is cancelled", self._waiter.cancel)


def _say(waiter: "asyncio.Future[Event]", word: Event | CallError) -> None:
    if waiter.done():
        return
    if isinstance(word, CallError):
        waiter.set_exception(type(word)(word.text))  # each attempt has its own
    else:
        waiter.set_result(word)


class World:
    """One run of a script."""

    def __init__(self, script: Script, choices: Choices, *, tell: bool = False) -> None:
        self.script = script
        self.loop = Loop(choices, uvloop=script.uvloop)
        if tell:
            self.loop.story = []
        self.calls: list[tuple[Caller, grpc_model.Call]] = []
        self.said: dict[asyncio.Task[Any], str] = {}
        """What the log says of how each call has ended, by its task."""
        self.bugs: list[BaseException] = []
        self.broken: list[str] = []
        """Promises that this run breaks."""

    def run(self) -> list[str]:
        """Let everything happen; gives the promises that were broken."""
        gc.disable()  # it would run finalizers at moments that nobody chooses
        try:
            with _patched(self):
                self.loop.create_task(self._begin())
                self.loop.run_forever()
                self._check_what_is_left("once all limits have passed")
                for _, call in self.calls:
                    call.reads()
                self.loop.run_forever()
                self._check_what_is_left("in the end")
                for caller, call in self.calls:
                    self._check_call(caller, call)
                self._check_tasks()
        finally:
            self.loop.close()
            gc.enable()
        return self.broken

    async def _begin(self) -> None:
        script, loop = self.script, self.loop
        settings = Settings(**{"port": 1, "reflection": False, "write_timeout": 2.0, **script.settings})
        shared = Shared.of(slots=settings.slots, per_caller=settings.slots_per_caller)
        self.slots = shared.slots
        self.upstream = Upstream(loop)
        server = Server(settings, shared)
        wire: Any = server._server
        await server.start()
        await server.announce_serving(Retrying(self.upstream, Policy(), jitter=lambda _, most: most))
        for number, caller in enumerate(script.callers):
            self.upstream.scripts[str(number)] = caller.says
            begin = partial(self._call, wire, number, caller)
            if caller.comes_late:
                loop.may_happen(f"caller {number} calls", begin, Kind.EXPECTED)
            else:
                begin()
        if script.stops:
            loop.may_happen("the server is told to stop", partial(self._stop, server, settings.grace), Kind.TROUBLE)

    def _call(self, wire: grpc_model.Server, number: int, caller: Caller) -> None:
        if wire.stopping:
            return
        name = f"caller {number}"
        deadline = None if caller.deadline is None else self.loop.time() + caller.deadline
        request = caller.request(str(number)) if caller.asks else None
        peer = "ipv4:{}:{}".format(*_address(number))
        call = wire.call(PREFIX + caller.method, request, name=name, peer=peer, room=caller.room, deadline=deadline)
        self.calls.append((caller, call))
        if caller.leaves:
            self._may_happen(call, f"{name} leaves", call.cancel)
        if caller.reads_on:
            self._may_happen(call, f"{name} reads on", call.reads)

    def _may_happen(self, call: grpc_model.Call, name: str, happen: Callable[[], None]) -> None:
        """Before the call has ended."""
        event = self.loop.may_happen(name, happen, Kind.TROUBLE)
        call.ended.add_done_callback(lambda _: self.loop.cannot_happen(event))

    def _stop(self, server: Server, grace: float) -> None:
        stopping = self._stopping = self.loop.create_task(server.stop(grace))
        if self.script.hurries:
            event = self.loop.may_happen("the server is told to hurry", server.hurry, Kind.TROUBLE)
            stopping.add_done_callback(lambda _: self.loop.cannot_happen(event))

    def _check_what_is_left(self, when: str) -> None:
        counts = {
            "slots": self.slots.taken,
            "places in the queue": sum(row[0] for row in self.slots._waiting),
            "streams of callers": sum(self.slots._callers[0]) if self.slots._callers else 0,
            "calls upstream": self.upstream.open,
        }
        self.broken += [f"{count} {name} left {when}" for name, count in counts.items() if count]

    def _check_call(self, caller: Caller, call: grpc_model.Call) -> None:
        broken = [f"gRPC logs: {text}" for text in call.refused if not call.cut or text.startswith("unexpected")]
        answers = [one for one in call.heard if isinstance(one, bytes)]
        completed = len(answers) == 1
        if caller.method == "Generate":
            completed = _is_complete([pb.GenerateResponse.FromString(data) for data in answers], broken)
        status = call.heard[-1] if call.heard else None
        if isinstance(status, grpc_model.Status):
            code, ok = status.code.name, status.code is grpc.StatusCode.OK
            if ok != completed:
                broken.append(f"heard {code} ({status.details}) {'after' if completed else 'without'} completed")
            if not ok and (reason := _reason(status)) in ("", "INTERNAL"):
                broken.append(f"heard {code}, {reason or 'untyped'}: {status.details}")
            said = self.said.get(call.task) if call.task is not None else None
            if not call.cut and said != code:
                broken.append(f"heard {code}, and the log says {said}")
        elif not call.cut:
            broken.append("heard no status")
        elif call.cut == "stop" and not call.core.deaf:
            broken.append("heard gRPC's bare words")
        self.broken += [f"{call.name}: {text}" for text in broken]

    def _check_tasks(self) -> None:
        self.broken += [f"a task is left: {task.get_coro()}" for task in asyncio.all_tasks(self.loop)]
        self.broken += [f"a bug: {bug!r}" for bug in self.bugs]
        gc.collect()
        self.broken += [f"nobody looks at it: {context}" for context in self.loop.wrong]


def _is_complete(messages: Sequence[pb.GenerateResponse], broken: list[str]) -> bool:
    """Whether `completed` is the last message."""
    if [message.sequence for message in messages] != list(range(len(messages))):
        broken.append("its sequence has gaps")
    if any(message.HasField("completed") for message in messages[:-1]):
        broken.append("something came behind completed")
    return bool(messages) and messages[-1].HasField("completed")


def _reason(status: grpc_model.Status) -> str:
    """The reason in its ErrorInfo; empty where there is none of ours."""
    for key, value in status.trailing:
        if key == "grpc-status-details-bin" and isinstance(value, bytes):
            for detail in status_pb2.Status.FromString(value).details:
                info = error_details_pb2.ErrorInfo()
                if detail.Unpack(info) and info.domain == "tokenwire":
                    return str(info.reason)
    return ""


def _address(number: int) -> tuple[str, int]:
    """Of a caller: each has one of its own, and a connection that stays."""
    return f"127.0.0.{number + 1}", 40000


async def _in_no_thread(function: Callable[..., Any], *arguments: Any) -> Any:
    await asyncio.sleep(0)
    return function(*arguments)


@contextmanager
def _patched(world: World) -> Iterator[None]:
    """Everything that is not the loop's: gRPC's server, the log, threads, sockets."""

    def end_call(record: CallRecord, code: str) -> None:  # noqa: ARG001 - as in service.telemetry.call_log
        task = asyncio.current_task()
        assert task is not None
        world.said[task] = code

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grpc.aio, "server", partial(grpc_model.Server, world.loop))
        patch.setattr(call_log, "end_call", end_call)
        patch.setattr(call_log, "bug", lambda error, _: world.bugs.append(error))
        patch.setattr(call_log, "say", lambda *_: None)
        patch.setattr(slots, "_CALLER_CELLS", 64)
        patch.setattr(memory, "give_back", lambda _=None: None)
        patch.setattr(asyncio, "to_thread", _in_no_thread)
        for module in (guard, unsent):
            sockets = {_address(number): number for number, _ in enumerate(world.script.callers)}
            patch.setattr(module, "connections", lambda sockets=sockets: sockets)
        patch.setattr(unsent, "_held", lambda *_: 0)
        yield


def broken(script: Script, choices: Choices) -> str:
    """What a run breaks, with its story and how to repeat it; empty: nothing."""
    if not World(script, choices).run():
        return ""
    again = World(script, Choices(choices.taken), tell=True)
    promises = again.run()
    assert again.loop.story is not None
    lines = (f"World(SCRIPT, Choices({choices.taken}), tell=True)", *again.loop.story)
    return "\n".join([*lines, *(f"BROKEN: {text}" for text in promises)])


@contextmanager
def many_runs() -> Iterator[None]:
    """Spare each run's garbage collection all that was there before; without this a run takes ten times as long."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
