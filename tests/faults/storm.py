"""Many calls whose events fall into the moment of a chunk: two things at once, by the thousand.

Each call has a target: its first chunk, one in the middle, the last, or the end behind it. Events are aimed at that
moment, at most 5 ms before or behind it: the caller's cancel, its deadline, its `first_chunk_timeout` or
`idle_timeout`, the server's longest deadline or write timeout, a signal; upstream's own ending is another. How long a
chunk takes depends on the machine, so each kind of event learns for each kind of target where its moment is: it comes
later after it won, and sooner after the chunk did. Both orders are counted, since a storm that misses proves nothing.

A caller's own cancel or deadline ends its call in its own gRPC, whether or not the server ever sends a status. So most
calls have neither: only the server can tell their ending. For the others, its log has to hold one line for each call
that reached it.

What a call is to do follows from the storm's seed and the call's number. When exactly things meet can't be repeated;
how often they meet can.
"""

import asyncio
import math
import os
import random
import re
import signal
import sys
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import grpc
import grpc.aio
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from service.runtime.stop import ECHO_SECONDS
from tests.faults.forkserver import ForkedServer
from tests.faults.processes import Caller
from tests.faults.windows import OPEN, Connection, Stream, connected
from tokenwire.v1 import generation_service_pb2 as pb
from vertex_emulator import ControlClient
from vertex_emulator.script import Answer, Script, Step, answer, cut, delay, end, silence, status, tokens, wait_for

SPREAD_SECONDS = 0.005

# How far one outcome moves an aim: less each time the outcome changes, but it never stops, as the machine's pace
# changes. While all outcomes are the same the aim is far off, and keeps its step.
_LONGEST_STEP_SECONDS, _SHORTEST_STEP_SECONDS = 0.008, 0.0003
_LONGEST_STEP_OF_DRAINS_SECONDS = 0.03  # a round is one outcome

# A caller's own clock that never gets its turn.
_FAR_SECONDS = 30.0

# What the server keeps of a caller's deadline at most (`service/calls/time_limits.py`): time for a typed status.
_MARGIN_SECONDS = 0.05

# What a caller needs at most to hear what a server has said. A busy one needs more, but that is no server's doing.
_HEARING_SECONDS = 0.01

SLOTS, QUEUE, QUEUE_SECONDS = 60, 20, 0.5
WRITE_SECONDS, LONGEST_SECONDS = 0.3, 1.5

FLAGS = (
    *("--slots", str(SLOTS), "--queue", str(QUEUE), "--queue-timeout", str(QUEUE_SECONDS)),
    *("--write-timeout", str(WRITE_SECONDS)),
    *("--default-deadline", str(LONGEST_SECONDS), "--max-deadline", str(LONGEST_SECONDS)),
)

# Where nothing but a signal is to end a call.
DRAIN_FLAGS = ("--write-timeout", "20", "--default-deadline", "20", "--max-deadline", "20", "--drain-delay", "0")

# The kernel deals connections out to the workers.
CONNECTIONS = 8

# Calls that one lane sends at once; now and then more than there are slots. Nothing can be aimed in a crowd.
_BURSTS = (*(1,) * 240, *(2,) * 40, *(8,) * 8, 80)
_CROWD = 8

_HOLD, _COUNT = "hold;", "count;"

_SERVICE = "/tokenwire.v1.GenerationService/"
_GENERATE, _COUNT_TOKENS, _LIST_MODELS = (_SERVICE + name for name in ("Generate", "CountTokens", "ListModels"))

_ANSWERS: Mapping[str, Any] = {
    _GENERATE: pb.GenerateResponse,
    _COUNT_TOKENS: pb.CountTokensResponse,
    _LIST_MODELS: pb.ListModelsResponse,
}

# Every method, with a request whose answer its caller doesn't read.
_METHODS: Mapping[str, bytes] = {
    _GENERATE: pb.GenerateRequest(prompt=_HOLD).SerializeToString(),
    _COUNT_TOKENS: pb.CountTokensRequest(prompt=_COUNT).SerializeToString(),
    _LIST_MODELS: b"",
    "/grpc.health.v1.Health/Check": b"",
    "/grpc.health.v1.Health/Watch": health_pb2.HealthCheckRequest().SerializeToString(),
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": reflection_pb2.ServerReflectionRequest(
        list_services="*"
    ).SerializeToString(),
}

# What a call of a storm may hear besides OK.
_HONEST = {
    grpc.StatusCode.DEADLINE_EXCEEDED: {
        *("CALLER_DEADLINE", "SERVER_DEADLINE", "FIRST_CHUNK_TIMEOUT", "IDLE_TIMEOUT", "READER_STALLED"),
        "UPSTREAM_DEADLINE",
    },
    grpc.StatusCode.UNAVAILABLE: {"UPSTREAM_UNAVAILABLE", "UPSTREAM_CUT", "DRAINING"},
    grpc.StatusCode.RESOURCE_EXHAUSTED: {"SERVER_BUSY", "UPSTREAM_QUOTA"},
    grpc.StatusCode.INVALID_ARGUMENT: {"UPSTREAM_REJECTED"},
}

# What the server's log may not say. But gRPC complains of each status that meets its caller's cancel.
_BAD_WORDS = re.compile(
    r" (ERROR|WARNING|CRITICAL) (?!grpc\._cython\.cygrpc says|tokenwire \w+ code=)"
    r"|Traceback| bug |ignored error|grpc_call_error|=INTERNAL"
)

_LINE = re.compile(r"(\S+) .*code=(\w+) .* request_id=(storm-[\w-]+)(?: .*reason=(\w+))?")

_UNNAMED = re.compile(r"Generate code=(\w+) seconds=[\d.]+ reason=(\w+)(?: worker=\d+)?$")

_NAME_BYTES = re.compile(rb"(storm-[\w-]+);")

# Reasons for which a call doesn't get as far as its target.
_ELSEWHERE = {"SERVER_BUSY", "UPSTREAM_QUOTA", "UPSTREAM_UNAVAILABLE", "UPSTREAM_REJECTED", "UPSTREAM_CUT"}

# All that is aimed; what signals do is aimed by `drain`.
AIMS = {"cancel", "reacting cancel", "deadline", "far", "first", "idle", "longest", "write"}
AIMS_OF_DRAINS = {"drain by grace", "drain by second", "drain by both"}

_UPSTREAM_FAILS = ("UNAVAILABLE", "RESOURCE_EXHAUSTED", "INVALID_ARGUMENT")


@dataclass(frozen=True)
class Play:
    """What upstream does, once its name is the prompt."""

    name: str
    target: int
    """Which piece the events are aimed at; the number of pieces: the end behind them."""
    waits: tuple[float, ...]
    """Seconds before each piece, and before the end."""
    texts: tuple[str, ...] = field(repr=False)
    ending: str
    gate: str = ""
    """What the target waits for."""

    @property
    def until_target(self) -> float:
        return sum(self.waits[: self.target + 1])

    @property
    def text(self) -> str:
        return "".join(self.texts)

    @property
    def answer(self) -> Answer:
        endings: Mapping[str, Sequence[Step]] = {
            "complete": (),
            "unfinished": (end(),),
            "silent": (silence(),),
            "cut": (cut(),),
        }
        steps: list[str | Step] = []
        for index, seconds in enumerate(self.waits):
            steps += [wait_for(self.gate)] if self.gate and index == self.target else []
            steps += [delay(seconds)] if seconds else []
            steps += [self.texts[index]] if index < len(self.texts) else []
        steps += endings[self.ending] if self.ending in endings else [status(self.ending, "no")]
        return answer(*steps, uses=0, user_text=self.name)


def plays(seed: str, *, count: int = 60) -> list[Play]:
    """Pieces at a quick pace, but for a longer wait before the target. The last one cuts a connection to upstream."""
    dice = random.Random(f"{seed}/plays")
    made = []
    for number in range(count):
        pieces = dice.choice([0, 1, 2, 3, 5, 8])
        target = dice.choice(sorted({0, pieces // 2, max(0, pieces - 1), pieces}))
        waits = [dice.choice([0, 0.001, 0.002, 0.006]) for _ in range(pieces + 1)]
        waits[target] = dice.uniform(0.008, 0.03)
        texts = tuple(f"{number}.{index} " + "x" * dice.choice([0, 10, 300]) for index in range(pieces))
        ending = dice.choice(["complete"] * 16 + ["unfinished"] * 2 + ["silent", *_UPSTREAM_FAILS])
        made.append(Play(f"play-{number:03};", target, tuple(waits), texts, "cut" if number == count - 1 else ending))
    return made


def floods(seed: str, *, count: int = 12) -> list[Play]:
    """Everything at once, for those who don't read."""
    dice = random.Random(f"{seed}/floods")
    made = []
    for number in range(count):
        pieces = dice.choice([1, 2, 5])
        texts = tuple(f"{number}.{index} " + "x" * dice.choice([0, 100, 3000]) for index in range(pieces))
        ending = dice.choice(["complete"] * 5 + ["unfinished", "ABORTED"])
        made.append(Play(f"flood-{number:03};", 0, (0,) * (pieces + 1), texts, ending))
    return made


def slow(wait: float, *, count: int = 40) -> list[Play]:
    """Each waits for its target about so long, in seconds, one a little less than the other."""
    made = []
    for number in range(count):
        texts = tuple(f"{index} " for index in range(3))
        target = number % 4
        waits = [0.0] * 4
        waits[target] = wait - 0.003 * number
        made.append(Play(f"slow-{round(wait * 1000)}-{number:03};", target, tuple(waits), texts, "complete"))
    return made


@dataclass(frozen=True)
class Plan:
    """What one call is to do."""

    number: int
    play: Play
    events: tuple[str, ...]
    """Of cancel, deadline, first and idle; or far, a deadline that leaves the server its margin; or longest, the
    server's own."""
    offsets: Mapping[str, float]
    """Seconds from the target, for each event."""
    reacts: bool
    """Whether the cancel is timed by the message before its target, and not from the call's begin."""
    coalesce: pb.Coalesce | None
    timeout: float | None
    """Of a call without a deadline of its own: None, or a deadline far beyond the server's longest."""
    method: str

    @property
    def decisive(self) -> bool:
        """Whether only the server can tell its ending."""
        return not OWN.intersection(self.events)


OWN = frozenset({"cancel", "deadline", "far"})
"""Events that end a call in its caller's own gRPC, if nobody else does."""


@dataclass
class Heard:
    """What a caller heard."""

    messages: list[Any] = field(default_factory=list)
    code: grpc.StatusCode | None = None
    """None: it heard nothing for too long, or its stream ended without a status."""
    reason: str = ""
    """Empty: the status is not typed."""
    text: str = ""
    seconds: float = 0.0
    """From the call's begin."""

    def __str__(self) -> str:
        kinds = [message.WhichOneof("event") for message in self.messages if isinstance(message, pb.GenerateResponse)]
        code = "no status" if self.code is None else self.code.name
        return f"{kinds} {code}/{self.reason or 'untyped'} {self.text!r} after {self.seconds:.3f} s"


def typed(code: grpc.StatusCode, details: Status | None) -> str:
    """The reason in a status of ours; empty: it isn't one."""
    info = ErrorInfo()
    for detail in details.details if details is not None and details.code == code.value[0] else ():
        if detail.Unpack(info) and info.domain == "tokenwire":
            return str(info.reason)
    return ""


def fault(heard: Heard, *, text: str | None, own: Collection[grpc.StatusCode] = ()) -> str:
    """What is wrong with what was heard; empty: nothing.

    `text` is the whole answer's; None: of a unary call. `own` are the codes that the caller's gRPC may have made by
    itself, of its own cancel or deadline.
    """
    if heard.code is None:
        return f"no status: {heard.text}"
    if text is not None and (wrong := _broken(heard, text)):
        return wrong
    last = heard.messages[-1].WhichOneof("event") if text is not None and heard.messages else ""
    if heard.code is grpc.StatusCode.OK:
        whole = last == "completed" if text is not None else len(heard.messages) == 1
        return "" if whole else "OK without completed"
    if not heard.reason:
        return "" if heard.code in own else f"untyped {heard.code.name}"
    if heard.reason not in _HONEST.get(heard.code, ()):
        return f"{heard.code.name}/{heard.reason}"
    return "completed, then an error" if last == "completed" else ""


def _broken(heard: Heard, text: str) -> str:
    events = [message.WhichOneof("event") for message in heard.messages]
    said = "".join(message.text for message in heard.messages)
    if [message.sequence for message in heard.messages] != list(range(len(events))):
        return "sequence"
    if not text.startswith(said) or (heard.code is grpc.StatusCode.OK and said != text):
        return "text"
    return "order" if events[:1] not in ([], ["started"]) or "completed" in events[:-1] else ""


class Aim:
    """By how much an event is to be later than its target is due, so that either of them comes first."""

    def __init__(self) -> None:
        self.seconds = 0.001
        self._changes = 1
        self._was_sooner: bool | None = None

    def learn(self, *, sooner: bool, longest_step: float = _LONGEST_STEP_SECONDS) -> None:
        self._changes += self._was_sooner is (not sooner)
        self._was_sooner = sooner
        step = max(_SHORTEST_STEP_SECONDS, longest_step / math.sqrt(self._changes))
        self.seconds += -step if sooner else step


class _Watch:
    """When a call's messages came; and its cancel, timed from its begin or by the message before its target."""

    def __init__(self, plan: Plan, call: Any, begin: float, moments: dict[str, float], *, aim: float) -> None:
        """`aim`: by how much a cancel that is timed by a message is to be later than its target is due, in seconds."""
        self._aim = aim
        self._plan = plan
        self._call = call
        self._begin = begin
        self._moments = moments
        self._timer: asyncio.TimerHandle | None = None
        self.came: list[float] = []
        """Seconds from the call's begin."""
        self.reacts = "cancel" in moments and plan.reacts and plan.method == "Generate"
        if "cancel" in moments and not self.reacts:
            self._leave(moments["cancel"])

    def message(self) -> None:
        play = self._plan.play
        self.came.append(asyncio.get_running_loop().time() - self._begin)
        if self.reacts and len(self.came) == play.target + 1:
            wait = play.waits[play.target] if play.target else 0
            self._leave(max(0, wait + self._aim + self._plan.offsets["cancel"]))

    def _leave(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        self._moments["cancel"] = loop.time() + seconds - self._begin
        self._timer = loop.call_later(seconds, self._call.cancel)

    def ended(self, seconds: float) -> set[grpc.StatusCode]:
        """The codes that the caller's gRPC may have made by itself until then."""
        own = set()
        if self._timer is not None:
            self._timer.cancel()
            if self._moments["cancel"] <= seconds:
                own.add(grpc.StatusCode.CANCELLED)
        if any(event in self._moments and seconds >= self._moments[event] - 0.002 for event in ("deadline", "far")):
            own.add(grpc.StatusCode.DEADLINE_EXCEEDED)
        return own


class Storm:
    """Sends calls to servers on one local Vertex, and keeps what was wrong with them."""

    def __init__(
        self, seed: str, upstream: str, control: ControlClient, *, patience: float = 1.0, own: float = 0.5
    ) -> None:
        """`patience`: seconds beyond a call's last moment until it has heard nothing. `own`: the part of the calls that
        are read whose callers have events of their own."""
        self.seed = seed
        self.upstream = upstream
        self.control = control
        self._patience = patience
        self._own = own
        self._plays = plays(seed)
        self._floods = floods(seed)
        self._far = slow(0.55)
        self._longest = slow(LONGEST_SECONDS)
        self._aims: defaultdict[str, Aim] = defaultdict(Aim)
        self.calls = 0
        self.decisive = 0
        """Those whose ending only the server could tell."""
        self._heard: dict[str, str] = {}
        """What the server said to its caller, by the call's name."""
        self._stuck: set[str] = set()
        """Calls whose callers heard nothing in time, by name."""
        self._untyped: dict[str, float] = {}
        """When the deadlines were, in seconds since 1970, that callers' own clocks had to tell, by the call's name."""
        self._counts = Counter[str]()
        """CountTokens, whose calls have no names: how many were sent, and how many surely reached the server."""
        self._reached: set[str] = set()
        """The names of calls that surely reached the server."""
        self.met: Counter[str] = Counter()
        """How calls ended."""
        self.orders: defaultdict[str, Counter[str]] = defaultdict(Counter)
        """By aim: how often the chunk came first and how often the event; near, how often a caller's event came within
        5 ms of the chunk, of those that it came behind."""
        self.faults: Counter[str] = Counter()
        self.told: list[str] = []
        """Of some faults of each kind, all that is known."""

    async def load(self, *more: Play) -> None:
        """Have the local Vertex play what the calls ask for."""
        slows = (*self._far, *self._longest)
        counted = answer(delay(0.01), tokens(7), uses=0, user_text=_COUNT, method="CountTokens")
        held = answer("held", silence(), uses=0, user_text=_HOLD)
        answers = [counted, held, *(play.answer for play in (*more, *self._plays, *self._floods, *slows))]
        await asyncio.to_thread(self.control.load, Script(answers=answers))

    def report(self) -> str:
        """Everything that was wrong."""
        faults = ", ".join(f"{count} x {what}" for what, count in self.faults.most_common())
        return "\n".join([f"storm of seed {self.seed}: {self.calls} calls; {faults or 'nothing wrong'}", *self.told])

    def look_at_log(self, served: ForkedServer) -> None:
        """It may hold no complaint, and one line for each call, which says what its caller heard.

        The log has to be complete: whatever ran has ended.
        """
        logged = Counter[str]()
        counts = sum(" CountTokens code=" in line for _, line in served.log)
        if not self._counts["reached"] <= counts <= self._counts["sent"]:
            self.wrong("not logged", f"{counts} calls of CountTokens are logged, of {dict(self._counts)}")
        for _, line in served.log:
            if _BAD_WORDS.search(line):
                self.wrong("log", line)
            if said := _LINE.search(line):
                moment, code, name, reason = said.groups()
                logged[name] += 1
                if name in self._untyped:
                    left = self._untyped.pop(name) - datetime.fromisoformat(moment).timestamp()
                    self.met["far deadline, untyped, server late"] += left < _HEARING_SECONDS
                heard = self._heard.get(name, "")
                if logged[name] > 1 or heard not in ("", f"{code}/{reason or ''}"):
                    self.wrong("logged otherwise", heard, line)
        # What ends before its request is known has a line without a name.
        unnamed = Counter("/".join(said.groups()) for _, line in served.log if (said := _UNNAMED.search(line)))
        for name in sorted(self._reached - logged.keys()):
            heard = self._heard.get(name, "")
            if unnamed[heard] <= 0:
                self.wrong("not logged", name, heard or "ended by its caller")
            unnamed[heard] -= 1
        self.met["far deadline, untyped, server late"] += len(self._untyped)  # it never said anything
        self._untyped.clear()
        self._tell_of_stuck(served, logged)
        self._counts.clear()
        self._reached.clear()
        self._heard.clear()

    def _tell_of_stuck(self, served: ForkedServer, logged: Counter[str]) -> None:
        """What the log says of calls whose callers waited in vain, and for how many ms the loop was blocked."""
        for _, line in served.log if self._stuck else ():
            said = _LINE.search(line)
            if line.startswith("blocked=") or (said and said[3] in self._stuck):
                self.told.append(f"logged: {line}")
        self.told += [f"not logged: {name}" for name in self._stuck - logged.keys()]
        self._stuck.clear()

    async def _look_upstream(self) -> None:
        """Keep which calls have reached upstream, by the name in their prompts; then it may forget them."""
        for call in await asyncio.to_thread(self.control.calls):
            self._reached.update(one.decode() for one in _NAME_BYTES.findall(call.request.value))
        await asyncio.to_thread(self.control.reset)
        await self.load()

    def hits(self, *, places: bool = False) -> dict[str, Counter[str]]:
        """The orders by kind of event; with `places` by kind of target as well."""
        found: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for aim, orders in sorted(self.orders.items()):
            found[aim if places else aim.partition(" at ")[0]].update(orders)
        return found

    def wrong(self, what: str, *how: object) -> None:
        self.faults[what] += 1
        if self.faults[what] <= 5:
            self.told.append(f"{what}: {' '.join(map(str, how))}")

    # ---- calls that are read

    async def rage(self, served: ForkedServer, numbers: range, *, lanes: int = 32) -> None:
        """Send the calls of these numbers: so many lanes, each of bursts."""
        left = iter(numbers)
        async with callers(served) as connected:

            async def come_again(lane: int) -> None:
                dice = random.Random(f"{self.seed}/{numbers}/{lane}")
                while burst := [number for _, number in zip(range(dice.choice(_BURSTS)), left, strict=False)]:
                    learn = len(burst) < _CROWD
                    await asyncio.gather(
                        *(self._send(dice.choice(connected), self.plan(number), learn=learn) for number in burst)
                    )

            await asyncio.gather(*(come_again(lane) for lane in range(lanes)))
        await self._look_upstream()

    def plan(self, number: int) -> Plan:
        """What the call of this number does."""
        dice = random.Random(f"{self.seed}/{number}")
        play = self._plays[-1] if dice.random() < 0.001 else dice.choice(self._plays[:-1])
        limit = "first" if play.target == 0 else "idle"
        what = dice.random()
        events: tuple[str, ...]
        if what < self._own:
            possible = ["cancel", "deadline", limit]
            events = tuple(dice.sample(possible, dice.choice([1, 1, 1, 2, 3])))
        else:
            events = dice.choices([(), (limit,), ("far",), ("longest",)], [15, 80, 4, 1])[0]
        offsets = {event: dice.uniform(-SPREAD_SECONDS, SPREAD_SECONDS) for event in events}
        merged = dice.choice([None, None, pb.Coalesce(), pb.Coalesce(max_bytes=dice.choice([1, 64]))])
        if merged is not None and dice.random() < 0.5:
            merged.max_delay.FromMicroseconds(dice.randint(1, 8000))
        if events == ("far",):
            play = dice.choice(self._far)
        elif events == ("longest",):
            play = self._due_at_longest(offsets["longest"], merged=merged is not None)
        return Plan(
            number=number,
            play=play,
            events=events,
            offsets=offsets,
            reacts=dice.random() < 0.6,
            coalesce=merged,
            timeout=_FAR_SECONDS if dice.random() < 0.5 else None,
            method="CountTokens" if dice.random() < 0.03 else "Generate",
        )

    def _due_at_longest(self, offset: float, *, merged: bool) -> Play:
        """The play whose target comes when the server's longest deadline ends the call; only the play can be chosen."""

        def beside(play: Play) -> float:
            aimed = self._aimed("longest", play, merged=merged)
            return abs(play.until_target + aimed + offset - LONGEST_SECONDS)

        return min(self._longest, key=beside)

    async def _send(self, caller: Caller, plan: Plan, *, learn: bool) -> None:
        loop = asyncio.get_running_loop()
        moments = {event: self._moment(plan, event) for event in plan.events}
        begin, streams = loop.time(), plan.method == "Generate"
        call = _call(caller, plan, moments)
        aim = self._aimed("reacting cancel", plan.play, merged=plan.coalesce is not None)
        watch = _Watch(plan, call, begin, moments, aim=aim)
        heard = Heard()
        try:
            async with asyncio.timeout(LONGEST_SECONDS + self._patience + 0.5):
                await hear(call, heard, watch.message, streams=streams)
        except TimeoutError:
            heard.text = "still waiting"
            self._stuck.add(_name(plan))
            call.cancel()
        heard.seconds = loop.time() - begin
        wrong = fault(heard, text=plan.play.text if streams else None, own=watch.ended(heard.seconds))
        last = min((moments[event] for event in ("deadline", "far") if event in moments), default=LONGEST_SECONDS)
        if not wrong and heard.seconds > last + self._patience:
            wrong = "late"
        self._count(
            heard,
            wrong,
            plan,
            {event: f"{1000 * moment:.1f} ms" for event, moment in moments.items()},
            decisive=plan.decisive,
        )
        if learn and "far" in moments and streams and heard.code is grpc.StatusCode.DEADLINE_EXCEEDED:
            self.met[f"far deadline, {'typed' if heard.reason else 'untyped'}"] += 1
            if not heard.reason:
                self._untyped[_name(plan)] = time.time() - loop.time() + begin + moments["far"]
        if streams:
            self._note(_name(plan), heard)
            if len(plan.events) == 1 and learn:
                self._learn(plan, heard, watch, moments)
        else:
            self._note_count(heard)

    def _note_count(self, heard: Heard) -> None:
        self._counts["sent"] += 1
        self._counts["reached"] += bool(heard.messages or heard.reason)

    def _note(self, name: str, heard: Heard) -> None:
        """Keep what the log has to say of this call."""
        if heard.messages or heard.reason:
            self._reached.add(name)
        if heard.code is not None and (heard.reason or heard.code is grpc.StatusCode.OK):
            self._heard[name] = f"{heard.code.name}/{heard.reason}"

    def _moment(self, plan: Plan, event: str) -> float:
        """Seconds from the call's begin, or from where the limit begins, at which the event comes."""
        play = plan.play
        if event == "longest":
            return LONGEST_SECONDS
        elapsed = play.waits[play.target] if event == "idle" else play.until_target
        margin = _MARGIN_SECONDS if event == "far" else 0
        return max(
            0.001, elapsed + margin + self._aimed(event, play, merged=plan.coalesce is not None) + plan.offsets[event]
        )

    def _aimed(self, event: str, play: Play, *, merged: bool) -> float:
        """What is known of this kind of event, and of its kind of target beyond that."""
        return self._aims[event].seconds + self._aims[_aim(event, play, merged=merged)].seconds

    def _learn(self, plan: Plan, heard: Heard, watch: _Watch, moments: Mapping[str, float]) -> None:
        (event,) = plan.events
        play = plan.play
        if watch.reacts:
            event = "reacting cancel"
        if heard.reason in _ELSEWHERE or (watch.reacts and len(watch.came) <= play.target):
            return
        at_end = play.target == len(play.texts)
        if at_end and play.ending != "complete":
            return
        said = sum(len(message.text) for message in heard.messages)
        chunk = heard.code is grpc.StatusCode.OK if at_end else said > sum(map(len, play.texts[: play.target]))
        aim = _aim(event, play, merged=plan.coalesce is not None)
        self._came(aim, chunk=chunk)
        for one in (aim, event):
            self._aims[one].learn(sooner=chunk)
        if chunk and "cancel" in moments and plan.coalesce is None:
            came = heard.seconds if at_end else watch.came[play.target + 1]
            self.orders[aim]["behind"] += 1
            self.orders[aim]["near"] += moments["cancel"] - came <= SPREAD_SECONDS

    def _came(self, aim: str, *, chunk: bool) -> None:
        self.orders[aim]["chunk" if chunk else "event"] += 1

    def _count(self, heard: Heard, wrong: str, *how: object, decisive: bool = True) -> None:
        self.calls += 1
        self.decisive += decisive
        self.met[f"{heard.code.name if heard.code else 'no status'}/{heard.reason or 'untyped'}"] += 1
        if wrong:
            self.wrong(wrong, *how, heard)

    # ---- calls that are not read

    async def stall(self, served: ForkedServer, numbers: range, *, lanes: int = 5, each: int = 8) -> None:
        """Send the calls of these numbers, by callers whose windows are full when the server's patience is over."""
        sizes = await self._sizes(served)
        left = iter(range(numbers.start, numbers.stop, each))

        async def come_again() -> None:
            for first in left:
                dice = random.Random(f"{self.seed}/stall/{first}")
                play = dice.choice(self._floods)
                window = _window(dice, sizes[play.name])
                async with connected(served.address, window=window) as connection:
                    await asyncio.gather(
                        *(self._stall(connection, play, number, window) for number in range(first, first + each))
                    )

        await asyncio.gather(*(come_again() for _ in range(lanes)))
        await self._look_upstream()

    async def _sizes(self, served: ForkedServer) -> dict[str, list[int]]:
        """Of each flood's messages, in bytes on the wire."""
        async with connected(served.address, window=OPEN) as connection:
            streams = {play.name: connection.call(_prompt(play)) for play in self._floods}
            for stream in streams.values():
                await stream.over.wait()
            return {name: [5 + len(one) for one in stream.messages] for name, stream in streams.items()}

    async def _stall(self, connection: Connection, play: Play, number: int, window: int) -> None:
        dice = random.Random(f"{self.seed}/stall/{number}")
        begin = time.monotonic()
        name = f"storm-stall-{number}"
        stream = connection.call(_prompt(play, dice.choice([None, pb.Coalesce()]), name))
        late = dice.random() < 0.2
        heard = Heard()
        with suppress(TimeoutError):
            async with asyncio.timeout(LONGEST_SECONDS + self._patience):
                await stream.begun.wait()
        aim = self._aims["write"].seconds + dice.uniform(-SPREAD_SECONDS, SPREAD_SECONDS)
        seconds = WRITE_SECONDS + (0.2 if late else aim)
        while (left := stream.moved + seconds - time.monotonic()) > 0 and not stream.over.is_set():  # noqa: ASYNC110 - a moment, not an event
            await asyncio.sleep(left)  # again if more has come meanwhile
        full = not stream.over.is_set()
        if full and dice.random() < 0.15:
            connection.cancel(stream)
            self.calls += 1
            return
        connection.open(stream)
        await self._end(stream, heard, begin)
        if full and not late:
            # Here the limit is what comes, and the reader is aimed at it.
            stalled = heard.reason == "READER_STALLED" or heard.code is None
            self._came("write", chunk=not stalled)
            self._aims["write"].learn(sooner=stalled)
        self._note(name, heard)
        wrong = fault(heard, text=play.text)
        how = f"a window of {window} bytes, opened {1000 * seconds:.1f} ms after it was full"
        self._count(heard, wrong and f"{wrong}, window", f"stall {number}:", play, how)

    async def _end(self, stream: Stream, heard: Heard, begin: float, kind: Any = pb.GenerateResponse) -> None:
        """What a caller by hand hears, who reads from now on."""
        try:
            async with asyncio.timeout(LONGEST_SECONDS + self._patience):
                await stream.over.wait()
            heard.text = f"RST_STREAM {stream.reset}" if stream.reset is not None else "connection lost"
        except TimeoutError:
            heard.text = "still waiting"
        heard.seconds = time.monotonic() - begin
        heard.messages += [kind.FromString(message) for message in stream.messages]
        if stream.code is not None:
            heard.code, heard.text = stream.code, stream.status.message if stream.status else ""
            heard.reason = typed(stream.code, stream.status)

    async def never_read(self, served: ForkedServer, *, each: int) -> dict[str, int]:
        """Callers of every method whose windows stay closed: what they still hold once every limit has passed."""
        before, begin = await tasks(served), time.monotonic()
        async with connected(served.address, window=0) as connection:
            calls = [(path, connection.call(_METHODS[path], path=path)) for path in _METHODS for _ in range(each)]
            await asyncio.sleep(LONGEST_SECONDS)
            # Statuses that nobody reads wait in their tasks until the connection is closed.
            left = await left_over(served, self.control, tasks_before=sys.maxsize, seconds=self._patience)
            await asyncio.gather(*(self._read_on(connection, path, stream, begin) for path, stream in calls))
        after = await left_over(served, self.control, tasks_before=before, seconds=self._patience)
        return {name: count + after[name] for name, count in left.items()}

    async def _read_on(self, connection: Connection, path: str, stream: Stream, begin: float) -> None:
        connection.open(stream)
        if path.startswith(_SERVICE):
            heard = Heard()
            await self._end(stream, heard, begin, kind=_ANSWERS[path])
            wrong = fault(heard, text="held" if path == _GENERATE else None)
            self._count(heard, wrong and f"{wrong}, never read", path)
            if path == _COUNT_TOKENS:
                self._note_count(heard)

    # ---- signals

    async def drain(self, served: ForkedServer, number: int, *, grace: float, streams: int = 80) -> None:
        """SIGTERM, and what follows it, in the moment of chunks. The server has DRAIN_FLAGS and this grace.

        Its log is complete once `served` is over.
        """
        dice = random.Random(f"{self.seed}/drain/{number}")
        kind = "grace" if grace < LONGEST_SECONDS else ("", "second", "both", "", "second", "first")[number % 6]
        play = self._gated(dice, f"gate-{number}-{served.pid}")
        await self.load(play)
        window, begin = dice.choice([0, 30, 90]), time.monotonic()
        async with callers(served) as readers, connected(served.address, window=window) as by_hand:
            names = [f"storm-drain-{number}-{index}" for index in range(streams + streams // 4)]
            calls = [
                readers[index % CONNECTIONS].start(f"{play.name} {name};", request_id=name)
                for index, name in enumerate(names[:streams])
            ]
            heard = [Heard() for _ in calls]
            reading = [asyncio.ensure_future(hear(call, one)) for call, one in zip(calls, heard, strict=True)]
            unread = [by_hand.call(_prompt(play, name=name)) for name in names[streams:]]
            await self._open_upstream(len(calls) + len(unread))
            await self._signal(served, kind, play.gate, dice, grace)
            await asyncio.sleep(dice.uniform(0, 0.03))
            for stream in unread:
                by_hand.open(stream)
            for one, task in zip(heard, reading, strict=True):
                try:
                    await asyncio.wait_for(task, LONGEST_SECONDS + self._patience)
                except TimeoutError:
                    one.text = "still waiting"
                one.seconds = time.monotonic() - begin
            for stream in unread:
                heard.append(Heard())
                await self._end(stream, heard[-1], begin)
        for index, one in enumerate(heard):
            wrong = fault(one, text=play.text)
            if not wrong and kind == "first" and one.code is not grpc.StatusCode.OK:
                wrong = "cut by one signal"
            self._note(names[index], one)
            if index < len(calls) and kind != "first":
                self._came(f"drain by {kind}", chunk=one.code is grpc.StatusCode.OK)
            by = f", window {window}" if index >= len(calls) else ""
            self._count(one, wrong and f"{wrong}, {kind}{by}", f"drain {number}:", play)
        whole = 2 * sum(one.code is grpc.StatusCode.OK for one in heard) > len(heard)
        if kind != "first":
            # At the end of the grace it is the gate that is aimed.
            sooner = whole != (kind == "grace")
            self._aims[f"drain by {kind}"].learn(sooner=sooner, longest_step=_LONGEST_STEP_OF_DRAINS_SECONDS)
        code = await asyncio.wait_for(served.process.wait(), 30)
        if code:
            self.wrong(f"exit code {code}", f"drain {number}", kind)
        await self._look_upstream()

    async def _signal(self, served: ForkedServer, kind: str, gate: str, dice: random.Random, grace: float) -> None:
        """Let the chunks come, and signals with them."""
        if kind in ("grace", "second"):
            served.signal(signal.SIGTERM)
            await served.said("draining")
        aim = self._aims[f"drain by {kind}"].seconds + dice.uniform(-SPREAD_SECONDS, SPREAD_SECONDS)
        if kind == "grace":
            await asyncio.sleep(max(0, grace + aim))
            await self._open(gate, 0)
            return
        # Closer to each other they would be one stop.
        between = dice.uniform(1.2, 2) * ECHO_SECONDS if kind == "both" else 0
        opening = asyncio.create_task(self._open(gate, max(0, between - aim)))
        await asyncio.sleep(max(0, aim - between))
        if kind in ("both", "first"):
            served.signal(signal.SIGTERM)
        await asyncio.sleep(between)
        if kind in ("both", "second"):
            served.signal(signal.SIGINT)
        await opening

    async def _open(self, gate: str, seconds: float) -> None:
        await asyncio.sleep(seconds)
        await asyncio.to_thread(self.control.open_gate, gate)

    def _gated(self, dice: random.Random, gate: str) -> Play:
        texts = tuple(f"{index} " for index in range(dice.choice([1, 3])))
        waits = (0.002,) * (len(texts) + 1)
        return Play(f"{gate};", dice.choice(sorted({0, len(texts) // 2, len(texts)})), waits, texts, "complete", gate)

    async def _open_upstream(self, count: int) -> None:
        late = time.monotonic() + 30
        while (found := (await asyncio.to_thread(self.control.stats)).open_calls) != count:
            assert time.monotonic() < late, f"{found} calls are open upstream, of {count}"
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)  # until what comes before the gate has been read


@asynccontextmanager
async def callers(served: ForkedServer) -> AsyncIterator[list[Caller]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(served.caller()) for _ in range(CONNECTIONS)]


async def hear(call: Any, heard: Heard, came: Callable[[], None] = lambda: None, *, streams: bool = True) -> None:
    """Read a call of gRPC's own caller to its end."""
    try:
        if streams:
            while (message := await call.read()) is not grpc.aio.EOF:
                came()
                heard.messages.append(message)
        else:
            heard.messages.append(await call)
    except grpc.aio.AioRpcError:
        pass
    except asyncio.CancelledError:
        task = asyncio.current_task()
        assert task is not None
        if task.cancelling():
            raise
    code = await call.code()
    for key, value in await call.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            heard.reason = typed(code, Status.FromString(value))
    heard.code, heard.text = code, str(await call.details() or "")


def _call(caller: Caller, plan: Plan, moments: Mapping[str, float]) -> Any:
    timeout = moments.get("far", moments.get("deadline", plan.timeout))
    if plan.method == "CountTokens":
        return caller.stub.CountTokens(pb.CountTokensRequest(prompt=_COUNT), timeout=timeout)
    limits: dict[str, Any] = {
        name: _duration(moments[event])
        for event, name in (("first", "first_chunk_timeout"), ("idle", "idle_timeout"))
        if event in moments
    }
    prompt = f"{plan.play.name} {_name(plan)};"
    return caller.start(prompt, timeout=timeout, request_id=_name(plan), coalesce=plan.coalesce, **limits)


def _name(plan: Plan) -> str:
    return f"storm-{plan.number}"


def _aim(event: str, play: Play, *, merged: bool) -> str:
    target, last = play.target, len(play.texts) - 1
    if target > last:
        place = "the end"
    else:
        place = "the first chunk" if target == 0 else "the last chunk" if target == last else "a middle chunk"
    return f"{event} at {place}{', merged' if merged else ''}"


def _window(dice: random.Random, sizes: Sequence[int]) -> int:
    """Nothing, or full in the first message, one in the middle or the last."""
    index = dice.choice([0, len(sizes) // 2, len(sizes) - 1])
    return dice.choice([0, sum(sizes[:index]) + dice.randrange(sizes[index])])


def _prompt(play: Play, coalesce: pb.Coalesce | None = None, name: str = "") -> bytes:
    request = pb.GenerateRequest(prompt=f"{play.name} {name};", request_id=name, coalesce=coalesce)
    return request.SerializeToString()


def _duration(seconds: float) -> Duration:
    made = Duration()
    made.FromMicroseconds(round(1e6 * seconds))
    return made


# ---- what is left behind -------------------------------------------------------------------------------------------


async def tasks(served: ForkedServer) -> int:
    """How many asyncio tasks the server has, in all of its workers."""
    total = 0
    for pid in served.workers():
        since = len(served.log)
        os.kill(pid, signal.SIGUSR1)
        _, line = await served.said("tasks=", since=since)
        total += int(line.removeprefix("tasks="))
    return total


async def left_over(
    served: ForkedServer, control: ControlClient, *, tasks_before: int, seconds: float = 3
) -> dict[str, int]:
    """Slots, places in the queue, calls upstream and tasks that are taken while nobody calls; waits so long for 0."""
    begin = time.monotonic()
    while True:
        upstream = (await asyncio.to_thread(control.stats)).open_calls
        more = max(0, await tasks(served) - tasks_before)
        if not (upstream or more) or time.monotonic() > begin + seconds:
            break
        await asyncio.sleep(0.05)
    async with callers(served) as connected_ones:
        calls = [connected_ones[number % CONNECTIONS].start(_HOLD) for number in range(SLOTS)]
        inside = sum(await asyncio.gather(*map(_begins, calls)))
        begin = time.monotonic()

        async def at_once(caller: Caller) -> bool:
            await hear(caller.start(_HOLD), heard := Heard())
            return heard.reason == "SERVER_BUSY" and time.monotonic() < begin + QUEUE_SECONDS / 2

        waiting = (at_once(connected_ones[number % CONNECTIONS]) for number in range(QUEUE + 1))
        refused = sum(await asyncio.gather(*waiting))
        for call in calls:
            call.cancel()
    return {
        "slots": SLOTS - inside,
        "queue places": max(0, refused - 1) if inside == SLOTS else 0,
        "upstream calls": upstream,
        "tasks": more,
    }


async def _begins(call: Any) -> bool:
    with suppress(grpc.aio.AioRpcError):
        return bool(await call.read())
    return False
