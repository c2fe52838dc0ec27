"""The real page, and a real browser to look at it; fixtures for every test that wants them."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from playwright.async_api import BrowserContext, Error, Page, async_playwright

from tests.ports import free_port

SCREENSHOTS = Path(__file__).parents[1] / "build" / "screenshots"

# The sandbox and the GPU aren't there in a container; the rest would talk to the outside.
CHROMIUM_FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

# Waits until the page's script has run to its end, also for what was clicked just now. Streamlit sends the wish for it
# (BackMsg.rerun_script) within a frame or two, and says that the script runs only once its server has said so. A run
# may be for several wishes. One that begins right behind a wish may be for an earlier one alone; then the wish's own
# begins within some time, or never.
SETTLES = """
const WISH = 11 << 3 | 2, SENT_MS = 50, CROSSES_MS = 100, LONGEST_MS = 300, STATE = "data-test-script-state";
let wishes = [], rested = 0; // when they were sent, and when a run has ended
// Before the page's own scripts, and behind a test that puts another WebSocket in its place.
document.addEventListener("readystatechange", () => {
    const send = WebSocket.prototype.send;
    WebSocket.prototype.send = function (message) {
        if (message[0] === WISH) {
            if (settled()) wishes = [];
            wishes.push(performance.now());
        }
        return send.call(this, message);
    };
}, { once: true });
const rests = () => document.querySelector(`[${STATE}]`)?.getAttribute(STATE) === "notRunning";
new MutationObserver((changes) => {
    const now = performance.now();
    for (const { oldValue } of changes) {
        if (oldValue !== "notRunning") continue;
        wishes.shift(); // a run has begun
        wishes = wishes.filter((sent) => now - sent < CROSSES_MS);
    }
    if (rests()) rested = now;
}).observe(document, { subtree: true, attributeFilter: [STATE], attributeOldValue: true });
const settled = () => {
    const since = performance.now() - Math.max(rested, ...wishes);
    return rests() && (!wishes.length || since > LONGEST_MS);
};
const later = () => new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve, SENT_MS)));
window.testSettles = async () => {
    do await later(); while (!settled());
    return true;
};
"""

PageAt = Callable[[str], str]


def wait_for_port(port: int, process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 30
    while True:
        assert process.poll() is None, f"the page ended with {process.returncode}"
        try:
            socket.create_connection(("localhost", port), timeout=1).close()
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        else:
            return


@pytest.fixture(scope="session")
def page_at(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PageAt]:
    """Serve the real page as a process of its own, for the service at an address; gives the page's URL."""
    pages: dict[str, tuple[subprocess.Popen[str], str]] = {}

    def serve(address: str) -> str:
        if address not in pages:
            port = free_port()
            process = subprocess.Popen(
                [sys.executable, "-m", "gateway_ui", "--port", str(port), "--address", address],
                stdout=subprocess.DEVNULL,
                text=True,
                env={**os.environ, "TOKENWIRE_PAGE_DATA": str(tmp_path_factory.mktemp("page"))},
            )
            pages[address] = process, f"http://localhost:{port}"
            wait_for_port(port, process)
        return pages[address][1]

    yield serve
    for process, _ in pages.values():
        process.terminate()
    for process, _ in pages.values():
        process.wait(30)


@asynccontextmanager
async def chromium(profile: Path, *, without: Sequence[str] = ()) -> AsyncIterator[BrowserContext]:
    """Headless Chromium with the profile of this folder, one of its own.

    It keeps Streamlit's scripts there as it has compiled them: a tab takes half of the CPU time then. `without` are
    flags that playwright gives it by itself, and here not.
    """
    executable = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    # Without one playwright takes its own, where `playwright install chromium` has been run.
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch_persistent_context(
            profile,
            executable_path=executable,
            args=CHROMIUM_FLAGS,
            ignore_default_args=without,
            viewport={"width": 1100, "height": 800},
        )
        await browser.add_init_script(f"(() => {{{SETTLES}}})()")
        yield browser
        await browser.close()


@pytest.fixture(scope="session")
async def browser(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[BrowserContext]:
    """One for all tests, with a fresh profile."""
    async with chromium(tmp_path_factory.mktemp("browser")) as browser:
        yield browser


_FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        item.stash[_FAILED] = True
    return report


@pytest.fixture
async def tab(browser: BrowserContext, request: pytest.FixtureRequest) -> AsyncIterator[Page]:
    """A tab of its own. Any address but this machine's fails the test. What stood there when one failed is printed."""
    await browser.clear_cookies()  # it is another person's browser
    tab = await browser.new_page()
    outside: list[str] = []
    tab.on("request", lambda request: None if _is_local(request.url) else outside.append(request.url))
    yield tab
    if request.node.stash.get(_FAILED, False):
        request.node.add_report_section("teardown", "page", await tab.inner_text("body"))
    with suppress(Error):  # it stands nowhere, or is closed
        # Streamlit keeps there whether the drawer stands open: the next test is another person's.
        await tab.evaluate("() => localStorage.clear()")
    await tab.close()
    assert not outside


def _is_local(url: str) -> bool:
    return url.startswith(("http://localhost:", "ws://localhost:", "data:", "blob:", "about:"))
