"""A person who does anything at any time, while the page's process is killed now and then: nothing is lost or doubled.

Each text that is typed has a mark of its own. In the end every mark stands in one place, in the conversation that it
was meant for, and the service was asked with it once, and once more for each Retry.
"""

import contextlib
import random
import re
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Callable, Coroutine, Iterable
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Error, Page, expect

from tests.gateway_ui.chat import Chat
from tests.gateway_ui.test_page_kept import answered, opened, serving
from tests.ports import free_port
from tests.tokenwire.fake_service import FakeService, completed
from tokenwire.v1.content_pb2 import Message
from tokenwire.v1.generation_service_pb2 import GenerateRequest

pytestmark = [pytest.mark.browser, pytest.mark.soak, pytest.mark.timeout(1200)]

STEPS = 250
MARK = re.compile(r"m\d+z")
# What the page knows, whenever it changes.
WATCH = """
    setInterval(() => {
      const input = window.tokenwireInput;
      if (!input) return;
      const { shown, draftOf, held, heading, ahead, pending, back, sent, taken, session } = input;
      const at = new URLSearchParams(location.search).get("c"), text = document.querySelector("textarea")?.value;
      const all = { at, text, shown, draftOf, held, heading, ahead, pending, back, sent, taken, session };
      const now = JSON.stringify(all, (_, value) => /^[0-9a-f-]{32,36}$/.test(value) ? value.slice(0, 6) : value);
      if (now !== window.before) console.debug("walk " + now);
      window.before = now;
    }, 5);
"""
CONNECTED = "document.querySelector('[data-test-connection-state=CONNECTED]')"


class Walk:
    """What has been done, and what is to come of it."""

    def __init__(self, seed: int, service: FakeService) -> None:
        self.rng = random.Random(seed)
        self.service = service
        self.meant: dict[str, str] = {}
        """By mark the id of the conversation that it was typed for; empty: nobody can be sure."""
        self.retries = 0
        self.aim = ""
        """The id of the conversation that is meant now."""
        self.dies = False
        """Whether the page's process is to be killed."""
        self.told: list[str] = []
        self.errors: list[str] = []

    async def takes(self, tab: Page) -> None:
        """Do all that follows in this tab."""
        self.tab = tab
        self.page = Chat(tab)
        tab.on("console", lambda said: self.told.append(said.text) if said.text.startswith("walk") else None)
        tab.on("pageerror", lambda error: self.errors.append(str(error)))
        await tab.add_init_script(WATCH)

    async def step(self) -> None:
        steps: list[tuple[int, Callable[[], Coroutine[Any, Any, None]]]] = [
            (38, self.asks), (6, self.types), (10, self.begins), (12, self.opens), (4, self.reloads),
            (3, self.comes_again), (6, self.back), (4, self.forward), (5, self.stops), (4, self.retries_),
            (6, self.minds), (5, self.kills),
        ]  # fmt: skip
        (do,) = self.rng.choices([do for _, do in steps], [weight for weight, _ in steps])
        self.told.append(f"m{len(self.meant) + 1}z {do.__name__.strip('_')} {self.aim[:6]}")
        await do()
        if not self.rng.randrange(3):
            await self.tab.wait_for_timeout(self.rng.choice([50, 300, 1000]))

    async def writes(self, words: str) -> None:
        mark = f"m{len(self.meant) + 1}z"
        self.meant[mark] = self.aim
        await self.page.input.click()
        await self.tab.keyboard.type(f"{mark} {words} ", delay=self.rng.choice([0, 5, 20]))

    async def asks(self) -> None:
        gap = self.rng.choice([0, 0, 0.05, 0.4])
        self.service.will_answer(*(["Base"] if gap else []), f"ball costs $5, gap {gap}.", completed())
        await self.writes("What?")
        await self.tab.keyboard.press("Enter")

    async def types(self) -> None:
        await self.writes("draft")

    async def clicks(self, selector: str) -> bool:
        found = self.tab.locator(selector)
        with contextlib.suppress(Error):  # it has gone meanwhile
            if count := await found.count():
                await found.nth(self.rng.randrange(count)).click(timeout=3000)
                return True
        return False

    async def begins(self) -> None:
        self.aim = ""
        await self.clicks(".st-key-new button")

    async def listed(self) -> list[str]:
        """The ids of the conversations in the list."""
        classes = "all => all.flatMap((one) => [...one.classList]).filter((name) => name.startsWith('st-key-open-'))"
        found: list[str] = await self.tab.locator('.st-key-conversations [class*="st-key-open-"]').evaluate_all(classes)
        return [name.removeprefix("st-key-open-") for name in found]

    async def opens(self) -> None:
        self.aim = ""
        if (ids := await self.listed()) and await self.clicks(f".st-key-open-{(id_ := self.rng.choice(ids))} button"):
            # While the page isn't reachable, Streamlit's buttons are disabled, in the middle of a click, too.
            heard = await self.tab.evaluate("window.tokenwireInput?.ahead")
            self.aim = id_ if heard == id_ else ""

    async def reloads(self) -> None:
        self.aim = ""
        await self.tab.reload()

    async def comes_again(self) -> None:
        """Close the tab, and open another one."""
        self.aim = ""
        address = self.tab.url
        context = self.tab.context
        await self.tab.close()
        await self.takes(await context.new_page())
        await self.tab.goto(address)

    async def goes(self, way: str) -> None:
        """One step through the history, if it doesn't lead away from the page."""
        self.aim = ""
        step = way.capitalize()
        await self.tab.evaluate(f"if (navigation.canGo{step}) history.{way}()")
        await self.tab.wait_for_timeout(100)

    async def back(self) -> None:
        await self.goes("back")

    async def forward(self) -> None:
        await self.goes("forward")

    async def stops(self) -> None:
        await self.clicks('[class*="st-key-stop-"] button')

    async def retries_(self) -> None:
        self.retries += await self.clicks('[class*="st-key-retry-"] button')

    async def minds(self) -> None:
        """Of what waits, something is not to be asked, or now."""
        await self.clicks('[class*="st-key-waiting-"] button')

    async def kills(self) -> None:
        self.aim = ""
        self.dies = True

    async def stands(self, data: Path) -> dict[str, list[tuple[str, str]]]:
        """By mark, where it stands: as what, and the id of the conversation. `data`: where the page keeps all."""
        found: dict[str, list[tuple[str, str]]] = defaultdict(list)

        def see(kind: str, id_: str, texts: Iterable[str]) -> None:
            for mark in MARK.findall("\n".join(texts)):
                found[mark].append((kind, id_))

        for id_ in [*await self.listed()]:
            await self.tab.locator(f".st-key-open-{id_} button").click()
            await self.tab.wait_for_function(f"location.search.includes('{id_}')")
            await expect(self.tab.locator(f".st-key-open-{id_}").get_by_test_id("stBaseButton-primary")).to_be_visible()
            await self.page.settled()
            see("waits", id_, await self.page.not_asked().all_inner_texts())
            see("dropped", id_, await self.tab.locator(".st-key-undroppable").all_inner_texts())
        # Those of conversations in which nothing was asked are in no list.
        drafts = "Object.entries(sessionStorage).filter(([key]) => key.startsWith('tokenwire-draft:question-'))"
        for key, text in await self.tab.evaluate(drafts):
            see("draft", key.removeprefix("tokenwire-draft:question-"), [text])
        # The page shows one version of each question, and what follows it.
        with contextlib.closing(sqlite3.connect(data / "page.sqlite3")) as base:
            rows = base.execute(
                "SELECT conversation.id, exchange.parent, question FROM exchange"
                " JOIN asked ON asked.exchange = exchange.key JOIN conversation ON conversation.key = conversation"
            )
            for id_, _, text in {(*row[:2], Message.FromString(row[2]).parts[0].text) for row in rows}:
                see("asked", id_, [text])
        return found


def marks(request: GenerateRequest) -> list[str]:
    return MARK.findall("".join(part.text for part in request.messages[-1].parts))


@pytest.mark.parametrize("seed", range(4))
async def test_whatever_is_done_nothing_is_lost_doubled_or_in_another_conversation(
    tab: Page, service: FakeService, tmp_path: Path, seed: int
) -> None:
    port = free_port()
    url = f"http://localhost:{port}"
    walk = Walk(seed, service)
    await walk.takes(tab)
    left = STEPS
    with serving(port, service.address, tmp_path):
        page = await opened(tab, url)
        await answered(page, "Hello")
    while left:
        with serving(port, service.address, tmp_path):
            if walk.rng.random() < 0.7:
                await walk.tab.wait_for_function(CONNECTED, polling=10)
            walk.dies = False
            while left and not walk.dies:
                left -= 1
                await walk.step()
            if not left:
                await walk.tab.wait_for_function(CONNECTED)
                await walk.tab.wait_for_timeout(12_000)  # what a browser holds to be lost it has for ten seconds
                stands = await walk.stands(tmp_path)
    wrong = [
        (mark, f"for {meant}", stands[mark])
        for mark, meant in walk.meant.items()
        if len(stands[mark]) != 1 or (meant and stands[mark][0][1] != meant)
    ]
    assert not wrong, "\n".join([*map(str, wrong), *walk.told])
    assert not walk.errors
    await walk.tab.close()
    # A question goes on with what was typed before it: one call has several marks then.
    asked = Counter(tuple(marks(request)) for request in service.requests if marks(request))
    assert asked.total() - len(asked) <= walk.retries
