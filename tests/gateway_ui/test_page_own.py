"""What is typed in a conversation is its own, and stays there until it is sent or dismissed."""

import asyncio
import contextlib
import threading
from pathlib import Path

import pytest
from playwright.async_api import Locator, Page, expect
from playwright.async_api import TimeoutError as TimeoutError_

from tests.gateway_ui.chat import Chat, Open
from tests.gateway_ui.test_page_kept import opened, serving
from tests.gateway_ui.test_page_settings import answered
from tests.ports import free_port
from tests.tokenwire.fake_service import FakeService, completed, tool_call
from tokenwire import tool, tool_result, user

pytestmark = pytest.mark.browser


async def anew(page: Chat) -> None:
    await page.settled()
    await page.tab.get_by_role("button", name="New conversation").click()
    await expect(page.messages).to_have_count(0)
    await expect(page.not_asked()).to_have_count(0)
    await page.settled()


async def left_with_draft(page: Chat, question: str, draft: str) -> None:
    """Ask something, leave a draft of the next question, and begin a new conversation."""
    await answered(page, question)
    await page.settled()
    await page.input.fill(draft)
    await anew(page)
    await expect(page.input).to_have_value("")


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


async def test_what_is_typed_as_a_tools_result_stays_with_its_call(chat: Open, service: FakeService) -> None:
    oslo, rome = (tool_call("weather", {"city": city}, id_=f"of-{city}") for city in ("Oslo", "Rome"))
    for one in (oslo, rome):
        service.will_answer(one, completed())
    page = await chat()
    await page.choose("fake-2")
    await answered(page, "And in Oslo?")
    await anew(page)
    await answered(page, "And in Rome?")
    await page.settled()
    result = page.tab.get_by_label("Result of weather")
    await result.fill("warm")
    await reopened(page, "And in Oslo?")
    await expect(result).to_have_value("")
    await result.fill("cold")
    await reopened(page, "And in Rome?")
    await expect(result).to_have_value("warm")
    await reloaded(page)
    await expect(result).to_have_value("warm")
    await page.tab.get_by_role("button", name="Send", exact=True).click()
    await expect(page.answer()).to_contain_text("Hello there.")
    results = service.requests[-1].messages[-1]
    assert results == tool(tool_result(rome.tool_call, {"result": "warm"}))
    await reopened(page, "And in Oslo?")
    await expect(result).to_have_value("cold")
    # Sent once, it is no draft any more.
    kept = "() => Object.entries(sessionStorage).filter(([key]) => key.startsWith('tokenwire-draft:'))"
    assert [text for _, text in await page.tab.evaluate(kept)] == ["cold"]


async def test_an_edit_that_was_begun_stays_until_it_is_sent_or_cancelled(chat: Open, service: FakeService) -> None:
    page = await chat()
    await answered(page, "What is basball?")
    await answered(page, "And then?")
    boxes = page.tab.get_by_label("Your question")

    async def stand(*words: str) -> None:
        await expect(boxes).to_have_count(len(words))
        for box, text in zip(await boxes.all(), words, strict=True):
            await expect(box).to_have_value(text)
        await page.settled()

    async def edit(message: Locator) -> None:
        await page.settled()
        await message.get_by_role("button", name="Edit").click()
        await expect(message.get_by_label("Your question")).to_be_focused()
        await page.settled()

    await edit(page.messages.first)
    await boxes.fill("What is cricket?")
    await edit(page.messages.nth(2))
    await stand("What is cricket?", "And then?")
    await boxes.last.fill("And before?")
    await page.photograph("two-edits")
    await anew(page)
    await stand()
    await answered(page, "What is golf?")
    await reopened(page, "What is basball?")
    await stand("What is cricket?", "And before?")
    await reloaded(page)
    await stand("What is cricket?", "And before?")
    await page.messages.nth(2).get_by_role("button", name="Cancel").click()
    await stand("What is cricket?")
    await reloaded(page)
    await stand("What is cricket?")
    await edit(page.messages.nth(2))
    await stand("What is cricket?", "And then?")
    await page.messages.nth(2).get_by_role("button", name="Cancel").click()
    await stand("What is cricket?")
    await page.settled()
    await page.tab.get_by_role("button", name="Ask anew").click()
    await expect(page.answer()).to_contain_text("2 of 2")
    assert list(service.requests[-1].messages) == [user("What is cricket?")]
    await page.settled()
    await page.answer().get_by_role("button", name="Earlier").click()
    await expect(page.messages).to_have_count(4)
    await stand()
    await reloaded(page)
    await stand()


async def test_an_edit_outlasts_the_pages_process(tab: Page, service: FakeService, tmp_path: Path) -> None:
    port = free_port()
    box, drawn = tab.get_by_label("Your question"), tab.locator(".tw-drawn")
    with serving(port, service.address, tmp_path):
        page = await opened(tab, f"http://localhost:{port}")
        await answered(page, "What is basball?")
        await page.settled()
        await page.messages.first.get_by_role("button", name="Edit").click()
        await expect(box).to_be_focused()
        await box.fill("What is cricket?")
        before = await drawn.get_attribute("data-session")
    with serving(port, service.address, tmp_path):  # the tab finds it by itself
        await expect(drawn).not_to_have_attribute("data-session", before or "")
        await expect(tab.get_by_text("The page isn't reachable")).to_have_count(0)
        await expect(page.answer()).to_contain_text("Hello there.")
        await page.settled()
        await expect(box).to_have_value("What is cricket?")
        await tab.get_by_role("button", name="Ask anew").click()
        await expect(page.answer()).to_contain_text("2 of 2")
    assert list(service.requests[-1].messages) == [user("What is cricket?")]


async def test_a_click_in_the_moment_in_which_the_page_is_back_is_followed(
    tab: Page, service: FakeService, tmp_path: Path
) -> None:
    """The button is of the page's process before: the new one hasn't drawn it yet."""
    port = free_port()
    with serving(port, service.address, tmp_path):
        page = await opened(tab, f"http://localhost:{port}")
        await answered(page, "What is baseball?")
    await expect(tab.get_by_role("button", name="Retry")).to_be_disabled()
    await tab.evaluate(
        """() => {
            const button = document.querySelector('[class*="st-key-retry-"] button');
            const seen = new MutationObserver(() => {
                if (button.disabled) return;
                seen.disconnect();
                button.click();
            });
            seen.observe(document.body, { subtree: true, childList: true, attributes: true });
        }"""
    )
    with serving(port, service.address, tmp_path):
        await expect(page.answer()).to_contain_text("2 of 2")
    assert [list(one.messages) for one in service.requests] == [[user("What is baseball?")]] * 2


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
            with contextlib.suppress(AssertionError, TimeoutError_):
                await page.not_asked().get_by_role("button", name="Ask", exact=True).click(timeout=1000)
                await expect(page.not_asked()).to_have_count(0, timeout=2000)
    await expect(page.answer()).to_contain_text("Hello there.")
    assert service.requests[-1].config.temperature == pytest.approx(0.256)
    assert not service.requests[-1].config.HasField("top_p")


@pytest.mark.parametrize("text", ["1e", "-", "1e999"])
async def test_what_is_no_number_does_not_stand_in_a_field_for_numbers(chat: Open, text: str) -> None:
    page = await chat()
    await page.open_settings()
    box = page.tab.get_by_label("Temperature", exact=True)
    await box.press_sequentially(text)
    assert await box.evaluate("field => field.validity.badInput")
    await box.press("Tab")
    assert not await box.evaluate("field => field.validity.badInput")
    await expect(box).to_have_value("")


async def test_each_conversation_has_its_own_draft(chat: Open, service: FakeService) -> None:
    page = await chat()
    await left_with_draft(page, "What is baseball?", "And who invented it?")
    await answered(page, "What is cricket?")
    await page.settled()
    await page.input.fill("How long\nis a match?")
    for _ in range(2):
        await reopened(page, "What is baseball?")
        await expect(page.input).to_have_value("And who invented it?")
        await reloaded(page)
        await expect(page.input).to_have_value("And who invented it?")
        await reopened(page, "What is cricket?")
        await expect(page.input).to_have_value("How long\nis a match?")
    await page.input.press("Enter")
    await expect(page.messages).to_have_count(4)
    await expect(page.answer()).to_contain_text("tokens in")
    assert list(service.requests[-1].messages)[::2] == [user("What is cricket?"), user("How long\nis a match?")]
    # Sent once, it is no draft any more.
    await expect(page.input).to_have_value("")
    await reloaded(page)
    await expect(page.messages).to_have_count(4)
    await expect(page.input).to_have_value("")
    await reopened(page, "What is baseball?")
    await expect(page.input).to_have_value("And who invented it?")
    await page.input.fill("")
    await reloaded(page)
    await expect(page.messages).to_have_count(2)
    await expect(page.input).to_have_value("")


async def test_a_new_conversation_keeps_its_draft_until_something_is_asked(chat: Open, service: FakeService) -> None:
    page = await chat()
    await answered(page, "What is baseball?")
    await anew(page)
    await page.settled()
    await page.input.fill("What is cricket?")
    await reloaded(page)
    await expect(page.input).to_have_value("What is cricket?")
    await reopened(page, "What is baseball?")
    await expect(page.input).to_have_value("")
    await anew(page)
    await expect(page.input).to_have_value("What is cricket?")
    gate = threading.Event()
    service.will_answer("It is ", gate, "a game.", completed())
    await page.input.press("Enter")
    await expect(page.answer()).to_contain_text("It is")
    # While its first answer is being written, the next draft is its own already.
    await page.input.fill("And golf?")
    await page.tab.reload()
    await expect(page.answer()).to_contain_text("It is")
    await expect(page.input).to_have_value("And golf?")
    await page.tab.get_by_role("button", name="New conversation").click()
    await expect(page.messages).to_have_count(0)
    await expect(page.input).to_have_value("")
    gate.set()
    await reopened(page, "What is cricket?")
    await expect(page.answer()).to_contain_text("It is a game.")
    await expect(page.input).to_have_value("And golf?")


async def test_what_is_typed_while_a_conversation_is_being_opened_goes_on_from_its_draft(chat: Open) -> None:
    page = await chat()
    await left_with_draft(page, "What is baseball?", "And who")
    await page.input.fill("What is")
    listed = page.tab.locator(".st-key-conversations").get_by_role("button", name="What is baseball?")
    # In one turn of the browser: no script can have run in between.
    await listed.evaluate("""button => {
      button.click();
      const input = document.querySelector('[data-testid="stChatInputTextArea"]');
      input.focus();
      document.execCommand("insertText", false, "invented it?");
    }""")
    await expect(page.messages).to_have_count(2)
    await expect(page.input).to_have_value("And who\ninvented it?")
    await anew(page)
    await expect(page.input).to_have_value("What is")


async def other_tab(page: Chat, address: str = "") -> Chat:
    """A tab of the same browser, opened at this address, else at that of the page."""
    return await opened(await page.tab.context.new_page(), address or page.tab.url.partition("?")[0])


async def closed(page: Chat) -> None:
    await page.tab.close()


async def test_what_a_closed_tab_kept_is_there_in_the_next_one_that_is_opened(chat: Open, service: FakeService) -> None:
    page = await other_tab(await chat())
    service.will_answer(tool_call("weather", {"city": "Oslo"}), completed())
    await answered(page, "Weather in Oslo?")
    await page.tab.get_by_label("Result of weather").fill("cold")
    await anew(page)
    await left_with_draft(page, "What is basball?", "And then?")
    await reopened(page, "What is basball?")
    await page.messages.first.get_by_role("button", name="Edit").click()
    await page.tab.get_by_label("Your question").fill("What is baseball?")
    await page.settled()
    await anew(page)
    await page.input.fill("A new question")
    address = page.tab.url
    await closed(page)

    page = await other_tab(page, address.partition("?")[0])
    await expect(page.input).to_have_value("A new question")
    await reopened(page, "What is basball?")
    await expect(page.input).to_have_value("And then?")
    await expect(page.tab.get_by_label("Your question")).to_have_value("What is baseball?")
    await reopened(page, "Weather in Oslo?")
    await expect(page.tab.get_by_label("Result of weather")).to_have_value("cold")
    await page.tab.get_by_role("button", name="Send", exact=True).click()
    await expect(page.answer()).to_contain_text("Hello there.")
    await closed(page)

    # The result has been sent, so it is no draft; the others still are.
    page = await other_tab(page, address.partition("?")[0])
    await expect(page.input).to_have_value("A new question")
    await reopened(page, "What is basball?")
    await expect(page.input).to_have_value("And then?")
    await page.input.fill("")
    await closed(page)
    page = await other_tab(page, address.partition("?")[0])
    await reopened(page, "What is basball?")
    await expect(page.input).to_have_value("")
    await closed(page)


async def test_tabs_that_are_open_keep_what_is_theirs(chat: Open) -> None:
    page = await chat()
    await left_with_draft(page, "one", "Mine")
    await page.input.fill("Mine, too")
    other = await other_tab(page)
    await expect(other.input).to_have_value("")
    await reopened(other, "one")
    await expect(other.input).to_have_value("")
    await other.input.fill("Theirs")
    # Reloaded, each is the tab that it was.
    for one, text in ((page, "Mine, too"), (other, "Theirs")):
        await reloaded(one)
        await expect(one.input).to_have_value(text)
    await closed(other)
    await reloaded(page)
    await expect(page.input).to_have_value("Mine, too")
    await reopened(page, "one")
    await expect(page.input).to_have_value("Mine")
    # Each closed tab comes back by itself: two have left a draft for the same conversation.
    address = page.tab.url
    another = await page.tab.context.new_page()
    await closed(page)
    found = set()
    for tab in (another, await another.context.new_page()):
        one = await opened(tab, address)
        await expect(one.input).not_to_have_value("")
        found.add(await one.input.input_value())
    assert found == {"Mine", "Theirs"}
    for tab in another.context.pages[1:]:
        await tab.close()


async def test_a_question_that_was_on_its_way_when_its_tab_was_closed_is_not_lost(
    chat: Open, service: FakeService
) -> None:
    page = await other_tab(await chat())
    await answered(page, "one")
    await page.settled()
    address = page.tab.url
    await page.tab.evaluate("window.tokenwireInput.free = () => false")
    await page.ask("two")
    await expect(page.input).to_have_value("")
    await closed(page)
    page = await other_tab(page, address)
    await expect(page.input).to_have_value("two")
    assert len(service.requests) == 1
    await closed(page)
