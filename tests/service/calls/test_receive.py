"""Requests that arrive slowly, many at once: who is read, who waits, who has to go."""

import asyncio
import gc
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any

import grpc
import grpc.aio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.calls import receive
from service.calls.receive import Receiver
from service.errors import CallError, InvalidRequest, ServerBusy
from service.testing import FakeProvider
from tests.conftest import Serve, failure
from tests.service.admission.test_order import run
from tokenwire.statuses import explain

MB = 1024 * 1024
LARGE = bytes(receive._TURN_BYTES + 1)


class Upload:
    """A call whose request arrives when the test says so; it stands for gRPC's context."""

    def __init__(self, receiver: Receiver, connection: str = "a") -> None:
        self.receiver = receiver
        self.connection = connection
        self.reading = False
        self.arrival: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.sent = asyncio.Event()
        """Set when its status has been sent."""
        self.failure: CallError | None = None
        self.data: bytes | None = None
        self.lingers = False
        """Whether it has a status to be sent when it is cancelled."""
        self.task = asyncio.ensure_future(self._run(receiver))

    def peer(self) -> str:
        return self.connection

    async def read(self) -> Any:
        self.reading = True
        try:
            return await self.arrival
        finally:
            self.reading = False

    async def _run(self, receiver: Receiver) -> None:
        try:
            self.data = await receiver.receive(self, bytes)  # type: ignore[arg-type] # it has the two methods that are used
        except CallError as error:
            self.failure = error
            await self.sent.wait()
        except asyncio.CancelledError:
            if not self.lingers:
                raise
            self.task.uncancel()
            await self.sent.wait()

    async def goes(self) -> None:
        """Have its status sent once it has failed."""
        self.sent.set()
        await asyncio.wait((self.task,))


def receiver(reads: int, waiting: int) -> Receiver:
    """One that reads so many at once and has so many wait."""
    made = Receiver(budget=waiting * 4 * receive._UNREAD_BYTES, largest=waiting * 2 * receive._UNREAD_BYTES // reads)
    assert (made._most_reads, made._most_waiting) == (reads, waiting)
    return made


@asynccontextmanager
async def uploads(reads: int, waiting: int) -> AsyncIterator[Any]:
    """`await come("a")` is an upload on connection "a"; afterwards none may be counted any more."""
    one = receiver(reads, waiting)
    came: list[Upload] = []

    async def come(connection: str = "a") -> Upload:
        came.append(Upload(one, connection))
        await turns()
        return came[-1]

    yield come
    for upload in came:
        upload.sent.set()
        upload.task.cancel()
    await asyncio.wait([upload.task for upload in came])
    await turns()
    assert not one._reads
    assert not one._lines
    assert one._waiting == 0


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_the_bound_is_that_of_all_that_may_be_in_memory_at_once() -> None:
    one = Receiver(budget=128 * MB, largest=6 * MB)
    assert one._most_reads * 6 * MB + one._most_waiting * receive._UNREAD_BYTES <= 0.75 * 128 * MB
    small = Receiver(budget=1, largest=6 * MB)
    assert (small._most_reads, small._most_waiting) == (1, 1)


def test_a_request_that_arrives_makes_room_for_the_next() -> None:
    async def main() -> None:
        async with uploads(1, 2) as come:
            first, second, third = await come("a"), await come("a"), await come("b")
            assert [one.reading for one in (first, second, third)] == [True, False, False]
            for one, after in ((first, second), (second, third)):
                one.arrival.set_result(b"data")
                await turns()
                assert one.data == b"data"
                assert after.reading

    run(main())


def test_a_stalled_upload_is_ended_when_others_wait_and_only_then() -> None:
    async def main() -> None:
        async with uploads(1, 1) as come:
            first = await come("a")
            await asyncio.sleep(9)
            assert first.reading
            second = await come("b")
            await turns()
            assert isinstance(first.failure, ServerBusy)
            assert first.failure.retry_after == 1
            assert not second.reading, "what the first has sent is in memory until its status has been sent"
            await first.goes()
            await turns()
            assert second.reading
            await asyncio.sleep(11)
            assert second.failure is not None
            assert second.failure.reason == "REQUEST_STALLED"

    run(main())


def test_who_waited_for_others_most_of_the_time_has_not_stalled() -> None:
    async def main() -> None:
        async with uploads(1, 2) as come:
            first = await come("a")
            second = await come("b")
            await asyncio.sleep(8)
            await first.goes()
            await turns()
            assert second.reading
            await asyncio.sleep(2.5)
            assert isinstance(second.failure, ServerBusy)

    run(main())


def test_each_has_its_share_of_time() -> None:
    async def main() -> None:
        async with uploads(1, 1) as come:
            first, second = await come("a"), await come("a")
            await asyncio.sleep(0.09)
            assert first.reading
            first.arrival.set_result(b"")
            await turns()
            assert second.reading

    run(main())


def test_a_request_that_arrives_while_the_loop_is_blocked_is_not_late() -> None:
    async def main() -> None:
        async with uploads(1, 1) as come:
            first, second = await come("a"), await come("b")
            time.sleep(0.3)  # noqa: ASYNC251 - that is the point
            asyncio.get_running_loop().call_soon(first.arrival.set_result, b"data")
            await turns()
            assert (first.data, first.failure) == (b"data", None)
            assert second.reading

    asyncio.run(main())


def test_a_stalled_upload_ends_also_on_a_loop_that_is_always_late() -> None:
    async def main() -> None:
        async with uploads(1, 1) as come:
            first, _ = await come("a"), await come("b")
            for _ in range(3):
                time.sleep(0.12)  # noqa: ASYNC251 - that is the point
                await asyncio.sleep(0.001)
            assert isinstance(first.failure, ServerBusy)

    asyncio.run(main())


@pytest.mark.thorough
def test_refusals_come_one_by_one_and_none_waits_for_longer_than_three_seconds() -> None:
    async def main() -> None:
        async with uploads(1, 1) as come:
            await come()
            await come()
            refused = [await come() for _ in range(8000)]
            await asyncio.sleep(0.21)
            gone = sum(one.failure is not None for one in refused)
            assert 0 < gone < 100
            await asyncio.sleep(2.9)
            assert all(isinstance(one.failure, ServerBusy) for one in refused)

    run(main())


def test_the_connection_with_most_uploads_has_to_go_first() -> None:
    async def main() -> None:
        async with uploads(3, 3) as come:
            slow = await come("slow")
            many = [await come("many") for _ in range(2)]
            await asyncio.sleep(1)
            await come("new")
            assert slow.failure is None
            assert many[0].failure is not None
            assert many[1].failure is None

    run(main())


def test_connections_have_their_turns_one_after_the_other() -> None:
    async def main() -> None:
        async with uploads(1, 10) as come:
            first = await come("many")
            many = [await come("many") for _ in range(5)]
            other = await come("other")
            first.arrival.set_result(b"")
            await turns()
            assert many[0].reading
            many[0].arrival.set_result(b"")
            await turns()
            assert other.reading

    run(main())


def test_where_too_many_wait_the_connection_with_most_has_to_go() -> None:
    async def main() -> None:
        async with uploads(1, 3) as come:
            await come("many")
            many = [await come("many") for _ in range(3)]
            refused = await come("many")
            other = await come("other")
            assert isinstance(many[-1].failure, ServerBusy)
            assert other.failure is None
            assert refused.failure is None, "new calls come first"
            await asyncio.sleep(0.25)
            assert isinstance(refused.failure, ServerBusy)

    run(main())


def test_a_connection_of_which_none_is_read_finds_a_place_beside_one_that_has_many() -> None:
    async def main() -> None:
        async with uploads(8, 10) as come:
            many = [await come("many") for _ in range(10)]
            assert [one.reading for one in many] == [True] * 6 + [False] * 4
            assert (await come("new")).reading
            assert (await come("newer")).reading
            last = await come("last")
            assert not last.reading, "all places are taken"
            await asyncio.sleep(0.15)
            assert many[0].failure is not None
            await many[0].goes()
            await turns()
            assert last.reading
            assert not any(one.reading for one in many[6:])

    run(main())


def test_a_caller_that_leaves_while_it_waits_makes_room() -> None:
    async def main() -> None:
        async with uploads(1, 1) as come:
            await come("a")
            second = await come("b")
            second.task.cancel()
            await turns()
            third = await come("b")
            assert third.failure is None

    run(main())


def test_however_many_connections_stall_a_new_one_has_its_turn_soon() -> None:
    async def main() -> None:
        async with uploads(4, 200) as come:
            for number in range(100):
                (await come(f"stalled {number}")).sent.set()
            decent = await come("decent")
            await asyncio.sleep(0.2)
            assert decent.reading

    run(main())


def test_one_that_never_had_its_turn_is_told_to_come_again() -> None:
    async def main() -> None:
        async with uploads(1, 1) as come:
            await come("a")
            second = await come("b")  # the first is ended, but its status can't be sent
            await asyncio.sleep(10.5)
            assert isinstance(second.failure, ServerBusy)

    run(main())


def test_large_requests_that_arrive_in_one_moment_go_on_one_by_one_and_small_ones_at_once() -> None:
    async def main() -> None:
        async with uploads(16, 9) as come:
            large = [await come("abc"[number % 3]) for number in range(8)]
            small = await come("a")
            for one in (*large, small):
                one.arrival.set_result(b"data" if one is small else LARGE)
            seen = [0]
            while seen[-1] < len(large):
                await asyncio.sleep(0)
                seen.append(sum(one.data is not None for one in large))
                assert small.data is not None or len(seen) < 4
            assert max(after - before for before, after in pairwise(seen)) == 1

    run(main())


def test_a_request_that_has_arrived_and_waits_for_others_is_too_late_for_nothing_and_keeps_its_place() -> None:
    async def main() -> None:
        async with uploads(1, 2) as come:
            first, second = await come("a"), await come("b")
            (read,) = first.receiver._reads
            async with first.receiver._large:
                first.arrival.set_result(LARGE)
                await asyncio.sleep(receive.RECEIVE_SECONDS - 0.01)
                assert first.failure is None
                assert list(first.receiver._reads) == [read]
                assert not second.reading
            await turns()
            assert first.data == LARGE
            assert second.reading

    run(main())


def test_a_call_that_has_ended_otherwise_is_left_to_send_its_status() -> None:
    async def main() -> None:
        async with uploads(1, 2) as come:
            first = await come("a")
            first.lingers = True
            first.task.cancel()  # its deadline, say
            second = await come("b")
            await asyncio.sleep(5 * receive._SHARE_SECONDS)
            assert not first.task.done()
            assert first.task.cancelling() == 0
            assert not second.reading  # its memory isn't free yet
            await first.goes()
            await turns()
            assert second.reading

    run(main())


@pytest.mark.parametrize("why", ["share", "too late"])
def test_a_read_that_is_ended_is_kept_in_no_cycle(why: str) -> None:
    async def main() -> None:
        async with uploads(1, 2) as come:
            upload = await come("a")
            (read,) = upload.receiver._reads
            if why == "share":
                await come("b")
            await asyncio.sleep(receive.RECEIVE_SECONDS + 1)
            upload.sent.set()
            upload.failure = None
            await turns()
            assert sys.getrefcount(read) == len(("here", "the argument"))

    gc.disable()
    try:
        run(main())
    finally:
        gc.enable()


def test_a_call_without_a_request_frees_its_place() -> None:
    async def main() -> None:
        async with uploads(1, 1) as come:
            first, second = await come("a"), await come("b")
            first.arrival.set_result(grpc.aio.EOF)
            await turns()
            assert second.reading
            await asyncio.sleep(0.1)
            assert isinstance(first.failure, InvalidRequest)

    run(main())


STEPS = st.lists(
    st.tuples(st.sampled_from(["come"] * 4 + ["arrive", "leave", "pass", "end"]), st.integers(0, 9), st.integers(0, 3)),
    max_size=50,
)


async def step(one: Receiver, calls: list[Upload], what: str, number: int) -> None:
    if what == "come":
        calls.append(Upload(one, "abc"[number % 3]))
    elif what == "pass":
        await asyncio.sleep(0.15)
    elif calls:
        call = calls[number % len(calls)]
        if what == "leave":
            call.task.cancel()
        elif what == "end":
            call.sent.set()
        elif call.reading and not call.arrival.done():
            call.arrival.set_result(b"data" if number % 2 else LARGE)


@given(st.integers(1, 3), st.integers(1, 4), STEPS)
def test_whatever_happens_the_bounds_hold_and_no_place_is_lost(
    reads: int, waiting: int, steps: list[tuple[str, int, int]]
) -> None:
    async def main() -> None:
        one = receiver(reads, waiting)
        calls: list[Upload] = []
        for what, number, pauses in steps:
            await step(one, calls, what, number)
            for _ in range(pauses):
                await asyncio.sleep(0)
            assert sum(call.reading for call in calls) <= len(one._reads) <= reads
            assert one._waiting == sum(map(len, one._lines.values())) <= waiting
        for call in calls:
            call.sent.set()
        await asyncio.sleep(30)  # by then each has had its turn, and its time
        assert all(call.task.done() for call in calls)
        assert all(call.data is not None or call.failure is not None or call.task.cancelled() for call in calls)
        assert not one._reads
        assert not one._lines

    run(main())


async def test_a_read_that_is_given_up_is_a_typed_status(serve: Serve) -> None:
    served = await serve(FakeProvider([]), max_unfinished_bytes=1)
    opened: Any = served.channel.stream_stream("/tokenwire.v1.GenerationService/Generate")
    stalled = [opened(timeout=20) for _ in range(2)]
    reads = [asyncio.ensure_future(call.read()) for call in stalled]
    (over,), _ = await asyncio.wait(reads, timeout=5, return_when=asyncio.FIRST_COMPLETED)
    error = over.exception()
    assert isinstance(error, grpc.aio.AioRpcError)
    assert failure(error) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "SERVER_BUSY")
    for call in stalled:
        call.cancel()
    await asyncio.wait(reads)


async def test_the_log_tells_of_requests_that_grpc_refuses_itself_and_of_many_in_one_line(
    serve: Serve, lines: list[str]
) -> None:
    served = await serve(FakeProvider([]), max_inline_bytes=0, max_prompt_bytes=1)
    for _ in range(3):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await served.ask("x" * 2 * MB)
        words = explain(caught.value, address="")
        assert str(words) == "The request is too large: it has 2.1 MB, history included, and the service takes 1.0 MB."
    (line,) = lines
    assert line.startswith("requests that never arrived: 1; ")
    assert f"larger than {MB + 1} bytes, which gRPC refuses (TOKENWIRE_MAX_INLINE_BYTES" in line
