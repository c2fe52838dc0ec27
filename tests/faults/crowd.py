"""Workers as small processes of their own: shared slots and a queue each, without gRPC or a model."""

import asyncio
import time
from multiprocessing.connection import Connection

from service.admission.slot_queue import Admission
from service.admission.slots import Slots


class Noted(Slots):
    """Slots that note when each was taken."""

    def __init__(self, *, slots: int, per_caller: int, workers: int) -> None:
        super().__init__(slots=slots, per_caller=per_caller, workers=workers)
        self.moments: list[int] = []

    def take(self, *since: int) -> bool:
        taken = super().take(*since)
        if taken:
            self.moments.append(time.monotonic_ns())
        return taken


async def callers(slots: Noted, at_once: int, calls: int, hold: float) -> list[tuple[int, int]]:
    """So many callers, each of whom comes again as soon as it has left; when each call came and was let in, in ns."""
    door = Admission(slots, queue=1000, wait=60)
    came: list[int] = []

    async def call() -> None:
        came.append(time.monotonic_ns())
        async with door.slot("caller"):
            await asyncio.sleep(hold)

    async def caller() -> None:
        while len(came) < calls:
            await call()

    await asyncio.gather(*(caller() for _ in range(at_once)))
    # In one worker they are let in in the order in which they came.
    return list(zip(came, slots.moments, strict=True))


def worker(slots: Noted, number: int, tell: Connection, *load: float) -> None:
    """Run in a process of its own."""
    slots.join(number)
    at_once, calls, hold = load
    tell.send(asyncio.run(callers(slots, int(at_once), int(calls), hold)))


def overtaken(calls: list[tuple[int, int]], head_start: int) -> int:
    """How many calls were let in before one that had come `head_start` ns earlier."""
    earlier = sorted(calls)
    found, first, latest = 0, 0, 0
    for came, let_in in earlier:
        while earlier[first][0] < came - head_start:
            latest = max(latest, earlier[first][1])
            first += 1
        found += latest > let_in
    return found
