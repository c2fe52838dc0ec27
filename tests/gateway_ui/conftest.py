from pathlib import Path

import pytest
from playwright.async_api import Page, expect

from tests.browser import PageAt
from tests.gateway_ui.chat import Chat, Open
from tests.tokenwire.fake_service import FakeService

expect.set_options(timeout=20_000)  # what is waited for may be drawn by a script that shares its CPU with much else


@pytest.fixture(autouse=True)
def _files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Chat, "files", tmp_path, raising=False)


@pytest.fixture
def chat(tab: Page, page_at: PageAt, service: FakeService) -> Open:
    """Open the page of the scripted service in a fresh browser session."""

    async def open_() -> Chat:
        await tab.goto(page_at(service.address))
        chat = Chat(tab)
        await expect(chat.input).to_be_visible()
        # The first run of the script ends as soon as it doesn't know the browser; the second draws the page.
        await expect(tab.locator(".tw-state")).to_be_attached()
        # Asked while the script draws the page for the first time, Streamlit may show no stop button for the answer.
        await chat.settled()
        return chat

    return open_
