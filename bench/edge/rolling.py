"""`python -m bench.edge.rolling`: two replicas behind Envoy, restarted in turn while calls go on. Six minutes.

A hundred streams of five seconds are open at every moment, each followed by another, and fifty short calls begin each
second. No caller asks again by itself. Upstream is the local Vertex, which keeps every call that reaches it: each
prompt has a name of its own, and one that reached it twice was asked twice.
"""

import argparse
import asyncio
import re
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio

from bench.edge.__main__ import healthy
from bench.edge.running import edge, service
from bench.processes import BenchError, Process, started
from bench.watching import free_port
from tokenwire.v1 import generation_service_pb2 as pb
from tokenwire.v1.generation_service_pb2_grpc import GenerationServiceStub
from vertex_emulator import ControlClient
from vertex_emulator.script import Script, answer, repeat

_CONNECTIONS = 16
_PIECES = 10
_END_SECONDS = 120.0

# Longer than Envoy takes to see that a replica goes: it asks twice a second.
_DRAIN = ("--drain-delay", "2", "--grace", "60", "--slots", "1000")

_NAME = re.compile(rb"call-\d+;")


@dataclass
class Outcome:
    """What became of all calls."""

    streams: int = 0
    short: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    doubled: int = 0
    lost: int = 0
    """Calls that were answered in whole, and yet never reached upstream."""


class _Callers:
    """They call without an end, until they are told to stop; what they have begun comes to its end."""

    def __init__(self, stubs: Sequence[Any], outcome: Outcome) -> None:
        self._stubs = stubs
        self._outcome = outcome
        self._over = asyncio.Event()
        self._number = 0
        self._short: set[asyncio.Task[None]] = set()
        self.whole: set[str] = set()
        """The names of answered calls."""

    async def call(self, kind: str) -> None:
        """One call: "stream" or "short"."""
        self._number += 1
        name = f"call-{self._number};"
        stub = self._stubs[self._number % len(self._stubs)]
        call = stub.Generate(pb.GenerateRequest(prompt=f"{kind}; {name}"), timeout=60)
        last = ""
        try:
            async for message in call:
                last = message.WhichOneof("event")
        except grpc.aio.AioRpcError as error:
            last = f"{error.code().name}: {error.details()}"
        if last == "completed":
            self.whole.add(name)
        else:
            self._outcome.failed[last or "ended without completed"] += 1

    async def streams(self) -> None:
        """One after the other."""
        while not self._over.is_set():
            await self.call("stream")
            self._outcome.streams += 1

    async def short(self, a_second: float) -> None:
        """So many a second, whatever becomes of those before."""
        loop = asyncio.get_running_loop()
        due = loop.time()
        while not self._over.is_set():
            task = asyncio.create_task(self.call("short"))
            self._short.add(task)
            task.add_done_callback(self._short.discard)
            self._outcome.short += 1
            due += 1 / a_second
            await asyncio.sleep(max(0.0, due - loop.time()))
        await asyncio.gather(*self._short)

    def stop(self) -> None:
        self._over.set()


@asynccontextmanager
async def calling(address: str, outcome: Outcome, *, streams: int, a_second: float) -> AsyncIterator[_Callers]:
    """Calls go on until this is left, and have ended then."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with AsyncExitStack() as stack:
        channels = [
            await stack.enter_async_context(grpc.aio.insecure_channel(address, options=options))
            for _ in range(_CONNECTIONS)
        ]
        callers = _Callers([GenerationServiceStub(channel) for channel in channels], outcome)
        async with asyncio.TaskGroup() as group:
            for _ in range(streams):
                group.create_task(callers.streams())
            group.create_task(callers.short(a_second))
            try:
                yield callers
            finally:
                callers.stop()


def _restart(replicas: list[tuple[ExitStack, Process]], index: int, upstream: str) -> None:
    """End one as an orchestrator does, and have another one serve where it was."""
    stack, process = replicas[index]
    process.popen.send_signal(signal.SIGTERM)
    if process.popen.wait(_END_SECONDS):
        raise BenchError(f"a replica ended with {process.popen.returncode}:\n{process.said()[-2000:]}")
    stack.close()
    replicas[index] = _replica(upstream, int(process.address.rpartition(":")[2]))


def _replica(upstream: str, port: int) -> tuple[ExitStack, Process]:
    stack = ExitStack()
    return stack, stack.enter_context(service(upstream, *_DRAIN, port=port))


def _close(replicas: list[tuple[ExitStack, Process]]) -> None:
    for stack, _ in replicas:
        stack.close()


def _look(control: ControlClient, names: dict[int, Sequence[bytes]]) -> None:
    """Add the calls that have reached upstream, by their numbers: it keeps the latest 10,000 only."""
    names.update((call.number, _NAME.findall(call.request.value)) for call in control.calls())


async def rolled(*, restarts: int, streams: int, a_second: float, stream_seconds: float) -> Outcome:
    """Restart the two in turn, so many times in all."""
    outcome = Outcome()
    interval = stream_seconds / _PIECES
    with ExitStack() as stack:
        command = ("-m", "vertex_emulator", "--mind", "script", "--port", "0")
        upstream = stack.enter_context(started("upstream", *command)).address
        control = stack.enter_context(ControlClient(upstream, timeout=60))
        told = [
            answer(repeat(_PIECES, "word ", interval=interval), uses=0, user_text="stream;"),
            answer("word", uses=0, user_text="short;"),
        ]
        control.load(Script(answers=told))
        names: dict[int, Sequence[bytes]] = {}
        replicas = [_replica(upstream, free_port()) for _ in range(2)]
        stack.callback(_close, replicas)
        envoy = stack.enter_context(edge(*(process.address for _, process in replicas)))
        await asyncio.to_thread(healthy, envoy.address)
        async with calling(envoy.address, outcome, streams=streams, a_second=a_second) as callers:
            for number in range(restarts):
                await asyncio.to_thread(_restart, replicas, number % 2, upstream)
                await asyncio.sleep(1)  # as long as Envoy may take to find it
                await asyncio.to_thread(_look, control, names)
                print(f"restart {number + 1}: {dict(outcome.failed) or 'no call has failed'}", flush=True)
        _look(control, names)
    reached = Counter(name for found in names.values() for name in found)
    outcome.doubled = sum(count > 1 for count in reached.values())
    outcome.lost = len(callers.whole - {name.decode() for name in reached})
    return outcome


def main(argv: Sequence[str] | None = None) -> int:
    """Run it; gives 1 if a call failed or was asked twice."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.edge.rolling", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--restarts", type=int, default=20, help="of either replica in turn (default: 20)")
    parser.add_argument("--streams", type=int, default=100, help="that are open at once (default: 100)")
    parser.add_argument("--rate", type=float, default=50.0, help="short calls that begin each second (default: 50)")
    parser.add_argument("--seconds", type=float, default=5.0, help="that a stream takes (default: 5)")
    told = parser.parse_args(argv)
    outcome = asyncio.run(
        rolled(restarts=told.restarts, streams=told.streams, a_second=told.rate, stream_seconds=told.seconds)
    )
    print(f"{outcome.streams} streams and {outcome.short} short calls over {told.restarts} restarts")
    print(f"failed: {outcome.failed.total()}, asked twice: {outcome.doubled}, never asked: {outcome.lost}")
    for what, count in outcome.failed.most_common():
        print(f"{count} x {what}")
    return int(bool(outcome.failed or outcome.doubled or outcome.lost))


if __name__ == "__main__":
    sys.exit(main())
