"""Slots, the queue, and who is refused."""

import asyncio

import pytest

from service.admission.slot_queue import Admission
from service.admission.slots import Slots
from service.errors import QuotaExceeded, ServerBusy


class Door(Admission):
    """An admission that tells how many are inside."""

    def __init__(self, slots: Slots, *, queue: int, wait: float) -> None:
        super().__init__(slots, queue=queue, wait=wait)
        self.slots = slots

    @property
    def taken(self) -> int:
        return self.slots.taken


def admission(slots: int = 1, *, per_caller: int = 0, queue: int = 0, wait: float = 60) -> Door:
    return Door(Slots(slots=slots, per_caller=per_caller), queue=queue, wait=wait)


class Stay:
    """A caller who holds a slot until told to leave."""

    def __init__(self, door: Door, caller: str = "a") -> None:
        self.inside = asyncio.Event()
        self.leave = asyncio.Event()
        self.waited = -1.0
        self.task = asyncio.ensure_future(self._stay(door, caller))

    async def _stay(self, door: Door, caller: str) -> None:
        async with door.slot(caller) as self.waited:
            self.inside.set()
            await self.leave.wait()


async def visit(door: Door, caller: str = "b") -> float:
    """Come in and leave again."""
    async with door.slot(caller) as waited:
        return waited


async def test_a_free_slot_is_taken_without_waiting_and_given_back_at_the_end() -> None:
    door = admission()
    stay = Stay(door)
    await stay.inside.wait()
    assert stay.waited == 0
    assert door.taken == 1
    stay.leave.set()
    await stay.task
    await asyncio.sleep(0)
    assert door.taken == 0


async def test_beyond_slots_and_queue_callers_are_refused_at_once() -> None:
    door = admission(2, queue=1)
    first, second, queued = Stay(door), Stay(door), Stay(door)
    await second.inside.wait()
    with pytest.raises(ServerBusy) as caught:
        await visit(door, "b")
    assert caught.value.retry_after == 1
    first.leave.set()
    await queued.inside.wait()
    for one in (second, queued):
        one.leave.set()
        await one.task
    await asyncio.sleep(0)
    assert door.taken == 0


async def test_the_queue_is_served_in_order_and_tells_how_long_it_took() -> None:
    door = admission(queue=2)
    first, second, third = Stay(door), Stay(door), Stay(door)
    await first.inside.wait()
    await asyncio.sleep(0)
    first.leave.set()
    await second.inside.wait()
    assert not third.inside.is_set()
    assert second.waited > 0
    second.leave.set()
    await third.inside.wait()
    third.leave.set()
    await third.task
    await asyncio.sleep(0)
    assert door.taken == 0


async def test_whoever_waits_too_long_is_refused_and_leaves_no_trace() -> None:
    door = admission(queue=1, wait=0.01)
    first = Stay(door)
    await first.inside.wait()
    for _ in range(2):
        with pytest.raises(ServerBusy):
            await visit(door, "b")
    first.leave.set()
    await first.task
    await asyncio.sleep(0)
    assert door.taken == 0


async def test_whoever_leaves_the_queue_makes_room_in_it() -> None:
    door = admission(queue=1)
    first, second = Stay(door), Stay(door)
    await first.inside.wait()
    await asyncio.sleep(0)
    second.task.cancel()
    await asyncio.wait((second.task,))
    third = Stay(door)
    first.leave.set()
    await third.inside.wait()
    third.leave.set()
    await third.task
    await asyncio.sleep(0)
    assert door.taken == 0


async def test_a_slot_that_comes_in_the_moment_of_leaving_is_not_lost() -> None:
    door = admission(queue=1)
    first, second = Stay(door), Stay(door)
    await first.inside.wait()
    await asyncio.sleep(0)
    first.leave.set()
    await first.task  # the slot is second's now, who has not run yet
    second.task.cancel()
    await asyncio.wait((second.task,))
    await asyncio.sleep(0)
    assert door.taken == 0
    await visit(door, "c")


async def test_one_caller_has_a_limit_of_its_own() -> None:
    door = admission(10, per_caller=2)
    greedy = [Stay(door, "greedy") for _ in range(2)]
    await greedy[1].inside.wait()
    with pytest.raises(QuotaExceeded):
        await visit(door, "greedy")
    await visit(door, "modest")
    greedy[0].leave.set()
    await greedy[0].task
    await visit(door, "greedy")
    greedy[1].leave.set()
    await greedy[1].task


async def test_a_refused_caller_leaves_no_trace() -> None:
    door = admission(1, per_caller=1)
    stay = Stay(door, "a")
    await stay.inside.wait()
    for _ in range(3):
        with pytest.raises(ServerBusy):
            await visit(door, "b")
    stay.leave.set()
    await stay.task
    await visit(door, "b")


async def test_a_place_that_another_worker_gives_back_goes_to_the_queue() -> None:
    slots = Slots(slots=1, per_caller=0, workers=2)
    assert slots.take()
    door = Door(slots, queue=1, wait=60)
    waiting = Stay(door)
    await asyncio.sleep(0)
    slots.give()  # as the other worker would: without a word to this one
    await asyncio.wait_for(waiting.inside.wait(), 5)
    waiting.leave.set()
    await waiting.task
    await asyncio.sleep(0)
    assert door.taken == 0


async def test_the_queue_is_that_of_the_server_not_of_each_worker() -> None:
    slots = Slots(slots=1, per_caller=0, workers=2)
    assert slots.take()
    assert slots.queue(1)  # in the other worker
    door = Door(slots, queue=1, wait=60)
    with pytest.raises(ServerBusy):
        await visit(door)
    slots.unqueue()
    waiting = Stay(door)
    await asyncio.sleep(0)
    assert not slots.queue(1)
    waiting.task.cancel()
    await asyncio.wait((waiting.task,))
    assert slots.queue(1)
