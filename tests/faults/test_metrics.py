"""Metrics over two workers, of which one is killed again and again."""

import asyncio
import itertools
import os
import random
import signal
import urllib.request
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import grpc
from prometheus_client.parser import text_string_to_metric_families

from tests.faults.forkserver import ForkedServer, ForkServer
from tests.faults.processes import Caller, ending, eventually, outcome
from tests.ports import free_port
from vertex_emulator.answerers.scripted import last_user_text
from vertex_emulator.call_records import Call
from vertex_emulator.emulator import Emulator
from vertex_emulator.protos import prediction_pb2
from vertex_emulator.script import answer, status, usage, wait_for

CALLS, KILLS = 1000, 20
SLOTS = 60
MODEL, FALLBACK = "gemini-3.8-flash", "gemini-3.8-pro"

SHARES = {"whole": 24, "denied": 8, "cut": 8, "flaky": 4, "away": 2, "busy": 1, "empty": 1, "unknown": 2}
"""How many calls of each kind are made before each kill."""

ANSWERS = {
    "denied": answer(status("PERMISSION_DENIED", "no"), user_text="denied", uses=0),
    "cut": answer("one ", finish=None, user_text="cut", uses=0),
    "held": answer("one ", wait_for("never"), user_text="held", uses=0),
    "away": answer(status("UNAVAILABLE", "away"), user_text="away", model=MODEL, uses=0),
    "busy": answer(status("RESOURCE_EXHAUSTED", "busy"), user_text="busy", uses=0),
}
WHOLE = answer("one ", "two ", usage=usage(3, 2))
"""For all others, and from the fallback model for those of which the first is away."""

FLAKY = answer(status("UNAVAILABLE", "away"), user_text="flaky", uses=2)
"""Beside them, before each kill."""

OUTCOMES = {
    grpc.StatusCode.OK: "OK",
    grpc.StatusCode.PERMISSION_DENIED: "UPSTREAM_CREDENTIALS",
    grpc.StatusCode.UNAVAILABLE: "UPSTREAM_UNAVAILABLE",
    grpc.StatusCode.RESOURCE_EXHAUSTED: "UPSTREAM_QUOTA",
}
"""What the server is to make of how a call upstream ended."""

BUSY = (grpc.StatusCode.RESOURCE_EXHAUSTED, "SERVER_BUSY")
DRAINING = (grpc.StatusCode.UNAVAILABLE, "DRAINING")

Samples = dict[tuple[str, ...], float]


def samples(port: int) -> Samples:
    """By name and the labels' values, those that aren't 0."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as told:
        families = text_string_to_metric_families(told.read().decode())
    return {(one.name, *one.labels.values()): one.value for family in families for one in family.samples if one.value}


def by_last(found: Samples, name: str) -> dict[str, float]:
    """Of one metric, by its last label: the sum over all others."""
    sums: Counter[str] = Counter()
    for key, value in found.items():
        if key[0] == name:
            sums[key[-1]] += value  # type: ignore[assignment] # whole numbers
    return dict(sums)


class Heard:
    """What callers have counted themselves."""

    def __init__(self) -> None:
        self.codes: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self.messages = 0
        self.begun = 0
        """Calls to which the model said something."""
        self.whole = 0
        self._asked = itertools.count()

    def start(self, caller: Caller, kind: str, **more: Any) -> Any:
        """A call whose prompt no other one has, by which upstream's record of it is found."""
        prompt = f"{kind} {next(self._asked)}" if kind != "empty" else ""
        return caller.start(prompt, model="nothing" if kind == "unknown" else "", **more)

    async def ask(self, caller: Caller, kind: str, *, broken: bool = False) -> tuple[grpc.StatusCode, str]:
        """Ask and count. What goes out on a connection that is `broken` reaches no worker: it is asked again."""
        came, error = await outcome(self.start(caller, kind))
        code, reason = ending(error)
        while broken and code is grpc.StatusCode.UNAVAILABLE and reason.startswith("untyped") and not came:
            came, error = await outcome(self.start(caller, kind))
            code, reason = ending(error)
        self.add(code.name, len(came), reason, begun=any(message.text for message in came))
        self.whole += error is None
        return code, reason

    def add(self, code: str, messages: int, reason: str = "", *, begun: bool) -> None:
        self.codes[code] += 1
        self.messages += messages
        self.begun += begun
        if reason:
            self.reasons[reason] += 1


class Played:
    """What upstream has counted of the calls that came to their end: those that are held never do."""

    def __init__(self, upstream: Emulator) -> None:
        self.retries: Counter[str] = Counter()
        self.fallbacks: Counter[str] = Counter()
        self.outcomes: Counter[str] = Counter()
        asked: defaultdict[str, list[Call]] = defaultdict(list)
        for call in upstream.calls:
            assert isinstance(call.request, prediction_pb2.GenerateContentRequest)
            asked[last_user_text(call.request)].append(call)
        for prompt, attempts in asked.items():
            kind = prompt.partition(" ")[0]
            if kind == "held":
                continue
            for call in attempts:
                assert call.code is not None
                self.outcomes["UPSTREAM_CUT" if kind == "cut" else OUTCOMES[call.code]] += 1
            for before, call in itertools.pairwise(attempts):
                if call.model == before.model:
                    self.retries[call.model] += 1
                else:
                    self.fallbacks[before.model] += 1


async def hold(heard: Heard, callers: Sequence[Caller], count: int, **more: Any) -> list[Any]:
    """So many calls that have begun, and don't end by themselves."""
    calls = [heard.start(caller, "held", **more) for caller, _ in zip(itertools.cycle(callers), range(count))]
    for call in calls:
        assert [(await call.read()).text for _ in range(2)] == ["", "one "]
    return calls


async def be_refused(heard: Heard, callers: Sequence[Caller]) -> None:
    """Be one too many, some times, while others have all slots."""
    held = await hold(heard, callers, SLOTS)
    assert {await heard.ask(callers[0], "whole") for _ in range(5)} == {BUSY}
    for call in held:
        call.cancel()
        heard.add("CANCELLED", 2, begun=True)
    while await heard.ask(callers[0], "whole") == BUSY:
        pass


async def be_late(heard: Heard, callers: Sequence[Caller]) -> None:
    """Have calls whose own deadline passes in the middle of their answer."""
    for call in await hold(heard, callers, 4, timeout=3):
        _, error = await outcome(call)
        assert error is not None
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        heard.add("DEADLINE_EXCEEDED", 2, "CALLER_DEADLINE", begun=True)


async def kill_one(served: ForkedServer) -> None:
    """Kill a worker while streams are open, and wait for the one that takes its place."""
    workers = served.workers()
    os.kill(random.choice(workers), signal.SIGKILL)
    await eventually(lambda: len(served.workers()) == len(workers) and served.workers() != workers, seconds=30)


def told(found: Samples) -> dict[str, Any]:
    """What the server tells, in the words of those who count beside it."""
    codes = Counter(by_last(found, "rpc_server_call_duration_seconds_count"))
    reasons = Counter(by_last(found, "tokenwire_errors_total"))
    cancelled = Counter(by_last(found, "tokenwire_cancellations_total"))
    outcomes = Counter(by_last(found, "tokenwire_upstream_attempts_total"))
    # Where a deadline passes, either the server ends the call, or gRPC is faster and cancels it; and the server leaves
    # upstream, or upstream is faster. The caller gets DEADLINE_EXCEEDED in both cases.
    late = cancelled.pop("deadline", 0)
    codes += Counter({"DEADLINE_EXCEEDED": late})
    codes -= Counter({"CANCELLED": late})
    reasons += Counter({"CALLER_DEADLINE": late})
    outcomes += Counter({"CANCELLED": outcomes.pop("UPSTREAM_DEADLINE", 0)})
    return {
        "codes": dict(codes),
        "reasons": dict(reasons),
        "outcomes": dict(outcomes),
        "retries": by_last(found, "tokenwire_retries_total"),
        "fallbacks": by_last(found, "tokenwire_fallbacks_total"),
        "messages": sum(by_last(found, "tokenwire_messages_total").values()),
        "tokens": by_last(found, "gen_ai_client_token_usage_sum"),
        "first": sum(by_last(found, "gen_ai_server_time_to_first_token_seconds_count").values()),
        "cancelled": dict(cancelled),
        "deaths": found[("tokenwire_worker_deaths_total",)],
        "open": found.keys() & {("tokenwire_open_streams",), ("tokenwire_orphans",)},
    }


async def test_every_counter_is_the_callers_own_count_whatever_becomes_of_workers(
    upstream: Emulator, forkserver: ForkServer
) -> None:
    """Retries, fallbacks and outcomes of attempts are upstream's count.

    Of causes of cancellation "shutdown" is none here: who counts it has ended when it could be read.
    """
    upstream.script.play(*ANSWERS.values(), default=WHOLE)
    port, heard = free_port(), Heard()
    before: Samples = {}
    flags = ("--metrics-port", str(port), "--fallback-model", FALLBACK, "--slots", str(SLOTS), "--queue", "0")
    async with forkserver.serving(upstream.address, *flags, "--drain-delay", "60", workers=2) as served:
        for turn in range(KILLS):
            async with served.caller() as one, served.caller() as other:
                callers = [one, other]
                if turn % 10 == 0:
                    await be_refused(heard, callers)
                if turn % 5 == 0:
                    await be_late(heard, callers)
                upstream.script.play(FLAKY)
                kinds = [kind for kind, share in SHARES.items() for _ in range(share)]
                random.shuffle(kinds)
                await asyncio.gather(*(heard.ask(random.choice(callers), kind) for kind in kinds))
                held = await hold(heard, callers, 4)
                await kill_one(served)
                for caller in callers:  # one whose connection is broken has noticed that, once it is answered
                    await heard.ask(caller, "whole", broken=True)
                for call in held:
                    if not call.done():
                        call.cancel()
                        heard.add("CANCELLED", 2, begun=True)
            now = await asyncio.to_thread(samples, port)
            assert not [key for key, value in before.items() if "_total" in key[0] and now.get(key, 0) < value]
            before = now

        async with served.caller() as one, served.caller() as other:
            for caller in (one, other):
                await heard.ask(caller, "whole")
            served.signal(signal.SIGTERM)
            await eventually(lambda: served.words.count("draining") == 2)
            assert {await heard.ask(caller, "whole") for caller in (one, other) for _ in range(5)} == {DRAINING}

        played = Played(upstream)
        assert heard.codes.total() >= CALLS
        assert min(played.retries.total(), played.fallbacks.total()) > 2
        given_up = heard.codes["CANCELLED"] + heard.codes["DEADLINE_EXCEEDED"]
        wanted = {
            "codes": dict(heard.codes),
            "reasons": dict(heard.reasons),
            "outcomes": {**played.outcomes, "CANCELLED": given_up},
            "retries": dict(played.retries),
            "fallbacks": dict(played.fallbacks),
            "messages": heard.messages,
            "tokens": {"input": 3 * heard.whole, "output": 2 * heard.whole},
            "first": heard.begun,
            "cancelled": {"caller": heard.codes["CANCELLED"]},
            "deaths": KILLS,
            "open": set(),
        }
        for _ in range(100):
            if (last := told(await asyncio.to_thread(samples, port))) == wanted:
                break
            await asyncio.sleep(0.1)  # calls that were cancelled are counted once their server has heard of it
        assert last == wanted
