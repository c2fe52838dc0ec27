"""Which connections a process has, and which of them it has opened itself."""

import os
import socket
from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.calls.stopping.connections import opened, peer_of


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
@given(count=st.integers(0, 5))
def test_those_that_others_have_opened_are_not_ours(family: socket.AddressFamily, count: int) -> None:
    """Both ends are in this process: one of each is ours."""
    with ExitStack() as stack:
        try:
            listening = stack.enter_context(socket.create_server(("", 0), family=family))
        except OSError:
            if family == socket.AF_INET:
                raise
            pytest.skip("IPv6 is off in this kernel: no connection of its kind can be made, so there is none to count")
        port = listening.getsockname()[1]
        before = opened([port])
        for _ in range(count):
            stack.enter_context(socket.create_connection(("::1" if family == socket.AF_INET6 else "127.0.0.1", port)))
            stack.enter_context(listening.accept()[0])
        assert opened([port]) == before + count
        assert opened([]) == opened([port]) + count
    assert opened([port]) == before


def test_other_files_are_no_connections() -> None:
    before = opened([])
    with ExitStack() as stack:
        for one in socket.socketpair():
            stack.enter_context(one)
        for number in os.pipe():
            stack.callback(os.close, number)
        sent = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        sent.connect(("127.0.0.1", 9))
        stack.enter_context(socket.socket())  # connected to nobody yet
        assert opened([]) == before


def test_looking_closes_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as ours, listening.accept()[0] as theirs:
            opened([port])
            assert peer_of(ours.fileno()) == ("127.0.0.1", port)
            ours.sendall(b"a")
            assert theirs.recv(1) == b"a"
