"""What is typed in a conversation is its own, and stays there until it is sent or dismissed."""

import asyncio
import contextlib

import pytest
from playwright.async_api import expect

from tests.gateway_ui.chat import Chat, Open
from tests.gateway_ui.test_page_settings import answered
from tests.tokenwire.fake_service import FakeService

pytestmark = pytest.mark.browser


async def anew(page: Chat) -> None:
    await page.settled()
    await page.tab.get_by_role("button", name="New conversation").click()
    await expect(page.messages).to_have_count(0)
    await page.settled()


async def reopened(page: Chat, name: str) -> None:
    await page.settled()
    listed = page.tab.locator(".st-key-conversations")
    await listed.get_by_role("button", name=name).click()
    await expect(listed.get_by_test_id("stBaseButton-primary")).to_have_text(name)
    await page.settled()


async def reloaded(page: Chat) -> None:
    await page.tab.reload()
    await expect(page.input).to_be_visible()
    await expect(page.tab.locator(".tw-state")).to_be_attached()
    await page.settled()


async def test_a_number_that_cannot_be_used_says_so_and_holds_the_question(chat: Open, service: FakeService) -> None:
    page = await chat()
    await page.open_settings()
    box, said = (
        page.tab.get_by_label("Temperature", exact=True),
        page.tab.get_by_test_id("stSidebar").get_by_role("alert"),
    )
    why = ["Temperature is 9; must be 0 to 2.", "Top P is 7; must be 0.01 to 1."]
    await page.write("Temperature", "9")
    await expect(said).to_have_text(why[:1])
    await page.settled()
    await page.write("Top P", "7")
    await expect(said).to_have_text(why)
    await page.photograph("number-refused")
    await page.ask("What is baseball?")
    for one in why:
        await expect(page.not_asked()).to_contain_text(one)
    assert not service.requests
    await reloaded(page)
    await page.open_settings()
    await expect(box).to_have_value("9")
    await expect(said).to_have_text(why)
    await anew(page)
    await expect(box).to_have_value("")
    await expect(said).to_have_count(0)
    await answered(page, "What is cricket?")
    assert not service.requests[-1].HasField("config")
    await reopened(page, "What is baseball?")
    await expect(box).to_have_value("9")
    # What stands there is what is asked with, to its last digit.
    await page.write("Temperature", "0.256")
    await expect(said).to_have_text(why[1:])
    await page.settled()
    await page.write("Top P", "")
    await expect(said).to_have_count(0)
    await expect(box).to_have_value("0.256")
    async with asyncio.timeout(20):
        while await page.not_asked().count():  # a click is lost when the script draws the page in that moment
            await page.not_asked().get_by_role("button", name="Ask", exact=True).click()
            with contextlib.suppress(AssertionError):
                await expect(page.not_asked()).to_have_count(0, timeout=2000)
    await expect(page.answer()).to_contain_text("Hello there.")
    assert service.requests[-1].config.temperature == pytest.approx(0.256)
    assert not service.requests[-1].config.HasField("top_p")
