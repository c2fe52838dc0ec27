"""Attempts to have a model answer, as they are told."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from service.errors import UpstreamUnavailable
from service.telemetry.call_record import CallRecord
from service.telemetry.metrics import Metrics
from service.telemetry.watch import Watch
from service.testing import FakeProvider
from tests.conftest import Serve
from tests.service.calls.test_servicer import HELLO
from tests.service.telemetry.test_metrics import counts, metrics_of


def new() -> tuple[Watch, Metrics]:
    metrics = metrics_of()
    return Watch(metrics), metrics


def fails() -> None:
    raise UpstreamUnavailable("away")


def leaves() -> None:
    raise asyncio.CancelledError


def breaks() -> None:
    raise ValueError


def breaks_in_a_library() -> None:
    raise UnicodeDecodeError("utf-8", b"", 0, 1, "SECRET")  # which has a `reason` of its own


@pytest.mark.parametrize(
    ("what", "outcome"),
    [
        (lambda: None, "OK"),
        (fails, "UPSTREAM_UNAVAILABLE"),
        (leaves, "CANCELLED"),
        (breaks, "INTERNAL"),
        (breaks_in_a_library, "INTERNAL"),
    ],
    ids=["OK", "error", "left", "bug", "a library's error"],
)
def test_an_attempt_is_told_by_how_it_ended(what: Callable[[], None], outcome: str) -> None:
    watch, metrics = new()
    try:
        with watch.attempt("flash"):
            assert counts(metrics) == {"tokenwire_upstream_attempts_open": {(): 1}}
            what()
    except BaseException:  # noqa: BLE001 - how it ends is looked at below
        pass
    assert counts(metrics) == {"tokenwire_upstream_attempts_total": {("flash", outcome): 1}}


async def test_an_attempt_that_outlives_its_call_is_an_orphan_until_it_ends() -> None:
    (watch, metrics), record = new(), CallRecord("Generate")
    watch.opened(record, ())
    begun, end = asyncio.Event(), asyncio.Event()

    async def attempt() -> None:
        with watch.attempt("flash"):
            begun.set()
            await end.wait()

    running = asyncio.create_task(attempt())
    await begun.wait()
    watch.look(0)
    assert "tokenwire_orphans" not in counts(metrics)
    watch.ended(record, "OK", logged=False)
    watch.look(0)
    assert counts(metrics)["tokenwire_orphans"] == {(): 1}
    end.set()
    await running
    watch.look(0)
    assert "tokenwire_orphans" not in counts(metrics)


class Broken:
    """Traces that fail wherever they are told something."""

    def __getattr__(self, _: str) -> Any:
        raise ValueError("a bug")


async def test_a_mistake_in_telling_of_a_call_changes_nothing_of_it(serve: Serve, lines: list[str]) -> None:
    served = await serve(FakeProvider(HELLO))
    watch = served.server._watch
    watch.traces = Broken()
    watch.metrics = Broken()  # type: ignore[assignment] # it stands in for any
    assert (await served.ask())[-1].HasField("completed")
    assert any(line.startswith("bug id=") for line in lines)
    assert sum(line.startswith("Generate code=OK") for line in lines) == 1


async def test_nor_of_an_attempt() -> None:
    watch, _ = new()
    watch.traces = Broken()
    with watch.attempt("flash") as says:
        says()
    with pytest.raises(KeyError), watch.attempt("flash"):
        raise KeyError
    assert not watch._attempts
