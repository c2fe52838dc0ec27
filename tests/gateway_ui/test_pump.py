import threading
import time
from collections.abc import Callable, Iterator

import grpc
import pytest

from gateway_ui.pump import Arrival, Pump
from tests.tokenwire.fake_service import FakeService, Refusal, completed
from tokenwire import CallCancelledError, Client, IncompleteError

Started = Callable[..., Pump]


@pytest.fixture
def pump(service: FakeService) -> Iterator[Started]:
    pumps: list[Pump] = []
    with Client(service.address) as client:

        def start(**options: int) -> Pump:
            pumps.append(Pump(client.generate("x"), **options))
            return pumps[-1]

        yield start
        for one in pumps:
            one.close()
            one.thread.join(10)
            assert not one.thread.is_alive()


def drain(pump: Pump, until: int | None = None) -> list[Arrival]:
    """Take until the end, or until so many have come."""
    arrivals: list[Arrival] = []
    while until is None or len(arrivals) < until:
        batch = pump.take(10)
        if batch is None:
            break
        arrivals += batch
    return arrivals


def test_everything_comes_in_order_and_then_the_end(pump: Started, service: FakeService) -> None:
    service.will_answer("a", "b", completed())
    one = pump()
    arrivals = drain(one)
    assert [arrival.message.sequence for arrival in arrivals] == [0, 1, 2, 3]
    assert [arrival.at for arrival in arrivals] == sorted(arrival.at for arrival in arrivals)
    assert one.take(0) is None


def test_taking_gives_up_when_nothing_comes(pump: Started, service: FakeService) -> None:
    service.will_answer("a", threading.Event())
    one = pump()
    drain(one, until=2)
    assert one.take(0.01) == []


def test_an_error_comes_after_everything_before_it(pump: Started, service: FakeService) -> None:
    service.will_answer("a", Refusal(grpc.StatusCode.UNAVAILABLE, "UPSTREAM_CUT"))
    one = pump()
    one.thread.join(10)
    assert len(one.take(0) or ()) == 2
    for _ in range(2):
        with pytest.raises(IncompleteError):
            one.take(0)


def test_closing_cancels_the_call(pump: Started, service: FakeService) -> None:
    service.will_answer("a", threading.Event())
    one = pump()
    drain(one, until=2)
    one.close()
    assert service.cancelled.wait(10)
    with pytest.raises(CallCancelledError):
        drain(one)


def test_a_slow_reader_holds_the_pump_back_and_loses_nothing(pump: Started, service: FakeService) -> None:
    service.will_answer(*map(str, range(50)), completed())
    one = pump(capacity=3)
    assert service.arrived.wait(10)
    sizes = []
    texts = []
    while (batch := one.take(10)) is not None:
        sizes.append(len(batch))
        texts += [arrival.message.text for arrival in batch if arrival.message.HasField("text")]
    assert max(sizes) <= 3
    assert texts == [str(number) for number in range(50)]


def test_closing_frees_a_pump_that_waits_for_its_reader(pump: Started, service: FakeService) -> None:
    service.will_answer(*map(str, range(50)), threading.Event())
    one = pump(capacity=1)
    assert service.arrived.wait(10)
    one.close()
    one.thread.join(10)
    assert not one.thread.is_alive()
    assert service.cancelled.wait(10)


def test_a_pump_that_nobody_takes_over_closes_itself(pump: Started, service: FakeService) -> None:
    service.will_answer("a", threading.Event())
    one = pump()
    assert service.arrived.wait(10)
    one.close_unless_kept(0.01)
    assert service.cancelled.wait(10)


def test_a_pump_that_was_taken_over_goes_on(pump: Started, service: FakeService) -> None:
    gate = threading.Event()
    service.will_answer("a", gate, "b", completed())
    one = pump()
    drain(one, until=2)
    one.close_unless_kept(0.2)
    one.keep()
    # Longer than the grace, which is over by then only if it wasn't called off.
    time.sleep(0.4)
    gate.set()
    assert len(drain(one)) == 2
