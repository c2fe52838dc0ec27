"""When upstream is asked again, and when not."""

import asyncio
import math
import multiprocessing
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from service import errors
from service.generation.capabilities import ModelCard
from service.generation.events import Event, Finished, FinishReason, Started, Text
from service.generation.prompt import Prompt, Role, Turn
from service.providers.retry import Budget, Policy, Retrying, budgets
from service.testing import FakeProvider

PROMPT = Prompt(model="first", turns=(Turn(Role.USER, ("hi",)),))
FINISHED = Finished(reason=FinishReason.STOP, upstream_reason="STOP", usage=None)
ANSWER: Sequence[Event] = (Started("first"), Text("a"), FINISHED)
AWAY = errors.UpstreamUnavailable("away")
NO_PAUSE = Policy(base_seconds=0)


class Attempts:
    """A model that answers each attempt with the next of some scripts."""

    def __init__(self, *scripts: Sequence[Event | BaseException]) -> None:
        self._scripts: Iterator[Sequence[Event | BaseException]] = iter(scripts)
        self.asked: list[str] = []
        self.open = 0
        self.failed = asyncio.Event()
        self.cards = [ModelCard(name=name, provider="p") for name in ("first", "second")]

    async def count_tokens(self, prompt: Prompt, *, deadline: float) -> int:
        raise NotImplementedError

    @asynccontextmanager
    async def stream(self, prompt: Prompt, *, deadline: float) -> AsyncIterator[AsyncIterator[Event]]:
        self.asked.append(prompt.model)
        self.open += 1
        try:
            async with FakeProvider(next(self._scripts)).stream(prompt, deadline=deadline) as events:
                yield events
        except errors.UpstreamError:
            self.failed.set()
            raise
        finally:
            self.open -= 1


async def collect(
    model: Attempts, policy: Policy = NO_PAUSE, *, seconds: float = 60, jitter: float = 0, prompt: Prompt = PROMPT
) -> list[Event]:
    retrying = Retrying(model, policy, jitter=lambda _, most: most * jitter)
    deadline = asyncio.get_running_loop().time() + seconds
    async with retrying.stream(prompt, deadline=deadline) as events:
        return [event async for event in events]


def attempts(events: Sequence[Event]) -> int:
    assert isinstance(events[-1], Finished)
    return events[-1].attempts


@pytest.mark.parametrize("error", [AWAY, errors.UpstreamQuota("quota")])
async def test_what_may_pass_is_asked_again_and_counted(error: errors.UpstreamError) -> None:
    model = Attempts([error], [error], ANSWER)
    events = await collect(model)
    assert events[:-1] == list(ANSWER[:-1])
    assert attempts(events) == 3
    assert model.open == 0


@pytest.mark.parametrize(
    "error",
    [
        errors.UpstreamRejected("x"),
        errors.UpstreamCredentials("x"),
        errors.UpstreamNotFound("x"),
        errors.UpstreamPrecondition("x"),
        errors.UpstreamCut("x"),
        errors.UpstreamDeadline("x"),
        errors.UpstreamFault("x"),
        ZeroDivisionError(),
        asyncio.CancelledError(),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_what_will_not_pass_is_asked_once(error: BaseException) -> None:
    model = Attempts([error])
    with pytest.raises(type(error)):
        await collect(model)
    assert model.asked == ["first"]


async def test_nothing_is_asked_again_once_something_was_said() -> None:
    model = Attempts([Started("first"), Text("a"), AWAY])
    with pytest.raises(errors.UpstreamUnavailable):
        await collect(model)
    assert model.asked == ["first"]


async def test_attempts_end_and_the_error_says_how_many_there_were() -> None:
    model = Attempts([AWAY], [AWAY], [AWAY])
    with pytest.raises(errors.UpstreamUnavailable) as caught:
        await collect(model)
    assert caught.value.metadata["upstream_attempts"] == "3"
    assert len(model.asked) == 3


async def test_a_second_attempt_is_counted() -> None:
    assert attempts(await collect(Attempts([AWAY], ANSWER))) == 2


async def test_one_attempt_is_no_retry() -> None:
    model = Attempts([AWAY])
    with pytest.raises(errors.UpstreamUnavailable):
        await collect(model, Policy(max_attempts=1))


@pytest.mark.parametrize(("wish", "seconds"), [(4, 2), (30, 600)], ids=["the_deadline", "the_cap"])
async def test_a_delay_that_does_not_fit_fails_at_once_with_the_real_error(wish: float, seconds: float) -> None:
    model = Attempts([errors.UpstreamQuota("quota", retry_after=wish)])
    with pytest.raises(errors.UpstreamQuota) as caught:
        await asyncio.wait_for(collect(model, seconds=seconds), 1.5)
    assert caught.value.retry_after == wish


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses between attempts, in seconds; none of them is really slept."""
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr("service.providers.retry.asyncio.sleep", sleep)
    return pauses


async def test_pauses_double_up_to_the_cap_and_upstreams_wish_comes_on_top(pauses: list[float]) -> None:
    wish = errors.UpstreamQuota("quota", retry_after=2.5)
    policy = Policy(max_attempts=5, base_seconds=1, cap_seconds=3)
    await collect(Attempts([AWAY], [AWAY], [AWAY], [wish], ANSWER), policy, jitter=1)
    assert pauses == [1, 2, 3, 2.5 + 3]
    pauses.clear()
    await collect(Attempts([AWAY], [wish], ANSWER), policy, jitter=0.5)
    assert pauses == [0.5, 2.5 + 1]


async def test_without_further_words_pauses_begin_at_a_tenth_of_a_second(pauses: list[float]) -> None:
    await collect(Attempts([AWAY], [AWAY], ANSWER), Policy(), jitter=1)
    assert pauses == [0.1, 0.2]


async def test_a_pause_is_drawn_from_nothing_up_to_its_longest(pauses: list[float]) -> None:
    drawn: list[tuple[float, float]] = []

    def jitter(least: float, most: float) -> float:
        drawn.append((least, most))
        return 0

    retrying = Retrying(Attempts([AWAY], [AWAY], ANSWER), Policy(base_seconds=1), jitter=jitter)
    async with retrying.stream(PROMPT, deadline=asyncio.get_running_loop().time() + 60) as events:
        _ = [event async for event in events]
    assert drawn == [(0, 1), (0, 2)]
    assert pauses == [0, 0]


async def test_a_delay_of_exactly_the_cap_is_waited_for_and_a_longer_one_is_not(pauses: list[float]) -> None:
    await collect(Attempts([errors.UpstreamQuota("quota", retry_after=5)], ANSWER), Policy())
    assert pauses == [5]
    with pytest.raises(errors.UpstreamQuota):
        await collect(Attempts([errors.UpstreamQuota("quota", retry_after=5.01)]), Policy())


async def test_a_pause_that_would_end_with_the_deadline_is_not_made(pauses: list[float]) -> None:
    loop = asyncio.get_running_loop()
    clock = loop.time()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "time", lambda: clock)
        with pytest.raises(errors.UpstreamUnavailable):
            await collect(Attempts([AWAY]), Policy(base_seconds=2), seconds=2, jitter=1)
        await collect(Attempts([AWAY], ANSWER), Policy(base_seconds=2), seconds=2.01, jitter=1)
    assert pauses == [2]


async def test_leaving_during_a_pause_asks_no_more() -> None:
    model = Attempts([errors.UpstreamQuota("quota", retry_after=4)], ANSWER)
    waiting = asyncio.ensure_future(collect(model))
    await asyncio.wait_for(model.failed.wait(), 5)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert model.asked == ["first"]
    assert model.open == 0


async def test_the_fallback_answers_when_the_first_model_is_away_for_good() -> None:
    model = Attempts([AWAY], [AWAY], [Started("second"), Text("a"), FINISHED])
    events = await collect(model, Policy(max_attempts=2, base_seconds=0, fallback="second"))
    assert model.asked == ["first", "first", "second"]
    assert events[0] == Started("second")
    assert attempts(events) == 3


async def test_the_fallback_has_as_many_attempts_as_the_first_model() -> None:
    model = Attempts([AWAY], [AWAY], [AWAY], [AWAY])
    with pytest.raises(errors.UpstreamUnavailable):
        await collect(model, Policy(max_attempts=2, base_seconds=0, fallback="second"))
    assert model.asked == ["first", "first", "second", "second"]


async def test_the_fallback_answers_when_the_first_models_delay_does_not_fit() -> None:
    model = Attempts([errors.UpstreamQuota("quota", retry_after=90)], ANSWER)
    await collect(model, Policy(fallback="second"))
    assert model.asked == ["first", "second"]


async def test_no_second_model_is_asked_once_something_was_said() -> None:
    model = Attempts([Started("first"), AWAY])
    with pytest.raises(errors.UpstreamUnavailable):
        await collect(model, Policy(fallback="second"))
    assert model.asked == ["first"]


class Outage(Attempts):
    """Some models are away, the others answer."""

    def __init__(self, *away: str) -> None:
        super().__init__()
        self._away = away

    @asynccontextmanager
    async def stream(self, prompt: Prompt, *, deadline: float) -> AsyncIterator[AsyncIterator[Event]]:
        self.asked.append(prompt.model)
        script: Sequence[Event | BaseException] = [AWAY] if prompt.model in self._away else ANSWER
        async with FakeProvider(script).stream(prompt, deadline=deadline) as events:
            yield events


REQUESTS = 100


async def served(model: Outage, fallback: str) -> int:
    """How many of so many requests, one after the other, are answered."""
    retrying = Retrying(model, Policy(base_seconds=0, fallback=fallback))
    deadline = asyncio.get_running_loop().time() + 60
    answered = 0
    for _ in range(REQUESTS):
        try:
            async with retrying.stream(PROMPT, deadline=deadline) as events:
                answered += [event async for event in events][-1].__class__ is Finished
        except errors.UpstreamUnavailable:
            pass
    return answered


@pytest.mark.parametrize("fallback", ["", "second"])
async def test_in_an_outage_attempts_at_each_model_are_at_most_a_tenth_more_than_requests(fallback: str) -> None:
    model = Outage("first", "second")
    assert await served(model, fallback) == 0
    assert REQUESTS < model.asked.count("first") <= 1.1 * REQUESTS
    assert model.asked.count("second") <= 1.1 * REQUESTS
    assert bool(fallback) == (model.asked.count("second") > REQUESTS)


async def test_in_an_outage_of_the_first_model_the_fallback_answers_every_request() -> None:
    model = Outage("first")
    assert await served(model, "second") == REQUESTS
    assert REQUESTS < model.asked.count("first") <= 1.1 * REQUESTS
    assert model.asked.count("second") == REQUESTS


def fail(budget: Budget, allowed: "list[int]", worker: int) -> None:
    for _ in range(100):
        budget.failure()
        allowed[worker] += budget.allows


def test_processes_spend_from_one_budget() -> None:
    fork = multiprocessing.get_context("fork")
    budget, workers = Budget(), 4
    allowed = fork.Array("i", workers, lock=False)
    for worker in range(workers):  # one after the other: all of them failing at once would prove no more
        process = fork.Process(target=fail, args=(budget, allowed, worker))
        process.start()
        process.join(30)
        assert process.exitcode == 0
    assert list(allowed) == [4, 0, 0, 0]
    assert not budget.allows


def failures_until_it_forbids(budget: Budget) -> int:
    failures = 0
    while budget.allows:
        budget.failure()
        failures += 1
    return failures


def test_a_full_budget_takes_five_failures_however_many_successes_came_before() -> None:
    budget = Budget()
    for _ in range(100):
        budget.success()
    assert failures_until_it_forbids(budget) == 5


def test_from_an_empty_budget_it_takes_fifty_successes_until_there_are_retries_again() -> None:
    budget = Budget()
    for _ in range(100):
        budget.failure()
    for _ in range(45):
        budget.success()
    assert not budget.allows
    for _ in range(10):
        budget.success()
    assert budget.allows


async def test_an_answer_earns_a_tenth_of_a_token_at_its_first_chunk_and_no_more() -> None:
    purse = budgets(["first"])
    budget = purse["first"]
    for _ in range(100):
        budget.failure()
    deadline = asyncio.get_running_loop().time() + 60
    retrying = Retrying(FakeProvider([Started("first"), *[Text("a")] * 20, FINISHED]), NO_PAUSE, purse)
    for _ in range(45):
        async with retrying.stream(PROMPT, deadline=deadline) as events:
            _ = [event async for event in events]
    assert not budget.allows
    for _ in range(10):
        async with retrying.stream(PROMPT, deadline=deadline) as events:
            await anext(events)
    assert budget.allows


async def test_a_failure_costs_the_model_that_failed_and_no_other() -> None:
    model = Attempts(*[[AWAY]] * 12, [AWAY], ANSWER)
    purses = budgets(["first", "second"])
    retrying = Retrying(model, replace(NO_PAUSE, max_attempts=1), purses)
    for _ in range(12):
        with pytest.raises(errors.UpstreamUnavailable):
            async with retrying.stream(replace(PROMPT, model="second"), deadline=math.inf) as events:
                _ = [event async for event in events]
    assert (purses["first"].allows, purses["second"].allows) == (True, False)
    again = Retrying(model, NO_PAUSE, purses)
    async with again.stream(PROMPT, deadline=math.inf) as events:
        assert attempts([event async for event in events]) == 2


async def test_counting_tokens_is_left_to_the_model() -> None:
    model = FakeProvider(ANSWER, tokens=7)
    assert await Retrying(model, NO_PAUSE).count_tokens(PROMPT, deadline=0) == 7


def test_a_budget_recovers_with_successes() -> None:
    budget = Budget(tokens=10, ratio=0.5)
    for _ in range(5):
        assert budget.allows
        budget.failure()
    assert not budget.allows
    budget.success()
    assert budget.allows


async def test_a_fallback_that_could_not_take_the_whole_prompt_is_not_asked() -> None:
    model = Attempts([AWAY], ANSWER)
    model.cards = [
        ModelCard(name="first", provider="p"),
        ModelCard(name="second", provider="q", unsupported=frozenset({"labels"})),
    ]
    with pytest.raises(errors.UpstreamUnavailable):
        await collect(model, Policy(max_attempts=1, fallback="second"), prompt=replace(PROMPT, labels={"a": "b"}))
    assert model.asked == ["first"]
