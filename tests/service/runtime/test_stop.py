"""One stop and two, told apart; orders that reach whoever reads them."""

import os
import select
import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.runtime.stop import SIGNALS, Count, Orders

LOUD = {signal.SIGTERM, signal.SIGINT}
BATCHES = st.lists(st.sets(st.sampled_from([*SIGNALS, signal.SIGCHLD, signal.SIGCONT])), max_size=6)


@given(BATCHES)
def test_the_second_of_sigterm_and_sigint_hurries_and_sighup_never_counts(batches: list[set[signal.Signals]]) -> None:
    count = Count()
    for batch in batches:
        count.add(batch)
    assert count.stop == any(batch & set(SIGNALS) for batch in batches)
    assert count.hurry == (sum(bool(batch & LOUD) for batch in batches) >= 2)


def readable(pipe: int) -> bool:
    return bool(select.select([pipe], [], [], 0)[0])


@pytest.fixture
def orders() -> Orders:
    return Orders()


def test_an_order_stays_for_all_who_read_it_and_may_be_given_again(orders: Orders) -> None:
    assert not readable(orders.stop_fd)
    assert not readable(orders.hurry_fd)
    for _ in range(2):
        orders.stop()
        assert readable(orders.stop_fd)
        assert not readable(orders.hurry_fd)
    for _ in range(100_000):  # more than a pipe holds
        orders.hurry()
    assert readable(orders.hurry_fd)
    assert readable(orders.stop_fd)


def test_the_death_of_the_parent_means_stop_and_not_hurry(orders: Orders) -> None:
    told, tell = os.pipe()
    parent = os.fork()
    if not parent:
        child = os.fork()
        if not child:
            orders.obey()
            select.select([orders.stop_fd], [], [], 30)
            os.write(tell, b"%d%d" % (readable(orders.stop_fd), readable(orders.hurry_fd)))
        os._exit(0)
    os.waitpid(parent, 0)
    orders.obey()  # this process has the same end of the pipe
    assert os.read(told, 2) == b"10"
