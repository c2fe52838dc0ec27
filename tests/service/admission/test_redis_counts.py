"""Counts in a real Redis: over servers and workers, while it hangs or is away, and what outlives whom."""

import asyncio
import os
import random
import re
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.admission import quotas, redis_counts
from service.admission.callers import Caller
from service.admission.counts import DAY_SECONDS, Counts
from service.admission.quotas import Quotas
from service.admission.redis_counts import SCRIPT, LinkError, RedisCounts
from service.admission.redis_link import Link, Redis
from service.errors import QuotaExceeded, QuotasUnavailable
from tests.certificates import Authority
from tests.ports import free_port
from tests.redis_server import RedisServer, made

CALLER = Caller(name="a")


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Redis may take its time: the machine may be busy, and this is about something else."""
    monkeypatch.setattr(redis_counts, "WAIT_SECONDS", 0.9)


PATIENT = pytest.mark.usefixtures("patient")


class Worker:
    """One that counts in Redis."""

    def __init__(self, home: RedisCounts, lines: list[str]) -> None:
        self.home = home
        self.quotas = Quotas(home)
        self.lines = lines
        self.task: asyncio.Task[Any] = asyncio.ensure_future(home.run())

    async def use(self, caller: Caller = CALLER, tokens: int = 1) -> None:
        (await self.quotas.charge(caller, tokens, 0)).settle(tokens, characters=0)

    async def told(self, caller: Caller = CALLER) -> dict[str, int]:
        return {quota.name: quota.used for quota in (await self.quotas.told(caller))[0]}

    async def until(self, *, up: bool) -> None:
        async with asyncio.timeout(30):
            while self.home.state.up != up:  # noqa: ASYNC110 - a metric's figure, that nobody tells of
                await asyncio.sleep(0.005)

    async def end(self) -> None:
        self.task.cancel()
        with suppress(asyncio.CancelledError):
            await self.task


Start = Callable[..., Awaitable[Worker]]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """`await start(link, counts)`: a worker that has looked for Redis."""
    async with AsyncExitStack() as stack:

        async def begin(link: Any, counts: Counts | None = None, **options: Any) -> Worker:
            lines: list[str] = []

            def say(text: str, *arguments: object) -> None:
                lines.append(text % arguments)

            worker = Worker(RedisCounts(counts or Counts(), link, say=say, warn=say, **options), lines)
            stack.push_async_callback(worker.end)
            await worker.home.tried(10)
            return worker

        yield begin


def link(server: RedisServer, **options: Any) -> Link:
    return Link(server.url, **options)


# ---- the script, against a plain model


@pytest.fixture(scope="module")
def shared_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = made(tmp_path_factory.mktemp("shared"))
    server.start()
    yield server
    server.stop(signal.SIGKILL)


NUMBER = st.integers(0, 5)
ROW = st.tuples(st.integers(0, 3), NUMBER, NUMBER, NUMBER, NUMBER, NUMBER)
"""Streams, requests and tokens of the minute, and tokens, requests and estimates of the day."""
STEPS = st.lists(
    st.tuples(
        st.integers(0, 2).map("w{}".format),
        st.sampled_from([0, 0, 0, 1, 2, 24 * 60]),  # minutes that have gone by
        ROW,
        st.sampled_from(["new", "new", "new", "again", "late"]),
    ),
    max_size=25,
)


class Model:
    """What workers have told last; what counts is what they tell of the newest minute, and of the newest day."""

    def __init__(self) -> None:
        self.rows: dict[str, tuple[int, int, tuple[int, ...]]] = {}
        self.minute = self.day = 0

    def told(self, worker: str, minute: int, row: tuple[int, ...]) -> None:
        self.rows[worker] = minute, minute // (24 * 60), row
        self.minute, self.day = max(self.minute, minute), max(self.day, minute // (24 * 60))

    def all(self) -> list[int]:
        def of(fields: Sequence[int], newest: Callable[[int, int], bool]) -> list[int]:
            found = [row for minute, day, row in self.rows.values() if newest(minute, day)]
            return [sum(row[field] for row in found) for field in fields]

        (streams,) = of([0], lambda *_: True)
        in_minute = of([1, 2], lambda minute, _: minute == self.minute)
        return [streams, self.minute, *in_minute, self.day, *of([3, 4, 5], lambda _, day: day == self.day)]


@given(STEPS)
def test_the_script_counts_as_a_plain_model_whatever_is_told_again_or_late(
    shared_redis: RedisServer, steps: list[tuple[str, int, tuple[int, ...], str]]
) -> None:
    model, minute = Model(), 20_000 * 24 * 60
    before: list[tuple[Any, ...]] = []
    """What has been told on this day: nothing is late by more than the seconds after which an answer is given up."""
    with shared_redis.client() as client:
        client.flushdb()
        run = client.register_script(SCRIPT)
        for seen, (worker, gone, row, how) in enumerate(steps, 1):
            if (minute + gone) // (24 * 60) > minute // (24 * 60):
                before.clear()
            minute += gone
            if how == "new" or not before:
                day = minute // (24 * 60)
                fields = " ".join(map(str, (seen, minute, row[1], row[2], day, *row[3:])))
                before.append((worker, fields, row[0]))
                model.told(worker, minute, row)
            told = before[-1] if how != "late" else before[0]
            found = run(keys=["counts", "streams"], args=[*told, 60_000, 60_000])
            assert found[:-1] == model.all()


def test_streams_of_a_worker_that_does_not_renew_them_count_no_more(shared_redis: RedisServer) -> None:
    with shared_redis.client() as client:
        client.flushdb()
        run = client.register_script(SCRIPT)
        fields = "1 1 1 1 1 1 0"
        assert run(keys=["c", "s"], args=["lives", f"1 {fields}", 2, 60_000, 60_000])[0] == 2
        assert run(keys=["c", "s"], args=["dead", f"1 {fields}", 3, 1, 60_000])[0] == 5
        while run(keys=["c", "s"], args=["lives", f"1 {fields}", 2, 60_000, 60_000])[0] != 2:
            pass
        assert client.hkeys("s") == ["lives"]


# ---- over servers


@PATIENT
async def test_servers_hold_a_caller_to_its_quotas_together(redis_server: RedisServer, start: Start) -> None:
    first, second = await start(link(redis_server)), await start(link(redis_server))
    caller = Caller(name="a", streams=2, tokens_per_day=50)
    charges = [await worker.quotas.charge(caller, 10, 0) for worker in (first, second)]
    for worker in (first, second):
        with pytest.raises(QuotaExceeded, match="2 streams open"):
            await worker.quotas.charge(caller, 10, 0)
    charges[0].settle(40, characters=0)
    await first.home.told_all(10)
    with pytest.raises(QuotaExceeded, match="50 tokens of this day"):
        await second.quotas.charge(caller, 1, 0)
    charges[1].settle(None, characters=0)
    await second.home.told_all(10)
    assert await first.told() == await second.told()
    assert await first.told() == {
        "streams": 0,
        "requests_per_minute": 2,
        "tokens_per_minute": 50,
        "requests_per_day": 2,
        "tokens_per_day": 50,
    }
    assert (await first.quotas.told(caller))[1] == 10


@PATIENT
async def test_of_those_who_ask_at_once_as_many_get_in_as_there_is_room_for(
    redis_server: RedisServer, start: Start
) -> None:
    first, second = await start(link(redis_server)), await start(link(redis_server))
    caller = Caller(name="a", streams=3)
    for several in ([first] * 6, [first, second] * 3):
        for _ in range(10):
            outcomes = await asyncio.gather(
                *(worker.quotas.charge(caller, 1, 0) for worker in several), return_exceptions=True
            )
            let_in = [one for one in outcomes if not isinstance(one, BaseException)]
            assert len(let_in) == 3
            assert all(isinstance(one, QuotaExceeded) for one in outcomes if one not in let_in)
            for charge in let_in:
                charge.nothing()
            for worker in (first, second):
                await worker.home.told_all(10)


@PATIENT
async def test_a_budget_that_others_use_up_ends_a_stream(redis_server: RedisServer, start: Start) -> None:
    first, second = await start(link(redis_server)), await start(link(redis_server))
    caller, ended = Caller(name="a", tokens_per_day=100), list[Any]()
    charge = await first.quotas.charge(caller, 10, 0)
    charge.end = ended.append
    charge.saw(20)
    await second.use(caller, 95)
    await second.home.told_all(10)
    assert not ended
    charge.saw(21)
    await first.home.told_all(10)
    charge.saw(22)
    assert ended


@PATIENT
async def test_what_is_told_in_the_middle_of_an_answer_counts_as_anything_else(
    redis_server: RedisServer, start: Start
) -> None:
    """`took` counts as `add`, and gives what `used` gives: the more of what is known here and what Redis has told."""
    first, second = await start(link(redis_server)), await start(link(redis_server))
    caller, choose = Caller(name="a"), random.Random(0)
    charge = await first.quotas.charge(caller, 1, 0)
    whole, figure = 1, 1
    for _ in range(50):
        more, others = choose.randrange(9), choose.randrange(9)
        await second.use(caller, others)
        figure, whole = figure + more, whole + more + others
        charge.saw(figure)
        known = first.home.used("a", time.time()).tokens_today
        assert first.home.took("a", time.time(), 0) == known <= whole
        await first.home.told_all(10)
        await second.home.told_all(10)
    charge.settle(figure, characters=0)
    await first.home.told_all(10)
    assert (await second.told(caller))["tokens_per_day"] == whole


@PATIENT
async def test_figures_in_the_middle_of_answers_are_told_together(redis_server: RedisServer, start: Start) -> None:
    worker = await start(link(redis_server))
    charges = [await worker.quotas.charge(Caller(name=str(number)), 1, 0) for number in range(50)]
    await worker.home.told_all(10)
    before = redis_server.runs()
    for tokens in range(2, 12):
        for charge in charges:
            charge.saw(tokens)
        await asyncio.sleep(0)
    await worker.home.told_all(10)
    assert (
        redis_server.runs() - before <= len(charges) + 50
    )  # of ten figures each; beside them open streams, at most once
    assert (await worker.told(Caller(name="7")))["tokens_per_day"] == 11


@PATIENT
async def test_callers_that_leave_while_redis_is_asked_mix_up_no_answers(
    redis_server: RedisServer, start: Start
) -> None:
    worker, other = await start(link(redis_server)), await start(link(redis_server))
    callers = [Caller(name=f"caller {number}") for number in range(50)]
    for number, caller in enumerate(callers):
        await other.use(caller, number)
    await other.home.told_all(10)
    for _ in range(20):
        asks = [asyncio.ensure_future(worker.told(caller)) for caller in callers]
        await asyncio.sleep(0)  # all of them are asked
        for ask in asks[::2]:
            ask.cancel()
        answers = await asyncio.gather(*asks, return_exceptions=True)
        for number, answer in enumerate(answers):
            if number % 2:
                assert isinstance(answer, dict)
                assert answer["tokens_per_day"] == number
            else:
                assert isinstance(answer, asyncio.CancelledError)
    charging = [asyncio.ensure_future(worker.quotas.charge(callers[1], 5, 0)) for _ in range(10)]
    await asyncio.sleep(0)
    for one in charging:
        one.cancel()
    await asyncio.gather(*charging, return_exceptions=True)
    await worker.home.told_all(10)
    used = await worker.told(callers[1])
    assert (used["streams"], used["requests_per_day"], used["tokens_per_day"]) == (0, 1, 1)
    assert worker.home.state.losses == other.home.state.losses == 0


@PATIENT
async def test_thousands_of_callers_are_told_and_asked_by_and_by(redis_server: RedisServer, start: Start) -> None:
    counts, callers = Counts(), [Caller(name=f"caller {number}") for number in range(2000)]
    redis_server.stop()
    first = await start(link(redis_server), counts)
    for number, caller in enumerate(callers):
        await first.use(caller, number)
    redis_server.start()
    await first.until(up=True)
    await first.home.told_all(30)
    second = await start(link(redis_server))
    asking = [asyncio.ensure_future(second.told(caller)) for caller in callers[-500:]]
    assert [told["tokens_per_day"] for told in await asyncio.gather(*asking)] == list(range(1500, 2000))


@PATIENT
async def test_minutes_and_days_are_those_of_the_clock_of_redis(
    redis_server: RedisServer, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (quotas, redis_counts):
        monkeypatch.setattr(module, "time", lambda: time.time() - 3 * DAY_SECONDS)
    late = await start(link(redis_server))
    await late.use(tokens=7)
    await late.home.told_all(10)
    monkeypatch.undo()
    right = await start(link(redis_server))
    assert (await right.told())["tokens_per_day"] == 7


# ---- away


async def test_a_redis_that_hangs_holds_no_call_up_and_is_told_once(redis_server: RedisServer, start: Start) -> None:
    first, second = await start(link(redis_server)), await start(link(redis_server))
    caller = Caller(name="a", tokens_per_minute=1000, tokens_per_day=1000)
    for _ in range(3):
        await first.use(caller, 10)
        redis_server.hang()
        loop = asyncio.get_running_loop()
        begin = loop.time()
        await asyncio.gather(*(first.use(caller, 10) for _ in range(5)))
        assert loop.time() - begin >= redis_counts.WAIT_SECONDS
        assert not first.home.state.up
        # From here on none waits: each comes to its end though the loop does nothing else.
        for _ in range(5):
            with pytest.raises(StopIteration):
                first.use(caller, 10).send(None)
        redis_server.go_on()
        await first.until(up=True)
        await second.until(up=True)
        await first.home.told_all(10)
    used = await second.told()
    assert (used["tokens_per_day"], used["requests_per_day"], used["streams"]) == (330, 33, 0)
    # A machine that is busy may make it slow once more, which is told in the same way.
    assert first.home.state.losses >= 3
    assert first.home.state.undecided >= 30
    assert [line.partition(" after")[0] for line in first.lines] == [
        "Redis is away (no answer within 50 ms): each server counts by itself until it is back",
        "Redis is back",
    ] * first.home.state.losses


@PATIENT
async def test_while_it_is_away_each_server_holds_callers_to_their_quotas_by_itself(
    redis_server: RedisServer, start: Start
) -> None:
    first, second = await start(link(redis_server)), await start(link(redis_server))
    caller = Caller(name="a", tokens_per_day=100, streams=1)
    await first.use(caller, 30)
    await second.use(caller, 30)
    await first.home.told_all(10)
    await second.home.told_all(10)
    await first.told()  # it hears what the other has counted
    redis_server.stop()
    assert (await first.told())["tokens_per_day"] == 60
    assert not first.home.state.up
    charge = await first.quotas.charge(caller, 50, 0)
    with pytest.raises(QuotaExceeded, match="1 streams"):
        await first.quotas.charge(caller, 1, 0)
    charge.settle(70, characters=0)
    with pytest.raises(QuotaExceeded, match="100 tokens"):
        await first.quotas.charge(caller, 1, 0)
    redis_server.start()
    await first.until(up=True)
    await second.told()  # it notices
    await second.until(up=True)
    assert (await second.told())["tokens_per_day"] == 130


async def test_a_redis_that_goes_is_noticed_though_nobody_calls(
    redis_server: RedisServer, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_counts, "_RENEW_SECONDS", 0.01)
    worker = await start(link(redis_server))
    redis_server.stop()
    await worker.until(up=False)
    redis_server.start()
    await worker.until(up=True)


@PATIENT
async def test_closed_lets_nobody_in_until_it_is_back(redis_server: RedisServer, start: Start) -> None:
    redis_server.stop()
    worker = await start(link(redis_server), closed=True)
    for _ in range(3):
        with pytest.raises(QuotasUnavailable):
            await worker.use()
    assert worker.lines == ["Redis is away (ConnectionError): calls are refused until it is back"]
    redis_server.start()
    await worker.until(up=True)
    await worker.use()
    await worker.home.told_all(10)
    used = await worker.told()
    assert (used["requests_per_day"], used["streams"]) == (1, 0)
    assert len(worker.lines) == 2


class Deaf:
    """A link on which the next answers are lost, though Redis has done what it was asked."""

    def __init__(self, inner: Link) -> None:
        self.inner = inner
        self.lose = 0

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[Any]:
        async with self.inner.connected() as redis:
            yield _DeafRedis(self, redis)


class _DeafRedis:
    def __init__(self, of: Deaf, inner: Redis) -> None:
        self._of, self._inner = of, inner
        self.load, self.clock = inner.load, inner.clock

    async def run(self, script: bytes, calls: Sequence[tuple[Any, ...]], *, keys: int) -> list[Any]:
        answers = await self._inner.run(script, calls, keys=keys)
        if self._of.lose:
            self._of.lose -= 1
            raise LinkError("lost")
        return answers


async def test_what_is_told_again_since_the_answer_was_lost_counts_once(
    redis_server: RedisServer, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_counts, "_LONGEST_PAUSE_SECONDS", redis_counts._FIRST_PAUSE_SECONDS)
    deaf = Deaf(link(redis_server))
    worker = await start(deaf)
    for _ in range(5):
        deaf.lose = 3
        await worker.use(tokens=10)
        await worker.until(up=True)
        await worker.use(tokens=10)
    await worker.home.told_all(10)
    used = await (await start(link(redis_server))).told()
    assert (used["requests_per_day"], used["tokens_per_day"], used["streams"]) == (10, 100, 0)
    assert worker.home.state.losses >= 5


@PATIENT
async def test_a_redis_that_has_forgotten_is_told_what_the_servers_know(
    redis_server: RedisServer, start: Start
) -> None:
    worker = await start(link(redis_server))
    charge = await worker.quotas.charge(CALLER, 10, 0)
    redis_server.stop(signal.SIGKILL)
    redis_server.forget()
    await worker.told()
    assert not worker.home.state.up
    redis_server.start()
    await worker.until(up=True)
    used = await (await start(link(redis_server))).told()
    assert (used["streams"], used["tokens_per_day"]) == (1, 10)
    charge.nothing()


@pytest.mark.thorough
async def test_counts_are_right_after_redis_has_stopped_and_started_ten_times_under_load(
    redis_server: RedisServer, start: Start
) -> None:
    workers = [await start(link(redis_server)) for _ in range(2)]
    settled = dict.fromkeys(workers, 0)
    going = True
    slowest = latest = 0.0

    async def doze() -> None:
        """See how late this machine lets anything be."""
        nonlocal latest
        while going:
            begin = time.monotonic()
            await asyncio.sleep(0.01)
            latest = max(latest, time.monotonic() - begin - 0.01)

    async def load(worker: Worker) -> None:
        nonlocal slowest
        while going:
            begin = time.monotonic()
            charge = await worker.quotas.charge(CALLER, 3, 0)
            slowest = max(slowest, time.monotonic() - begin)
            await asyncio.sleep(0)
            charge.settle(2, characters=0)
            settled[worker] += 1
            await asyncio.sleep(0.001)

    async def more(calls: int) -> None:
        """Wait until each worker has settled so many more."""
        wanted = {worker: count + calls for worker, count in settled.items()}
        while any(settled[worker] < count for worker, count in wanted.items()):  # noqa: ASYNC110 - callers' own doing
            await asyncio.sleep(0.001)

    loads = [asyncio.ensure_future(load(worker)) for worker in workers for _ in range(5)]
    loads.append(asyncio.ensure_future(doze()))
    for turn in range(10):
        await more(20)
        await asyncio.to_thread(redis_server.stop, signal.SIGKILL if turn % 2 else signal.SIGTERM)
        await more(20)
        assert not any(worker.home.state.up for worker in workers)
        await asyncio.to_thread(redis_server.start)
        for worker in workers:
            await worker.until(up=True)
    going = False
    await asyncio.gather(*loads)
    for worker in workers:
        await worker.home.told_all(10)
        assert worker.home.state.losses >= 10
        assert len(worker.lines) == 2 * worker.home.state.losses  # it says so once, and once that it is back
    used = await workers[0].told()
    assert used == await workers[1].told()
    assert (used["requests_per_day"], used["streams"]) == (sum(settled.values()), 0)
    assert used["tokens_per_day"] == 2 * sum(settled.values())
    # A call waits up to three times for its turn on the event loop; each may be as late as the latest turn of `doze`.
    assert slowest < 2 * redis_counts.WAIT_SECONDS + 3 * latest


# ---- who dies


@PATIENT
async def test_streams_of_a_server_that_has_died_are_free_after_a_while_and_no_others(
    redis_server: RedisServer, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_counts, "LEASE_SECONDS", 0.5)
    monkeypatch.setattr(redis_counts, "_RENEW_SECONDS", 0.05)
    dead, living, third = [await start(link(redis_server)) for _ in range(3)]
    for worker in (dead, living):
        await worker.quotas.charge(CALLER, 10, 0)
    assert (await third.told())["streams"] == 2
    await dead.end()
    async with asyncio.timeout(30):
        while (await third.told())["streams"] != 1:  # noqa: ASYNC110 - a lease that runs out tells nobody
            await asyncio.sleep(0.01)
    asked = redis_server.runs()
    async with asyncio.timeout(30):
        while redis_server.runs() < asked + 20:  # noqa: ASYNC110 - as many renewals as make two leases
            await asyncio.sleep(0.01)
    used = await third.told()
    assert (used["streams"], used["tokens_per_day"]) == (1, 20)


@PATIENT
async def test_a_worker_that_takes_anothers_place_frees_its_streams_and_tells_what_it_could_not(
    redis_server: RedisServer, start: Start
) -> None:
    counts = Counts(2)
    counts.join(1)
    first = await start(link(redis_server), counts)
    await first.quotas.charge(CALLER, 10, 0)
    redis_server.stop()
    await first.use(tokens=20)
    assert not first.home.state.up
    await first.end()
    redis_server.start()
    counts.join(1)
    await start(link(redis_server), counts)
    used = await (await start(link(redis_server))).told()
    assert (used["streams"], used["requests_per_day"], used["tokens_per_day"]) == (0, 2, 30)


MOST, BUDGET, CALLS, KILLS, ROUNDS = 20, 60_000, 10_000, 50, 20
LIMITED = Caller(name="a", streams=5, tokens_per_day=BUDGET)


class Life:
    """That of a worker in a process of its own: calls at random, the last of which may be its end."""

    def __init__(self, seed: int, *, killed: bool, tell: int) -> None:
        self._choose = random.Random(seed)
        self._killed = killed
        self._tell = tell
        self._let_in = self._settled = self._open_tokens = 0

    async def live(self, counts: Counts, number: int, server: RedisServer) -> None:
        counts.join(number)
        home = RedisCounts(counts, link(server))
        running = asyncio.ensure_future(home.run())
        await home.tried(30)
        turns = CALLS // (4 * ROUNDS) // 2
        for turn in range(turns):
            await asyncio.gather(self._call(Quotas(home)), self._call(Quotas(home), last=turn == turns - 1))
        await home.told_all(30)
        assert home.state.undecided == 0
        self._say()
        running.cancel()

    async def _call(self, asked: Quotas, *, last: bool = False) -> None:
        tokens = self._choose.randrange(1, MOST)
        try:
            charge = await asked.charge(LIMITED, tokens, 0)
        except QuotaExceeded:
            charge = None
        else:
            self._let_in += 1
            self._open_tokens += tokens
        await asyncio.sleep(0)
        if last and self._killed:
            self._say()
            os.kill(os.getpid(), signal.SIGKILL)
        if charge is not None:
            charge.settle(tokens, characters=0)
            self._settled += tokens
            self._open_tokens -= tokens

    def _say(self) -> None:
        os.write(self._tell, b"%d %d %d\n" % (self._let_in, self._settled, self._open_tokens))


def forked(run: Callable[[], Awaitable[None]]) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        asyncio.run(run())  # type: ignore[arg-type] # they are coroutines
    finally:
        os._exit(0)


async def told_in_the_end(lives: Sequence[tuple[Counts, int]], server: RedisServer) -> dict[str, int]:
    """By workers that take the places of the last ones."""
    for counts, number in lives:
        counts.join(number)
        home = RedisCounts(counts, link(server))
        running = asyncio.ensure_future(home.run())
        await home.tried(30)
        found = {quota.name: quota.used for quota in (await Quotas(home).told(LIMITED))[0]}
        await home.told_all(30)
        running.cancel()
    return found


def test_no_quota_is_exceeded_by_more_than_a_request_and_50_killed_workers_lose_nothing(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two replicas of two workers, 10,000 calls; workers are killed in the middle of calls, and come back."""
    # The machine may be busy, and here no call is to be decided without Redis.
    monkeypatch.setattr(redis_counts, "WAIT_SECONDS", 30.0)
    replicas = [Counts(2), Counts(2)]
    lives = [(counts, number) for counts in replicas for number in (0, 1)]
    told, tell = os.pipe()
    deaths = random.Random(0).sample(range(4 * ROUNDS), KILLS)
    for turn in range(ROUNDS):
        seeds = range(4 * turn, 4 * turn + 4)
        pids = [
            forked(partial(Life(seed, killed=seed in deaths, tell=tell).live, *life, redis_server))
            for seed, life in zip(seeds, lives, strict=True)
        ]
        killed = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        assert killed == [-signal.SIGKILL if seed in deaths else 0 for seed in seeds]
    os.close(tell)
    with os.fdopen(told) as file:
        figures = [tuple(map(int, line.split())) for line in file]
    assert len(figures) == 4 * ROUNDS
    used = asyncio.run(told_in_the_end(lives, redis_server))
    assert used["streams"] == 0
    assert used["requests_per_day"] == sum(let_in for let_in, _, _ in figures)
    assert used["tokens_per_day"] == sum(settled + lost for _, settled, lost in figures)
    assert BUDGET - MOST <= used["tokens_per_day"] <= BUDGET + MOST


# ---- who gets in


@PATIENT
async def test_a_password_of_a_file_is_read_anew_and_never_told(tmp_path: Path, start: Start) -> None:
    server = made(tmp_path, "--requirepass", "right/secret")
    server.start()
    try:
        file = tmp_path / "password"
        file.write_text("wrong-secret\n")
        worker = await start(Link(server.url, password_file=str(file)))
        assert worker.lines == ["Redis is away (AuthenticationError): each server counts by itself until it is back"]
        file.write_text("right/secret\n")
        await worker.until(up=True)
        in_url = await start(Link(server.url.replace("//", "//:right%2Fsecret@")))
        assert in_url.home.state.up
        assert not any("secret" in line for line in worker.lines + in_url.lines)
    finally:
        server.stop(signal.SIGKILL)


@PATIENT
async def test_a_redis_that_is_reached_by_tls_has_to_prove_who_it_is(tmp_path: Path, start: Start) -> None:
    authority, port = Authority(), free_port()
    certificate, key = authority.sign("127.0.0.1").write(tmp_path)
    trusted = tmp_path / "ca.pem"
    trusted.write_bytes(authority.pem)
    own = ("--tls-cert-file", certificate, "--tls-key-file", key, "--tls-ca-cert-file", str(trusted))
    server = made(tmp_path, "--tls-port", str(port), "--tls-auth-clients", "no", *own)
    server.start()
    try:
        url = f"rediss://127.0.0.1:{port}"
        worker = await start(Link(f"{url}?ssl_ca_certs={trusted}"))
        await worker.use()
        assert (await worker.told())["requests_per_day"] == 1
        assert worker.lines == []
        worker = await start(Link(url))
        assert worker.lines == ["Redis is away (ConnectionError): each server counts by itself until it is back"]
    finally:
        server.stop(signal.SIGKILL)


@PATIENT
async def test_a_user_of_redis_needs_no_more_than_operations_tell(
    redis_server: RedisServer, tmp_path: Path, start: Start
) -> None:
    page = (Path(__file__).parents[3] / "docs/operations.md").read_text()
    told = re.search(r"user needs ([A-Z, ]+), and what the script runs on these keys: ([A-Z,\s]+)\.", page)
    assert told is not None
    commands = re.findall(r"[A-Z]+ ?[A-Z]+|[A-Z]+", f"{told[1]}, {told[2]}")
    with redis_server.client() as client:
        allowed = [f"+{name.lower().replace(' ', '|')}" for name in commands]
        client.execute_command("ACL", "SETUSER", "tw", "on", ">pass", "~tokenwire:*", *allowed)
    (tmp_path / "password").write_text("pass\n")
    where = redis_server.url.replace("//", "//tw@")
    worker = await start(Link(where, password_file=str(tmp_path / "password")))
    await worker.use()
    assert (await worker.told())["requests_per_day"] == 1
    assert worker.lines == []
