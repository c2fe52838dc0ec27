"""The page in deploy/envoy, in a real browser, as Envoy shows it."""

import re
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from playwright.async_api import BrowserContext, Page, expect

from tests.edge.conftest import Edge, Running, running_edge
from vertex_emulator.emulator import Emulator
from vertex_emulator.script import answer, silence, status, wait_for

PAGE = Path(__file__).parents[2] / "deploy/envoy/page.html"
WAYS = ["By EventSource", "By fetch"]
pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
async def shown(running: Running) -> AsyncIterator[Edge]:
    async with running_edge("--replica", running.service, "--page", str(PAGE)) as edge:
        yield edge


@pytest.mark.parametrize("way", WAYS)
async def test_words_are_shown_while_the_model_writes(shown: Edge, vertex: Emulator, tab: Page, way: str) -> None:
    vertex.script.play(answer("Baseball ", wait_for("rest"), "is a game."))
    await tab.goto(shown.url)
    await tab.get_by_role("button", name=way).click()
    await expect(tab.locator("output")).to_have_text("Baseball ")
    assert [call.waiting_for for call in vertex.open_calls] == ["rest"]
    vertex.open_gate("rest")
    await expect(tab.locator("output")).to_have_text("Baseball is a game.")
    await expect(tab.locator("#state")).to_have_text("Done: FINISH_REASON_STOP")
    assert len(vertex.calls) == 1, "EventSource must not ask again"


@pytest.mark.parametrize("way", WAYS)
async def test_an_error_in_the_middle_is_told(shown: Edge, vertex: Emulator, tab: Page, way: str) -> None:
    vertex.script.play(answer("Half of ", status("INTERNAL")))
    await tab.goto(shown.url)
    await tab.get_by_role("button", name=way).click()
    await expect(tab.locator("#state")).to_have_text(re.compile(r"Failed: .*Vertex"))
    await expect(tab.locator("output")).to_have_text("Half of ")


async def test_an_error_before_the_first_word_is_told(shown: Edge, vertex: Emulator, tab: Page) -> None:
    vertex.script.play(default=answer(status("INVALID_ARGUMENT")))
    await tab.goto(shown.url)
    await tab.get_by_role("button", name="By fetch").click()
    await expect(tab.locator("#state")).to_have_text(re.compile(r"Failed: .*refused"))
    await tab.get_by_role("button", name="By EventSource").click()
    await expect(tab.locator("#state")).to_have_text(re.compile("Refused or cut"))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("leave", ["stop", "close"])
async def test_who_stops_or_closes_the_tab_cancels_upstream(
    shown: Edge, vertex: Emulator, browser: BrowserContext, way: str, leave: str
) -> None:
    vertex.script.play(answer("Baseball ", silence()))
    tab = await browser.new_page()
    await tab.goto(shown.url)
    await tab.get_by_role("button", name=way).click()
    await expect(tab.locator("output")).to_have_text("Baseball ")
    assert vertex.open_calls
    if leave == "stop":
        await tab.get_by_role("button", name="Stop").click()
    else:
        await tab.close()
    await vertex.wait_until(lambda emulator: not emulator.open_calls)
    assert vertex.calls[-1].code is grpc.StatusCode.CANCELLED
    if leave == "stop":
        await expect(tab.locator("#state")).to_have_text(re.compile("Stopped|Failed"))
        await tab.close()


@pytest.mark.parametrize("way", WAYS)
async def test_who_leaves_the_page_cancels_upstream(shown: Edge, vertex: Emulator, kept_tab: Page, way: str) -> None:
    vertex.script.play(answer("Baseball ", silence()))
    await kept_tab.goto(shown.url)
    await kept_tab.get_by_role("button", name=way).click()
    await expect(kept_tab.locator("output")).to_have_text("Baseball ")
    await kept_tab.goto(f"{shown.url}/v1/models")
    await vertex.wait_until(lambda emulator: not emulator.open_calls)
    assert [call.code for call in vertex.calls] == [grpc.StatusCode.CANCELLED]


async def test_a_page_of_another_origin_can_not_call(
    shown: Edge, running: Running, vertex: Emulator, browser: BrowserContext
) -> None:
    """Another port is another origin; the browser tells so, whatever the page tries."""
    async with running_edge("--replica", running.service, "--page", str(PAGE)) as other:
        tab = await browser.new_page()
        await tab.goto(other.url)
        outcome = await tab.evaluate(
            """async (url) => {
                const shown = new Image();
                const loaded = new Promise((done) => { shown.onload = shown.onerror = done; });
                shown.src = url;
                await loaded;
                await fetch(url, { mode: "no-cors" });
                return fetch(url).then(() => "read", () => "refused");
            }""",
            f"{shown.url}/v1/generate?prompt=a",
        )
        await tab.close()
    assert outcome == "refused"
    assert vertex.calls == ()


def test_it_is_short() -> None:
    assert len(PAGE.read_text().splitlines()) < 60
