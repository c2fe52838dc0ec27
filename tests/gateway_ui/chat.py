"""What a person does with the page."""

import asyncio
import contextlib
import tempfile
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import ClassVar

from playwright.async_api import FilePayload, Locator, Page, expect
from playwright.async_api import TimeoutError as TimeoutError_

from tests.browser import SCREENSHOTS

STOPPED = "Stopped: this answer is incomplete."

Open = Callable[[], Awaitable["Chat"]]


async def happened(event: threading.Event, seconds: float = 10) -> bool:
    return await asyncio.to_thread(event.wait, seconds)


class Chat:
    """The page in a tab."""

    files: ClassVar[Path]
    """Where the files are that this test attaches."""

    def __init__(self, tab: Page) -> None:
        self.tab = tab
        self.input = tab.get_by_test_id("stChatInputTextArea")
        self.stop = tab.get_by_role("button", name="Stop", exact=True)
        self.messages = tab.get_by_test_id("stChatMessage")

    async def ask(self, question: str) -> None:
        await self.input.fill(question)
        await self.input.press("Enter")

    async def flip(self, switch: str) -> None:
        """Click until it has turned: a click is lost when the script draws the page anew in that moment."""
        box = self.tab.get_by_role("checkbox", name=switch, exact=True).or_(
            self.tab.get_by_role("switch", name=switch, exact=True)
        )
        wanted = not await box.is_checked()
        async with asyncio.timeout(20):
            while await box.is_checked() != wanted:
                await self.tab.get_by_text(switch, exact=True).click()
                with contextlib.suppress(AssertionError):
                    await expect(box).to_be_checked(checked=wanted, timeout=1000)

    async def settled(self) -> None:
        """Wait until the script has run to its end, also for what was clicked just now."""
        await self.tab.wait_for_function("testSettles()", timeout=20_000)

    async def rested(self) -> None:
        """Wait until nothing grows or moves any more, as what is unfolded does for half a second.

        A click presses and lets go; on what moves away in between it is none. In what is folded up the browser lets
        nothing move on: that ends only when it is unfolded.
        """
        async with asyncio.timeout(20):
            await self.tab.evaluate(
                """async () => {
                    for (let frame = 0; frame < 2; frame += 1) await new Promise(requestAnimationFrame);
                    const shown = ({ effect }) => effect.target?.checkVisibility();
                    const ends = ({ effect }) => effect.getComputedTiming().endTime !== Infinity;
                    const moving = document.getAnimations().filter((one) => shown(one) && ends(one));
                    await Promise.allSettled(moving.map((one) => one.finished));
                }"""
            )

    async def choose(self, model: str) -> None:
        box, option = self.tab.get_by_role("combobox", name="Model"), self.tab.get_by_role("option", name=model)
        async with asyncio.timeout(20):
            about = self.tab.locator(f'.tw-about[data-model="{model}"]')
            while not await about.count():  # a list closes when the script draws the page anew in that moment
                with contextlib.suppress(AssertionError, TimeoutError_):
                    if not await option.is_visible():
                        await box.click(timeout=1000)
                    await option.click(timeout=1000)
                    await expect(about).to_be_attached(timeout=2000)
        # Another model may take other files, with another input then.
        await expect(self.input).to_have_count(1)
        await self.settled()

    async def open_settings(self) -> None:
        inside = self.tab.get_by_text("Stop sequences", exact=True)
        async with asyncio.timeout(20):
            while not await inside.is_visible():  # a click may be lost here, too
                await self.tab.get_by_text("Settings", exact=True).click()
                with contextlib.suppress(AssertionError):
                    await expect(inside).to_be_visible(timeout=2000)
        await self.settled()
        await self.rested()

    async def write(self, field: str, text: str) -> None:
        box = self.tab.get_by_label(field, exact=True)
        await box.fill(text)
        await box.press("Control+Enter")

    async def attach(self, *files: FilePayload) -> None:
        # By their paths: through the browser's debugging protocol, the bytes of a large one take 20 s.
        folder = Path(tempfile.mkdtemp(dir=self.files))
        for file in files:
            (folder / file["name"]).write_bytes(file["buffer"])
        paths = [folder / file["name"] for file in files]
        chips = self.tab.get_by_test_id("stFileChip")
        before = await chips.count()
        await self.tab.get_by_test_id("stChatInputFileUploadButton").locator("input").set_input_files(paths)
        await expect(chips).to_have_count(before + len(files))
        # While a file is on its way, nothing can be sent.
        await expect(self.tab.get_by_test_id("stChatInputSubmitButton")).to_be_enabled()

    def answer(self) -> Locator:
        return self.messages.last

    def problem(self) -> Locator:
        return self.answer().locator(".tw-problem:visible")

    def not_asked(self) -> Locator:
        """What waits over the input, since it can't be asked."""
        return self.tab.locator('[class*="st-key-waiting-"]')

    async def open_this_conversation(self) -> None:
        await self.tab.get_by_test_id("stSidebar").get_by_text("This conversation", exact=True).click()
        await expect(self.tab.get_by_role("button", name="JSON")).to_be_visible()
        await self.rested()

    async def photograph(self, name: str) -> None:
        # The sidebar's animations and the fonts have settled by then.
        await self.tab.wait_for_timeout(200)
        await self.tab.screenshot(path=SCREENSHOTS / f"{name}.png")
