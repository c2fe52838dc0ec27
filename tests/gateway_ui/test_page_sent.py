"""A question that was on its way when the connection, the page or its process ended is neither lost nor doubled."""

import asyncio
import signal
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from playwright.async_api import FilePayload, Locator, Page, WebSocketRoute, expect

from tests.browser import PageAt
from tests.gateway_ui.chat import Chat, happened
from tests.gateway_ui.test_page_kept import TYPE, again, answered, opened, serving
from tests.gateway_ui.test_page_settings import PHOTO
from tests.ports import free_port
from tests.tokenwire.fake_service import FakeService, completed, tool_call
from tokenwire import user

pytestmark = pytest.mark.browser


class Line:
    """The tab's websocket: what it says may be lost from some moment on, and what it is told."""

    def __init__(self) -> None:
        self.sockets: list[WebSocketRoute] = []
        self.mute = self.deaf = False
        self.swallowed = asyncio.Event()
        """What is awaited has been said while nothing was heard."""
        self.awaits = b""
        self.late: list[str | bytes] | None = None
        """What it is told while this is a list: it hears of that once it is `caught_up`."""
        self.loses: list[bytes] = []
        """What it is told is lost up to the message with the first of these, then up to that with the next."""

    def open(self, socket: WebSocketRoute) -> None:
        self.sockets.append(socket)
        server = socket.connect_to_server()

        def said(message: str | bytes) -> None:
            if self.mute:
                if self.awaits in (message if isinstance(message, bytes) else message.encode()):
                    self.swallowed.set()
            else:
                server.send(message)

        socket.on_message(said)
        server.on_message(lambda message: self._told(socket, message))

    def _told(self, socket: WebSocketRoute, message: str | bytes) -> None:
        if self.late is not None:
            self.late.append(message)
        elif self.loses:
            if self.loses[0] in (message if isinstance(message, bytes) else message.encode()):
                self.loses.pop(0)
        elif not self.deaf:
            socket.send(message)

    def caught_up(self) -> None:
        late, self.late = self.late, None
        for message in late or ():
            self._told(self.sockets[-1], message)

    async def breaks(self) -> None:
        """It is closed, and the next one is whole."""
        self.mute = self.deaf = False
        await self.sockets[-1].close(code=1001)


@pytest.fixture
async def line(tab: Page) -> Line:
    line = Line()
    await tab.route_web_socket("**", line.open)
    return line


async def asked_once(tab: Page, url: str) -> Chat:
    """The page, with a question and its answer in it."""
    page = await opened(tab, url)
    await answered(page, "one")
    await page.settled()
    return page


async def asks_in_vain(page: Chat, line: Line, question: str) -> None:
    """Ask, and lose the question on its way; so is all that the tab says from now on."""
    line.mute, line.awaits = True, question.encode()
    await page.ask(question)
    await asyncio.wait_for(line.swallowed.wait(), 20)


@pytest.mark.parametrize("asked_before", [False, True])
async def test_a_question_that_is_sent_as_the_pages_process_dies_stands_in_the_input_again(
    tab: Page, service: FakeService, tmp_path: Path, asked_before: bool
) -> None:
    port = free_port()
    lost = tab.get_by_text("The page isn't reachable; trying again")
    with serving(port, service.address, tmp_path) as process:
        page = await opened(tab, f"http://localhost:{port}")
        if asked_before:
            await answered(page, "one")
            await page.settled()
        process.send_signal(signal.SIGSTOP)
        await tab.evaluate(TYPE, ["What is baseball?\n", "And cricket?\n", "A draft"])
        await expect(page.input).to_have_value("A draft")
    await expect(lost).to_be_visible()
    with serving(port, service.address, tmp_path):
        await expect(lost).to_have_count(0)
        await expect(page.input).to_have_value("What is baseball?\nA draft")
        # What hadn't left the tab is asked in its turn.
        await expect(page.answer()).to_contain_text("tokens in")
        await page.settled()
        await expect(page.input).to_have_value("What is baseball?\nA draft")
        await page.input.press("Enter")
        await expect(page.messages).to_have_count(4 + 2 * asked_before)
        await expect(page.answer()).to_contain_text("tokens in")
        await expect(page.input).to_have_value("")
    said = [one.messages[-1] for one in service.requests][asked_before:]
    assert said == [user("And cricket?"), user("What is baseball?\nA draft")]


async def test_a_question_that_is_lost_with_the_connection_stands_in_the_input_again(
    tab: Page, page_at: PageAt, service: FakeService, line: Line
) -> None:
    page = await asked_once(tab, page_at(service.address))
    await asks_in_vain(page, line, "What is baseball?")
    await expect(page.input).to_have_value("")
    await line.breaks()
    await expect(page.input).to_have_value("What is baseball?")
    await page.settled()
    assert len(service.requests) == 1
    await page.input.press("Enter")
    await expect(page.messages).to_have_count(4)
    await expect(page.answer()).to_contain_text("tokens in")
    await expect(page.input).to_have_value("")
    assert [one.messages[-1] for one in service.requests] == [user("one"), user("What is baseball?")]


@pytest.mark.parametrize("reloads", [False, True])
async def test_a_question_that_came_before_the_connection_was_lost_does_not_stand_there_again(
    tab: Page, page_at: PageAt, service: FakeService, line: Line, reloads: bool
) -> None:
    page = await asked_once(tab, page_at(service.address))
    gate = threading.Event()
    service.will_answer("Half ", gate, "and half.", completed())
    service.arrived.clear()
    line.deaf = True
    await page.ask("What is baseball?")
    assert await happened(service.arrived)
    if reloads:
        line.deaf = False
        await again(page)
    else:
        await line.breaks()
    await expect(page.answer()).to_contain_text("Half")
    # It knows that it needn't ask any more.
    await tab.wait_for_function("() => sessionStorage.getItem('tokenwire-sent') === null")
    await expect(page.input).to_have_value("")
    gate.set()
    await answered(page, "one")
    await expect(page.input).to_have_value("")
    assert [one.messages[-1] for one in service.requests] == [user("one"), user("What is baseball?"), user("one")]


@asynccontextmanager
async def in_an_unheard_process(
    tab: Page, service: FakeService, line: Line, data: Path, *files: FilePayload
) -> AsyncIterator[Chat]:
    """Words, and these files, stand in the input. The page's process is another one, and has not said a word yet."""
    port = free_port()
    lost = tab.get_by_text("The page isn't reachable; trying again")
    with serving(port, service.address, data):
        page = await asked_once(tab, f"http://localhost:{port}")
        await page.choose("fake-2")
        if files:
            await page.attach(*files)
        await page.input.fill("What is this?")
        line.late = []
    await expect(lost).to_be_visible()
    with serving(port, service.address, data):
        await expect(lost).to_have_count(0)
        yield page


@pytest.mark.parametrize("files", [[PHOTO], []])
async def test_a_question_that_is_sent_before_the_new_process_of_the_page_has_said_a_word_is_asked_once_with_its_files(
    tab: Page, service: FakeService, line: Line, tmp_path: Path, files: list[FilePayload]
) -> None:
    refusal = tab.get_by_role("alert").filter(has_text="photo.png can't go along: The page was started anew")
    async with in_an_unheard_process(tab, service, line, tmp_path, *files) as page:
        await page.input.press("Enter")
        line.caught_up()
        if files:
            await expect(refusal).to_be_visible()
            await expect(page.input).to_have_value("What is this?")
            await tab.get_by_role("button", name="Ask without it").click()
        await expect(page.messages).to_have_count(4)
        await expect(page.answer()).to_contain_text("tokens in")
        await page.settled()
        await expect(page.input).to_have_value("")
    assert [one.messages[-1] for one in service.requests] == [user("one"), user("What is this?")]


async def test_a_question_that_waits_for_the_new_process_of_the_page_stays_a_draft_where_another_conversation_is_opened(
    tab: Page, service: FakeService, line: Line, tmp_path: Path
) -> None:
    async with in_an_unheard_process(tab, service, line, tmp_path, PHOTO) as page:
        await page.input.press("Enter")
        await tab.get_by_role("button", name="New conversation").click()
        await expect(page.input).to_have_value("")
        line.caught_up()
        await expect(page.messages).to_have_count(0)
        await page.settled()
        await tab.locator(".st-key-conversations button").first.click()
        await expect(page.messages).to_have_count(2)
        await expect(page.input).to_have_value("What is this?")
    assert [one.messages[-1] for one in service.requests] == [user("one")]


@pytest.mark.parametrize("enter", [False, True])
async def test_what_is_typed_for_a_conversation_that_is_about_to_be_opened_is_its_draft_after_a_reload(
    tab: Page, page_at: PageAt, service: FakeService, line: Line, enter: bool
) -> None:
    page = await asked_once(tab, page_at(service.address))
    listed = tab.locator(".st-key-conversations button")
    await tab.get_by_role("button", name="New conversation").click()
    await expect(page.messages).to_have_count(0)
    await answered(page, "two")
    await page.settled()
    line.mute = True
    await listed.filter(has_text="one").click()
    await asyncio.wait_for(line.swallowed.wait(), 20)
    await page.input.fill("And then?")
    if enter:
        await page.input.press("Enter")
        await expect(page.input).to_have_value("")
    line.mute = False
    await tab.reload()
    await expect(page.messages.first).to_contain_text("two")
    await page.settled()
    await expect(page.input).to_have_value("")
    await listed.filter(has_text="one").click()
    await expect(page.messages.first).to_contain_text("one")
    await expect(page.input).to_have_value("And then?")
    assert [one.messages[-1] for one in service.requests] == [user("one"), user("two")]


@pytest.mark.parametrize("way", ["New conversation", "Back"])
async def test_what_is_typed_for_a_conversation_is_its_draft_though_another_is_opened_before_it_is_shown(
    tab: Page, page_at: PageAt, service: FakeService, line: Line, way: str
) -> None:
    page = await asked_once(tab, page_at(service.address))
    one = tab.locator(".st-key-conversations button").filter(has_text="one")
    await tab.get_by_role("button", name="New conversation").click()
    await expect(page.messages).to_have_count(0)
    await answered(page, "two")
    await page.settled()
    line.late = []
    await one.click()
    await page.input.fill("And then?")
    if way == "Back":
        await tab.evaluate("history.back()")
    else:
        await tab.get_by_role("button", name=way).click()
    await expect(page.input).to_have_value("")
    line.caught_up()
    if way == "Back":
        await expect(page.messages.first).to_contain_text("one")
    else:
        await expect(page.messages).to_have_count(0)
        await expect(page.input).to_have_value("")
        await page.settled()
        await one.click()
    await expect(page.input).to_have_value("And then?")
    assert [one.messages[-1] for one in service.requests] == [user("one"), user("two")]


async def test_nothing_can_be_entered_before_the_pages_own_code_is_there(
    tab: Page, page_at: PageAt, service: FakeService
) -> None:
    late = "{ configurable: true, get() {}, set(code) { window.code = code; } }"
    page = await opened(tab, page_at(service.address))
    await tab.add_init_script(f"Object.defineProperty(window, 'tokenwireReader', {late})")
    await tab.reload()
    await expect(page.input).to_be_attached()
    await tab.wait_for_function("() => Boolean(window.code)")
    await expect(page.input).to_be_hidden()
    await tab.evaluate("Object.defineProperty(window, 'tokenwireReader', { value: window.code, writable: true })")
    await expect(page.input).to_be_visible()
    await answered(page, "one")


async def clicked_with_back(button: Locator) -> None:
    """Streamlit's script in the browser tells of a click a moment later: before that, it runs the page's for Back."""
    await expect(button).to_be_enabled()
    await button.evaluate("one => { one.click(); window.dispatchEvent(new PopStateEvent('popstate')); }")


async def test_a_question_is_asked_once_though_back_is_pressed_together_with_it(
    tab: Page, page_at: PageAt, service: FakeService
) -> None:
    page = await asked_once(tab, page_at(service.address))
    questions = [f"And {number}?" for number in range(5)]
    for question in questions:
        count = await page.messages.count()
        await page.input.fill(question)
        await clicked_with_back(tab.get_by_test_id("stChatInputSubmitButton"))
        await expect(page.messages).to_have_count(count + 2)
        await expect(page.answer()).to_contain_text("tokens in")
        await page.settled()
    assert [one.messages[-1] for one in service.requests] == [user(question) for question in ["one", *questions]]


@pytest.mark.parametrize("button", ["Ask anew", "Retry", "Send"])
async def test_what_a_button_asks_is_asked_once_though_back_is_pressed_together_with_it(
    tab: Page, page_at: PageAt, service: FakeService, button: str
) -> None:
    page = await opened(tab, page_at(service.address))
    service.will_answer(tool_call("weather", {"city": "Oslo"}), completed())
    await answered(page, "one")
    await page.settled()
    if button == "Ask anew":
        await page.messages.first.get_by_role("button", name="Edit").click()
        await tab.get_by_label("Your question").fill("two")
    elif button == "Send":
        await tab.get_by_label("Result of weather").fill("warm")
    await clicked_with_back(tab.get_by_role("button", name=button, exact=True))
    await expect(page.answer()).to_contain_text("Hello there.")
    await page.settled()
    await answered(page, "And then?")
    assert len(service.requests) == 3


@pytest.mark.parametrize("before", ["led to by Back", "there when the page was loaded"])
async def test_a_new_process_of_the_page_shows_what_was_shown_and_not_what_had_been(
    tab: Page, service: FakeService, tmp_path: Path, before: str
) -> None:
    port = free_port()
    lost = tab.get_by_text("The page isn't reachable; trying again")
    listed = tab.locator(".st-key-conversations button")
    with serving(port, service.address, tmp_path):
        page = await asked_once(tab, f"http://localhost:{port}")
        await tab.get_by_role("button", name="New conversation").click()
        await expect(page.messages).to_have_count(0)
        await answered(page, "two")
        await page.settled()
        await tab.go_back()
        await expect(page.messages.first).to_contain_text("one")
        await page.settled()
        if before == "there when the page was loaded":
            await tab.reload()
            await page.settled()
        await listed.filter(has_text="two").click()
        await expect(page.messages.first).to_contain_text("two")
        await page.settled()
        address = tab.url
    await expect(lost).to_be_visible()
    with serving(port, service.address, tmp_path):
        await expect(lost).to_have_count(0)
        await answered(page, "three")
        await page.settled()
        await expect(page.messages.first).to_contain_text("two")
        assert tab.url == address


async def test_a_page_that_was_told_half_of_what_stands_on_it_shows_all_of_it(
    tab: Page, page_at: PageAt, service: FakeService, line: Line
) -> None:
    page = await asked_once(tab, page_at(service.address))
    gate = threading.Event()
    service.will_answer("Half ", gate, "and half.", completed())
    # The last that is lost is what the words of the question stand in: Streamlit's own script falls over them.
    line.loses = [b">one</div>", b":material/person:"]
    line.late = []  # until all has been typed: into a page that is gone nobody types
    await tab.evaluate(TYPE, ["What is baseball?\n", "A draft"])
    line.caught_up()
    await expect(page.answer()).to_contain_text("Half")
    await expect(page.input).to_have_value("A draft")
    gate.set()
    await expect(page.answer()).to_contain_text("and half.")
    assert [one.messages[-1] for one in service.requests] == [user("one"), user("What is baseball?")]


async def test_a_question_that_never_left_stands_in_the_input_of_its_conversation_after_a_reload(
    tab: Page, page_at: PageAt, service: FakeService, line: Line
) -> None:
    page = await asked_once(tab, page_at(service.address))
    line.mute = True
    await tab.evaluate(TYPE, ["two\n", "three\n", "A draft"])
    await asyncio.wait_for(line.swallowed.wait(), 20)
    line.mute = False
    await again(page)
    await expect(page.input).to_have_value("two\nthree\nA draft")
    await page.settled()
    await tab.get_by_role("button", name="New conversation").click()
    await expect(page.messages).to_have_count(0)
    await expect(page.input).to_have_value("")
    await again(page)
    await expect(page.input).to_have_value("")
    assert len(service.requests) == 1


async def test_a_question_that_is_lost_says_which_file_was_lost_with_it(
    tab: Page, page_at: PageAt, service: FakeService, line: Line
) -> None:
    page = await asked_once(tab, page_at(service.address))
    await page.choose("fake-2")
    await page.attach(PHOTO)
    await asks_in_vain(page, line, "What is this?")
    await line.breaks()
    await expect(page.input).to_have_value("What is this?")
    lost = tab.get_by_role("alert").filter(has_text="photo.png can't go along: It was lost on its way.")
    await expect(lost).to_be_visible()
    await page.settled()
    await page.input.press("Enter")
    await expect(lost).to_be_visible()
    await expect(page.input).to_have_value("What is this?")
    assert len(service.requests) == 1
    await tab.get_by_role("button", name="Ask without it").click()
    await expect(page.messages).to_have_count(4)
    await expect(page.answer()).to_contain_text("tokens in")
    assert service.requests[1].messages[-1] == user("What is this?")


async def test_a_question_that_is_lost_while_another_conversation_is_opened_stands_in_its_own(
    tab: Page, page_at: PageAt, service: FakeService, line: Line
) -> None:
    page = await asked_once(tab, page_at(service.address))
    await asks_in_vain(page, line, "What is baseball?")
    await tab.get_by_role("button", name="New conversation").click()
    await line.breaks()
    await expect(page.messages).to_have_count(0)
    await page.settled()
    await expect(page.input).to_have_value("")
    await tab.locator(".st-key-conversations").get_by_role("button", name="one").click()
    await expect(page.messages).to_have_count(2)
    await expect(page.input).to_have_value("What is baseball?")
    assert len(service.requests) == 1


async def test_a_question_that_is_lost_though_the_connection_stays_stands_in_the_input_again(
    tab: Page, page_at: PageAt, service: FakeService, line: Line
) -> None:
    page = await asked_once(tab, page_at(service.address))
    await asks_in_vain(page, line, "What is baseball?")
    line.mute = False
    await expect(page.input).to_have_value("What is baseball?")
    await page.settled()
    await page.input.press("Enter")
    await expect(page.messages).to_have_count(4)
    await expect(page.answer()).to_contain_text("tokens in")
    assert [one.messages[-1] for one in service.requests] == [user("one"), user("What is baseball?")]
