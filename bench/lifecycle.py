"""A server's start, and the death of one of its workers, as callers see them."""

import asyncio
import os
import signal
from typing import Any

import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from bench.processes import tree
from bench.script import Script
from bench.targets import Answer, Tokenwire, now, read

_LOOK_SECONDS = 0.02
_GIVE_UP_SECONDS = 120
_STREAMS_PER_CONNECTION = 3


async def serving(told: dict[str, Any]) -> dict[str, Any]:
    """Ask for the server's health until every one of many new connections hears SERVING, so that all workers do."""
    answering: float | None = None
    give_up = now() + _GIVE_UP_SECONDS
    while now() < give_up:
        moment = now()
        heard = await _health(told["address"], 1)
        if heard[0] is not None and answering is None:
            answering = moment
        if heard[0] == health_pb2.HealthCheckResponse.SERVING and await _all_serve(told):
            return {"errors": {}, "answering": answering, "serving": now()}
        await asyncio.sleep(_LOOK_SECONDS)
    return {"errors": {f"not SERVING after {_GIVE_UP_SECONDS} s": 1}}


async def kill(told: dict[str, Any]) -> dict[str, Any]:
    """Kill a worker under running streams: which of them break, and how soon there is another one.

    A worker's connections die with it. A stream that breaks while others on its connection go on was touched though its
    worker lives.
    """
    script = Script(chunks=60, interval=0.05)
    count = told["connections"]
    asked = Tokenwire(told["address"], count)
    await asked.connect()
    before = len(tree(told["root"]))
    answers = [Answer() for _ in range(count * _STREAMS_PER_CONNECTION)]
    asking = asyncio.gather(*(asked.run(script, index, answer) for index, answer in enumerate(answers)))
    while not all(answer.arrivals for answer in answers):  # noqa: ASYNC110 - nothing that is measured hangs on it
        await asyncio.sleep(_LOOK_SECONDS)

    begin = now()
    os.kill(told["victim"], signal.SIGKILL)
    replaced = None
    while now() < begin + _GIVE_UP_SECONDS:
        found = tree(told["root"])
        if told["victim"] not in found and len(found) == before and await _all_serve(told):
            replaced = now() - begin
            break
        await asyncio.sleep(_LOOK_SECONDS)
    await asking
    await asked.close()

    read(asked, answers, script)
    broken = [sum(bool(answer.error) for answer in answers[connection::count]) for connection in range(count)]
    errors = {}
    if replaced is None:
        errors[f"no new worker after {_GIVE_UP_SECONDS} s"] = 1
    return {
        "errors": errors,
        "replaced_seconds": replaced,
        "broken_connections": sum(number > 0 for number in broken),
        "touched_streams": sum(number for number in broken if number < _STREAMS_PER_CONNECTION),
    }


async def _all_serve(told: dict[str, Any]) -> bool:
    heard = await _health(told["address"], told["connections"])
    return all(status == health_pb2.HealthCheckResponse.SERVING for status in heard)


async def _health(address: str, connections: int) -> list[int | None]:
    """What as many new connections hear; None for one that gets no answer."""

    async def one() -> int | None:
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(address, options=options) as channel:
            try:
                answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=2)
            except grpc.aio.AioRpcError:
                return None
            return int(answer.status)

    return await asyncio.gather(*(one() for _ in range(connections)))
