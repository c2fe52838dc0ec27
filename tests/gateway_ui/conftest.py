import socket
from collections.abc import Iterator

import pytest
from playwright.async_api import Page, expect

from tests.browser import PageAt
from tests.gateway_ui.chat import Chat, Open
from tests.gateway_ui.fake_service import FakeService, Running


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


@pytest.fixture
def chat(tab: Page, page_at: PageAt, service: FakeService) -> Open:
    """Open the page of the scripted service in a fresh browser session."""

    async def open_() -> Chat:
        await tab.goto(page_at(service.address))
        chat = Chat(tab)
        await expect(chat.input).to_be_visible(timeout=20_000)
        # Asked while the script draws the page for the first time, Streamlit may show no stop button for the answer.
        await chat.settled()
        return chat

    return open_
