"""Metrics over two workers, of which one is killed again and again."""

import asyncio
import os
import random
import signal
import urllib.request
from collections import Counter
from typing import Any

import grpc
from prometheus_client.parser import text_string_to_metric_families

from tests.faults.forkserver import ForkedServer, ForkServer
from tests.faults.processes import Caller, ending, eventually, outcome
from tests.ports import free_port
from vertex_emulator.emulator import Emulator
from vertex_emulator.script import answer, status, usage, wait_for

CALLS, KILLS = 1000, 20
ANSWERS = {
    "whole": answer("one ", "two ", usage=usage(3, 2), user_text="whole", uses=0),
    "denied": answer(status("PERMISSION_DENIED", "no"), user_text="denied", uses=0),
    "cut": answer("one ", finish=None, user_text="cut", uses=0),
    "held": answer("one ", wait_for("never"), user_text="held", uses=0),
}

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
        self.outcomes: Counter[str] = Counter()
        self.messages = 0
        self.whole = 0

    async def ask(self, caller: Caller, kind: str, *, broken: bool = False) -> None:
        """Ask and count. What goes out on a connection that is `broken` reaches no worker: it is asked again."""
        came, error = await outcome(caller.start(kind))
        code, reason = ending(error)
        while broken and code is grpc.StatusCode.UNAVAILABLE and reason.startswith("untyped") and not came:
            came, error = await outcome(caller.start(kind))
            code, reason = ending(error)
        self.add(code.name, len(came), reason)
        self.whole += error is None

    def add(self, code: str, messages: int, reason: str = "") -> None:
        self.codes[code] += 1
        self.outcomes[reason or code] += 1
        self.messages += messages
        if reason:
            self.reasons[reason] += 1


async def kill_one(served: ForkedServer) -> None:
    """Kill a worker while streams are open, and wait for the one that takes its place."""
    workers = served.workers()
    os.kill(random.choice(workers), signal.SIGKILL)
    await eventually(lambda: len(served.workers()) == len(workers) and served.workers() != workers, seconds=30)


async def test_every_counter_is_the_callers_own_count_whatever_becomes_of_workers(
    upstream: Emulator, forkserver: ForkServer
) -> None:
    upstream.script.play(*ANSWERS.values())
    port, heard = free_port(), Heard()
    before: Samples = {}
    async with forkserver.serving(upstream.address, "--metrics-port", str(port), workers=2) as served:
        for _ in range(KILLS):
            async with served.caller() as one, served.caller() as other:
                callers = [one, other]
                kinds = random.choices(["whole", "denied", "cut"], k=CALLS // KILLS)
                await asyncio.gather(*(heard.ask(random.choice(callers), kind) for kind in kinds))
                held = [caller.start("held") for caller in callers for _ in range(2)]
                for call in held:
                    assert [(await call.read()).text for _ in range(2)] == ["", "one "]
                await kill_one(served)
                for caller in callers:  # one whose connection is broken has noticed that, once it is answered
                    await heard.ask(caller, "whole", broken=True)
                for call in held:
                    if not call.done():
                        call.cancel()
                        heard.add("CANCELLED", 2)
            now = await asyncio.to_thread(samples, port)
            assert not [key for key, value in before.items() if "_total" in key[0] and now.get(key, 0) < value]
            before = now

        def told() -> dict[str, Any]:
            found = samples(port)
            return {
                "codes": by_last(found, "rpc_server_call_duration_seconds_count"),
                "reasons": by_last(found, "tokenwire_errors_total"),
                "outcomes": by_last(found, "tokenwire_upstream_attempts_total"),
                "messages": sum(by_last(found, "tokenwire_messages_total").values()),
                "tokens": by_last(found, "gen_ai_client_token_usage_sum"),
                "first": sum(by_last(found, "gen_ai_server_time_to_first_token_seconds_count").values()),
                "cancelled": by_last(found, "tokenwire_cancellations_total"),
                "deaths": found[("tokenwire_worker_deaths_total",)],
                "open": found.keys() & {("tokenwire_open_streams",), ("tokenwire_orphans",)},
            }

        wanted = {
            "codes": dict(heard.codes),
            "reasons": dict(heard.reasons),
            "outcomes": dict(heard.outcomes),
            "messages": heard.messages,
            "tokens": {"input": 3 * heard.whole, "output": 2 * heard.whole},
            "first": heard.codes.total() - heard.reasons["UPSTREAM_CREDENTIALS"],
            "cancelled": {"caller": heard.codes["CANCELLED"]},
            "deaths": KILLS,
            "open": set(),
        }
        assert heard.codes.total() >= CALLS
        for _ in range(100):
            if (last := await asyncio.to_thread(told)) == wanted:
                break
            await asyncio.sleep(0.1)  # calls that were cancelled are counted once their server has heard of it
        assert last == wanted
