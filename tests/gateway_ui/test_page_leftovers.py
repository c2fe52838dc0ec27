"""What an earlier run of the script has drawn is gone once the next one waits for something."""

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.async_api import Error, Page, expect

from tests.browser import wait_for_port
from tests.gateway_ui.chat import Chat, Open, happened
from tests.gateway_ui.test_page_kept import opened
from tests.gateway_ui.test_page_own import anew
from tests.gateway_ui.test_page_settings import PHOTO, answered
from tests.ports import free_port
from tests.tokenwire.fake_service import FakeService, completed

pytestmark = pytest.mark.browser


async def show(page: Chat, name: str) -> None:
    """Open a conversation in which something is waited for."""
    await page.tab.locator(".st-key-conversations").first.get_by_role("button", name=name).click()
    of_it = page.tab.locator(".st-key-conversations").get_by_test_id("stBaseButton-primary").filter(has_text=name)
    await expect(of_it.first).to_be_visible()


async def shows_all_once(page: Chat) -> None:
    drawer = page.tab.get_by_test_id("stSidebar")
    for name in ("New conversation", "Temperature", "Model", "Settings"):
        await expect(drawer.get_by_text(name, exact=True)).to_have_count(1)


async def waits_clean(page: Chat, *, messages: int, conversations: int) -> None:
    """The run of the script goes on, and all that stands on the page is its own."""
    list_ = page.tab.locator(".st-key-conversations")
    # Streamlit marks what a run hasn't drawn until that run ends, and empty places in any case.
    stale = page.tab.locator('[data-stale="true"]:not(:has(> [data-testid="stEmpty"]))')
    await expect(stale).to_have_count(0)
    await expect(list_).to_have_count(1)
    await expect(list_.get_by_role("button")).to_have_count(conversations)
    await expect(page.messages).to_have_count(messages)
    await shows_all_once(page)
    await expect(page.tab.get_by_test_id("stApp")).to_have_attribute("data-test-script-state", "running")


async def test_nothing_of_what_was_shown_before_stays_while_an_answer_is_written(
    chat: Open, service: FakeService
) -> None:
    page = await chat()
    await page.open_settings()
    await answered(page, "What is baseball?")
    await answered(page, "And cricket?")
    await anew(page)
    await answered(page, "What is golf?")
    service.will_answer("Half of tennis", threading.Event())
    await page.ask("And tennis?")
    await expect(page.answer()).to_contain_text("Half of tennis")
    await waits_clean(page, messages=4, conversations=2)
    # A new conversation, and the answer in it.
    await page.tab.get_by_role("button", name="New conversation").click()
    await expect(page.tab.get_by_role("heading", name="Ask a question")).to_be_visible()
    service.will_answer("Half of chess", threading.Event())
    await page.ask("What is chess?")
    await expect(page.answer()).to_contain_text("Half of chess")
    await waits_clean(page, messages=2, conversations=3)
    # Others, while their answers are written.
    await show(page, "What is golf?")
    await expect(page.answer()).to_contain_text("Half of tennis")
    await waits_clean(page, messages=4, conversations=3)
    await show(page, "What is baseball?")
    await page.settled()
    await expect(page.messages).to_have_count(4)
    await show(page, "What is chess?")
    await expect(page.answer()).to_contain_text("Half of chess")
    await waits_clean(page, messages=2, conversations=3)
    await page.photograph("nothing-left")


async def test_nothing_stays_of_what_is_changed_beside_a_running_answer(chat: Open, service: FakeService) -> None:
    page = await chat()
    await page.open_settings()
    await answered(page, "What is baseball?")
    await anew(page)
    await answered(page, "What is golf?")
    service.will_answer("Half of tennis", threading.Event())
    await page.ask("And tennis?")
    await expect(page.answer()).to_contain_text("Half of tennis")
    # An edit, begun and cancelled.
    question, box = page.messages.first.locator(".tw-question"), page.tab.get_by_label("Your question")
    await page.messages.first.get_by_role("button", name="Edit").click()
    await expect(box).to_be_visible()
    await waits_clean(page, messages=4, conversations=2)
    await expect(question).to_have_count(0)
    await page.messages.first.get_by_role("button", name="Cancel").click()
    await expect(question).to_be_visible()
    await waits_clean(page, messages=4, conversations=2)
    await expect(box).to_have_count(0)
    # Another name.
    await page.open_this_conversation()
    name = page.tab.get_by_label("Name")
    await name.fill("Of balls")
    await name.press("Enter")
    list_ = page.tab.locator(".st-key-conversations")
    await expect(list_.get_by_role("button", name="Of balls").first).to_be_visible()
    await waits_clean(page, messages=4, conversations=2)
    # What another tab asks in the same conversation, and then not.
    other = Chat(await page.tab.context.new_page())
    await other.tab.goto(page.tab.url)
    await expect(other.answer()).to_contain_text("Half of tennis")
    await other.ask("And squash?")
    await expect(page.not_asked()).to_contain_text("Next And squash?")
    await waits_clean(page, messages=4, conversations=2)
    await other.input.fill("A draft")  # else the words would go back into the input, and nothing be left to undo
    await other.tab.get_by_role("button", name="Don't ask", exact=True).click()
    undo = page.tab.get_by_role("button", name="Undo: don't ask And squash?")
    await expect(undo.first).to_be_visible()
    await waits_clean(page, messages=4, conversations=2)
    await expect(page.not_asked()).to_have_count(0)
    await other.tab.close()
    # Deleted with its answer, which makes room for another one that is written.
    await anew_beside(page)
    service.will_answer("Half of go", threading.Event())
    await page.ask("What is go?")
    await expect(page.answer()).to_contain_text("Half of go")
    await page.open_this_conversation()
    await page.tab.get_by_role("button", name="Delete", exact=True).click()
    await expect(page.tab.get_by_role("button", name="Undo: delete What is go?").first).to_be_visible()
    await show(page, "Of balls")
    await expect(page.answer()).to_contain_text("Half of tennis")
    await waits_clean(page, messages=4, conversations=2)


async def anew_beside(page: Chat) -> None:
    """Begin a new conversation while the answer in this one is written."""
    await page.tab.get_by_role("button", name="New conversation").click()
    await expect(page.tab.get_by_role("heading", name="Ask a question")).to_be_visible()
    await page.settled()


@contextlib.contextmanager
def serving(program: str, service: FakeService, data: Path) -> Iterator[str]:
    """The page in a process that has run this program before; gives its URL."""
    port = free_port()
    start = f"""
import sys
from gateway_ui.__main__ import main
sys.exit(main(["--port", "{port}", "--address", "{service.address}"]))
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program + start],
        env={**os.environ, "TOKENWIRE_PAGE_DATA": str(data)},
        stdout=subprocess.DEVNULL,
        text=True,
    )
    try:
        wait_for_port(port, process)
        yield f"http://localhost:{port}"
    finally:
        process.kill()
        process.wait()


PREPARES_FOR_EVER = """
import threading
from gateway_ui.input import attachments
attachments.attach_all = lambda *_, **__: threading.Event().wait()
"""


@pytest.fixture
def preparing(service: FakeService, tmp_path: Path) -> Iterator[str]:
    with serving(PREPARES_FOR_EVER, service, tmp_path) as url:
        yield url


async def test_nothing_of_what_was_shown_before_stays_while_files_are_prepared(tab: Page, preparing: str) -> None:
    page = await opened(tab, preparing)
    await page.open_settings()
    await page.choose("fake-2")
    await answered(page, "What is baseball?")
    await answered(page, "And cricket?")
    await anew(page)
    await answered(page, "What is golf?")
    await page.attach(PHOTO)
    await page.ask("What is this?")
    await expect(page.not_asked()).to_contain_text("Preparing the files of What is this?")
    await waits_clean(page, messages=2, conversations=2)
    await show(page, "What is baseball?")
    await page.settled()
    await expect(page.messages).to_have_count(4)
    await show(page, "What is golf?")
    await expect(page.not_asked()).to_contain_text("Preparing the files of What is this?")
    await waits_clean(page, messages=2, conversations=2)


# The ends of runs reach the session after a fragment has wanted to run, which forgets them: it happens under load.
ENDS_LATE = """
import threading
from streamlit.runtime.app_session import AppSession
from streamlit.runtime.scriptrunner import ScriptRunnerEvent
LATE = {ScriptRunnerEvent.SCRIPT_STOPPED_WITH_SUCCESS, ScriptRunnerEvent.SHUTDOWN}
at_once = AppSession._on_scriptrunner_event

def handles(session, sender, event, **about):
    if event in LATE:
        threading.Timer(3, at_once, (session, sender, event), about).start()
    else:
        at_once(session, sender, event, **about)

AppSession._on_scriptrunner_event = handles
"""


@pytest.fixture
def ending_late(service: FakeService, tmp_path: Path) -> Iterator[str]:
    with serving(ENDS_LATE, service, tmp_path) as url:
        yield url


async def test_nothing_of_what_was_shown_before_stays_where_streamlit_loses_the_end_of_a_run(
    tab: Page, ending_late: str
) -> None:
    await tab.goto(ending_late)
    page = Chat(tab)
    await answered(page, "What is baseball?")
    await expect(page.tab.get_by_role("button", name="Retry")).to_be_visible()
    await page.tab.get_by_role("button", name="New conversation").click()
    await expect(page.tab.get_by_role("heading", name="Ask a question")).to_be_visible()
    await expect(page.messages).to_have_count(0)
    await shows_all_once(page)


# What a run has drawn is on its way for longer than it takes until a fragment runs, which takes back what is its own.
SENDS_LATE = """
import time
from streamlit.runtime.app_session import AppSession
at_once = AppSession.flush_browser_queue

def sends(session):
    if session._browser_queue.is_empty():
        return []
    due = vars(session).setdefault("due", time.monotonic() + 2)
    if (early := due - time.monotonic()) > 0:
        session._event_loop.call_later(early, session._message_enqueued_callback)
        return []
    del session.due
    return at_once(session)

AppSession.flush_browser_queue = sends
"""


@pytest.fixture
def sending_late(service: FakeService, tmp_path: Path) -> Iterator[str]:
    with serving(SENDS_LATE, service, tmp_path) as url:
        yield url


async def test_all_that_was_drawn_stays_where_a_fragment_runs_before_it_has_been_sent(
    tab: Page, service: FakeService, sending_late: str
) -> None:
    mistakes: list[Error] = []
    tab.on("pageerror", lambda mistake: mistakes.append(mistake))  # noqa: PLW0108 - takes no method of Python's own
    await tab.goto(sending_late)
    page = Chat(tab)
    await expect(tab.get_by_text("Connected to")).to_be_visible()
    for there in (1, 0):
        await tab.get_by_text("Letter by letter", exact=True).click()
        await expect(tab.get_by_text("Seconds per letter", exact=True)).to_have_count(there)
        await expect(tab.get_by_role("heading", name="Ask a question")).to_be_visible()
        await shows_all_once(page)
    # The run waits, and has ended before anything of it has been sent.
    gate = threading.Event()
    service.will_answer("Half ", gate, "and half.", completed())
    service.arrived.clear()
    await page.ask("What is baseball?")
    assert await happened(service.arrived)
    threading.Timer(0.7, gate.set).start()
    await expect(page.answer()).to_contain_text("Half and half.")
    await expect(page.answer()).to_contain_text("tokens in")
    await expect(page.answer().get_by_role("button", name="Retry")).to_be_visible()
    await shows_all_once(page)
    assert not mistakes
