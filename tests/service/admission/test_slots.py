"""Places counted over all worker processes."""

import asyncio
import multiprocessing
import os
import select
import signal
from multiprocessing.synchronize import Event
from unittest.mock import patch

from service.admission.slot_queue import Admission
from service.admission.slots import Slots

FORK = multiprocessing.get_context("fork")


def test_places_are_counted() -> None:
    slots = Slots(slots=2, per_caller=0)
    assert slots.take()
    assert slots.take()
    assert not slots.take()
    assert slots.taken == 2
    slots.give()
    assert slots.take()


def test_one_caller_has_a_limit_and_others_theirs() -> None:
    slots = Slots(slots=10, per_caller=1)
    assert slots.enter("a")
    assert not slots.enter("a")
    assert slots.enter("b")
    slots.leave("a")
    assert slots.enter("a")


def test_without_a_limit_callers_are_not_counted() -> None:
    slots = Slots(slots=1, per_caller=0)
    assert all(slots.enter("a") for _ in range(100))


def test_those_who_wait_are_counted() -> None:
    slots = Slots(slots=1, per_caller=0)
    assert slots.queue(1)
    assert not slots.queue(1)
    slots.unqueue()
    assert slots.queue(1)


def hold(slots: Slots, worker: int, took: Event, leave: Event) -> None:
    slots.join(worker)
    assert slots.take()
    assert slots.enter("a")
    assert slots.queue(2)
    took.set()
    leave.wait(30)


def test_workers_see_each_others_places_and_a_dead_ones_are_given_back() -> None:
    slots = Slots(slots=2, per_caller=2, workers=2)
    slots.join(0)
    took, leave = FORK.Event(), FORK.Event()
    other = FORK.Process(target=hold, args=(slots, 1, took, leave))
    other.start()
    assert took.wait(30)
    assert slots.taken == 1
    assert slots.take()
    assert not slots.take()
    assert slots.enter("a")
    assert not slots.enter("a")
    assert slots.queue(2)
    assert not slots.queue(2)
    other.kill()
    other.join()
    assert slots.taken == 2
    slots.join(1)  # as its successor does
    assert slots.taken == 1
    assert slots.enter("a")
    assert slots.queue(2)


def test_two_at_once_never_exceed_the_limit() -> None:
    workers, limit = 4, 2
    slots = Slots(slots=limit, per_caller=0, workers=workers)
    held = FORK.Array("i", workers, lock=False)
    crowding = [FORK.Process(target=take_and_hold, args=(slots, worker, held)) for worker in range(workers)]
    for process in crowding:
        process.start()
    for process in crowding:
        process.join(30)
        assert process.exitcode == 0
    assert sum(held) <= limit
    assert slots.taken == sum(held)


def take_and_hold(slots: Slots, worker: int, held: "list[int]") -> None:
    slots.join(worker)
    for _ in range(10_000):
        if slots.take():
            held[worker] += 1
        if held[worker] and worker % 2:
            slots.give()
            held[worker] -= 1


async def entered(slots: Slots) -> float:
    async with Admission(slots, queue=2, wait=60).slot("caller") as waited:
        return waited


def wait_in_line(slots: Slots, worker: int, waiting: Event) -> None:
    slots.join(worker)

    async def main() -> None:
        entering = asyncio.ensure_future(entered(slots))
        await asyncio.sleep(0)
        waiting.set()
        await entering

    asyncio.run(main())


def test_callers_in_a_worker_that_is_stopped_hold_up_others_for_a_moment_only() -> None:
    slots = Slots(slots=1, per_caller=0, workers=2)
    slots.join(0)
    assert slots.take()
    waiting = FORK.Event()
    other = FORK.Process(target=wait_in_line, args=(slots, 1, waiting))
    other.start()
    assert waiting.wait(30)
    assert other.pid is not None
    os.kill(other.pid, signal.SIGSTOP)

    async def main() -> float:
        entering = asyncio.ensure_future(entered(slots))
        await asyncio.sleep(0)
        slots.give()
        return await asyncio.wait_for(entering, 5)

    assert asyncio.run(main()) >= 0
    other.kill()
    other.join()


def test_a_worker_is_told_of_its_turn_at_once() -> None:
    slots = Slots(slots=1, per_caller=0, workers=2)
    assert slots.bell is not None
    slots.ring(0)
    assert select.select([slots.bell], [], [], 0)[0] == [slots.bell]
    slots.silence()
    assert select.select([slots.bell], [], [], 0)[0] == []
    slots.silence()  # nobody has rung: nothing happens


def test_two_who_try_for_the_last_place_at_once_do_not_both_go_without() -> None:
    slots = Slots(slots=1, per_caller=0, workers=2)
    tries = iter((False, True))

    def collides(*_: object) -> bool:
        return next(tries)

    with patch.object(slots, "_take", collides):
        assert slots.take()
