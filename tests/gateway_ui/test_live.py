"""One thread reads an answer, any number of tabs look on."""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from google.rpc.error_details_pb2 import RetryInfo

from gateway_ui.chat import live as module
from gateway_ui.chat.conversation import NOT_BEGUN, STOPPED, UNSEEN, UNSEEN_NOT_BEGUN, Exchange
from gateway_ui.chat.live import Live
from tests.tokenwire.fake_service import FakeService, Refusal, completed
from tokenwire import Client, user
from tokenwire.cli.meter import Meter
from tokenwire.v1.generation_service_pb2 import GenerateRequest

Started = Callable[..., Live]


@pytest.fixture
def saved() -> list[str]:
    """The text of the exchange, each time that it was saved."""
    return []


@pytest.fixture
def live(service: FakeService, saved: list[str]) -> Iterator[Started]:
    made: list[Live] = []
    with Client(service.address) as client:

        def start(
            *, follows_up: bool = False, save: Callable[[str], object] = saved.append, alone: float = 60, **options: Any
        ) -> Live:
            exchange = Exchange(user("x"), GenerateRequest(), Meter(asked_at=0), follows_up=follows_up)
            made.append(
                Live(exchange, lambda: client.generate("x"), lambda: save(exchange.text), alone=alone, **options)
            )
            return made[-1]

        yield start
        for one in made:
            one.stop()
            one.thread.join(10)
            assert not one.thread.is_alive()


def ended(live: Live) -> Exchange:
    live.thread.join(10)
    assert not live.thread.is_alive()
    return live.exchange


def until(live: Live, text: str) -> None:
    version = 0
    while live.exchange.text != text and not live.exchange.ended:
        version = live.wait(version, 10)
    assert live.exchange.text == text


def test_everything_comes_in_order_and_is_saved(live: Started, service: FakeService, saved: list[str]) -> None:
    service.will_answer("a", "b", completed())
    exchange = ended(live())
    assert [piece.text for piece in exchange.pieces] == ["a", "b"]
    assert [piece.after for piece in exchange.pieces] == sorted(piece.after for piece in exchange.pieces)
    assert exchange.ended
    assert not exchange.problem
    assert saved[-1] == "ab"


def test_what_came_before_a_silence_is_saved(live: Started, service: FakeService) -> None:
    service.will_answer("half ", threading.Event())
    kept = threading.Event()
    one = live(save=lambda text: kept.set() if text == "half " else None)
    assert kept.wait(10)
    assert not one.exchange.ended


def test_what_comes_is_read_on_while_a_slow_disk_saves(service: FakeService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SAVE_SECONDS", 0.0)
    saving, disk = threading.Event(), threading.Event()
    saved: list[str] = []
    exchange = Exchange(user("x"), GenerateRequest(), Meter(asked_at=0))

    def save() -> None:
        saved.append(exchange.text)
        saving.set()
        assert disk.wait(10)

    gate = threading.Event()
    service.will_answer("a", gate, "b", "c", completed())
    with Client(service.address) as client:
        one = Live(exchange, lambda: client.generate("x"), save, alone=60)
        assert saving.wait(10)
        gate.set()
        until(one, "abc")
        while not exchange.ended:
            one.wait(-1, 10)
        # One save at a time, and the last when everything is there.
        assert len(saved) == 1
        disk.set()
        ended(one)
    assert saved[-1] == "abc"
    assert len(saved) == 2


def test_waiting_ends_with_what_comes_and_gives_up_otherwise(live: Started, service: FakeService) -> None:
    gate = threading.Event()
    service.will_answer("a", gate, "b", threading.Event())
    one = live()
    until(one, "a")
    version = one.wait(0, 10)
    assert one.wait(version, 0.01) == version
    gate.set()
    assert one.wait(version, 10) > version
    assert one.exchange.text == "ab"


def test_an_error_comes_after_everything_before_it(live: Started, service: FakeService, saved: list[str]) -> None:
    service.will_answer("a", Refusal(grpc.StatusCode.UNAVAILABLE, "UPSTREAM_CUT"))
    exchange = ended(live())
    assert exchange.text == "a"
    assert "what you see is incomplete" in exchange.problem
    assert saved[-1] == "a"


def test_a_conversation_that_is_too_long_is_told_what_to_do(live: Started, service: FakeService) -> None:
    service.will_answer(Refusal(grpc.StatusCode.INVALID_ARGUMENT, "UPSTREAM_REJECTED", "The context is full."))
    assert "start a new one" in ended(live(follows_up=True)).problem


def test_a_stop_cancels_and_marks(live: Started, service: FakeService, saved: list[str]) -> None:
    service.will_answer("a", threading.Event())
    one = live()
    until(one, "a")
    one.stop()
    one.stop()
    assert ended(one).problem == STOPPED
    assert service.cancelled.wait(10)
    assert saved[-1] == "a"


def test_a_stop_behind_the_end_changes_nothing(live: Started, service: FakeService) -> None:
    service.will_answer("a", completed())
    one = live()
    ended(one)
    one.stop()
    assert not one.exchange.problem


def test_an_answer_that_nobody_looks_at_is_cancelled(live: Started, service: FakeService) -> None:
    service.will_answer("a", threading.Event())
    one = live(alone=60)
    until(one, "a")
    one._give_up()
    assert service.cancelled.wait(10)
    assert ended(one).problem == UNSEEN


def test_an_answer_is_given_up_by_the_clock(live: Started, service: FakeService) -> None:
    service.will_answer(threading.Event())
    one = live(alone=0.05)
    assert ended(one).problem == UNSEEN_NOT_BEGUN


def test_a_stop_before_anything_has_come_says_so(live: Started, service: FakeService) -> None:
    service.will_answer(threading.Event())
    one = live()
    assert service.arrived.wait(10)
    one.stop()
    assert ended(one).problem == NOT_BEGUN


def test_what_has_come_is_saved_as_the_process_ends(
    live: Started, service: FakeService, saved: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SAVE_SECONDS", 1000.0)
    service.will_answer("a", "b", threading.Event())
    one = live()
    until(one, "ab")
    assert saved == []
    module.save_all()
    assert saved == ["ab"]
    one.stop()
    ended(one)
    module.save_all()
    assert saved == ["ab", "ab"]


def test_it_goes_on_while_one_of_two_looks_and_over_a_short_absence(live: Started, service: FakeService) -> None:
    gate = threading.Event()
    service.will_answer("a", gate, "b", completed())
    one = live(alone=60)
    with one.looked_at():
        with one.looked_at():
            until(one, "a")
        assert one.lookers() == 1
    assert one.lookers() == 0
    with one.looked_at():
        gate.set()
        assert ended(one).text == "ab"
    assert not service.cancelled.is_set()


def test_it_goes_on_as_long_as_its_browser_shows_something_else(live: Started, service: FakeService) -> None:
    service.will_answer("a", threading.Event())
    asked, gone = threading.Semaphore(0), threading.Event()

    def open_elsewhere() -> bool:
        asked.release()
        return not gone.is_set()

    one = live(alone=0.01, open_elsewhere=open_elsewhere)
    for _ in range(3):
        assert asked.acquire(timeout=10)
    assert not one.exchange.ended
    gone.set()
    assert service.cancelled.wait(10)
    assert ended(one).problem in (UNSEEN, UNSEEN_NOT_BEGUN)


def test_it_does_not_go_on_for_ever_elsewhere(live: Started, service: FakeService) -> None:
    service.will_answer("a", threading.Event())
    one = live(alone=0.01, open_elsewhere=lambda: True, elsewhere=0.1)
    assert service.cancelled.wait(10)
    assert ended(one).problem in (UNSEEN, UNSEEN_NOT_BEGUN)


def test_a_reader_that_comes_as_it_is_given_up_either_comes_first_or_finds_it_stopped(
    live: Started, service: FakeService
) -> None:
    service.will_answer("a", threading.Event())
    one = live(alone=60)
    until(one, "a")
    with one.looked_at():
        one._give_up()  # its timer had fired already when they came
        assert not one.exchange.ended
    one._give_up()
    assert ended(one).problem == UNSEEN


@pytest.mark.parametrize("unseen", [False, True])
def test_what_comes_next_comes_when_all_is_saved_unless_nobody_looked(
    live: Started, service: FakeService, saved: list[str], *, unseen: bool
) -> None:
    gate = threading.Event()
    service.will_answer("a", gate, completed())
    one = live(then=lambda _: saved.append("then"))
    until(one, "a")
    if unseen:
        one.stop(unseen=True)
    gate.set()
    ended(one)
    assert saved[-1 if unseen else -2 :] == (["a"] if unseen else ["a", "then"])


def starting(seconds: float) -> Refusal:
    again = RetryInfo()
    again.retry_delay.FromNanoseconds(round(seconds * 1e9))
    return Refusal(grpc.StatusCode.UNAVAILABLE, "STARTING", details=(again,))


def test_a_service_that_is_starting_is_asked_again(live: Started, service: FakeService) -> None:
    for _ in range(3):
        service.will_answer(starting(0.01))
    service.will_answer("a", completed())
    exchange = ended(live())
    assert (exchange.text, exchange.problem) == ("a", "")
    assert len(service.requests) == 4


def test_who_stops_while_the_service_is_starting_asks_no_more(live: Started, service: FakeService) -> None:
    service.will_answer(starting(30))
    one = live()
    while not service.requests:
        time.sleep(0.01)
    time.sleep(0.1)  # it has been refused, most likely; if not, it's the same
    one.stop()
    assert ended(one).problem == NOT_BEGUN
    assert len(service.requests) == 1


def test_a_service_that_never_starts_is_told(
    live: Started, service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_START_SECONDS", 0.2)
    for _ in range(100):
        service.will_answer(starting(0.05))
    assert "is still starting" in ended(live()).problem
    assert 1 < len(service.requests) < 10


def test_a_bug_of_the_page_is_logged_and_told(
    live: Started, service: FakeService, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(Exchange, "saw", fails)
    service.will_answer("a", completed())
    assert "The page has made a mistake" in ended(live()).problem
    assert "a bug" in caplog.text
