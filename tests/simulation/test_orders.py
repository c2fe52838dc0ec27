"""The life of a call in every order in which things can happen to it.

A failure prints the run's story and the choices that repeat it: `World(SCRIPT, Choices([...]), tell=True).run()`.
"""

import itertools
import random
from typing import Any

import pytest

from service.errors import UpstreamCut, UpstreamUnavailable
from service.generation.events import Finished, Started, Text
from tests.simulation.loop import Choices, every
from tests.simulation.service_model import FINISHED, NAME, STARTED, Caller, Script, World, broken, many_runs

A = Text("a")
SHORT = (STARTED, FINISHED)
NO_DELAY = {"drain_delay": 0.0}

SCRIPTS = {
    "nothing": Script(),
    "the_caller_leaves": Script(callers=(Caller(leaves=True),)),
    "first_chunk": Script(callers=(Caller(first_chunk=1),)),
    "first_chunk_on_uvloop": Script(callers=(Caller(first_chunk=1.0004),), uvloop=True),
    "idle": Script(callers=(Caller(idle=1),)),
    "the_deadline": Script(callers=(Caller(deadline=1),)),
    "the_deadline_and_a_reader": Script(callers=(Caller(deadline=2.05, room=1, reads_on=True, says=SHORT),)),
    "no_request": Script(callers=(Caller(asks=False, leaves=True),)),
    "upstream_breaks_off": Script(callers=(Caller(says=(STARTED, A, UpstreamCut("cut")), idle=1),)),
    "upstream_is_away": Script(callers=(Caller(says=(UpstreamUnavailable("away"),), first_chunk=0.1),)),
    "tokens_for_a_slow_reader": Script(callers=(Caller(method="CountTokens", room=0, reads_on=True),)),
    "tokens_for_one_who_leaves": Script(callers=(Caller(method="CountTokens", leaves=True),)),
    "models_for_a_slow_reader": Script(callers=(Caller(method="ListModels", room=0, reads_on=True),)),
    "a_reader_of_nothing": Script(callers=(Caller(room=0, reads_on=True, says=SHORT),)),
    "a_reader_of_one": Script(callers=(Caller(room=1, reads_on=True, says=SHORT),)),
    "a_stop": Script(callers=(Caller(says=SHORT),), stops=True, settings=NO_DELAY | {"grace": 1.0}),
    "coalesced_a_stop": Script(
        callers=(Caller(coalesce=0.1, says=SHORT),), stops=True, settings=NO_DELAY | {"grace": 1.0}
    ),
    "coalesced_the_caller_leaves": Script(callers=(Caller(coalesce=0.1, leaves=True, says=SHORT),)),
    "coalesced_a_reader_of_one": Script(callers=(Caller(coalesce=0, room=1, reads_on=True, says=SHORT),)),
    "coalesced_idle": Script(callers=(Caller(coalesce=0.1, idle=1),)),
    "coalesced_idle_and_leaving": Script(callers=(Caller(coalesce=0.1, idle=1, leaves=True, says=(STARTED,)),)),
}
COLLISIONS = {
    "two_signals": Script(callers=(Caller(says=SHORT),), stops=True, hurries=True, settings=NO_DELAY),
    "two_signals_and_a_text": Script(stops=True, hurries=True, settings=NO_DELAY),
    "two_signals_and_no_reader": Script(
        callers=(Caller(room=1, says=SHORT),), stops=True, hurries=True, settings=NO_DELAY
    ),
    "coalesced_two_signals": Script(
        callers=(Caller(coalesce=0.1, says=SHORT),), stops=True, hurries=True, settings=NO_DELAY
    ),
    "coalesced_two_signals_and_leaving": Script(
        callers=(Caller(coalesce=0.1, leaves=True, says=SHORT),), stops=True, hurries=True, settings=NO_DELAY
    ),
    "a_stop_and_one_who_comes": Script(
        callers=(Caller(says=SHORT, comes_late=True),), stops=True, settings=NO_DELAY | {"grace": 0.0}
    ),
    "a_queue": Script(
        callers=(Caller(says=SHORT), Caller(says=SHORT, leaves=True)),
        settings={"slots": 1, "queue": 1},
    ),
}

# Their one search takes long.
LONG = {
    *("a_queue", "coalesced_a_reader_of_one", "coalesced_a_stop"),
    *("coalesced_two_signals_and_leaving", "two_signals_and_a_text"),
}


def named(scripts: dict[str, Script]) -> list[Any]:
    """A test for each script."""
    return [pytest.param(name, marks=pytest.mark.soak if name in LONG else ()) for name in scripts]


def search(script: Script, *, interruptions: int, at_most: int | None = None) -> int:
    runs = 0
    with many_runs():
        for choices in itertools.islice(every(interruptions=interruptions), at_most):
            runs += 1
            failure = broken(script, choices)
            assert not failure, failure
    return runs


@pytest.mark.thorough
@pytest.mark.parametrize("name", named(SCRIPTS))
def test_every_order_with_one_interruption(name: str) -> None:
    assert search(SCRIPTS[name], interruptions=1) > 5


@pytest.mark.thorough
@pytest.mark.parametrize("name", named(COLLISIONS))
def test_every_order_of_two_troubles(name: str) -> None:
    assert search(COLLISIONS[name], interruptions=0) > 30


@pytest.mark.soak
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", [*SCRIPTS, *COLLISIONS])
def test_every_order_with_two_interruptions(name: str) -> None:
    search((SCRIPTS | COLLISIONS)[name], interruptions=2, at_most=20_000)


def long_script(seed: int) -> Script:
    """A few callers that compete for slots, each in some trouble."""
    rng = random.Random(seed)

    def some(*values: float) -> float | None:
        return rng.choice((None, None, *values))

    def caller() -> Caller:
        texts = [Text(letter) for letter in "abcdefgh"[: rng.randrange(9)]]
        end = rng.choice((FINISHED, FINISHED, UpstreamCut("cut"), UpstreamUnavailable("away"), None))
        begin = [Started(NAME)] if texts or isinstance(end, Finished) else []
        return Caller(
            says=[*begin, *texts, *([] if end is None else [end])],
            method=rng.choice(("Generate", "Generate", "Generate", "CountTokens", "ListModels")),
            asks=rng.random() < 0.95,
            coalesce=some(0, 0.1, 1),
            first_chunk=some(0.5, 1),
            idle=some(0.5, 1),
            deadline=some(0.5, 1, 2.05, 5),
            room=rng.choice((float("inf"), float("inf"), 0, 1, 2, 4)),
            reads_on=rng.random() < 0.5,
            comes_late=rng.random() < 0.3,
            leaves=rng.random() < 0.3,
        )

    stops = rng.random() < 0.5
    return Script(
        callers=[caller() for _ in range(rng.randrange(1, 6))],
        settings={
            "slots": rng.randrange(1, 4),
            "queue": rng.randrange(3),
            "slots_per_caller": rng.randrange(2),
            "grace": rng.choice((0.0, 1.0, 30.0)),
            "drain_delay": rng.choice((0.0, 0.25)),
        },
        stops=stops,
        hurries=stops and rng.random() < 0.5,
        uvloop=rng.random() < 0.5,
    )


def search_long(seeds: range) -> None:
    with many_runs():
        for seed in seeds:
            failure = broken(long_script(seed), Choices(seed=seed))
            assert not failure, f"SCRIPT = long_script({seed})\n{failure}"


def test_random_orders_of_long_scripts() -> None:
    search_long(range(1_000))


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_many_random_orders_of_long_scripts() -> None:
    search_long(range(1_000, 200_000))


def test_a_run_can_be_repeated() -> None:
    first = Choices(seed=7)
    once = World(long_script(7), first, tell=True)
    assert once.run() == []
    again = World(long_script(7), Choices(first.taken), tell=True)
    assert again.run() == []
    assert once.loop.story == again.loop.story
    assert once.loop.story
