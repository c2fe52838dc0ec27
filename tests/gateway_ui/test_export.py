import asyncio
import itertools
import json
import re
from html.parser import HTMLParser
from pathlib import PureWindowsPath

import pytest
from axe_playwright_python.async_playwright import Axe
from google.protobuf.json_format import ParseDict
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from playwright.async_api import Page, expect

from gateway_ui.chat.conversation import STOPPED, Conversation, Exchange
from gateway_ui.chat.export import RUNNING, as_html, as_json, as_markdown, file_name
from gateway_ui.drawing.markdown import STYLE, closed, standalone
from tests.browser import SCREENSHOTS
from tests.gateway_ui import test_conversation as conversations
from tests.gateway_ui.test_attachments import picture
from tests.gateway_ui.test_conversation import exchange
from tests.tokenwire.fake_service import completed, thought, tool_call
from tokenwire import file_uri, inline, tool, tool_result, user
from tokenwire.v1 import generation_service_pb2 as pb
from tokenwire.v1.content_pb2 import Message

WCAG = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
SOURCES = pb.Grounding(sources=[pb.Grounding.Source(uri="https://example.org/a", title="A page")])


def conversation() -> Conversation:
    question = user(inline(b"\x00bytes\xff", "image/png"), file_uri("gs://b/a.pdf", "application/pdf"), "What is this?")
    called = exchange(
        thought("Hm.", b"\x00sig"), "Let me see.", tool_call("look", {"at": [1, 2.5, None, True]}, b"s2"),
        end=completed(), question=question, model="fake-2",
    )  # fmt: skip
    called.asked.config.temperature = 0.0
    results = tool(tool_result(called.tool_calls[0], {"seen": "blue"}))
    concluded = exchange("It is **blue**.", SOURCES, end=completed(pb.FINISH_REASON_MAX_TOKENS), question=results)
    stopped = exchange("Half")
    stopped.stop()
    return conversations.conversation(called, concluded, stopped)


def test_json_loses_nothing() -> None:
    talk = conversation()
    records = json.loads(as_json(talk))["exchanges"]
    assert len(records) == 3
    for record, one in zip(records, talk.exchanges, strict=True):
        messages = [ParseDict(message, Message()) for message in record["messages"]]
        assert messages == [one.question, one.turn.message]
        assert ParseDict(record["asked"], pb.GenerateRequest()) == one.asked
        assert [ParseDict(grounding, pb.Grounding()) for grounding in record["grounding"]] == one.groundings
        assert [chunk["after"] for chunk in record["chunks"]] == [piece.after for piece in one.pieces]
    assert ParseDict(records[0]["completed"], pb.Completed()) == completed()
    assert records[0]["asked"]["config"] == {"temperature": 0.0}
    assert (records[2]["completed"], records[2]["problem"]) == (None, STOPPED)
    assert [record["complete"] for record in records] == [True, False, False]


def test_json_holds_the_alternatives_too() -> None:
    talk = conversation()
    first, second, third = talk.path()
    talk.add(exchange("Again.", end=completed()), first)
    whole = json.loads(as_json(talk))
    assert [(one["id"], one["parent"]) for one in whole["exchanges"]] == [
        (first.id, None),
        (talk.exchanges[3].id, first.id),
    ]
    assert [(one["id"], one["parent"]) for one in whole["alternatives"]] == [
        (second.id, first.id),
        (third.id, second.id),
    ]
    assert "Again." in as_markdown(talk)
    assert "Half" not in as_markdown(talk)
    assert "Again." in as_html(talk)
    assert "Half" not in as_html(talk)


NAMES = ["IMG_1.png", "a *report*, `v2`.pdf", "スコア<1>.csv"]


def named() -> Conversation:
    files = [inline(b"x", "image/png"), inline(b"%PDF-1.7\n", "application/pdf"), inline(b"a,b", "text/plain")]
    one = exchange(
        "So.",
        end=completed(),
        question=user(files[0], file_uri("gs://b/c.pdf", "application/pdf"), *files[1:], "What?"),
    )
    one.names = NAMES
    return conversations.conversation(one)


def test_json_holds_the_names_of_files_in_the_order_of_the_files() -> None:
    (record,) = json.loads(as_json(named()))["exchanges"]
    assert record["files"] == NAMES
    files = [part for part in record["messages"][0]["parts"] if "inlineData" in part]
    assert [file["inlineData"]["mimeType"] for file in files] == ["image/png", "application/pdf", "text/plain"]
    (record,) = json.loads(as_json(conversations.conversation(exchange("So."))))["exchanges"]
    assert record["files"] == []


def test_markdown_names_the_files() -> None:
    assert as_markdown(named()).split("\n\n")[1:5] == [
        "`IMG_1.png`, *image/png, 1 byte*",
        "*application/pdf, gs://b/c.pdf*",
        "`` a *report*, `v2`.pdf ``, *application/pdf, 9 bytes*",
        "`スコア<1>.csv`, *text/plain, 3 bytes*",
    ]


def test_html_names_the_files() -> None:
    parsed = Parsed(as_html(named()))
    assert [attrs["alt"] for tag, attrs in parsed.tags if tag == "img"] == ["IMG_1.png"]
    lines = [line for line in parsed.text.splitlines() if line][3:7]
    assert lines == [
        "IMG_1.png",
        "application/pdf, gs://b/c.pdf",
        "a *report*, `v2`.pdf, application/pdf, 9 bytes",
        "スコア<1>.csv, text/plain, 3 bytes",
    ]


def test_an_export_in_mid_answer_says_that_it_is_incomplete() -> None:
    one = exchange("Half")
    talk = conversations.conversation(exchange("All.", end=completed()), one)
    records = json.loads(as_json(talk))["exchanges"]
    assert [record["complete"] for record in records] == [True, False]
    assert as_markdown(talk).endswith(f"\n\nHalf\n\n**{RUNNING}**\n")
    assert as_html(talk).count(RUNNING) == 1
    one.stop()
    assert RUNNING not in as_markdown(talk) + as_html(talk)


def test_markdown_reads_like_the_conversation() -> None:
    assert as_markdown(conversation()) == MARKDOWN


def test_an_empty_conversation_is_a_file_too() -> None:
    assert json.loads(as_json(Conversation())) == {"title": "New conversation", "exchanges": [], "alternatives": []}
    assert as_markdown(Conversation()) == "\n"


def test_a_models_words_end_no_block_of_markdown() -> None:
    one: Exchange = exchange(tool_call("f", {"x": "```\n# Title"}), end=completed())
    assert "\n```\n# Title" not in as_markdown(conversations.conversation(one))


# ---- HTML


class Parsed(HTMLParser):
    """Every tag with its attributes, and all text outside of the style."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.text += data


OURS = {
    "html", "head", "meta", "title", "style", "body", "h1", "h2", "main", "article", "section", "div", "p", "b", "pre",
    "details", "summary", "ol", "li", "a", "small", "img", "figure", "figcaption",
}  # fmt: skip


_OPENING = [
    *("```", "~~~~ py", "`````", "  ```", "- ```", "> ~~~", "1. ```", "    code", "\t```"),
    *("<!--", "<script>", "<pre>", "<textarea>", "<style>", "<?php", "<!X", "<![CDATA[", "<div>", "</pre>", "-->"),
    *("words", "", "- item", "> quoted", "| a | b |", "|---|---|", "$$", "`", "[x]: y", "***", "\\"),
]


@given(
    answers=st.lists(st.lists(st.sampled_from(_OPENING), max_size=6).map("\n".join), min_size=2, max_size=2),
    reasoning=st.sampled_from(_OPENING),
)
def test_an_answer_that_leaves_something_open_swallows_nothing_of_the_file(answers: list[str], reasoning: str) -> None:
    one, other = (exchange(thought(reasoning), answer) for answer in answers)
    one.stop()
    other.stop()
    told = as_markdown(conversations.conversation(one, other), closed)
    tokens = MarkdownIt("commonmark").parse(told)
    top = [inline.content for opens, inline in itertools.pairwise(tokens) if opens.level == 0 and opens.nesting == 1]
    own = [text for text in top if text.startswith(("Question", "Answer", "**Stopped"))]
    assert own == ["Question", "Answer", f"**{STOPPED}**"] * 2
    # And the words are there as they came.
    assert all(answer in told for answer in answers)


def test_html_reads_like_the_conversation() -> None:
    talk = conversation()
    talk.title = "Blue <things>"
    page = as_html(talk)
    parsed = Parsed(page)
    assert parsed.open == []
    assert {tag for tag, _ in parsed.tags} <= OURS
    assert ("img", {"alt": "image/png", "src": "data:image/png;base64,AGJ5dGVz/w=="}) in parsed.tags
    assert [attrs["href"] for tag, attrs in parsed.tags if tag == "a"] == ["https://example.org/a"]
    lines = [line for line in parsed.text.splitlines() if line]
    assert lines == HTML
    assert "prefers-color-scheme: dark" in page
    policy = next(attrs["content"] for tag, attrs in parsed.tags if attrs.get("http-equiv"))
    assert policy is not None
    assert policy.startswith("default-src 'none'; ")


@given(st.text(max_size=100), st.sampled_from(["", "image/svg+xml", 'image/png" onerror="x', "image/gif"]))
def test_no_words_of_anybody_become_html(text: str, mime_type: str) -> None:
    words = f"</style><script>{text}</script><!-- "
    source = pb.Grounding.Source(uri=f"javascript:{words}", title=words)
    called = exchange(
        thought(words), words, tool_call(words, {words: words}), pb.Grounding(sources=[source]),
        end=pb.Completed(model=words), question=user(words, inline(b"x", mime_type), file_uri(words, words)),
    )  # fmt: skip
    called.names = [words]
    failed = exchange(question=tool(tool_result(called.tool_calls[0], {"x": words})), model=words)
    failed.fail(words)
    parsed = Parsed(as_html(conversations.conversation(called, failed, title=words)))
    assert parsed.open == []
    assert {tag for tag, _ in parsed.tags} <= OURS - {"a"}
    assert {name for _, attrs in parsed.tags for name in attrs} <= {
        "class", "dir", "alt", "src", "charset", "http-equiv", "content", "name", "lang",
    }  # fmt: skip
    # Except for what the parser makes of line ends and NUL.
    if text.isprintable():
        assert parsed.text.count(words) >= 8


def test_an_answers_markdown_is_drawn_by_whom_it_is_given_to() -> None:
    talk = conversations.conversation(exchange(thought("*a*"), "*b*", end=completed(), question=user("*c*")))
    page = as_html(talk, render=lambda text: f"<em>{text[1:-1]}</em>")
    assert "<em>a</em>" in page
    assert "<em>b</em>" in page
    assert ">*c*<" in page


@pytest.mark.browser
async def test_a_browser_shows_it_and_fetches_and_runs_nothing(tab: Page) -> None:
    one = exchange("x", end=completed(), question=user(inline(picture("PNG"), "image/png"), "What?"))
    callers = []
    refused = []
    tab.on("console", lambda message: refused.append(message.text))
    async with await asyncio.start_server(lambda *caller: callers.append(caller), "localhost", 0) as server:
        place = f"http://localhost:{server.sockets[0].getsockname()[1]}"
        # Not a frame: Chromium connects to where that would lead, though it asks for nothing. A renderer makes none.
        hostile = (
            f"<script>document.title = 'run'</script><script src='{place}/a.js'></script><link rel=stylesheet "
            f"href='{place}/b.css'><p style='background: url({place}/d.png)'>x</p>"
            f"<img src='{place}/e.png' onerror='document.title = 1'>"
        )
        await tab.set_content(as_html(conversations.conversation(one), render=lambda _: hostile))
        image = tab.get_by_alt_text("image/png")
        assert await image.evaluate("image => image.decode().then(() => image.naturalWidth)") > 0
        assert await tab.title() == "What?"
    assert not callers
    assert sum("Content Security Policy" in line for line in refused) >= 5
    await tab.emulate_media(color_scheme="dark")
    assert await tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(24, 24, 27)"


DRAWN = r"""
# Euler, and $x_1$

So \(\frac{a}{b}\) and $e^{i\pi} + 1 = 0$ with `code`, and one that nobody knows: \(\unknown{x}\).

$$\sum_{i=1}^{n} i^2 + x_1 + x_2 + x_3 + x_4 + x_5 + x_6 + x_7 + x_8 + x_9 + x_{10} + x_{11} = 0$$

- Then $a_1x_1 + a_2x_2 + a_3x_3 + a_4x_4 + a_5x_5 + a_6x_6 + a_7x_7 + a_8x_8 + a_9x_9 = b$.

```python
import os  # a comment that makes this line longer than the screen of a phone is wide, so that it is scrolled
x = "text"
```

| A wide column of a table | Another wide column | The third wide column | The fourth wide column |
|--------------------------|---------------------|-----------------------|-----------------------:|
| one                      | two                 | \(x^2\)               | 4                      |
"""


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1100, 390])
async def test_a_shared_page_looks_like_the_answer_by_itself(tab: Page, scheme: str, width: int) -> None:
    talk = conversations.conversation(exchange(thought("So $a$."), DRAWN, SOURCES, end=completed(), model="fake-1"))
    await tab.set_viewport_size({"width": width, "height": 844})
    await tab.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
    await tab.set_content(as_html(talk, render=standalone, style=STYLE))
    await tab.screenshot(path=SCREENSHOTS / f"shared-{scheme}-{width}.png", full_page=True)
    await expect(tab.locator("math")).to_have_count(7)
    await expect(tab.locator("math msup")).to_have_count(3)
    fraction = await tab.locator("math mfrac").first.bounding_box()
    assert fraction is not None
    assert fraction["height"] > 15, "drawn, not only written"
    await expect(tab.locator(".tw-source")).to_have_text("\\(\\unknown{x}\\)")
    # Nothing drags the page sideways; what is wide scrolls by itself.
    assert await tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    cells = tab.locator("th")
    for cell in await cells.all():
        box = await cell.bounding_box()
        assert box is not None
        assert box["width"] > 100
        assert box["height"] < 40, "no word is broken"
    if width == 390:
        for place in (".tw-table", ".tw-code pre", ".tw-formula", "li > .tw-math"):
            assert await tab.locator(place).evaluate("one => one.scrollWidth > one.clientWidth"), place
    colours = [
        await tab.locator(f".tw-code .tw-{kind}").first.evaluate("one => getComputedStyle(one).color")
        for kind in ("k", "c", "s")
    ]
    text = await tab.locator(".tw-code code").evaluate("one => getComputedStyle(one).color")
    assert len({*colours, text}) == 4
    label = tab.locator(".tw-language")
    await expect(label).to_have_css("font-size", "12px")
    await expect(tab.locator("html")).to_have_attribute("lang", "en")
    found = await Axe().run(tab, options={"runOnly": {"type": "tag", "values": WCAG}})
    assert [(one["id"], [node["html"] for node in one["nodes"]]) for one in found.response["violations"]] == []


# ---- names of files


@pytest.mark.parametrize(
    ("title", "name"),
    [
        ("What is baseball?", "what-is-baseball.md"),
        ("What's it\N{RIGHT SINGLE QUOTATION MARK}s?", "whats-its.md"),
        ("野球とは何ですか？", "野球とは何ですか.md"),  # noqa: RUF001  # as it is written
        ("../../etc/passwd", "etc-passwd.md"),
        ("C:\\x|y<z>.exe", "c-x-y-z-exe.md"),
        ("हिन्दी", "हिन्दी.md"),
        ("⚾ !!", "conversation.md"),
        ("CON", "conversation-con.md"),
        ("Com¹", "conversation-com1.md"),
        ("console", "console.md"),
        ("x" * 100, "x" * 57 + ".md"),
        ("野" * 100, "野" * 57 + ".md"),
        ("", "new-conversation.md"),
    ],
)
def test_a_file_name_tells_which_conversation(title: str, name: str) -> None:
    assert file_name(Conversation(title=title), "md") == name


@given(st.text(max_size=100), st.sampled_from(["md", "json", "html"]))
def test_a_file_name_is_fit_for_every_system(title: str, ending: str) -> None:
    name = file_name(Conversation(title=title), ending)
    stem = name.removesuffix(f".{ending}")
    assert stem
    assert len(name) <= 60
    assert len(name.encode()) <= 255
    assert re.fullmatch(r"[^\x00-\x1f\x7f<>:\"/\\|?*\s.]+", stem)
    assert not PureWindowsPath(name).is_reserved()
    assert not name.startswith("-")
    assert name == file_name(Conversation(title=title), ending)


HTML = [
    "Blue <things>",
    "Blue <things>",
    "Question",
    "application/pdf, gs://b/a.pdf",
    "What is this?",
    "Answer of fake-1",
    "ThoughtsHm.",
    "Let me see.",
    "Calls look{",
    '  "at": [',
    "    1,",
    "    2.5,",
    "    null,",
    "    true",
    "  ]",
    "}",
    "stop · first chunk 2.00 s · 1 chunk · 5 tokens in, 7 out",
    "Results",
    "Result of look{",
    '  "seen": "blue"',
    "}",
    "Answer of fake-1",
    "It is **blue**.",
    "SourcesA page https://example.org/a",
    "The answer was cut: it reached the token limit.",
    "max tokens · first chunk 1.00 s · 1 chunk · 5 tokens in, 7 out",
    "Question",
    "Why?",
    "Answer",
    "Half",
    "Stopped: this answer is incomplete.",
]

MARKDOWN = """\
## Question

*image/png, 7 bytes*

*application/pdf, gs://b/a.pdf*

What is this?

## Answer of fake-1

<details><summary>Thoughts</summary>

Hm.

</details>

Let me see.

Calls `look`:

```json
{
  "at": [
    1,
    2.5,
    null,
    true
  ]
}
```

*stop · first chunk 2.00 s · 1 chunk · 5 tokens in, 7 out*

## Results

Result of `look`:

```json
{
  "seen": "blue"
}
```

## Answer of fake-1

It is **blue**.

Sources:

1. A page <https://example.org/a>

**The answer was cut: it reached the token limit.**

*max tokens · first chunk 1.00 s · 1 chunk · 5 tokens in, 7 out*

## Question

Why?

## Answer

Half

**Stopped: this answer is incomplete.**
"""


def test_html_lays_out_each_block_in_its_own_direction() -> None:
    hebrew = "\u05e9\u05dc\u05d5\u05dd"
    page = as_html(
        conversations.conversation(conversations.exchange(f"{hebrew}\n\n- {hebrew}", end=completed())), standalone
    )
    tags = [(tag, attrs["dir"]) for tag, attrs in Parsed(page).tags if "dir" in attrs]
    assert tags == [("h1", "auto"), ("div", "auto"), ("p", "auto"), ("ul", "rtl"), ("li", "rtl")]
