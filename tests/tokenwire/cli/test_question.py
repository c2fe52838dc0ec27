"""Asking a service that is only starting."""

from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from tests.tokenwire.fake_service import said
from tokenwire import UnavailableError
from tokenwire.cli import question
from tokenwire.v1 import generation_service_pb2 as pb


class Starting:
    """A client whose service says so many times that it is starting."""

    def __init__(self, times: int) -> None:
        self.times = times
        self.timeouts: list[float | None] = []

    def stream(self, _: pb.GenerateRequest, *, timeout: float | None) -> Iterator[pb.GenerateResponse]:
        self.timeouts.append(timeout)
        if len(self.timeouts) <= self.times:
            raise UnavailableError("x", code=grpc.StatusCode.UNAVAILABLE, reason="STARTING", retry_after=0.1)
        yield from said("a")


def test_all_attempts_have_one_limit() -> None:
    client: Any = Starting(3)
    found = question.asked(client, pb.GenerateRequest(), timeout=30)
    assert [message.text for message in found.messages] == ["", "a"]
    first, *others = client.timeouts
    assert first == 30, "errors name the limit that was given"
    assert others == sorted(others, reverse=True)
    assert others[-1] <= 29.8


def test_without_a_limit_it_waits_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(question, "START_SECONDS", 0.5)
    client: Any = Starting(1000)
    with pytest.raises(UnavailableError):
        question.asked(client, pb.GenerateRequest(), timeout=None)
    assert set(client.timeouts) == {None}
