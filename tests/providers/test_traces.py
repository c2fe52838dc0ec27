"""The trace of an attempt goes on upstream, by each provider."""

from typing import Any

import pytest

from service.telemetry.metrics import Metrics
from service.telemetry.watch import Watch
from tests.providers.conftest import LINES, Open

HEADERS = (("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"), ("tracestate", "a=b"))


class Attempt:
    headers = HEADERS

    def begun(self) -> None:
        pass

    def ended(self, outcome: str) -> None:
        pass


class Traces:
    def opened(self, *_: Any) -> None:
        pass

    def ended(self, *_: Any) -> None:
        pass

    def attempt(self, *_: Any) -> Attempt:
        return Attempt()


@pytest.mark.parametrize("provider", LINES)
async def test_the_trace_of_an_attempt_goes_on_upstream(open_provider: Open, provider: str) -> None:
    watch = Watch(Metrics({}))
    watch.traces = Traces()
    upstream = await open_provider(provider, watch=watch)
    await upstream.ask()
    told = dict(upstream.call.metadata)
    assert {name: told.get(name) for name, _ in HEADERS} == dict(HEADERS)


@pytest.mark.parametrize("provider", LINES)
async def test_without_one_none_goes(open_provider: Open, provider: str) -> None:
    upstream = await open_provider(provider)
    await upstream.ask()
    assert not {name for name, _ in upstream.call.metadata} & {"traceparent", "tracestate"}
