"""Where things stand on the page: what comes first, and what lines up with what."""

import pytest
from playwright.async_api import Locator, Page, ViewportSize, expect

from tests.gateway_ui.chat import Chat, Open
from tests.gateway_ui.test_page_settings import answered
from tests.tokenwire.fake_service import FakeService, completed

pytestmark = pytest.mark.browser


async def asked_anew(page: Chat, question: str) -> None:
    """In a conversation of its own."""
    await page.tab.get_by_role("button", name="New conversation").click()
    await expect(page.messages).to_have_count(0)
    await answered(page, question)


async def top(one: Locator) -> float:
    box = await one.bounding_box()
    assert box is not None
    return box["y"]


async def left_of_text(one: Locator) -> float:
    """How far from its element's left edge the text begins, in pixels."""
    gap: float = await one.evaluate(
        """element => {
            const range = document.createRange();
            range.selectNodeContents(element);
            return range.getBoundingClientRect().left - element.getBoundingClientRect().left;
        }"""
    )
    return gap


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_conversations_come_first_and_the_models_facts_fold_away(chat: Open, tab: Page, scheme: str) -> None:
    await tab.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
    await tab.set_viewport_size(ViewportSize(width=1280, height=800))
    page = await chat()
    await page.choose("fake-2")
    questions = ["What is baseball?", "Hm?", "Why does the sky look blue at noon and red in the evening, so to speak?"]
    for question in questions:
        await asked_anew(page, question)
    await page.settled()
    sidebar = tab.get_by_test_id("stSidebar")
    list_ = sidebar.locator(".st-key-conversations").get_by_role("button")
    await expect(list_).to_have_count(3)
    for number in range(3):
        await expect(list_.nth(number)).to_be_in_viewport(ratio=1)
        assert await left_of_text(list_.nth(number)) < 16, "a list begins at one edge"
    assert await top(list_.last) < await top(sidebar.get_by_role("combobox", name="Model"))
    about = sidebar.locator(".tw-about")
    await expect(about.get_by_text("Tokens: 1,048,576 in")).to_be_hidden()
    await page.photograph(f"drawer-{scheme}")
    await about.get_by_text("What it takes").click()
    await expect(about.get_by_text("Tokens: 1,048,576 in")).to_be_visible()
    await expect(about.get_by_text("at most 4.1 MB in one conversation")).to_be_visible()


async def test_a_long_list_of_conversations_leaves_room_for_the_rest(chat: Open, tab: Page) -> None:
    await tab.set_viewport_size(ViewportSize(width=1280, height=800))
    page = await chat()
    for number in range(9):
        await asked_anew(page, f"Question {number}")
    await expect(tab.locator(".st-key-conversations").get_by_role("button")).to_have_count(9)
    await expect(tab.get_by_role("combobox", name="Model")).to_be_in_viewport(ratio=1)
    await page.photograph("drawer-many")


async def test_the_tab_is_called_like_its_conversation(chat: Open, tab: Page) -> None:
    page = await chat()
    await expect(tab).to_have_title("New conversation · tokenwire")
    await page.ask("What is *baseball* :smile:?")
    await expect(tab).to_have_title("What is *baseball* :smile:? · tokenwire")
    await tab.get_by_role("button", name="New conversation").click()
    await expect(tab).to_have_title("New conversation · tokenwire")


async def test_what_can_be_downloaded_is_said_to_be(chat: Open, tab: Page) -> None:
    page = await chat()
    await answered(page, "What is baseball?")
    await page.open_this_conversation()
    fold = tab.get_by_test_id("stSidebar")
    await expect(fold.get_by_text("Download as", exact=True)).to_be_visible()
    for name in ("Markdown", "JSON", "Web page"):
        button = fold.get_by_role("button", name=name, exact=True)
        await expect(button).to_be_visible()
        height: float = await button.evaluate("button => button.getBoundingClientRect().height")
        assert height < 50, "on one line"
    await page.photograph("download-as")


HEBREW = """\
\u05e9\u05dc\u05d5\u05dd `print(1)` \u05e2\u05d5\u05dc\u05dd.

- \u05d0\u05d7\u05ea
- two

| \u05e9\u05dd | \u05d2\u05d9\u05dc |
|---|---|
| \u05d3\u05df | 5 |

```python
print("a")
```

In English.
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_hebrew_runs_to_the_left_and_code_to_the_right(
    chat: Open, tab: Page, service: FakeService, scheme: str
) -> None:
    await tab.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
    service.will_answer(HEBREW, completed())
    page = await chat()
    await answered(page, "\u05de\u05d4 \u05e9\u05dc\u05d5\u05de\u05da?\nFine?")
    await expect(page.answer().locator(".tw-md .tw-code ~ p")).to_be_attached()
    directions: dict[str, str] = await page.answer().evaluate(
        """answer => {
            const of = (selector) => getComputedStyle(answer.querySelector(selector)).direction;
            const names = ["p", "p code", "ul", "li", "li + li", ".tw-table table", "pre", ".tw-code ~ p"];
            return Object.fromEntries(names.map((name) => [name, of(`.tw-md ${name}`)]));
        }"""
    )
    assert directions == {
        "p": "rtl", "p code": "ltr", "ul": "rtl", "li": "rtl", "li + li": "ltr", ".tw-table table": "rtl", "pre": "ltr",
        ".tw-code ~ p": "ltr",
    }  # fmt: skip
    # Each line of the question begins at its own side.
    sides: list[bool] = await page.messages.first.locator(".tw-question").evaluate(
        """question => {
            const {left, right} = question.getBoundingClientRect();
            const range = document.createRange();
            range.selectNodeContents(question);
            return [...range.getClientRects()].map((line) => right - line.right < line.left - left);
        }"""
    )
    assert (sides[0], sides[-1]) == (True, False)
    await page.photograph(f"hebrew-{scheme}")


async def text_beside_avatar(message: Locator, text: str) -> float:
    """How far the middle of a message's first line is below that of its avatar, in pixels."""
    below: float = await message.get_by_text(text).evaluate(
        """(words) => {
            const middle = (box) => (box.top + box.bottom) / 2;
            const range = document.createRange();
            range.selectNodeContents(words);
            const avatar = words.closest('[data-testid="stChatMessage"]').querySelector('[data-testid*="Avatar"]');
            return middle(range.getClientRects()[0]) - middle(avatar.getBoundingClientRect());
        }"""
    )
    return below


async def test_questions_and_answers_line_up_with_their_avatars(chat: Open, service: FakeService) -> None:
    service.will_answer("It is a game.", completed())
    page = await chat()
    await answered(page, "What is baseball?")
    assert abs(await text_beside_avatar(page.messages.first, "What is baseball?")) < 5
    assert abs(await text_beside_avatar(page.messages.last, "It is a game.")) < 5
    await page.photograph("lined-up")


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_on_a_phone_a_question_stands_clear_of_its_edge(chat: Open, tab: Page, scheme: str) -> None:
    await tab.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
    await tab.set_viewport_size(ViewportSize(width=390, height=844))
    page: Chat = await chat()
    await answered(page, "What is baseball?")
    await page.photograph(f"phone-question-{scheme}")
    box = await page.messages.first.bounding_box()
    assert box is not None
    for inside in (page.messages.first.locator(".tw-question"), page.messages.first.get_by_role("button", name="Edit")):
        found = await inside.bounding_box()
        assert found is not None
        assert found["x"] - box["x"] >= 8


async def test_on_a_phone_the_drawer_closes_once_a_conversation_has_been_chosen(chat: Open, tab: Page) -> None:
    await tab.set_viewport_size(ViewportSize(width=390, height=844))
    page = await chat()
    await answered(page, "What is baseball?")
    await page.settled()
    drawer, expand = tab.get_by_test_id("stSidebar"), tab.get_by_test_id("stExpandSidebarButton")
    await expand.click()
    await expect(drawer).to_have_attribute("data-collapsed", "false")
    # Whatever else is done in it leaves it open.
    await page.open_settings()
    await expect(drawer).to_have_attribute("data-collapsed", "false")
    await tab.get_by_role("button", name="New conversation").click()
    await expect(drawer).to_have_attribute("data-collapsed", "true")
    await expect(page.messages).to_have_count(0)
    await page.settled()
    await expand.click()
    await drawer.get_by_role("button", name="What is baseball?").click()
    await expect(drawer).to_have_attribute("data-collapsed", "true")
    await expect(page.messages.first).to_contain_text("What is baseball?")
    await expect(drawer).to_have_attribute("data-collapsed", "true")
    await page.settled()
    await page.photograph("phone-drawer-closed")


@pytest.mark.parametrize("width", [390, 1100])
async def test_what_is_typed_stands_beside_the_inputs_buttons(chat: Open, tab: Page, width: int) -> None:
    await tab.set_viewport_size(ViewportSize(width=width, height=844))
    page = await chat()
    above: float = await page.input.evaluate(
        """field => {
            const { lineHeight, paddingTop } = getComputedStyle(field);
            const line = field.getBoundingClientRect().top + parseFloat(paddingTop) + parseFloat(lineHeight) / 2;
            const send = document.querySelector('[data-testid=stChatInputSubmitButton]').getBoundingClientRect();
            return (send.top + send.bottom) / 2 - line;
        }"""
    )
    assert abs(above) < 2
    await page.photograph(f"input-{width}")
    # More lines grow from there, and all of them are seen.
    await page.input.fill("one\ntwo\nthree")
    hidden = "field => field.scrollHeight - field.clientHeight"
    await tab.wait_for_function(f"field => ({hidden})(field) <= 1", arg=await page.input.element_handle())
    await page.photograph(f"input-lines-{width}")
