"""What an answer has beside its text, and what can be done with it."""

import json
import re
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from google.protobuf.json_format import ParseDict
from playwright.async_api import Page, ViewportSize, expect

from tests.gateway_ui.chat import STOPPED, Chat, Open, happened
from tests.gateway_ui.test_page_settings import PHOTO, answered, picture
from tests.tokenwire.fake_service import FakeService, completed, thought, tool_call
from tokenwire import inline, model, tool, tool_result, user
from tokenwire.v1 import generation_service_pb2 as pb
from tokenwire.v1.content_pb2 import Message

pytestmark = pytest.mark.browser

SOURCES = pb.Grounding(
    sources=[
        pb.Grounding.Source(uri="https://example.org/wiki/Baseball?a=1&b=2", title="Baseball <b>for all</b>"),
        pb.Grounding.Source(uri="javascript:alert(1)", title="Not a page"),
        pb.Grounding.Source(uri="https://rules.example/a-very-long-address-that-has-to-be-broken-somewhere/rules.html"),
    ],
    search_queries=["baseball rules"],
)
WEATHER = tool_call("weather", {"city": "Oslo", "days": 3, "units": {"degrees": "C"}}, b"s2", "c-1")


async def ended(page: Chat) -> None:
    await expect(page.answer()).to_contain_text("tokens in")


async def fits(page: Chat) -> bool:
    """Whether nothing of the answer makes the page wider than the window."""
    fit: bool = await page.answer().evaluate(
        """answer => {
            const right = (one) => one.getBoundingClientRect().right;
            const wide = (one) => one.scrollWidth > one.clientWidth + 1 || right(one) > innerWidth;
            for (let one = answer; one; one = one.parentElement) if (wide(one)) return false;
            return true;
        }"""
    )
    return fit


@pytest.fixture
async def forgotten(tab: Page) -> AsyncIterator[None]:
    """What this test does to the sidebar isn't remembered by the browser."""
    yield
    await tab.evaluate("() => localStorage.clear()")


LOOKS = {
    "light": ("light", ViewportSize(width=1100, height=800)),
    "dark": ("dark", ViewportSize(width=1100, height=800)),
    "phone": ("light", ViewportSize(width=390, height=844)),
    "phone-dark": ("dark", ViewportSize(width=390, height=844)),
}


@pytest.mark.usefixtures("forgotten")
@pytest.mark.parametrize("look", LOOKS)
async def test_everything_has_its_place_in_light_and_dark_and_on_a_phone(
    chat: Open, tab: Page, service: FakeService, look: str
) -> None:
    scheme, size = LOOKS[look]
    await tab.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
    await tab.set_viewport_size(size)
    written, called = threading.Event(), threading.Event()
    service.will_answer(
        thought("**Looking closely**\n\nA blue "), thought("rectangle."), written, thought("", b"s1"),
        "This is a **blue** rectangle. ", "It is wide, and a longer sentence shows how the lines are broken.\n\n",
        "```python\nprint('a line of code that is longer than a phone is wide, so it has to be scrolled')\n```",
        called, WEATHER, SOURCES, completed(),
    )  # fmt: skip
    page = await chat()
    phone = look.startswith("phone")
    if phone:
        await expect(tab.get_by_role("combobox", name="Model")).not_to_be_in_viewport()
        await tab.get_by_test_id("stExpandSidebarButton").click()
    await page.choose("fake-2")
    await page.photograph(f"{look}-sidebar")
    await page.open_settings()
    await expect(tab.get_by_label("Temperature", exact=True)).to_be_in_viewport()
    await page.photograph(f"{look}-settings")
    if phone:
        await tab.get_by_test_id("stSidebarCollapseButton").locator("button").click()
        await expect(tab.get_by_role("combobox", name="Model")).not_to_be_in_viewport()
    await page.attach(PHOTO)
    await page.ask("What is this?")
    await expect(page.answer().get_by_text("A blue rectangle.")).to_be_visible()
    await page.photograph(f"{look}-thinking")
    assert await fits(page)
    written.set()
    await expect(page.answer()).to_contain_text("It is wide")
    await page.photograph(f"{look}-writing")
    called.set()
    await ended(page)
    await page.photograph(f"{look}-answered")
    await page.messages.first.scroll_into_view_if_needed()
    await page.photograph(f"{look}-top")
    assert await fits(page)
    await page.answer().get_by_text("Chunks", exact=True).click()
    await expect(page.answer().get_by_test_id("stVegaLiteChart").locator("canvas, svg").first).to_be_visible()
    await (
        page.answer()
        .get_by_text("seconds after")
        .or_(page.answer().locator("canvas"))
        .first.scroll_into_view_if_needed()
    )
    await page.photograph(f"{look}-chart")
    assert await fits(page)


# ---- thoughts


async def test_thoughts_fill_their_fold_while_they_stream_and_stay_in_it(chat: Open, service: FakeService) -> None:
    first, second = threading.Event(), threading.Event()
    service.will_answer(
        thought("See ![it](http://127.0.0.1:9/spy.png). "), first, thought("So I say that."), second, "A game.",
        completed(),
    )  # fmt: skip
    page = await chat()
    await page.ask("What is baseball?")
    fold = page.answer().get_by_test_id("stExpander").first
    await expect(fold.get_by_text("See ")).to_be_visible()
    await expect(fold).to_contain_text("Thinking")
    await expect(page.answer()).to_contain_text("thinking")
    await expect(page.answer().get_by_text("So I say that.")).to_have_count(0)
    first.set()
    await expect(fold.get_by_text("So I say that.")).to_be_visible()
    await expect(fold).to_contain_text("Thinking")
    second.set()
    await ended(page)
    await expect(fold).to_contain_text("Thought for")
    # Out of the way now, but there.
    await expect(fold.get_by_text("So I say that.")).to_be_hidden()
    await fold.get_by_text("Thought for").click()
    await expect(fold.get_by_text("So I say that.")).to_be_visible()
    # Also after the next question.
    await answered(page, "And cricket?")
    await expect(page.messages.nth(1)).to_contain_text("Thought for")
    await expect(page.messages.nth(1)).to_contain_text("So I say that.")


async def test_thoughts_go_back_to_the_model_with_their_signature(chat: Open, service: FakeService) -> None:
    service.will_answer(thought("Hm.", b"s1"), "A game.", completed())
    page = await chat()
    await answered(page)
    await answered(page, "And cricket?")
    thoughts, text = service.requests[1].messages[1].parts
    assert (thoughts.reasoning, thoughts.reasoning_signature, text.text) == ("Hm.", b"s1", "A game.")


async def test_stop_works_while_the_model_thinks(chat: Open, service: FakeService) -> None:
    service.will_answer(thought("Hm."), threading.Event())
    page = await chat()
    await page.ask("What is baseball?")
    await expect(page.answer().get_by_text("Hm.")).to_be_visible()
    await page.stop.click()
    assert await happened(service.cancelled)
    await expect(page.problem()).to_have_text(STOPPED)
    await expect(page.answer().get_by_test_id("stExpanderIconSpinner")).to_be_hidden()
    await page.photograph("stopped-thinking")


# ---- tools and sources


async def test_a_tool_call_is_shown_and_its_result_sent_back(chat: Open, service: FakeService) -> None:
    service.will_answer(thought("Hm.", b"s1"), WEATHER, completed())
    page = await chat()
    await page.choose("fake-2")
    await answered(page, "How is it in Oslo?")
    card = page.answer().locator(".tw-call")
    await expect(card).to_contain_text("Calls weather")
    await expect(card).to_contain_text('"city": "Oslo"')
    await expect(card).to_contain_text('"days": 3,')
    await expect(page.problem()).to_have_count(0)
    await page.tab.get_by_label("Result of weather").fill('{"sky": "blue"}')
    await page.photograph("tool-call")
    service.will_answer("It is clear.", completed())
    await page.tab.get_by_role("button", name="Send", exact=True).click()
    await expect(page.answer()).to_contain_text("It is clear.")
    await expect(page.messages.nth(2)).to_contain_text("Result of weather")
    await expect(page.tab.get_by_label("Result of weather")).to_have_count(0)
    call = WEATHER.tool_call
    question, asked, results = service.requests[1].messages
    assert question == user("How is it in Oslo?")
    assert [part.reasoning_signature for part in asked.parts] == [b"s1", b"s2"]
    assert asked.parts[1].tool_call == call
    assert results == tool(tool_result(call, {"sky": "blue"}))
    await page.photograph("tool-result")


async def test_two_calls_of_one_tool_are_told_apart_and_broken_json_is_said_before_it_is_sent(
    chat: Open, service: FakeService
) -> None:
    oslo = tool_call("weather", {"city": "Oslo"}, id_="c-1")
    rome = tool_call("weather", {"city": "Rome"}, id_="c-2")
    service.will_answer(oslo, rome, completed())
    page = await chat()
    await page.choose("fake-2")
    await answered(page, "How is it in Oslo and in Rome?")
    await expect(page.answer().locator(".tw-call b")).to_have_text(["Calls weather (1 of 2)", "Calls weather (2 of 2)"])
    in_oslo = page.tab.get_by_label(re.compile(r"Result of weather \(1 of 2\).*Oslo"))
    in_rome = page.tab.get_by_label(re.compile(r"Result of weather \(2 of 2\).*Rome"))
    await in_oslo.fill('{"temp": 21')
    await in_rome.fill("warm")
    send = page.tab.get_by_role("button", name="Send", exact=True)
    await send.click()
    said = page.tab.get_by_test_id("stForm").locator(".tw-problem")
    await expect(said).to_contain_text(
        '(1 of 2): {"city": "Oslo"} begins like JSON, but can\'t be sent as it stands: it is no'
    )
    await expect(said).to_contain_text("send it again: then it goes as plain text.")
    await expect(in_oslo).to_have_value('{"temp": 21')
    assert len(service.requests) == 1
    await page.photograph("tool-results-unread")
    await in_oslo.fill('{"temperature": 22')
    await send.click()  # another mistake is said as well
    await expect(said).to_contain_text("column 19")
    await page.settled()
    assert len(service.requests) == 1
    service.will_answer("It is warm.", completed())
    await send.click()
    await expect(page.answer()).to_contain_text("It is warm.")
    results = service.requests[1].messages[-1]
    assert results == tool(
        tool_result(oslo.tool_call, {"result": '{"temperature": 22'}), tool_result(rome.tool_call, {"result": "warm"})
    )
    await expect(page.messages.nth(2)).to_contain_text("Result of weather (2 of 2)")


async def test_an_empty_result_is_said_beside_its_field_and_not_sent(chat: Open, service: FakeService) -> None:
    clock, weather = tool_call("clock", {}, id_="c-1"), tool_call("weather", {}, id_="c-2")
    service.will_answer(clock, weather, completed())
    page = await chat()
    await page.choose("fake-2")
    await answered(page, "What time is it, and how is the weather?")
    of_clock, of_weather = (page.tab.get_by_label(f"Result of {name}") for name in ("clock", "weather"))
    said = page.tab.get_by_test_id("stForm").locator(".tw-problem")
    send = page.tab.get_by_role("button", name="Send", exact=True)
    why = "Not sent: Result of {} is empty. Say what the tool gave; if nothing, write null."
    await page.settled()
    await send.click()
    await expect(said).to_have_text([why.format("clock"), why.format("weather")])
    await page.settled()
    await of_clock.fill("noon")
    await of_weather.fill(" ")
    await send.click()
    await expect(said).to_have_text([why.format("weather")])
    await page.photograph("tool-result-empty")
    # However often it is tried, and what was written stays.
    await page.settled()
    await send.click()
    await page.settled()
    await expect(said).to_have_text([why.format("weather")])
    await expect(of_clock).to_have_value("noon")
    assert len(service.requests) == 1
    await of_weather.fill("null")
    service.will_answer("It is noon.", completed())
    await send.click()
    await expect(page.answer()).to_contain_text("It is noon.")
    results = service.requests[1].messages[-1]
    assert results == tool(
        tool_result(clock.tool_call, {"result": "noon"}), tool_result(weather.tool_call, {"result": None})
    )


async def test_calls_can_be_answered_though_something_else_has_been_asked_and_what_was_typed_is_there(
    chat: Open, service: FakeService
) -> None:
    service.will_answer(WEATHER, completed())
    page = await chat()
    await page.choose("fake-2")
    await answered(page, "How is it in Oslo?")
    result = page.tab.get_by_label("Result of weather")
    await result.fill('{"sky": "blue"}')
    await page.ask("And what is baseball?")
    await expect(page.answer()).to_contain_text("Hello there.")
    await expect(result).to_have_count(0)
    answer, not_now = (
        page.tab.get_by_role("button", name="Answer the calls"),
        page.tab.get_by_role("button", name="Not now"),
    )
    await answer.click()
    await expect(result).to_have_value('{"sky": "blue"}')
    await page.settled()
    await not_now.click()
    await expect(result).to_have_count(0)
    await page.settled()
    await answer.click()
    await expect(result).to_have_value('{"sky": "blue"}')
    await page.photograph("tool-result-later")
    service.will_answer("It is clear.", completed())
    await page.settled()
    await page.tab.get_by_role("button", name="Send", exact=True).click()
    await expect(page.answer()).to_contain_text("It is clear.")
    await expect(page.answer()).to_contain_text("2 of 2")
    question, asked, results = service.requests[2].messages
    assert question == user("How is it in Oslo?")
    assert asked.parts[0].tool_call == WEATHER.tool_call
    assert results == tool(tool_result(WEATHER.tool_call, {"sky": "blue"}))
    # What was asked instead is there, and leaves the calls without results: they can be sent again.
    await page.settled()
    await page.answer().get_by_role("button", name="Earlier").click()
    await expect(page.answer()).to_contain_text("Hello there.")
    await answer.click()
    await expect(result).to_have_value("")


async def test_sources_are_links_that_lead_nowhere_unasked(chat: Open, service: FakeService) -> None:
    service.will_answer("A game.", SOURCES, completed())
    page = await chat()
    await answered(page)
    sources = page.answer().locator(".tw-sources")
    await expect(sources).to_contain_text("Searched for: baseball rules")
    await expect(sources.get_by_role("listitem")).to_have_count(3)
    links = sources.get_by_role("link")
    await expect(links).to_have_count(2)
    await expect(links.first).to_have_text("Baseball <b>for all</b>")
    await expect(links.first).to_have_attribute("href", "https://example.org/wiki/Baseball?a=1&b=2")
    await expect(links.first).to_have_attribute("target", "_blank")
    await expect(links.first).to_have_attribute("rel", "noopener noreferrer")
    await expect(sources).to_contain_text("Not a page javascript:alert(1)")


async def test_finish_reason_and_usage_stand_under_each_answer(chat: Open, service: FakeService) -> None:
    cut = completed(pb.FINISH_REASON_MAX_TOKENS)
    cut.usage.reasoning_tokens = 9
    service.will_answer("A game", cut)
    page = await chat()
    await answered(page)
    await answered(page, "And cricket?")
    figures = page.tab.locator(".tw-figures")
    await expect(figures).to_have_count(2)
    await expect(figures.first).to_contain_text("fake-1 · max tokens · first chunk")
    await expect(figures.first).to_contain_text("5 tokens in, 7 out, 9 thought")
    await expect(figures.last).to_contain_text("fake-1 · stop · first chunk")


# ---- what can be done with an answer


async def test_an_answer_is_copied_as_the_model_wrote_it(chat: Open, tab: Page, service: FakeService) -> None:
    await tab.context.grant_permissions(["clipboard-read", "clipboard-write"])
    service.will_answer("A **ga", "me** ⚾\n", completed())
    page = await chat()
    await answered(page)
    await answered(page, "And cricket?")
    await page.messages.nth(1).get_by_role("button", name="Copy").click()
    await expect(page.messages.nth(1).get_by_role("button", name="Copied")).to_be_visible()
    assert await tab.evaluate("() => navigator.clipboard.readText()") == "A **game** ⚾\n"


async def test_a_block_of_code_is_copied_whole_also_where_it_came_in_parts(
    chat: Open, tab: Page, service: FakeService
) -> None:
    await tab.context.grant_permissions(["clipboard-read", "clipboard-write"])
    lines = "".join(f"    print({number})  # <b> & 'quotes'\n" for number in range(400))
    service.will_answer(
        "Run this:\n\n```python\ndef f():\n", *lines.splitlines(keepends=True), "```\n\nor `this`.", completed()
    )
    page = await chat()
    await answered(page)
    copy = page.answer().get_by_role("button", name="Copy code")
    await expect(copy).to_have_count(1)
    await expect(tab.locator(".tw-code.tw-more").first).to_be_attached()
    await page.answer().locator(".tw-code").first.hover()
    await page.photograph("copy-code")
    await copy.click()
    await expect(page.answer().get_by_role("button", name="Copied")).to_be_attached()
    assert await tab.evaluate("() => navigator.clipboard.readText()") == f"def f():\n{lines}"
    await expect(copy).to_have_count(1)


@pytest.mark.usefixtures("forgotten")
@pytest.mark.parametrize("look", ["light", "phone"])
async def test_the_button_of_a_block_of_code_stands_in_its_corner_and_stays_in_sight(
    chat: Open, tab: Page, service: FakeService, look: str
) -> None:
    await tab.set_viewport_size(LOOKS[look][1])
    await tab.context.grant_permissions(["clipboard-read", "clipboard-write"])
    long = "".join(f"line {number}\n" for number in range(120))
    service.will_answer(
        f"One:\n\n```\nls\n```\n\nTwo:\n\n```bash\nls -l\n```\n\nThree:\n\n```\n{long}```\n\nEnd.", completed()
    )
    page = await chat()
    await answered(page)
    await page.settled()
    blocks = page.answer().locator(".tw-code")
    await expect(blocks).to_have_count(3)
    for number, code in enumerate(("ls\n", "ls -l\n", long)):
        block = blocks.nth(number)
        button = block.locator(".tw-copy")
        # Of the long one its middle is in sight, and neither its beginning nor its end.
        await block.evaluate(
            "block => block.scrollIntoView({block: block.clientHeight > innerHeight ? 'center' : 'nearest'})"
        )
        inside = """button => {
            const one = button.getBoundingClientRect(), block = button.parentElement.getBoundingClientRect();
            const within = one.top >= block.top && one.bottom <= block.bottom + 1 && one.right <= block.right;
            return within && one.top >= 0 && one.bottom <= innerHeight && block.right - one.right < 10;
        }"""
        assert await button.evaluate(inside)
        await block.hover()
        box = await button.bounding_box()
        assert box is not None
        await tab.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        await expect(block.get_by_role("button", name="Copied")).to_be_attached()
        assert await tab.evaluate("() => navigator.clipboard.readText()") == code
    await page.photograph(f"copy-code-{look}")


async def test_retry_asks_again_and_shows_another_answer(chat: Open, service: FakeService) -> None:
    page = await chat()
    await answered(page)
    service.will_answer("A sport.", completed())
    await answered(page, "Really?")
    gate = threading.Event()
    service.will_answer("A game", gate, ", of course.", completed())
    await expect(page.tab.get_by_role("button", name="Retry")).to_have_count(1)
    await page.tab.get_by_role("button", name="Retry").click()
    await expect(page.answer()).to_contain_text("A game")
    await expect(page.messages).to_have_count(4)
    await expect(page.tab.get_by_text("A sport.")).to_have_count(0)
    gate.set()
    await expect(page.answer()).to_contain_text("A game, of course.")
    await ended(page)
    assert service.requests[1] == service.requests[2]
    await answered(page, "And cricket?")
    assert list(service.requests[3].messages)[2:] == [
        user("Really?"),
        model("A game, of course."),
        user("And cricket?"),
    ]


async def test_what_can_be_done_with_the_last_answer_only_is_gone_while_the_next_one_is_written(
    chat: Open, service: FakeService
) -> None:
    gate = threading.Event()
    service.will_answer(WEATHER, completed())
    service.will_answer("Half ", gate, "and half.", completed())
    page = await chat()
    await page.choose("fake-2")
    await answered(page, "How is it in Oslo?")
    await page.settled()
    last_only = [
        page.tab.get_by_role("button", name="Retry"),
        page.tab.get_by_role("button", name="Send", exact=True),
        page.tab.get_by_label("Result of weather"),
    ]
    for one in last_only:
        await expect(one).to_have_count(1)
    await page.tab.get_by_label("Result of weather").fill("Clear.")
    await page.tab.get_by_role("button", name="Send", exact=True).click()
    await expect(page.answer()).to_contain_text("Half")
    for one in last_only:
        await expect(one).to_have_count(0)
    assert await page.stop.is_visible()
    await page.photograph("nothing-stale")
    # An edit leaves nothing of the question that it takes the place of, either.
    await page.messages.first.get_by_role("button", name="Edit").click()
    await expect(page.tab.get_by_label("Your question")).to_be_visible()
    await expect(page.messages.first.get_by_role("button", name="Edit")).to_have_count(0)
    await expect(page.messages.first.locator(".tw-question")).to_have_count(0)
    assert await page.stop.is_visible()
    gate.set()
    await ended(page)
    await expect(page.tab.get_by_role("button", name="Retry")).to_have_count(1)


async def test_a_retried_answer_can_be_stopped_and_retried_again(chat: Open, service: FakeService) -> None:
    service.will_answer("Half", threading.Event())
    page = await chat()
    await page.ask("What is baseball?")
    await expect(page.answer()).to_contain_text("Half")
    retry = page.tab.get_by_role("button", name="Retry")
    await expect(retry).to_be_hidden()
    await page.stop.click()
    assert await happened(service.cancelled)
    service.cancelled.clear()
    await expect(retry).to_be_visible()
    service.will_answer("Another half", threading.Event())
    await retry.click()
    await expect(page.answer()).to_contain_text("Another half")
    await page.stop.click()
    assert await happened(service.cancelled)
    await expect(page.problem()).to_have_text(STOPPED)
    await retry.click()
    await expect(page.answer()).to_contain_text("Hello there.")
    await expect(page.messages).to_have_count(2)


async def test_the_conversation_is_downloaded_as_json_and_markdown(
    chat: Open, service: FakeService, tmp_path: Path
) -> None:
    service.will_answer(thought("Hm.", b"s1"), "A rectangle.", completed())
    page = await chat()
    await page.choose("fake-2")
    await page.attach(PHOTO)
    await answered(page, "What is this?")
    service.will_answer("Half", threading.Event())
    await page.ask("And then?")
    await expect(page.answer()).to_contain_text("Half")
    await page.stop.click()
    assert await happened(service.cancelled)
    await page.open_this_conversation()
    async with page.tab.expect_download() as downloading:
        await page.tab.get_by_role("button", name="JSON").click()
    download = await downloading.value
    assert download.suggested_filename == "what-is-this.json"
    await download.save_as(tmp_path / "conversation.json")
    first, second = json.loads((tmp_path / "conversation.json").read_text())["exchanges"]
    question, answer = (ParseDict(message, Message()) for message in first["messages"])
    assert question == user(inline(picture(), "image/png"), "What is this?")
    assert (answer.parts[0].reasoning_signature, answer.parts[1].text) == (b"s1", "A rectangle.")
    assert ParseDict(first["completed"], pb.Completed()) == completed()
    assert (second["problem"], second["completed"]) == (STOPPED, None)
    async with page.tab.expect_download() as downloading:
        await page.tab.get_by_role("button", name="Markdown").click()
    await (await downloading.value).save_as(tmp_path / "conversation.md")
    read = (tmp_path / "conversation.md").read_text()
    assert "## Answer of fake-1\n\n<details><summary>Thoughts</summary>\n\nHm." in read
    assert "\n\nA rectangle.\n\n" in read
    assert read.endswith(f"**{STOPPED}**\n")


async def test_the_chart_shows_each_chunk_and_fetches_nothing(chat: Open, service: FakeService) -> None:
    gate = threading.Event()
    service.will_answer(
        thought("Hm. " * 5), "word " * 4000, *["word " * (number % 7 + 1) for number in range(40)], gate, completed()
    )
    page = await chat()
    await page.ask("What is baseball?")
    await expect(page.answer()).to_contain_text("41 chunks")
    gate.set()
    await ended(page)
    await expect(page.tab.get_by_test_id("stVegaLiteChart")).to_have_count(0)
    await page.answer().get_by_text("Chunks", exact=True).click()
    chart = page.answer().get_by_test_id("stVegaLiteChart").last
    await expect(chart.locator("canvas, svg").first).to_be_visible()
    await chart.scroll_into_view_if_needed()
    await page.photograph("chart")
    # The three pictures have one time: their axes stand below each other.
    charts = page.answer().get_by_test_id("stVegaLiteChart")
    await expect(charts.locator(".role-frame.root")).to_have_count(3)
    sides = await charts.locator(".role-frame.root > g > path.background").evaluate_all(
        "all => all.map((one) => [one.getBoundingClientRect().left, one.getBoundingClientRect().right])"
    )
    assert len(sides) == 3
    assert all(abs(one - other) < 2 for pair in zip(*sides, strict=True) for one in pair for other in pair), sides
    # It stays with its answer when another comes.
    await answered(page, "And cricket?")
    await expect(page.messages.nth(1).get_by_test_id("stVegaLiteChart").last).to_be_visible()
    await expect(page.answer().get_by_test_id("stVegaLiteChart")).to_have_count(0)
