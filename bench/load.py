"""The load client, in a process of its own: asks as it is told on standard input, and says what it saw as JSON.

    python -m bench.load <<< '{"what": "streams", "target": {...}, ...}'

Messages are only stamped and kept while they come in; afterwards each answer is compared with what upstream was asked
to say, so a chunk that is lost, doubled or out of order fails the run.
"""

import asyncio
import gc
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

import grpc
import grpc.aio

from bench import lifecycle
from bench.edge import stamps
from bench.figures import percentile
from bench.processes import cpu_seconds, memory_bytes
from bench.refusals import flooding
from bench.script import METHOD, RELEASE, Script
from bench.targets import Answer, now, read, target

_SAMPLE_SECONDS = 0.02
_SETTLE_SECONDS = 0.3


class Meter:
    """CPU times, looked at now and then, so that any moment can be asked for afterwards."""

    def __init__(self, server: Sequence[int], upstream: Sequence[int]) -> None:
        self._who = {"server": server, "upstream": upstream, "load": [os.getpid()]}
        self._samples: list[tuple[float, dict[str, float]]] = []

    def look(self) -> None:
        self._samples.append((now(), {name: cpu_seconds(pids) for name, pids in self._who.items()}))

    async def run(self) -> None:
        while True:
            self.look()
            await asyncio.sleep(_SAMPLE_SECONDS)

    def between(self, begin: float, end: float) -> dict[str, float]:
        """CPU seconds of each between two moments."""
        return {name: self._at(end, name) - self._at(begin, name) for name in self._who}

    def _at(self, moment: float, name: str) -> float:
        before = after = self._samples[0]
        for before, after in zip(self._samples, self._samples[1:], strict=False):  # noqa: B007 - wanted behind the loop
            if after[0] >= moment:
                break
        part = (moment - before[0]) / (after[0] - before[0])
        return before[1][name] + min(1.0, max(0.0, part)) * (after[1][name] - before[1][name])


async def streams(told: dict[str, Any]) -> dict[str, Any]:
    """Many streams at once.

    The cost of a chunk is taken from the time when every stream has begun and none has ended: what a request costs is a
    figure of its own. A single stream flat out is taken as a whole.
    """
    script = Script(chunks=told["chunks"], interval=told["interval"])
    count = told["streams"]
    asked = target(told["target"], min(count, told["connections"]))
    await asked.connect()
    await asyncio.sleep(max(0.0, told["begin"] - now()))
    meter = Meter(told["server"], told["upstream"])
    metering = asyncio.ensure_future(meter.run())
    begin = now()

    async def one(index: int) -> Answer:
        await asyncio.sleep(told["spread"] * index / count)
        return await asked.run(script, index)

    answers = await asyncio.gather(*(one(index) for index in range(count)))
    await asyncio.sleep(0.05)  # for what a server does behind an answer
    meter.look()
    end = now()
    metering.cancel()
    await asked.close()

    errors = read(asked, answers, script)
    complete = [answer for answer in answers if not answer.error]
    result: dict[str, Any] = {"errors": errors, "streams": count, "chunks": sum(len(a.texts) for a in complete)}
    if not complete:
        return result
    first, last = (begin, end) if script.interval == 0 else _steady(complete, script, begin, end)
    chunks = sum(1 for a in complete for moment, _ in a.texts if first < moment <= last)
    cpu = meter.between(first, last)
    gaps = [
        later - earlier
        for a in complete
        for (earlier, _), (later, _) in zip(a.texts, a.texts[1:], strict=False)
        if first <= earlier
    ]
    waits = [a.texts[0][0] - a.begin for a in complete]
    result |= {
        "us_per_chunk": cpu["server"] / chunks * 1e6,
        "chunks_per_second": chunks / (last - first),
        "cores": {name: used / (last - first) for name, used in cpu.items()},
        "gap_over_ms": {name: (value - script.interval) * 1e3 for name, value in _spread(gaps).items()},
        "first_ms": {name: value * 1e3 for name, value in _spread(waits).items()},
        "asked_per_second": count / script.interval if script.interval else None,
    }
    if told["look_at"]:
        # The gaps of a second in which something happens, where a whole run would dilute them.
        since, until = told["look_at"]
        moments = [
            later - earlier
            for a in complete
            for (earlier, _), (later, _) in zip(a.texts, a.texts[1:], strict=False)
            if later > since and earlier < until
        ]
        result["look_at_gap_over_ms"] = {
            name: (value - script.interval) * 1e3 for name, value in _spread(moments).items()
        }
    return result


def _steady(answers: Sequence[Answer], script: Script, begin: float, end: float) -> tuple[float, float]:
    """From when to when chunks flow and nothing else happens.

    A server that is far behind ends some streams before others have begun; then the time after the last beginning is
    taken if half of all chunks came in it, else the whole run.
    """
    begun, ended = max(a.texts[0][0] for a in answers), min(a.texts[-1][0] for a in answers)
    if ended - begun >= script.interval * 10:
        return begun, ended
    later = sum(1 for a in answers for moment, _ in a.texts if moment > begun)
    if later * 2 >= script.chunks * len(answers):
        return begun, max(a.texts[-1][0] for a in answers)
    return begin, end


async def requests(told: dict[str, Any]) -> dict[str, Any]:
    """Many short answers, a few at a time, each caller asking again as soon as it has its answer."""
    script = Script(chunks=1)
    asked = target(told["target"], told["connections"])
    await asked.connect()
    answers: list[Answer] = []
    begin, cpu = now(), cpu_seconds(told["server"])

    async def caller(index: int) -> None:
        for _ in range(told["requests"] // told["callers"]):
            answers.append(await asked.run(script, index))  # noqa: PERF401 - one after the other

    await asyncio.gather(*(caller(index) for index in range(told["callers"])))
    await asyncio.sleep(0.05)  # for what a server does behind an answer
    used = cpu_seconds(told["server"]) - cpu
    seconds = now() - begin
    await asked.close()
    errors = read(asked, answers, script)
    return {
        "errors": errors,
        "requests": len(answers),
        "us_per_request": used / len(answers) * 1e6,
        "requests_per_second": len(answers) / seconds,
    }


async def first(told: dict[str, Any]) -> dict[str, Any]:
    """One caller, one request after the other, each server in turn: how long the first chunk takes."""
    script = Script(chunks=2)
    asked = {name: target(one, 1) for name, one in told["targets"].items()}
    answers: dict[str, list[Answer]] = {name: [] for name in asked}
    for one in asked.values():
        await one.connect()
    for number in range(told["rounds"] + 1):
        for name, one in asked.items():
            answer = await one.run(script, 0)
            if number:  # the first round opens connections
                answers[name].append(answer)
    for one in asked.values():
        await one.close()
    errors = {name: read(asked[name], answers[name], script) for name in asked}
    waits = {name: [a.texts[0][0] - a.begin for a in answers[name] if a.texts] for name in asked}
    return {
        "errors": {text: count for found in errors.values() for text, count in found.items()},
        "first_ms": {name: {key: value * 1e3 for key, value in _spread(waits[name]).items()} for name in asked},
    }


async def memory(told: dict[str, Any]) -> dict[str, Any]:
    """Open streams and hold them, to see what each keeps."""
    script = Script(chunks=3, hold=True)
    count = told["streams"]
    asked = target(told["target"], min(count, told["connections"]))
    await asked.connect()
    # The connections themselves are there before; so is what a first request loads.
    for index in range(told["connections"]):
        if (answer := await asked.run(Script(chunks=3), index)).error:
            return {"errors": {answer.error: 1}}
    await asyncio.sleep(_SETTLE_SECONDS)
    before = memory_bytes(told["server"])
    answers = [Answer() for _ in range(count)]

    async def one(index: int) -> None:
        await asyncio.sleep(told["spread"] * index / count)
        await asked.run(script, index, answers[index])

    asking = asyncio.gather(*(one(index) for index in range(count)))
    give_up = now() + told["seconds"]
    while any(len(answer.arrivals) < script.chunks - 1 and not answer.error for answer in answers):
        if now() > give_up:
            break
        await asyncio.sleep(0.05)
    held = sum(len(answer.arrivals) >= script.chunks - 1 for answer in answers)
    await asyncio.sleep(_SETTLE_SECONDS)
    after = memory_bytes(told["server"])
    async with grpc.aio.insecure_channel(told["upstream_address"]) as channel:
        release: Any = channel.unary_unary(METHOD)
        while not asking.done():
            await release(RELEASE)
            await asyncio.sleep(0.1)
    await asked.close()
    errors = read(asked, answers, script)
    if held < count:
        errors[f"only {held} of {count} streams were being answered after {told['seconds']} s"] = 1
    return {"errors": errors, "streams": held, "bytes_per_stream": (after - before) / count, "bytes_before": before}


def _spread(values: Sequence[float]) -> dict[str, float]:
    if not values:
        return {}
    return {"p50": percentile(values, 50), "p99": percentile(values, 99), "max": max(values)}


_WHAT = {
    "streams": streams,
    "requests": requests,
    "first": first,
    "memory": memory,
    "serving": lifecycle.serving,
    "kill": lifecycle.kill,
    "flood": flooding.flood,
    "stamped": stamps.stamped,
}


def main() -> None:
    """Read the parameters, run, write the result."""
    told = json.load(sys.stdin)
    gc.disable()  # a collection would stamp what comes meanwhile too late; the process is short
    json.dump(asyncio.run(_WHAT[told["what"]](told)), sys.stdout)


if __name__ == "__main__":
    main()
