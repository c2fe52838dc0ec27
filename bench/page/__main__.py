"""`python -m bench.page`: how fast, how smooth and how frugal the page is. Ten minutes; writes nothing.

`first` and `long` look at one real browser. A delay is an upper bound: from Enter until the first words are visible,
less the time for which the page itself has waited for the first chunk (it says so under the answer). So the way of the
question is in it.

`many` has one real browser among sessions that draw nothing: twenty browsers that draw by software on the page's own
cores measure themselves. Each word says when the service sent it, so its delay is all of the way, the page's gRPC
included: to the frame in the browser, to the websocket in a session.

`memory` uses such a session alone.
"""

import argparse
import asyncio
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from playwright.async_api import Browser, Page, async_playwright

from bench.page.sessions import Session
from bench.page.stamped import question
from bench.processes import BenchError, cpu_seconds, environment, memory_bytes, started, tree
from gateway_ui.drawing.reader import COOKIE
from vertex_emulator import ControlClient
from vertex_emulator.script import answer, delay, repeat, usage

WORDS = 20_000
CHUNKS_PER_SECOND = 100
WORDS_PER_CHUNK = 5
BROWSERS = 20
MANY_ROUNDS = 3
MANY_WORDS = 300
MANY_CHUNKS_PER_SECOND = 20
MEMORY_WORDS = 200

_FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")
_FIRST_CHUNK_SECONDS = 1.0
_READY_SECONDS = 60

# Told by the browser: how far apart its frames are, and when the first word could be read.
_WATCH = """
() => {
    const seen = {first: 0, before: 0, gaps: [], long: []};
    new PerformanceObserver((list) => {
        for (const one of list.getEntries()) seen.long.push(one.duration);
    }).observe({type: "long-animation-frame"});
    let before = performance.now();
    const look = (now) => {
        seen.gaps.push(now - before);
        before = now;
        const words = document.querySelectorAll('[class*=st-key-words-]');
        if (!seen.first && words.length > seen.before && words[words.length - 1].innerText.includes("word")) {
            seen.first = now;
        }
        requestAnimationFrame(look);
    };
    requestAnimationFrame(look);
    window.addEventListener("keydown", (event) => {
        if (event.key !== "Enter") return;
        const before = document.querySelectorAll('[class*=st-key-words-]').length;
        Object.assign(seen, {first: 0, gaps: [], long: [], before, entered: performance.now()});
    }, true);
    window.seen = seen;
}
"""


# Told by the browser: how old each word is when it is drawn, by the time that is written in it.
_AGES = r"""
() => {
    let last = 0;
    const look = () => {
        const words = [...document.querySelectorAll('[class*=st-key-words-]')].pop()?.textContent ?? "";
        const now = Date.now();
        for (const [, number, sent] of words.matchAll(/word(\d+)@(\d{13})/g)) {
            if (number > last && sent >= window.entered) {
                window.ages.push(now - sent);
                last = Number(number);
            }
        }
        requestAnimationFrame(look);
    };
    window.addEventListener("keydown", (event) => {
        if (event.key !== "Enter") return;
        Object.assign(window, {ages: [], entered: Date.now()});
        last = 0;
    }, true);
    Object.assign(window, {ages: [], entered: Infinity});
    requestAnimationFrame(look);
}
"""


@contextmanager
def page(address: str) -> Iterator[tuple[int, str]]:
    """The page for the service there: its process id and its URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="tokenwire-bench-") as folder:
        process = subprocess.Popen(
            [sys.executable, "-m", "gateway_ui", "--port", str(port), "--address", address],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment({"TOKENWIRE_PAGE_DATA": folder}),
        )
        try:
            give_up = time.monotonic() + _READY_SECONDS
            while time.monotonic() < give_up:
                try:
                    socket.create_connection(("localhost", port), timeout=1).close()
                    break
                except OSError:
                    time.sleep(0.05)
            else:
                raise BenchError("the page did not start")
            yield process.pid, f"http://localhost:{port}"
        finally:
            process.terminate()
            process.wait(30)


async def opened(browser: Browser, url: str) -> Page:
    """The page in a browser of its own."""
    tab = await (await browser.new_context(viewport={"width": 1100, "height": 800})).new_page()
    await tab.goto(url)
    await tab.get_by_test_id("stChatInputTextArea").wait_for()
    await tab.get_by_text("Connected to").wait_for()
    await tab.evaluate(_WATCH)
    return tab


async def asked(tab: Page, question: str = "Tell me.") -> None:
    box = tab.get_by_test_id("stChatInputTextArea")
    await box.fill(question)
    await box.press("Enter")


async def done(tab: Page, count: int = 1, *, seconds: float = 60) -> dict[str, Any]:
    """What the browser has seen, once the last answer has ended."""
    figures = tab.locator(".tw-figures:not([data-running])", has_text=re.compile("tokens? in"))
    await figures.nth(count - 1).wait_for(timeout=1000 * seconds)
    seen: dict[str, Any] = await tab.evaluate("() => seen")
    said = await figures.nth(count - 1).inner_text()
    found = re.search(r"first chunk ([\d.]+) (m?s)", said)
    if found is None:
        raise BenchError(f"no first chunk in {said!r}")
    first = float(found[1]) * (1 if found[2] == "ms" else 1000)
    return {**seen, "delay": seen["first"] - seen["entered"] - first}


async def first_words(control: ControlClient, browser: Browser, url: str, count: int) -> None:
    control.reset()
    control.play(default=answer(delay(_FIRST_CHUNK_SECONDS), repeat(20, "word ", interval=0.01), usage=usage(1, 20)))
    tab = await opened(browser, url)
    delays = []
    for number in range(1, count + 1):
        await asked(tab)
        delays.append((await done(tab, number))["delay"])
    print(
        f"first words after the first chunk: {statistics.median(delays):.0f} ms, at most {max(delays):.0f} of {count}"
    )
    await tab.context.close()


# An answer that is one block: what it begins with, and each chunk.
BLOCKS = {
    "list": ("", "- word word word end.\n"),
    "code": ("```python\n", "word = word(word, 'end')\n"),
    "table": ("| word | words |\n|-|-|\n", "| word | word word end |\n"),
}


async def long_answer(control: ControlClient, browser: Browser, url: str, pid: int, block: str = "") -> None:
    control.reset()
    chunks = WORDS // WORDS_PER_CHUNK
    piece = "word " * (WORDS_PER_CHUNK - 1) + "end. "
    paragraph = repeat(40, piece, interval=1 / CHUNKS_PER_SECOND)
    steps = [step for _ in range(chunks // 40) for step in (paragraph, "\n\n")]
    if block:
        begin_of_block, piece = BLOCKS[block]
        steps = [*filter(None, [begin_of_block]), repeat(chunks, piece, interval=1 / CHUNKS_PER_SECOND)]
    control.play(default=answer(*steps, usage=usage(1, WORDS)))
    tab = await opened(browser, url)
    before, begin = cpu_seconds(tree(pid)), time.monotonic()
    await asked(tab)
    seen = await done(tab, seconds=300)
    seconds = time.monotonic() - begin
    share = (cpu_seconds(tree(pid)) - before) / seconds
    gaps = sorted(seen["gaps"])
    print(
        f"{f'one {block} of {chunks} chunks' if block else f'{WORDS} words'} at {CHUNKS_PER_SECOND} chunks/s: "
        f"{seconds:.0f} s, the page's process {share:.0%} of a core; "
        f"{len(gaps)} frames, longest gap {gaps[-1]:.0f} ms, over 100 ms: {sum(gap > 100 for gap in gaps)}; "
        f"long animation frames over 100 ms: {sum(one > 100 for one in seen['long'])}, "
        f"longest {max(seen['long'], default=0):.0f} ms"
    )
    await tab.context.close()


async def many(browser: Browser) -> None:
    with started("service", "-m", "bench.page.stamped") as service, page(service.address) as (pid, url):
        tab = await opened(browser, url)
        await tab.evaluate(_AGES)
        sessions = [await Session.opened(url, COOKIE) for _ in range(BROWSERS - 1)]
        told = question(MANY_WORDS, 1 / MANY_CHUNKS_PER_SECOND, 0)
        for number in range(1, MANY_ROUNDS + 1):
            before, begin = cpu_seconds(tree(pid)), time.monotonic()
            await asyncio.gather(asked(tab, told), *(one.ask(told) for one in sessions))
            await asyncio.gather(done(tab, number), *(one.answered() for one in sessions))
            share = (cpu_seconds(tree(pid)) - before) / (time.monotonic() - begin)
            heard = [one.delays for one in sessions]
            if any(len(delays) != MANY_WORDS for delays in heard):
                raise BenchError(f"of {MANY_WORDS} words came {[len(delays) for delays in heard]}")
            drawn = [one / 1000 for one in await tab.evaluate("() => ages")]
            ways = [one.first - one.asked_at for one in sessions]
            print(
                f"{BROWSERS} ask at once, {MANY_CHUNKS_PER_SECOND} chunks/s each: "
                f"the first word {_spread([delays[1] for delays in heard])}, "
                f"every word {_spread([one for delays in heard for one in delays.values()])}; "
                f"in the browser the first {1000 * drawn[0]:.0f} ms, every {_spread(drawn)}; "
                f"from the question to the first word {_spread(ways)}; the page's process {share:.0%} of a core"
            )
        for one in sessions:
            await one.close()
        await tab.context.close()


def _spread(seconds: Sequence[float]) -> str:
    """Median, 99th percentile and most, in milliseconds."""
    found = sorted(1000 * one for one in seconds)
    return f"{found[len(found) // 2]:.0f} / {found[len(found) * 99 // 100]:.0f} / {found[-1]:.0f} ms"


async def memory(answers: int, *, each: int) -> None:
    """After so many answers in one tab, in conversations of `each` answers."""
    found = {}
    with started("service", "-m", "bench.page.stamped") as service, page(service.address) as (pid, url):
        one = await Session.opened(url, COOKIE)
        for number in range(1, answers + 1):
            await one.ask(question(MEMORY_WORDS, 0, 0))
            await one.answered()
            if number in (20, 100, 200, 400):
                found[number] = memory_bytes(tree(pid)) / 2**20
            if number % each == 0:
                await one.begin_anew()
        await one.close()
    said = ", ".join(f"{number}: {value:.0f} MB" for number, value in found.items())
    print(f"memory after so many answers, {each} in a conversation: {said}")


async def run(only: str, *, answers: int = 10) -> None:
    """Measure all, or `only` this; `answers`: of so many the first words."""
    executable = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    with (
        started("upstream", "-m", "vertex_emulator", "--mind", "script", "--port", "0") as upstream,
        started("service", "-m", "service", "--emulator", upstream.address, "--port", "0", "--workers", "1") as service,
        page(service.address) as (pid, url),
        ControlClient(upstream.address) as control,
    ):
        async with async_playwright() as playwright:
            browser = await playwright.chromium.launch(executable_path=executable, args=_FLAGS)
            if only in ("", "first"):
                await first_words(control, browser, url, answers)
            if only in ("", "long"):
                await long_answer(control, browser, url, pid)
            for block in BLOCKS:
                if only in ("", block):
                    await long_answer(control, browser, url, pid, block)
            if only in ("", "many"):
                await many(browser)
            await browser.close()
    if only in ("", "memory"):
        await memory(400, each=10)
        await memory(200, each=200)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m bench.page", description="Measure the page in a real browser.")
    parser.add_argument("only", nargs="?", default="", choices=["", "first", "long", *BLOCKS, "many", "memory"])
    asyncio.run(run(parser.parse_args().only))
