"""The real page in a real browser, against a scripted service on a real socket."""

import re
import threading

import grpc
import pytest
from playwright.async_api import Page, expect

from tests.browser import PageAt
from tests.gateway_ui.chat import STOPPED, Chat, Open, happened
from tests.tokenwire.fake_service import FakeService, Refusal, Running, completed
from tokenwire import model, user
from tokenwire.v1 import generation_service_pb2 as pb

pytestmark = pytest.mark.browser


def texts(request: pb.GenerateRequest) -> list[str]:
    return [part.text for turn in request.messages for part in turn.parts]


async def test_the_empty_page_invites_a_question(chat: Open) -> None:
    page = await chat()
    await expect(page.tab.get_by_role("heading", name="Ask a question")).to_be_visible()
    await expect(page.tab.get_by_text("Connected to")).to_be_visible()
    await page.photograph("empty")


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_words_are_visible_before_the_answer_is_finished(
    chat: Open, tab: Page, service: FakeService, scheme: str
) -> None:
    gate = threading.Event()
    service.will_answer(
        "Baseball is a **bat-and-ball** ", "sport.\n\n1. The *pitcher* throws.", gate, ANSWER, completed()
    )
    # Streamlit looks at it once, as it starts.
    await tab.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
    page = await chat()
    await page.ask("What is baseball?")
    await expect(page.answer()).to_contain_text("The pitcher throws.")
    await expect(page.answer()).to_contain_text("2 chunks")
    await expect(page.answer()).to_contain_text(re.compile(r"first chunk \d"))
    await expect(page.answer()).to_contain_text("characters/s")
    await expect(page.problem()).to_have_count(0)
    await page.photograph(f"streaming-{scheme}")
    background = await tab.get_by_test_id("stApp").evaluate("app => getComputedStyle(app).backgroundColor")
    assert (background == "rgb(255, 255, 255)") == (scheme == "light")
    gate.set()
    await expect(page.answer()).to_contain_text("5 tokens in, 7 out")
    await expect(page.answer()).to_contain_text("tokens/s")
    await expect(page.answer()).to_contain_text("Runners advance")
    await expect(page.stop).to_have_count(0)
    await page.photograph(f"answered-{scheme}")


async def test_stop_ends_the_call_and_marks_the_answer(chat: Open, service: FakeService) -> None:
    service.will_answer("Half an ", "answer", threading.Event())
    page = await chat()
    await page.ask("What is baseball?")
    await expect(page.answer()).to_contain_text("Half an answer")
    assert not service.cancelled.is_set()
    await page.stop.click()
    assert await happened(service.cancelled)  # the model itself would never come to an end
    await expect(page.problem()).to_have_text(STOPPED)
    await page.photograph("stopped")
    # It stays usable, and the mark stays.
    await page.ask("And then?")
    await expect(page.answer()).to_contain_text("Hello there.")
    await expect(page.messages.nth(1).locator(".tw-problem:visible")).to_have_text(STOPPED)
    assert texts(service.requests[1]) == ["What is baseball?", "Half an answer", "And then?"]


async def test_stop_works_before_the_first_word(chat: Open, service: FakeService) -> None:
    service.will_answer(threading.Event())
    page = await chat()
    await page.ask("What is baseball?")
    assert await happened(service.arrived)
    await expect(page.answer()).to_contain_text("waiting")
    await page.stop.click()
    assert await happened(service.cancelled)
    await expect(page.problem()).to_have_text("Stopped before it began.")


async def test_closing_the_tab_ends_the_call(chat: Open, service: FakeService) -> None:
    service.will_answer("Half", threading.Event())
    page = await chat()
    await page.ask("What is baseball?")
    await expect(page.answer()).to_contain_text("Half")
    await page.tab.close()
    assert await happened(service.cancelled)


async def test_the_second_turn_carries_the_first(chat: Open, service: FakeService) -> None:
    service.will_answer("A ", "game.", completed())
    page = await chat()
    await page.ask("What is baseball?")
    await expect(page.answer()).to_contain_text("tokens in")
    service.will_answer("Older.", completed())
    await page.ask("And cricket?")
    await expect(page.answer()).to_contain_text("Older.")
    first, second = service.requests
    assert list(first.messages) == [user("What is baseball?")]
    assert list(second.messages) == [user("What is baseball?"), model("A game."), user("And cricket?")]
    await expect(page.messages).to_have_count(4)
    await page.photograph("two-turns")


async def test_a_new_conversation_forgets(chat: Open, service: FakeService) -> None:
    page = await chat()
    await page.ask("What is baseball?")
    await expect(page.answer()).to_contain_text("tokens in")
    await page.settled()
    await page.tab.get_by_role("button", name="New conversation").click()
    await expect(page.messages).to_have_count(0)
    await page.ask("And cricket?")
    await expect(page.answer()).to_contain_text("tokens in")
    assert len(service.requests[1].messages) == 1


async def test_a_running_answer_goes_on_while_another_conversation_is_shown(chat: Open, service: FakeService) -> None:
    gate = threading.Event()
    service.will_answer("Half ", gate, "and half.", completed())
    page = await chat()
    await page.ask("What is baseball?")
    await expect(page.answer()).to_contain_text("Half")
    await page.tab.get_by_role("button", name="New conversation").click()
    await expect(page.messages).to_have_count(0)
    await expect(page.stop).to_have_count(0)
    assert not await happened(service.cancelled, 7)  # after 5 s without any tab it would be
    await page.ask("And cricket?")
    await expect(page.answer()).to_contain_text("Hello there.")
    gate.set()
    # What has changed last comes first.
    await expect(page.tab.locator(".st-key-conversations button").first).to_have_text("What is baseball?")
    await page.tab.get_by_role("button", name="What is baseball?").click()
    await expect(page.answer()).to_contain_text("Half and half.")
    await expect(page.problem()).to_have_count(0)


async def test_a_running_answer_ends_with_its_conversation(chat: Open, service: FakeService) -> None:
    service.will_answer("Half", threading.Event())
    page = await chat()
    await page.ask("What is baseball?")
    await expect(page.answer()).to_contain_text("Half")
    await page.open_this_conversation()
    await page.tab.get_by_role("button", name="Delete", exact=True).click()
    assert await happened(service.cancelled)
    await expect(page.messages).to_have_count(0)


async def test_an_answer_that_went_on_elsewhere_ends_with_its_tab(chat: Open, service: FakeService) -> None:
    service.will_answer("Half", threading.Event())
    page = await chat()
    await page.ask("What is baseball?")
    await expect(page.answer()).to_contain_text("Half")
    await page.tab.get_by_role("button", name="New conversation").click()
    await expect(page.messages).to_have_count(0)
    await page.tab.close()
    assert await happened(service.cancelled, 20)


async def test_the_chunks_are_ruled_off_as_they_came(chat: Open, service: FakeService) -> None:
    service.will_answer("Base", "ball is <b>fun</b>", ".\nYes.", completed())
    page = await chat()
    await page.flip("Mark the chunks")
    await page.ask("What is baseball?")
    await expect(page.answer()).to_contain_text("tokens in")
    pieces = page.answer().locator(".tw-piece span")
    await expect(pieces).to_have_count(3)  # Streamlit draws the answer once more
    assert await pieces.all_text_contents() == ["Base", "ball is <b>fun</b>", ".\nYes."]
    rules = [
        await piece.evaluate("piece => getComputedStyle(piece).borderBottomWidth")
        for piece in await page.answer().locator(".tw-piece").all()
    ]
    assert rules == ["1px", "1px", "0px"]
    await page.photograph("chunks")
    # The switch holds for answers that are there already, too.
    await page.flip("Mark the chunks")
    await expect(pieces).to_have_count(0)
    await expect(page.answer()).to_contain_text("Baseball is")


async def test_a_switch_flipped_in_mid_answer_changes_the_view_and_not_the_call(
    chat: Open, service: FakeService
) -> None:
    gate = threading.Event()
    service.will_answer("Base", gate, "ball", threading.Event())
    page = await chat()
    await page.ask("What is baseball?")
    await expect(page.answer()).to_contain_text("Base")
    await page.flip("Mark the chunks")
    await expect(page.answer().locator(".tw-piece")).to_have_count(1)
    gate.set()
    await expect(page.answer().locator(".tw-piece")).to_have_count(2)
    await page.photograph("chunks-streaming")
    assert not service.cancelled.is_set()
    assert len(service.requests) == 1
    await page.stop.click()
    assert await happened(service.cancelled)
    await expect(page.problem()).to_have_text(STOPPED)


async def test_smoothing_shows_the_text_letter_by_letter_and_all_of_it(chat: Open, service: FakeService) -> None:
    text = "The quick brown fox jumps over the lazy dog. " * 4
    service.will_answer(text, completed())
    page = await chat()
    await page.flip("Letter by letter")
    await expect(page.tab.get_by_role("slider")).to_be_enabled()
    seen = await page.tab.evaluate_handle(
        """() => {
            const seen = [];
            new MutationObserver(() => {
                const texts = document.querySelectorAll('[class*=st-key-words-]');
                if (texts.length) seen.push(texts[texts.length - 1].textContent.trimEnd());
            }).observe(document.body, {subtree: true, childList: true, characterData: true});
            return seen;
        }"""
    )
    await page.ask("What is baseball?")
    await expect(page.answer()).to_contain_text("tokens in")
    await expect(page.answer()).to_contain_text(text.strip())
    lengths = sorted({len(shown) for shown in await seen.json_value() if text.startswith(shown)})
    # It came as one piece. A busy machine skips pictures, but the letters go on with the time.
    assert len(lengths) > 10
    assert lengths[0] < len(text) / 3


async def test_smoothing_does_not_put_a_stop_off(chat: Open, service: FakeService) -> None:
    service.will_answer("word " * 10_000, threading.Event())
    page = await chat()
    await page.flip("Letter by letter")
    await expect(page.tab.get_by_role("slider")).to_be_enabled()
    await page.settled()  # else the question is asked of a script that is about to run again, with a Stop elsewhere
    await page.ask("What is baseball?")
    await expect(page.answer()).to_contain_text("word word")
    await page.stop.click()
    assert await happened(service.cancelled, 5)  # to show all of it takes eight seconds, however idle the machine
    # What had come is kept, also what hadn't been shown.
    await page.ask("And then?")
    await expect(page.answer()).to_contain_text("Hello there.")
    assert service.requests[1].messages[1].parts[0].text == "word " * 10_000


@pytest.mark.parametrize(
    ("name", "refusal", "words"),
    [
        (
            "busy",
            Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "SERVER_BUSY"),
            "The service is busy. Try again in a moment.",
        ),
        (
            "refused",
            Refusal(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", "messages: 300 turns; wanted at most 256"),
            "The service refused the request. messages: 300 turns; wanted at most 256.",
        ),
    ],
)
async def test_a_refusal_is_told_in_plain_words(
    chat: Open, service: FakeService, name: str, refusal: Refusal, words: str
) -> None:
    service.will_answer(refusal)
    page = await chat()
    await page.ask("What is baseball?")
    await expect(page.problem()).to_have_text(words)
    await expect(page.tab.get_by_text("Traceback")).to_have_count(0)
    await page.photograph(name)
    await page.ask("What is baseball?")
    await expect(page.answer()).to_contain_text("Hello there.")
    # A question that had no answer is no turn.
    assert len(service.requests[1].messages) == 1


async def test_a_cut_answer_is_kept_and_marked(chat: Open, service: FakeService) -> None:
    service.will_answer("Half", Refusal(grpc.StatusCode.UNAVAILABLE, "UPSTREAM_CUT"))
    page = await chat()
    await page.ask("What is baseball?")
    await expect(page.problem()).to_contain_text("The answer was cut after 1 piece; what you see is incomplete.")
    await expect(page.answer()).to_contain_text("Half")


async def test_an_answer_at_its_token_limit_is_marked(chat: Open, service: FakeService) -> None:
    service.will_answer("Half", completed(pb.FINISH_REASON_MAX_TOKENS))
    page = await chat()
    await page.ask("What is baseball?")
    await expect(page.problem()).to_have_text("The answer was cut: it reached the token limit.")


async def test_a_service_that_is_away_is_said_so(tab: Page, page_at: PageAt, nobody: str) -> None:
    await tab.goto(page_at(nobody))
    page = Chat(tab)
    words = f"The service is not running at {nobody}. Start it with tokenwire serve."
    await expect(tab.get_by_test_id("stSidebar")).to_contain_text(words)
    await page.ask("What is baseball?")
    await expect(page.problem()).to_have_text(words)
    await expect(tab.get_by_text("Traceback")).to_have_count(0)
    await expect(page.stop).to_have_count(0)
    await page.photograph("away")


async def test_a_conversation_that_has_become_too_long_says_what_to_do(chat: Open, service: FakeService) -> None:
    page = await chat()
    await page.ask("What is baseball?")
    await expect(page.answer()).to_contain_text("tokens in")
    service.will_answer(Refusal(grpc.StatusCode.INVALID_ARGUMENT, "UPSTREAM_REJECTED", "The context is full."))
    await page.ask("And cricket?")
    await expect(page.problem()).to_contain_text("If this conversation has become too long, start a new one.")


async def test_many_chunks_stay_scrolled_to_the_newest(chat: Open, service: FakeService) -> None:
    service.will_answer(*[f"piece{number} " for number in range(60)], threading.Event())
    page = await chat()
    await page.flip("Mark the chunks")
    await page.ask("What is baseball?")
    await expect(page.answer().locator(".tw-piece").last).to_contain_text("piece59")
    await expect(page.answer().locator(".tw-piece").last).to_be_in_viewport()
    await expect(page.answer().locator(".tw-piece").first).not_to_be_in_viewport()
    await page.photograph("chunks-many")


async def test_without_a_list_of_models_the_services_default_answers(tab: Page, page_at: PageAt) -> None:
    with Running() as service:
        service.models.clear()
        await tab.goto(page_at(service.address))
        page = Chat(tab)
        await page.ask("What is baseball?")
        await expect(page.answer()).to_contain_text("tokens in")
        assert service.requests[0].model == ""


async def test_a_picture_in_an_answer_is_not_fetched(chat: Open, service: FakeService) -> None:
    service.will_answer("See ![it](http://127.0.0.1:9/spy.png) here", completed())
    page = await chat()
    asked: list[str] = []
    page.tab.on("request", lambda request: asked.append(request.url))
    await page.ask("What is baseball?")
    await expect(page.answer()).to_contain_text("tokens in")
    assert not [url for url in asked if "spy" in url]


ANSWER = """
2. The batter tries to hit the ball.
3. Runners advance around the four bases.

### Positions

| Position | Number |
|---|---|
| Pitcher | 1 |
| Catcher | 2 |

```python
def inning() -> str:
    return 3 * "out"
```
"""
