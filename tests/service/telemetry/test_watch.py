"""Attempts to have a model answer, as they are told."""

import asyncio
from collections.abc import Callable

import pytest

from service.errors import UpstreamUnavailable
from service.telemetry.call_record import CallRecord
from service.telemetry.metrics import Metrics
from service.telemetry.watch import Watch
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


@pytest.mark.parametrize(
    ("what", "outcome"),
    [(lambda: None, "OK"), (fails, "UPSTREAM_UNAVAILABLE"), (leaves, "CANCELLED"), (breaks, "INTERNAL")],
    ids=["OK", "error", "left", "bug"],
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
