"""First come, first served over all workers: any script of arrivals, departures, cancels, timeouts and deaths."""

import asyncio
import copy
import selectors
import time
from collections.abc import Callable, Coroutine
from contextlib import closing, suppress
from functools import partial
from typing import Any
from unittest.mock import patch

from hypothesis import given
from hypothesis import strategies as st

from service.admission.slot_queue import Admission
from service.admission.slots import Slots
from service.errors import ServerBusy

WAIT_SECONDS = 1.0


class VirtualTime(asyncio.SelectorEventLoop):
    """An event loop on which time passes only when there is nothing else to do, and then at once."""

    def __init__(self) -> None:
        super().__init__(selectors.DefaultSelector())
        self.now = 1.0
        select = self._selector.select  # type: ignore[attr-defined] # asyncio's own loops have it

        def at_once(timeout: float | None = None) -> object:
            found = select(0)
            if not found:
                assert timeout is not None, "everything waits for something that never comes"
                self.now += timeout
            return found

        self._selector.select = at_once  # type: ignore[attr-defined] # as above

    def time(self) -> float:
        return self.now


def run(main: Coroutine[Any, Any, None]) -> None:
    """Run it in virtual time, which is also that of the clock by which workers tell each other of their callers."""
    with closing(VirtualTime()) as loop, patch.object(time, "monotonic_ns", lambda: round(loop.now * 1e9)):
        loop.run_until_complete(main)


class Watched(Slots):
    """Slots as one of the workers sees them; tells when one is taken."""

    taking: Callable[[], None]

    def take(self, *since: int) -> bool:
        taken = super().take(*since)
        if taken:
            self.taking()
        return taken


class Call:
    """A call that comes to a worker, and stays once it is let in until it is told to leave."""

    def __init__(self, server: "Workers", worker: int) -> None:
        self.server = server
        self.worker = worker
        self.leave = asyncio.Event()
        self.state = "coming"
        self.task = asyncio.ensure_future(self._stay(server.doors[worker]))

    async def _stay(self, door: Admission) -> None:
        self.state = "waiting"
        try:
            async with door.slot("caller"):
                if self.state == "waiting":  # its worker has not died
                    self.state = "inside"
                    await self.leave.wait()
        except BaseException as error:
            self.state = "refused" if isinstance(error, ServerBusy) else "gone"
            raise
        self.state = "gone"


class Workers:
    """Several workers in one process: each has its own view of the same shared memory."""

    def __init__(self, count: int, slots: int, queue: int) -> None:
        self.slots = Watched(slots=slots, per_caller=0, workers=count)
        self.queue = queue
        self.calls: list[Call] = []
        self.views: list[Watched] = []
        self.doors: list[Admission] = []
        self.dead: set[int] = set()
        self.wrong = 0
        for worker in range(count):
            self.views.append(copy.copy(self.slots))
            self.doors.append(self._open(worker))

    def _open(self, worker: int) -> Admission:
        view = self.views[worker]
        view.join(worker)
        view.taking = partial(self._taking, worker)
        return Admission(view, queue=self.queue, wait=WAIT_SECONDS)

    def come(self, worker: int) -> None:
        if worker not in self.dead:
            self.calls.append(Call(self, worker))

    def _taking(self, worker: int) -> None:
        """Nobody is let in beyond the limit, nor before somebody who has waited longer in a live worker."""
        since = [
            [waiter.since for waiter in door._queue if not waiter.turn.done()] if number not in self.dead else []
            for number, door in enumerate(self.doors)
        ]
        mine = (since.pop(worker) or [time.monotonic_ns()])[0]
        if self.slots.taken > self.slots.slots or any(one < mine for queue in since for one in queue):
            self.wrong += 1  # raised here it would be the event loop's to tell

    @property
    def inside(self) -> int:
        return sum(call.state in ("inside", "buried") for call in self.calls)

    def die(self, worker: int) -> None:
        """What it had published stays; what its tasks still do has no effect on anybody."""
        if worker in self.dead:
            return
        self.dead.add(worker)
        view = self.views[worker]
        view.taking = lambda: None
        for name in ("_totals", "_waiting", "_since", "_seen"):
            shared = getattr(view, name)
            setattr(view, name, [list(row) for row in shared] if isinstance(shared, list) else list(shared))
        if view.bell is not None:
            asyncio.get_running_loop().remove_reader(view.bell)
        for call in self.calls:
            if call.worker == worker and call.state in ("coming", "waiting", "inside"):
                # Its slot is taken until it is replaced.
                call.state = "buried" if call.state == "inside" else "lost"
                call.task.cancel()

    def replace(self, worker: int) -> None:
        if worker in self.dead:
            self.dead.discard(worker)
            for call in self.calls:
                if call.worker == worker and call.state in ("buried", "lost"):
                    call.state = "gone"
            self.views[worker] = copy.copy(self.slots)
            self.doors[worker] = self._open(worker)

    async def step(self, what: str, number: int) -> None:
        worker = number % len(self.doors)
        if what in ("come", "die", "replace"):
            getattr(self, what)(worker)
        elif what == "pass":
            await asyncio.sleep(WAIT_SECONDS / 3)
        elif candidates := [call for call in self.calls if call.state == ("inside" if what == "leave" else "waiting")]:
            call = candidates[number % len(candidates)]
            call.leave.set() if what == "leave" else call.task.cancel()

    async def settle(self) -> None:
        """A place is free only if nobody waits for it."""
        await asyncio.sleep(0.3)
        if any(call.state == "waiting" for call in self.calls):
            assert self.slots.taken == self.slots.slots

    async def close(self) -> None:
        for worker in list(self.dead):
            self.replace(worker)
        while any(call.state in ("coming", "waiting", "inside") for call in self.calls):
            for call in self.calls:
                call.leave.set()
            await asyncio.sleep(0.3)
        for call in self.calls:
            with suppress(ServerBusy, asyncio.CancelledError):
                await call.task
        await asyncio.sleep(0)
        assert self.wrong == 0
        assert self.slots.taken == 0
        assert self.slots.queue(1), "somebody is still counted as waiting"
        assert self.slots.ahead() is None
        for view in self.views:
            if view.bell is not None:
                asyncio.get_running_loop().remove_reader(view.bell)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["come"] * 5 + ["leave"] * 4 + ["cancel", "pass", "die", "replace"]),
        st.integers(0, 11),
        st.integers(0, 3),  # turns of the loop before the next step
    ),
    max_size=60,
)


async def play(workers: Workers, steps: list[tuple[str, int, int]]) -> None:
    for what, number, turns in steps:
        await workers.step(what, number)
        asyncio.get_running_loop().now += 0.000_001  # type: ignore[attr-defined] # no two come in the same moment
        for _ in range(turns):
            await asyncio.sleep(0)
        assert workers.inside <= workers.slots.taken <= workers.slots.slots
        if turns == 3:
            await workers.settle()
    await workers.settle()
    await workers.close()


@given(st.integers(1, 3), st.integers(1, 3), st.integers(0, 5), STEPS)
def test_whatever_happens_in_whatever_order(
    count: int, slots: int, queue: int, steps: list[tuple[str, int, int]]
) -> None:
    async def main() -> None:
        await play(Workers(count, slots, queue), steps)

    run(main())


def test_a_freed_place_goes_to_whoever_has_waited_longest_in_any_worker() -> None:
    async def main() -> None:
        workers = Workers(2, 1, 4)
        for worker in (0, 1, 0, 1, 0):
            workers.come(worker)
            await asyncio.sleep(0.01)
        for number, call in enumerate(workers.calls):
            assert [one.state for one in workers.calls[number:]] == ["inside"] + ["waiting"] * (4 - number)
            call.leave.set()
            await asyncio.sleep(0.001)  # less than any timer: the other worker has been told
        await workers.close()

    run(main())


def test_a_caller_that_comes_does_not_pass_one_that_waits_in_another_worker() -> None:
    async def main() -> None:
        workers = Workers(2, 1, 4)
        for worker in (0, 1):
            workers.come(worker)
            await asyncio.sleep(0.001)
        first, second = workers.calls
        first.leave.set()
        await first.task  # its slot is free, and the other worker has not run yet
        workers.come(0)
        await asyncio.sleep(0.001)
        assert (second.state, workers.calls[2].state) == ("inside", "waiting")
        await workers.close()

    run(main())


def test_callers_in_a_worker_that_died_hold_up_nobody_for_long() -> None:
    async def main() -> None:
        workers = Workers(2, 1, 4)
        for worker in (1, 0, 1):
            workers.come(worker)
            await asyncio.sleep(0.001)
        workers.die(0)
        workers.calls[0].leave.set()
        await asyncio.sleep(0.1)
        assert workers.calls[2].state == "waiting"
        await asyncio.sleep(0.16)
        assert workers.calls[2].state == "inside"
        await workers.close()

    run(main())


def test_what_a_dead_worker_had_published_goes_with_its_replacement() -> None:
    async def main() -> None:
        workers = Workers(2, 1, 4)
        for worker in (1, 0):
            workers.come(worker)
            await asyncio.sleep(0.001)
        assert workers.views[1].ahead() == 0
        workers.die(0)
        workers.replace(0)
        assert workers.views[1].ahead() is None
        await workers.close()

    run(main())
