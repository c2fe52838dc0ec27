from collections.abc import Iterator

import pytest

from tests.gateway_ui.fake_service import FakeService, Running


@pytest.fixture(scope="session")
def running_service() -> Iterator[FakeService]:
    with Running() as service:
        yield service


@pytest.fixture
def service(running_service: FakeService) -> FakeService:
    """A scripted service on a real socket."""
    return running_service.reset()
