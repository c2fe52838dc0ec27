"""Fixtures of the scripted service, for the tests of the client, the command and the page."""

import socket
from collections.abc import Iterator

import pytest

from tests.tokenwire.fake_service import FakeService, Running


@pytest.fixture(scope="session")
def running_service() -> Iterator[FakeService]:
    with Running() as service:
        yield service


@pytest.fixture
def service(running_service: FakeService) -> FakeService:
    """A scripted service on a real socket."""
    return running_service.reset()


@pytest.fixture(scope="session")
def nobody() -> Iterator[str]:
    """An address where nothing listens, and nothing will as long as the tests run."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{bound.getsockname()[1]}"
