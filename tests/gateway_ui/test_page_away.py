"""While the service is away, or slow, the page goes on with what it knows."""

from pathlib import Path

import grpc
import pytest
from playwright.async_api import Page, expect

from tests.browser import PageAt
from tests.gateway_ui.chat import Chat
from tests.gateway_ui.test_page_kept import opened, serving
from tests.gateway_ui.test_page_settings import answered
from tests.ports import free_port
from tests.tokenwire.fake_service import FakeService, Refusal, Running

pytestmark = pytest.mark.browser


async def set_up(page: Chat) -> None:
    await page.choose("fake-2")
    await page.open_settings()
    await page.write("Temperature", "0.5")
    await page.settled()
    await page.write("Thinking budget", "100")
    await page.settled()


async def stands(page: Chat) -> None:
    """The drawer says what it was made to say."""
    await expect(page.tab.get_by_role("combobox", name="Model")).to_be_enabled()
    await expect(page.tab.get_by_role("combobox", name="Model")).to_have_value("fake-2")
    await expect(page.tab.locator(".tw-about")).to_contain_text("Tokens: 1,048,576 in")
    await expect(page.tab.get_by_label("Temperature", exact=True)).to_have_value("0.5")
    await expect(page.tab.get_by_label("Thinking budget", exact=True)).to_have_value("100")


def were_sent(service: FakeService) -> bool:
    request = service.requests[-1]
    return (request.model, request.config.temperature, request.config.thinking_budget) == ("fake-2", 0.5, 100)


async def test_the_drawer_stays_as_it_is_while_the_service_is_away(tab: Page, page_at: PageAt) -> None:
    address = f"localhost:{free_port()}"
    drawer = tab.get_by_test_id("stSidebar")
    with Running(address):
        page = await opened(tab, page_at(address))
        await set_up(page)
    await page.ask("What is baseball?")
    await expect(page.problem()).to_be_visible()
    await page.input.fill("A draft")
    await expect(drawer).to_contain_text("is not running")
    await expect(drawer).to_contain_text("Its models are shown as they were.")
    await page.settled()
    await stands(page)
    await expect(page.input).to_have_value("A draft")
    await page.photograph("service-away")
    with Running(address) as service:
        await expect(drawer).to_contain_text("Connected to")
        await page.settled()
        await stands(page)
        await expect(page.input).to_have_value("A draft")
        await page.input.press("Enter")
        await expect(page.answer()).to_contain_text("Hello there.")
        assert were_sent(service)


async def test_the_drawer_stays_as_it_is_while_the_list_of_models_is_slow(tab: Page, page_at: PageAt) -> None:
    drawer = tab.get_by_test_id("stSidebar")
    with Running() as service:
        page = await opened(tab, page_at(service.address))
        await set_up(page)
        service.lists.clear()
        # After that, the page asks whether all is as it was.
        service.will_answer(Refusal(grpc.StatusCode.UNAVAILABLE))
        await page.ask("What is baseball?")
        await expect(page.problem()).to_be_visible()
        await expect(drawer).to_contain_text("The service has not told its models within 2 s.")
        await expect(drawer).to_contain_text("Its models are shown as they were.")
        await page.settled()
        await stands(page)
        # What is asked is asked.
        await answered(page, "And cricket?")
        assert were_sent(service)
        service.lists.set()
        await expect(drawer).to_contain_text("Connected to")
        await stands(page)


async def test_what_is_kept_is_there_once_a_service_is_known_that_was_away_as_the_page_began(
    tab: Page, tmp_path: Path
) -> None:
    address, port = f"localhost:{free_port()}", free_port()
    drawer = tab.get_by_test_id("stSidebar")
    with Running(address), serving(port, address, tmp_path):
        page = await opened(tab, f"http://localhost:{port}")
        await set_up(page)
        await answered(page, "What is baseball?")
        await page.settled()
        await page.input.fill("A draft")
    lost = tab.get_by_text("The page isn't reachable; trying again")
    await expect(lost).to_be_visible()
    with serving(port, address, tmp_path):
        # The tab finds the page by itself.
        await expect(lost).to_have_count(0)
        await expect(drawer).to_contain_text("is not running")
        await expect(page.answer()).to_contain_text("Hello there.")
        await expect(page.input).to_have_value("A draft")
        await page.settled()
        with Running(address) as service:
            await expect(drawer).to_contain_text("Connected to")
            await page.settled()
            await page.open_settings()
            await stands(page)
            await expect(page.input).to_have_value("A draft")
            await page.input.press("Enter")
            await expect(page.messages).to_have_count(4)
            await expect(page.answer()).to_contain_text("Hello there.")
            assert were_sent(service)
