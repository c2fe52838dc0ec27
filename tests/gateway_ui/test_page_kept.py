"""Nothing is lost: not a question, not an answer, not a conversation; and nobody else sees them."""

import asyncio
import contextlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from playwright.async_api import FilePayload, Page, WebSocketRoute, expect
from playwright.async_api import TimeoutError as TimeoutError_

from gateway_ui.chat.store import Store
from gateway_ui.drawing.reader import COOKIE
from tests.browser import PageAt, chromium, wait_for_port
from tests.gateway_ui.chat import STOPPED, Chat, Open, happened
from tests.gateway_ui.test_attachments import photo
from tests.gateway_ui.test_conversation import conversation, exchange
from tests.gateway_ui.test_page_settings import PHOTO, picture
from tests.ports import free_port
from tests.tokenwire.fake_service import FakeService, Refusal, Running, completed
from tokenwire import inline, model, user

pytestmark = pytest.mark.browser


async def opened(tab: Page, url: str) -> Chat:
    await tab.goto(url)
    page = Chat(tab)
    await expect(page.input).to_be_visible()
    await expect(tab.locator(".tw-state")).to_be_attached()
    await page.settled()
    return page


async def again(page: Chat) -> None:
    await page.tab.reload()
    await expect(page.input).to_be_visible()


async def answered(page: Chat, question: str) -> None:
    count = await page.messages.count()
    await page.ask(question)
    await expect(page.messages).to_have_count(count + 2)
    await expect(page.answer()).to_contain_text("tokens in")
    await page.settled()


async def test_a_question_typed_as_the_service_comes_up_is_asked(tab: Page, page_at: PageAt) -> None:
    address = f"localhost:{free_port()}"
    page = await opened(tab, page_at(address))
    await expect(tab.get_by_test_id("stSidebar")).to_contain_text("is not running")
    with Running(address) as service:
        # At once, and with the first question typed, not only after something has been clicked.
        await page.ask("What is baseball?")
        await expect(page.answer()).to_contain_text("Hello there.")
        await expect(tab.get_by_test_id("stSidebar")).to_contain_text("Connected to")
        assert [list(one.messages) for one in service.requests] == [[user("What is baseball?")]]


async def test_the_page_notices_by_itself_that_the_service_has_come_up(tab: Page, page_at: PageAt) -> None:
    address = f"localhost:{free_port()}"
    page = await opened(tab, page_at(address))
    await expect(tab.get_by_test_id("stSidebar")).to_contain_text("is not running")
    await page.input.fill("A draft")
    with Running(address):
        await expect(tab.get_by_test_id("stSidebar")).to_contain_text("Connected to")
        await expect(tab.get_by_role("combobox", name="Model")).to_be_enabled()
        await expect(page.input).to_have_value("A draft")


async def test_a_reload_keeps_conversation_model_and_running_answer(chat: Open, service: FakeService) -> None:
    page = await chat()
    await page.choose("fake-2")
    await answered(page, "What is baseball?")
    gate = threading.Event()
    service.will_answer("Half ", gate, "and the rest.", completed())
    await page.ask("And cricket?")
    await expect(page.answer()).to_contain_text("Half")
    await again(page)
    await expect(page.messages).to_have_count(4)
    await expect(page.messages.nth(1)).to_contain_text("Hello there.")
    await expect(page.answer()).to_contain_text("Half")
    gate.set()
    await expect(page.answer()).to_contain_text("Half and the rest.")
    await expect(page.problem()).to_have_count(0)
    assert not service.cancelled.is_set()
    assert len(service.requests) == 2
    await again(page)
    await expect(page.answer()).to_contain_text("Half and the rest.")
    await answered(page, "And golf?")
    assert service.requests[-1].model == "fake-2"
    assert list(service.requests[-1].messages)[2:4] == [user("And cricket?"), model("Half and the rest.")]


async def test_an_answer_can_be_stopped_after_a_reload(chat: Open, service: FakeService) -> None:
    service.will_answer("Half", threading.Event())
    page = await chat()
    await page.ask("What is baseball?")
    await expect(page.answer()).to_contain_text("Half")
    await again(page)
    await expect(page.answer()).to_contain_text("Half")
    await page.stop.click()
    assert await happened(service.cancelled)
    await expect(page.problem()).to_have_text(STOPPED)
    await again(page)
    await expect(page.problem()).to_have_text(STOPPED)


async def test_another_browser_sees_nothing_of_it(chat: Open, tmp_path: Path) -> None:
    page = await chat()
    await answered(page, "What is baseball?")
    async with chromium(tmp_path) as stranger:
        other = await opened(await stranger.new_page(), page.tab.url)
        assert "?c=" in page.tab.url
        await expect(other.tab.get_by_role("heading", name="Ask a question")).to_be_visible()
        await expect(other.messages).to_have_count(0)
        await expect(other.tab.get_by_test_id("stSidebar")).not_to_contain_text("baseball")
        not_here = other.tab.get_by_text("This conversation isn't here, or is another browser's.")
        await expect(not_here).to_be_visible()
        # And its address is no longer in the way.
        await expect(other.tab).not_to_have_url(page.tab.url)
        await again(other)
        await expect(not_here).to_have_count(0)
        await answered(other, "And cricket?")
        await expect(not_here).to_have_count(0)


async def test_conversations_are_listed_found_named_deleted_and_had_back(chat: Open) -> None:
    page = await chat()
    sidebar = page.tab.get_by_test_id("stSidebar")
    for sport in ("baseball", "cricket", "golf", "tennis", "chess", "go"):
        await page.tab.get_by_role("button", name="New conversation").click()
        await expect(page.messages).to_have_count(0)
        await page.settled()
        await answered(page, f"What is {sport}?")
    listed = page.tab.locator(".st-key-conversations").get_by_role("button")
    await expect(listed).to_have_count(6)
    await expect(listed.first).to_have_text("What is go?")
    await sidebar.get_by_role("textbox", name="Search conversations").fill("CRICK")
    await sidebar.get_by_role("textbox", name="Search conversations").press("Enter")
    await expect(listed).to_have_count(1)
    await listed.click()
    await expect(page.messages.first).to_contain_text("What is cricket?")
    await sidebar.get_by_role("textbox", name="Search conversations").fill("")
    await sidebar.get_by_role("textbox", name="Search conversations").press("Enter")
    await expect(listed).to_have_count(6)
    await page.open_this_conversation()
    await sidebar.get_by_role("textbox", name="Name").fill("Sticky *wicket* :smile: ![x](http://127.0.0.1:9/spy)")
    await sidebar.get_by_role("textbox", name="Name").press("Enter")
    await expect(sidebar.locator(".st-key-conversations")).to_contain_text("Sticky *wicket*")
    await page.photograph("conversations")
    await sidebar.get_by_role("button", name="Delete").click()
    await expect(listed).to_have_count(5)
    await expect(page.messages).to_have_count(0)
    await sidebar.get_by_role("button", name="Undo").click()
    await expect(listed).to_have_count(6)
    await expect(page.messages.first).to_contain_text("What is cricket?")
    await again(page)
    await expect(page.messages.first).to_contain_text("What is cricket?")
    await expect(listed).to_have_count(6)


async def test_a_retry_keeps_the_earlier_answer(chat: Open, service: FakeService) -> None:
    service.will_answer("One answer.", completed())
    page = await chat()
    await answered(page, "What is baseball?")
    gate = threading.Event()
    service.will_answer("Another answer.", gate, completed())
    await page.tab.get_by_role("button", name="Retry").click()
    await expect(page.answer()).to_contain_text("Another answer.")
    await expect(page.answer()).not_to_contain_text("One answer.")
    gate.set()
    await expect(page.answer()).to_contain_text("2 of 2")
    await page.settled()
    await page.answer().get_by_role("button", name="Earlier").click()
    await expect(page.answer()).to_contain_text("One answer.")
    await page.settled()
    await page.photograph("alternatives")
    # What is asked now follows what is shown.
    await answered(page, "And then?")
    assert [part.text for turn in service.requests[-1].messages for part in turn.parts] == [
        "What is baseball?",
        "One answer.",
        "And then?",
    ]
    await again(page)
    await expect(page.messages.nth(1)).to_contain_text("One answer.")
    await page.settled()
    await page.messages.nth(1).get_by_role("button", name="Later").click()
    await expect(page.messages).to_have_count(2)
    await expect(page.answer()).to_contain_text("Another answer.")
    assert [list(one.messages) for one in service.requests[:2]] == [[user("What is baseball?")]] * 2


async def test_a_question_is_asked_in_other_words_and_both_can_be_looked_at(chat: Open, service: FakeService) -> None:
    page = await chat()
    await answered(page, "What is basball?")
    await answered(page, "And then?")
    await page.messages.first.get_by_role("button", name="Edit").click()
    box = page.tab.get_by_label("Your question")
    await expect(box).to_have_value("What is basball?")
    await page.settled()
    await expect(box).to_be_in_viewport()
    await expect(page.tab.get_by_role("button", name="Ask anew")).to_be_in_viewport()
    await page.photograph("editing")
    gate = threading.Event()
    service.will_answer("A game.", gate, completed())
    await box.fill("What is baseball?")
    await page.tab.get_by_role("button", name="Ask anew").click()
    await expect(page.messages).to_have_count(2)
    await expect(page.answer()).to_contain_text("A game.")
    gate.set()
    await expect(page.answer()).to_contain_text("tokens in")
    await expect(page.messages.first).to_contain_text("What is baseball?")
    assert list(service.requests[-1].messages) == [user("What is baseball?")]
    await page.settled()
    await page.answer().get_by_role("button", name="Earlier").click()
    await expect(page.messages).to_have_count(4)
    await expect(page.messages.first).to_contain_text("What is basball?")


async def test_a_question_typed_during_an_answer_waits_for_its_turn(chat: Open, service: FakeService) -> None:
    gate = threading.Event()
    service.will_answer("Half ", gate, "and the rest.", completed())
    page = await chat()
    await page.ask("What is baseball?")
    await expect(page.answer()).to_contain_text("Half")
    place = await page.stop.bounding_box()
    await page.ask("And cricket?")
    await expect(page.not_asked()).to_contain_text("And cricket?")
    await page.input.fill("A draft")
    await page.photograph("waiting")
    assert len(service.requests) == 1
    assert not service.cancelled.is_set()
    gate.set()
    await expect(page.messages).to_have_count(4)
    await expect(page.messages.nth(1)).to_contain_text("Half and the rest.")
    await expect(page.answer()).to_contain_text("Hello there.")
    await expect(page.not_asked()).to_have_count(0)
    await expect(page.input).to_have_value("A draft")
    assert place is not None


async def test_a_waiting_question_can_go_first_or_not_at_all(chat: Open, service: FakeService) -> None:
    service.will_answer("Half", threading.Event())
    page = await chat()
    await page.ask("What is baseball?")
    await expect(page.answer()).to_contain_text("Half")
    await page.ask("And golf?")
    await page.ask("And cricket?")
    await expect(page.not_asked()).to_have_count(2)
    golf = page.not_asked().filter(has_text="And golf?")
    async with asyncio.timeout(20):
        while await golf.count():  # a click is lost when the script draws the page in that moment
            with contextlib.suppress(AssertionError, TimeoutError_):
                await golf.get_by_role("button", name="Don't ask").click(timeout=1000)
                await expect(golf).to_have_count(0, timeout=1000)
    await expect(page.not_asked()).to_contain_text("And cricket?")
    async with asyncio.timeout(20):
        while not await happened(service.cancelled, 0.1):
            with contextlib.suppress(TimeoutError_):
                await page.not_asked().get_by_role("button", name="Stop, and ask this now").click(timeout=1000)
    assert await happened(service.cancelled)
    await expect(page.messages.nth(1).locator(".tw-problem:visible")).to_have_text(STOPPED)
    await expect(page.answer()).to_contain_text("Hello there.")
    assert len(service.requests) == 2


async def test_what_is_not_to_be_asked_goes_back_into_the_input_or_can_be_had_back(chat: Open) -> None:
    page = await chat()
    await page.choose("fake-2")
    await page.attach(UNREADABLE)
    await page.ask("What is this?")
    undo = page.tab.get_by_role("button", name="Undo: don't ask What is this?")
    await expect(page.not_asked()).to_contain_text("a.xyz can't be sent")
    await page.settled()
    await page.not_asked().get_by_role("button", name="Don't ask").click()
    await expect(page.not_asked()).to_have_count(0)
    await expect(undo).to_be_visible()  # a page can't put a file into the input
    await again(page)
    async with asyncio.timeout(20):
        while await page.not_asked().count() == 0:  # a click is lost when the script draws the page in that moment
            with contextlib.suppress(AssertionError, TimeoutError_):
                await undo.click(timeout=1000)
                await expect(page.not_asked()).to_have_count(1, timeout=2000)
    await expect(page.not_asked()).to_contain_text("What is this? · a.xyz")
    await expect(undo).to_have_count(0)
    # Words alone go back.
    await page.open_settings()
    await page.write("Tools", "nonsense")
    await page.settled()
    await page.ask("A\nlong one")
    await expect(page.not_asked()).to_have_count(2)
    await page.settled()
    await page.not_asked().last.get_by_role("button", name="Don't ask").click()
    await expect(page.input).to_have_value("A\nlong one")
    await expect(page.not_asked()).to_have_count(1)
    await expect(page.tab.locator(".st-key-undroppable").get_by_role("button")).to_have_count(0)
    # But never over a draft.
    await page.ask("Another one")
    await expect(page.not_asked()).to_have_count(2)
    await page.input.fill("A draft")
    await page.settled()
    await page.not_asked().last.get_by_role("button", name="Don't ask").click()
    await expect(page.tab.get_by_role("button", name="Undo: don't ask Another one")).to_be_visible()
    await expect(page.input).to_have_value("A draft")


async def test_of_two_tabs_one_asks_what_waits_and_both_show_it(chat: Open, service: FakeService) -> None:
    gate = threading.Event()
    service.will_answer("Half ", gate, "and the rest.", completed())
    page = await chat()
    await page.ask("What is baseball?")
    await expect(page.answer()).to_contain_text("Half")
    other = Chat(await page.tab.context.new_page())
    try:
        await other.tab.goto(page.tab.url)
        await expect(other.answer()).to_contain_text("Half")
        await page.ask("And cricket?")
        # While the answer is being written in both.
        for one in (page, other):
            await expect(one.not_asked()).to_contain_text("And cricket?")
        await other.input.fill("A draft")
        gate.set()
        for one in (page, other):
            await expect(one.messages).to_have_count(4)
            await expect(one.answer()).to_contain_text("Hello there.")
        await expect(other.input).to_have_value("A draft")
        assert len(service.requests) == 2
    finally:
        await other.tab.close()


async def test_what_waits_is_asked_in_its_turn_though_another_conversation_is_shown(
    chat: Open, service: FakeService
) -> None:
    gate = threading.Event()
    service.will_answer("Half ", gate, "and the rest.", completed())
    page = await chat()
    await page.ask("What is baseball?")
    await expect(page.answer()).to_contain_text("Half")
    await page.ask("And cricket?")
    await expect(page.not_asked()).to_contain_text("And cricket?")
    await page.tab.get_by_role("button", name="New conversation").click()
    await expect(page.messages).to_have_count(0)
    assert len(service.requests) == 1
    service.arrived.clear()
    gate.set()
    assert await happened(service.arrived)
    await page.settled()
    await page.tab.locator(".st-key-conversations").get_by_role("button", name="What is baseball?").click()
    await expect(page.messages).to_have_count(4)
    await expect(page.messages.nth(1)).to_contain_text("Half and the rest.")
    await expect(page.answer()).to_contain_text("Hello there.")
    assert len(service.requests) == 2


async def test_what_one_tab_asks_appears_in_the_other(chat: Open, service: FakeService) -> None:
    page = await chat()
    await answered(page, "What is baseball?")
    other = Chat(await page.tab.context.new_page())
    try:
        await other.tab.goto(page.tab.url)
        await expect(other.messages).to_have_count(2)
        await page.input.fill("A draft")
        gate = threading.Event()
        service.will_answer("Half ", gate, "and the rest.", completed())
        await other.ask("And cricket?")
        await expect(page.answer()).to_contain_text("Half")  # while it is being written
        gate.set()
        await expect(page.answer()).to_contain_text("Half and the rest.")
        await expect(page.input).to_have_value("A draft")
    finally:
        await other.tab.close()


async def test_the_list_of_one_tab_shows_what_another_names_deletes_and_brings_back(chat: Open) -> None:
    page = await chat()
    await answered(page, "What is baseball?")
    other = Chat(await page.tab.context.new_page())
    try:
        await other.tab.goto(page.tab.url.partition("?")[0])
        listed, undo = other.tab.locator(".st-key-conversations button"), other.tab.get_by_text("Undo: delete")
        await expect(listed).to_have_text(["What is baseball?"])
        await page.open_this_conversation()
        name = page.tab.get_by_test_id("stSidebar").get_by_role("textbox", name="Name")
        await name.fill("Mine")
        await name.press("Enter")
        await expect(listed).to_have_text(["Mine"])
        await listed.click()
        await expect(other.messages).to_have_count(2)
        await other.open_this_conversation()
        await other.tab.get_by_role("button", name="Delete").click()
        await expect(undo).to_be_visible()
        await expect(page.tab.locator(".st-key-conversations button")).to_have_count(0)
        await page.ask("And cricket?")  # which brings it back
        await expect(listed).to_have_text(["Mine"])
        await expect(undo).to_be_hidden()
    finally:
        await other.tab.close()


async def test_what_does_not_count_any_more_says_so(chat: Open, service: FakeService) -> None:
    service.will_answer(Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "SERVER_BUSY"))
    page = await chat()
    await page.ask("What is baseball?")
    await expect(page.problem()).to_contain_text("The service is busy.")
    said = page.tab.get_by_text("Not sent along with later questions")
    await expect(said).to_have_count(0)
    await answered(page, "And cricket?")
    await expect(said).to_have_count(1)
    await expect(page.messages.nth(1)).to_contain_text("Not sent along")


async def test_back_and_forward_lead_from_conversation_to_conversation(chat: Open, service: FakeService) -> None:
    page = await chat()
    first = page.messages.first
    await answered(page, "one")
    await page.settled()
    await page.tab.get_by_role("button", name="New conversation").click()
    await expect(page.messages).to_have_count(0)
    await page.settled()
    await answered(page, "two")
    await page.input.fill("A draft")
    await page.settled()
    # Each step leads to another conversation: what was new is the same one once it has been asked in.
    await page.tab.go_back()
    await expect(first).to_contain_text("one")
    await expect(page.input).to_have_value("")
    await page.settled()
    await page.tab.go_forward()
    await expect(first).to_contain_text("two")
    await expect(page.input).to_have_value("A draft")
    await page.settled()
    await page.input.press("Enter")
    await expect(page.messages).to_have_count(4)
    await expect(page.answer()).to_contain_text("tokens in")
    assert [part.text for one in service.requests[2].messages for part in one.parts][::2] == ["two", "A draft"]
    # It leads on from the page, too.
    for _ in range(2):
        await page.tab.go_back()
    await expect(page.input).to_have_count(0)


async def test_a_new_conversation_is_one_that_back_leads_to(chat: Open, service: FakeService) -> None:
    page = await chat()
    await answered(page, "one")
    await page.settled()
    await page.tab.get_by_role("button", name="New conversation").click()
    await expect(page.messages).to_have_count(0)
    await page.settled()
    new = page.tab.url
    await page.input.fill("A draft")
    await page.tab.locator(".st-key-conversations").get_by_role("button", name="one").click()
    await expect(page.messages).to_have_count(2)
    await page.settled()
    await page.tab.go_back()
    await expect(page.messages).to_have_count(0)
    await expect(page.input).to_have_value("A draft")
    await again(page)
    assert page.tab.url == new
    await expect(page.input).to_have_value("A draft")
    # Faster than the page: the last step counts.
    await page.tab.evaluate(
        """async () => {
            const led = () => new Promise((resolve) => addEventListener("popstate", resolve, { once: true }));
            for (const step of ["back", "forward"]) {
                const there = led();
                history[step]();
                await there;
                await new Promise((resolve) => setTimeout(resolve, 100));
            }
        }"""
    )
    await expect(page.tab).to_have_url(new)
    await page.tab.wait_for_function("() => window.tokenwireInput.heading === ''")
    await page.settled()
    await page.input.press("Enter")
    await expect(page.answer()).to_contain_text("tokens in")
    await expect(page.messages).to_have_count(2)
    assert list(service.requests[-1].messages) == [user("A draft")]


async def test_a_deleted_conversation_that_back_leads_to_says_so_and_can_be_brought_back(chat: Open) -> None:
    page = await chat()
    deleted = page.tab.get_by_text("This conversation was deleted.")
    await answered(page, "one")
    await page.settled()
    one = page.tab.url
    await page.tab.get_by_role("button", name="New conversation").click()
    await expect(page.messages).to_have_count(0)
    await page.settled()
    await answered(page, "two")
    await page.settled()
    await page.open_this_conversation()
    await page.tab.get_by_role("button", name="Delete", exact=True).click()
    await expect(page.messages).to_have_count(0)
    await expect(deleted).to_have_count(0)
    await page.settled()
    await page.tab.go_back()
    await expect(deleted).to_be_visible()
    await page.settled()
    # It is no place that one can't leave.
    await page.tab.go_back()
    await expect(page.messages.first).to_contain_text("one")
    assert page.tab.url == one
    await expect(deleted).to_have_count(0)
    await page.settled()
    await page.tab.go_forward()
    await expect(deleted).to_be_visible()
    await page.settled()
    await page.tab.get_by_role("button", name="Bring it back").click()
    await expect(page.messages.first).to_contain_text("two")
    await expect(deleted).to_have_count(0)
    await page.settled()
    await page.tab.go_back()
    await expect(page.messages).to_have_count(0)
    await page.settled()
    await page.tab.go_forward()
    await expect(page.messages.first).to_contain_text("two")


async def test_what_kept_a_question_from_being_asked_is_told_as_it_is_by_now(chat: Open, service: FakeService) -> None:
    page = await chat()
    await page.choose("fake-2")
    await page.open_settings()
    await page.write("Temperature", "5")
    await expect(page.tab.get_by_test_id("stSidebar").locator(".tw-problem")).to_have_count(1)
    await page.ask("What is baseball?")
    await expect(page.not_asked()).to_contain_text("Temperature is 5; must be 0 to 2.")
    await page.settled()
    await page.write("Temperature", "3")
    await expect(page.not_asked()).to_contain_text("Temperature is 3; must be 0 to 2.")
    await page.settled()
    await page.write("Temperature", "1")
    await expect(page.not_asked()).to_contain_text("What kept it from being asked is settled: it can be asked now.")
    await page.settled()
    await page.attach(UNREADABLE)
    await page.ask("What is this?")
    await expect(page.not_asked().nth(1)).to_contain_text("a.xyz can't be sent: this model takes")
    await page.choose("fake-1")
    await expect(page.not_asked().nth(1)).to_contain_text("Another model is chosen by now")
    await page.choose("fake-2")
    await expect(page.not_asked().nth(1)).to_contain_text("a.xyz can't be sent: this model takes images")
    await page.choose("fake-1")
    await page.not_asked().nth(1).get_by_role("button", name="Try again").click()
    await expect(page.not_asked().nth(1)).to_contain_text(
        "a.xyz can't be sent: this model isn't known to take any files."
    )
    await page.not_asked().first.get_by_role("button", name="Ask", exact=True).click()
    await expect(page.answer()).to_contain_text("Hello there.")
    assert len(service.requests) == 1


async def test_a_page_that_is_away_says_so_and_when_it_is_back(tab: Page, service: FakeService, tmp_path: Path) -> None:
    port = free_port()
    lost = tab.get_by_text("The page isn't reachable; trying again")
    connected = tab.get_by_text("Connected to")
    with serving(port, service.address, tmp_path):
        await opened(tab, f"http://localhost:{port}")
        await expect(connected).to_be_visible()
        await expect(lost).to_have_count(0)
    await expect(lost).to_be_visible()
    await expect(connected).to_be_hidden()
    # Streamlit's own words for it, which tell its reader to start a server, were there for a moment at most.
    await tab.wait_for_function("tokenwireReading.dismissed")
    await expect(tab.get_by_role("dialog")).to_have_count(0)
    with serving(port, service.address, tmp_path):
        await expect(lost).to_have_count(0)
        await expect(connected).to_be_visible()


def test_what_has_come_is_saved_as_the_page_is_ended(service: FakeService, tmp_path: Path) -> None:
    """It runs as it is, but with an answer of its own, and nothing is saved by the clock."""
    service.will_answer("Half", threading.Event())
    port = free_port()
    program = f"""
import asyncio, os, signal, sys
from gateway_ui.chat import live
from gateway_ui.chat.conversation import Conversation, Exchange, Waiting
from gateway_ui.chat.desk import Desk, Talk
from gateway_ui.chat.store import Store
from gateway_ui.__main__ import main
from streamlit.web import bootstrap
from tokenwire import Client, user
from tokenwire.cli.meter import Meter
from tokenwire.v1.generation_service_pb2 import GenerateRequest

live._SAVE_SECONDS = 1000
desk = Desk(Store(__import__("pathlib").Path({str(tmp_path / "page.sqlite3")!r})))
talk, asked = Talk("0" * 64, Conversation()), GenerateRequest(messages=[user("Why?")])
exchange = Exchange(user("Why?"), asked, Meter(asked_at=0))
desk.ask(talk, Waiting(user("Why?")), exchange)
client = Client({service.address!r})
talk.live = live.Live(exchange, lambda: client.stream(asked), lambda: desk.keep(talk), alone=1000)
version = 0
while exchange.text != "Half":
    version = talk.live.wait(version, 10)
run = bootstrap._on_server_start
def started(server):
    run(server)
    # Its handler of signals is set in the same turn of the loop.
    asyncio.get_running_loop().call_soon(os.kill, os.getpid(), signal.SIGTERM)
bootstrap._on_server_start = started
sys.exit(main(["--port", "{port}", "--address", {service.address!r}]))
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
    with contextlib.closing(Store(tmp_path / "page.sqlite3")) as store:
        (one,) = store.list("0" * 64)
        kept = store.load("0" * 64, one.id)
        assert kept is not None
        assert [exchange.text for exchange in kept.path()] == ["Half"]


async def test_stop_stays_in_its_place(chat: Open, service: FakeService) -> None:
    gate = threading.Event()
    service.will_answer("Short. ", gate, *["A longer paragraph.\n\n"] * 60, threading.Event())
    page = await chat()
    await page.ask("What is baseball?")
    await expect(page.answer()).to_contain_text("Short.")
    before = await page.stop.bounding_box()
    gate.set()
    await expect(page.answer()).to_contain_text("61 chunks")
    await page.flip("Letter by letter")
    await expect(page.tab.get_by_role("slider")).to_be_visible()
    await expect(page.stop).to_be_enabled()
    assert await page.stop.bounding_box() == before
    await page.input.press("Escape")  # does it, too
    assert await happened(service.cancelled)


async def test_an_export_in_mid_answer_says_so_and_can_be_shared_as_a_page(
    chat: Open, service: FakeService, tmp_path: Path
) -> None:
    service.will_answer("Half **an** answer.", threading.Event())
    page = await chat()
    await page.ask("What is baseball?")
    await expect(page.answer()).to_contain_text("Half an answer.")
    await page.open_this_conversation()
    for name, ending in (("JSON", "json"), ("Markdown", "md"), ("Web page", "html")):
        async with page.tab.expect_download() as downloading:
            await page.tab.get_by_role("button", name=name, exact=True).click()
        download = await downloading.value
        assert download.suggested_filename == f"what-is-baseball.{ending}"
        await download.save_as(tmp_path / download.suggested_filename)
    assert json.loads((tmp_path / "what-is-baseball.json").read_text())["exchanges"][0]["complete"] is False
    assert "incomplete" in (tmp_path / "what-is-baseball.md").read_text()
    shared = (tmp_path / "what-is-baseball.html").read_text()
    assert "incomplete" in shared
    assert "<strong>an</strong>" in shared
    assert not service.cancelled.is_set()


async def test_a_refused_question_is_kept_with_its_reason(chat: Open, service: FakeService) -> None:
    service.will_answer(Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "SERVER_BUSY"))
    page = await chat()
    await page.ask("What is baseball?")
    await expect(page.problem()).to_contain_text("The service is busy.")
    await again(page)
    await expect(page.messages.first).to_contain_text("What is baseball?")
    await expect(page.problem()).to_contain_text("The service is busy.")
    await page.settled()
    await page.tab.get_by_role("button", name="Retry").click()
    await expect(page.answer()).to_contain_text("Hello there.")


def wait_for_half(data: Path) -> None:
    """Wait until the answer that says no more than half is in the file."""
    deadline = time.monotonic() + 20
    with contextlib.closing(sqlite3.connect(data / "page.sqlite3")) as base:
        while base.execute("SELECT 1 FROM exchange WHERE folded LIKE '%half' AND NOT ended").fetchone() is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)


@contextlib.contextmanager
def serving(port: int, address: str, data: Path) -> "Iterator[subprocess.Popen[str]]":
    """The page as a process of its own, killed in the end."""
    process = subprocess.Popen(
        [sys.executable, "-m", "gateway_ui", "--port", str(port), "--address", address],
        env={**os.environ, "TOKENWIRE_PAGE_DATA": str(data)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        wait_for_port(port, process)
        yield process
    finally:
        process.kill()
        process.wait()


async def test_a_restart_of_the_page_keeps_all_and_says_what_was_interrupted(
    tab: Page, service: FakeService, tmp_path: Path
) -> None:
    port = free_port()
    url = f"http://localhost:{port}"
    with serving(port, service.address, tmp_path):
        chat = await opened(tab, url)
        await answered(chat, "What is baseball?")
        service.will_answer("Half", threading.Event())
        await chat.ask("And cricket?")
        await expect(chat.answer()).to_contain_text("Half")
        await chat.ask("And golf?")
        await expect(chat.not_asked()).to_contain_text("And golf?")
        await asyncio.to_thread(wait_for_half, tmp_path)
    with serving(port, service.address, tmp_path):
        chat = await opened(tab, tab.url)
        await expect(chat.messages).to_have_count(4)
        await expect(chat.messages.nth(1)).to_contain_text("Hello there.")
        await expect(chat.answer()).to_contain_text("Half")
        await expect(chat.problem()).to_contain_text("Interrupted: this answer is incomplete.")
        await expect(chat.not_asked()).to_contain_text("And golf?")
        await expect(chat.not_asked()).to_contain_text("It waited for an answer that was interrupted.")
        assert len(service.requests) == 2
        await chat.not_asked().get_by_role("button", name="Ask", exact=True).click()
        await expect(chat.messages).to_have_count(6)
        await expect(chat.answer()).to_contain_text("Hello there.")


async def test_a_question_whose_file_went_with_the_pages_process_is_not_asked_without_it(
    tab: Page, service: FakeService, tmp_path: Path
) -> None:
    port = free_port()
    lost = tab.get_by_text("The page isn't reachable; trying again")
    with serving(port, service.address, tmp_path):
        page = await opened(tab, f"http://localhost:{port}")
        await answered(page, "one")
        await answered(page, "two")
        await page.choose("fake-2")
        await page.attach(PHOTO)
        await page.input.fill("What is this?")
    await expect(lost).to_be_visible()
    with serving(port, service.address, tmp_path):
        await expect(lost).to_have_count(0)
        await expect(tab.get_by_text("Connected to")).to_be_visible()
        await page.settled()
        await page.input.press("Enter")
        refusal = tab.get_by_role("alert").filter(has_text="photo.png can't go along: The page was started anew")
        await expect(refusal).to_be_visible()
        await expect(page.input).to_have_value("What is this?")
        await tab.get_by_role("button", name="Remove photo.png").click()
        await page.attach(PHOTO)
        await expect(refusal).to_have_count(0)
        await page.choose("fake-2")
        # What the new process takes is counted anew: nothing waits for what the old one took.
        await tab.evaluate(TYPE, ["\nfour\n"])
        await expect(page.messages).to_have_count(8, timeout=9000)
        await expect(page.answer()).to_contain_text("tokens in")
        assert [one.messages[-1] for one in service.requests][2:] == [
            user(inline(picture(), "image/png"), "What is this?"),
            user("four"),
        ]


UNREADABLE = FilePayload(name="a.xyz", mimeType="application/octet-stream", buffer=b"\0\1")


async def test_a_question_that_is_not_asked_stands_there_after_a_reload_and_after_another_conversation(
    chat: Open, service: FakeService
) -> None:
    page = await chat()
    await page.choose("fake-2")
    await page.attach(PHOTO, UNREADABLE)
    await page.ask("What is this?")
    await expect(page.not_asked()).to_contain_text("What is this? · photo.png, a.xyz")
    assert "?c=" in page.tab.url
    await again(page)
    await expect(page.not_asked()).to_contain_text("What is this? · photo.png, a.xyz")
    await expect(page.not_asked()).to_contain_text("a.xyz can't be sent: this model takes")
    await page.tab.get_by_role("button", name="New conversation").click()
    await expect(page.not_asked()).to_have_count(0)
    await page.settled()
    await page.tab.locator(".st-key-conversations").get_by_role("button", name="What is this?").click()
    await expect(page.not_asked()).to_contain_text("What is this? · photo.png, a.xyz")
    assert not service.requests
    await page.not_asked().get_by_role("button", name="Ask without the refused files").click()
    await expect(page.answer()).to_contain_text("Hello there.")
    assert list(service.requests[0].messages) == [user(inline(picture(), "image/png"), "What is this?")]
    await again(page)
    await expect(page.answer()).to_contain_text("Hello there.")
    await expect(page.not_asked()).to_have_count(0)


async def test_each_question_is_asked_in_the_conversation_that_it_was_sent_in(chat: Open, service: FakeService) -> None:
    """Also while a large photo is being prepared, and however fast it all comes."""
    page = await chat()
    await page.choose("fake-2")
    large = FilePayload(name="large.jpg", mimeType="image/jpeg", buffer=photo("JPEG", 4032, 3024, quality=95))
    await page.attach(large)
    await page.ask("FIRST")
    await expect(page.not_asked()).to_contain_text("Preparing the files of FIRST · large.jpg")
    await page.tab.get_by_role("button", name="New conversation").click()
    await expect(page.not_asked()).to_have_count(0)
    await answered(page, "SECOND")
    await expect(page.messages).to_have_count(2)
    await page.tab.locator(".st-key-conversations").get_by_role("button", name="FIRST").click()
    await expect(page.messages.first).to_contain_text("FIRST")
    await expect(page.answer()).to_contain_text("Hello there.")
    # In one moment: neither has seen a script when the next comes.
    await page.settled()
    await page.tab.evaluate(TYPE, ["third\n"])
    await page.tab.evaluate("() => document.querySelector('.st-key-new button').click()")
    await page.tab.evaluate(TYPE, ["fourth\n"])
    await expect(page.messages).to_have_count(2)
    await expect(page.messages.first).to_contain_text("fourth")
    await expect(page.answer()).to_contain_text("tokens in")
    said = [[part.text for turn in one.messages for part in turn.parts] for one in service.requests]
    hello = "Hello there."
    assert sorted(said, key=len) == [["SECOND"], ["fourth"], ["", "FIRST"], ["", "FIRST", hello, "third"]]


async def test_each_enter_sends_what_stood_there_and_a_draft_stays_one(chat: Open, service: FakeService) -> None:
    """However fast they come: Streamlit's script hasn't seen the first when the others are typed."""
    page = await chat()
    await page.attach(UNREADABLE)
    await page.tab.evaluate(TYPE, ["alpha\n", "beta\n", "gamma\n", "delta"])
    await expect(page.messages).to_have_count(4)
    await expect(page.answer()).to_contain_text("tokens in")
    await expect(page.not_asked()).to_contain_text("alpha · a.xyz")
    await expect(page.input).to_have_value("delta")
    await page.settled()
    await expect(page.input).to_have_value("delta")
    assert [one.messages[-1] for one in service.requests] == [user("beta"), user("gamma")]


@pytest.mark.parametrize("keys", ["Control+Enter", "Meta+Enter", "Alt+Enter"])
async def test_enter_sends_whatever_else_is_held_down(chat: Open, service: FakeService, keys: str) -> None:
    page = await chat()
    for question in ("alpha", "beta"):
        await page.input.fill(question)
        await page.input.press(keys)
        await expect(page.input).to_have_value("")
    await page.ask("gamma")
    await expect(page.messages).to_have_count(6)
    await expect(page.answer()).to_contain_text("tokens in")
    assert [one.messages[-1] for one in service.requests] == [user("alpha"), user("beta"), user("gamma")]


@pytest.mark.parametrize("composing", [{"isComposing": True}, {"keyCode": 229}])
async def test_enter_that_belongs_to_an_input_method_sends_nothing(
    chat: Open, service: FakeService, composing: dict[str, object]
) -> None:
    page = await chat()
    await page.input.fill("alp")
    await page.input.evaluate(
        """(input, composing) => {
            const keys = {key: 'Enter', bubbles: true, cancelable: true, ...composing};
            input.dispatchEvent(new KeyboardEvent('keydown', keys));
        }""",
        composing,
    )
    await page.input.press_sequentially("ha")
    await page.input.press("Enter")
    await expect(page.answer()).to_contain_text("Hello there.")
    assert [list(one.messages) for one in service.requests] == [[user("alpha")]]


async def test_what_streamlit_does_not_send_holds_up_nothing(chat: Open, service: FakeService) -> None:
    page = await chat()
    await page.input.fill("alpha")
    await page.tab.evaluate(
        """() => document.querySelector('[data-testid=stApp]').addEventListener(
            'click', (event) => event.stopPropagation(), {capture: true, once: true})"""
    )
    await page.input.press("Enter")
    await expect(page.input).to_have_value("alpha")
    await page.input.press("Enter")
    await expect(page.answer()).to_contain_text("Hello there.", timeout=9000)  # it would be free again after 10 s
    assert [list(one.messages) for one in service.requests] == [[user("alpha")]]


async def test_white_space_is_no_question_and_stays(chat: Open, service: FakeService) -> None:
    page = await chat()
    await page.input.fill(" \n ")
    await page.input.press("Enter")
    await page.tab.get_by_test_id("stChatInputSubmitButton").click()
    await expect(page.input).to_have_value(" \n ")
    await page.choose("fake-2")
    await page.attach(PHOTO)
    # The button can be pressed all the time here, so that it says nothing of the file.
    await expect(page.tab.get_by_role("button", name="Remove photo.png")).to_be_visible()
    await page.input.press("Enter")  # a file is one by itself
    await expect(page.answer()).to_contain_text("Hello there.")
    assert [list(one.messages) for one in service.requests] == [[user(inline(picture(), "image/png"))]]


# Key by key, but with no time for the script in between.
TYPE = """async texts => {
    const input = document.querySelector('[data-testid=stChatInputTextArea]');
    const set = Object.getOwnPropertyDescriptor(HTMLTextAreaElement.prototype, 'value').set;
    for (const letter of texts.join('')) {
        if (letter === '\\n') {
            input.dispatchEvent(new KeyboardEvent('keydown', {key: 'Enter', bubbles: true, cancelable: true}));
        } else {
            set.call(input, input.value + letter);
            input.dispatchEvent(new Event('input', {bubbles: true}));
        }
        const {port1, port2} = new MessageChannel();
        await new Promise(resolve => { port1.onmessage = resolve; port2.postMessage(0); });
    }
}"""


async def test_escape_stops_an_answer_only_where_it_has_nothing_else_to_do(chat: Open, service: FakeService) -> None:
    service.will_answer("Half", threading.Event())
    page = await chat()
    await page.ask("What is baseball?")
    await expect(page.answer()).to_contain_text("Half")
    box, option = page.tab.get_by_role("combobox", name="Model"), page.tab.get_by_role("option", name="fake-2")
    async with asyncio.timeout(20):
        while not await option.is_visible():  # a list closes when the script draws the page anew in that moment
            await box.click()
            with contextlib.suppress(AssertionError):
                await expect(option).to_be_visible(timeout=1000)
    clicked = await page.tab.evaluate_handle(
        """() => {
            const clicked = [];
            document.addEventListener('click', (event) => {
                if (event.target.closest('[class*="st-key-stop-"]')) clicked.push('stop');
            }, true);
            return clicked;
        }"""
    )
    await page.tab.keyboard.press("Escape")
    await expect(option).to_be_hidden()
    await page.tab.get_by_label("System instruction").press("Escape")
    # The list of the model stands open, wherever the focus is.
    async with asyncio.timeout(20):
        while not await option.is_visible():
            await box.click()
            with contextlib.suppress(AssertionError):
                await expect(option).to_be_visible(timeout=1000)
    await page.tab.evaluate(
        "() => document.body.dispatchEvent(new KeyboardEvent('keydown', {key: 'Escape', bubbles: true}))"
    )
    assert await clicked.json_value() == []
    await page.tab.keyboard.press("Escape")
    await expect(option).to_be_hidden()
    assert not service.cancelled.is_set()
    await page.input.press("Escape")
    assert await happened(service.cancelled)
    assert await clicked.json_value() == ["stop"]


async def test_a_file_sent_while_the_service_is_away_is_looked_at_when_it_is_there(tab: Page, page_at: PageAt) -> None:
    address = f"localhost:{free_port()}"
    page = await opened(tab, page_at(address))
    await page.attach(PHOTO, UNREADABLE)
    await page.ask("What is this?")
    await expect(page.not_asked()).to_contain_text("What is this? · photo.png, a.xyz")
    await expect(page.not_asked()).to_contain_text(f"The service is not running at {address}.")
    await expect(page.not_asked().get_by_role("button")).to_have_text(["Ask", "Ask without the files", "Don't ask"])
    with Running(address) as service:
        await expect(tab.get_by_test_id("stSidebar")).to_contain_text("Connected to")
        await page.choose("fake-3")
        await page.not_asked().get_by_role("button", name="Ask", exact=True).click()
        await expect(page.not_asked()).to_contain_text("photo.png can't be sent: this model takes text files")
        await page.settled()
        await page.choose("fake-2")
        await page.not_asked().get_by_role("button", name="Try again").click()
        await expect(page.not_asked()).not_to_contain_text("photo.png can't be sent")
        await expect(page.not_asked()).to_contain_text("a.xyz can't be sent: this model takes images")
        await page.settled()
        await page.not_asked().get_by_role("button", name="Ask without the refused files").click()
        await expect(page.answer()).to_contain_text("Hello there.")
        assert list(service.requests[0].messages) == [user(inline(picture(), "image/png"), "What is this?")]


async def test_nothing_can_be_typed_before_the_browser_has_said_who_it_is(
    tab: Page, page_at: PageAt, service: FakeService
) -> None:
    """What it says ends the run that a question begins, and Streamlit may forget the question then."""
    await tab.add_init_script(
        """() => 0; window.order = [];
        new MutationObserver(() => {
            if (!window.order.length && document.querySelector('[data-testid="stChatInputTextArea"]')) {
                window.order.push(document.cookie.includes("tokenwire_browser"));
            }
        }).observe(document, {childList: true, subtree: true});"""
    )
    await opened(tab, page_at(service.address))
    assert await tab.evaluate("() => window.order") == [True]


async def test_two_tabs_that_a_fresh_browser_opens_at_once_are_of_one_browser(
    tab: Page, page_at: PageAt, service: FakeService
) -> None:
    """The second has told its process that it has no cookie, before the first gets one."""
    second = await tab.context.new_page()
    try:
        held: list[str | bytes] = []
        hears = asyncio.Event()
        sockets: list[WebSocketRoute] = []

        def hold(socket: WebSocketRoute) -> None:
            sockets.append(socket)
            server = socket.connect_to_server()

            def came(message: str | bytes) -> None:
                if hears.is_set():
                    socket.send(message)
                else:
                    held.append(message)
                    connected.set()

            server.on_message(came)

        connected = asyncio.Event()
        await second.route_web_socket("**", hold)
        await second.goto(page_at(service.address))
        await asyncio.wait_for(connected.wait(), 20)
        first = await opened(tab, page_at(service.address))
        await answered(first, "What is baseball?")
        hears.set()
        for message in held:
            sockets[-1].send(message)
        other = Chat(second)
        await answered(other, "And cricket?")
        for one, question in ((first, "What is baseball?"), (other, "And cricket?")):
            await again(one)
            await expect(one.messages.first).to_contain_text(question)
            await expect(one.tab.locator(".st-key-conversations").get_by_role("button")).to_have_count(2)
    finally:
        await second.close()


async def test_every_delete_can_be_undone_also_after_a_reload(chat: Open) -> None:
    page = await chat()
    sidebar = page.tab.get_by_test_id("stSidebar")
    for sport in ("baseball", "cricket"):
        await answered(page, f"What is {sport}?")
        await page.open_this_conversation()
        await page.settled()
        await sidebar.get_by_role("button", name="Delete", exact=True).click()
        await expect(sidebar.get_by_role("button", name=f"Undo: delete What is {sport}?")).to_be_visible()
        await expect(page.messages).to_have_count(0)
        await page.settled()
    await again(page)
    await expect(sidebar.get_by_text("Deleted", exact=True)).to_be_visible()
    await page.settled()
    await sidebar.get_by_text("Deleted", exact=True).click()
    back = sidebar.locator(".st-key-undeletable").get_by_role("button")
    await expect(back).to_have_text(["Bring back What is cricket?", "Bring back What is baseball?"])
    await page.settled()
    await page.rested()
    await back.last.click()
    await expect(page.messages.first).to_contain_text("What is baseball?")
    await expect(back).to_have_text(["Bring back What is cricket?"])
    await page.settled()
    await back.click()
    await expect(page.messages.first).to_contain_text("What is cricket?")
    await expect(page.tab.locator(".st-key-conversations").get_by_role("button")).to_have_count(2)
    await expect(sidebar.get_by_text("Deleted", exact=True)).to_have_count(0)


async def test_all_conversations_can_be_listed_however_many_and_a_file_that_is_gone_is_told(
    tab: Page, service: FakeService, tmp_path: Path
) -> None:
    port, secret = free_port(), "ab" * 32
    with contextlib.closing(Store(tmp_path / "page.sqlite3")) as store:
        for number in range(65):
            store.save(secret, conversation(exchange("1", end=completed()), title=f"Number {number}"))
    url = f"http://localhost:{port}"
    await tab.context.add_cookies([{"name": COOKIE, "value": secret, "url": url}])
    with serving(port, service.address, tmp_path):
        chat = await opened(tab, url)
        listed = tab.locator(".st-key-conversations").get_by_role("button")
        await expect(listed).to_have_count(30)
        await tab.get_by_role("button", name="Show more (35)").click()
        await expect(listed).to_have_count(60)
        await tab.get_by_role("button", name="Show more (5)").click()
        await expect(listed).to_have_count(65)
        await expect(tab.get_by_role("button", name="Show more")).to_have_count(0)
        await chat.settled()
        shutil.rmtree(tmp_path)
        await answered(chat, "What is baseball?")
        await expect(tab.get_by_test_id("stSidebar").get_by_role("alert")).to_contain_text("was removed or replaced")


@pytest.mark.parametrize("asks", [False, True])
async def test_stop_goes_with_the_answer_that_runs_also_where_another_is_shown(
    chat: Open, service: FakeService, asks: bool
) -> None:
    service.will_answer("One answer.", completed())
    page = await chat()
    await answered(page, "What is baseball?")
    await answered(page, "Really?")
    await page.messages.first.get_by_role("button", name="Edit").click()
    await page.tab.get_by_label("Your question").fill("What is golf?")
    await page.tab.get_by_role("button", name="Ask anew").press("Enter")
    await expect(page.answer()).to_contain_text("Hello there.")
    await expect(page.messages).to_have_count(2)
    await page.settled()
    gate = threading.Event()
    service.will_answer("Half ", gate, "and half.", completed())
    await page.ask("And then?")
    await expect(page.answer()).to_contain_text("Half")
    await page.messages.nth(1).get_by_role("button", name="Earlier").click()
    await expect(page.messages.first).to_contain_text("What is baseball?")
    await expect(page.stop).to_be_visible()
    if asks:  # it waits for its turn, and then follows what is shown
        await page.ask("And later?")
        await expect(page.not_asked()).to_contain_text("And later?")
    gate.set()
    await expect(page.messages).to_have_count(6 if asks else 4)
    await expect(page.not_asked()).to_have_count(0)
    await expect(page.stop).to_have_count(0)
    await page.settled()
    assert len(service.requests) == 4 + asks
    await page.messages.nth(1).get_by_role("button", name="Later").click()
    await expect(page.answer()).to_contain_text("Half and half.")
