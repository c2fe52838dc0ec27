"""The page in deploy/web, built and served as docs/http.md says, in a real browser: gRPC-Web by connect-web."""

import asyncio
import re
import shlex
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from playwright.async_api import Page, expect

from tests.edge.conftest import Edge, Running, running_edge
from tests.ports import free_port
from tests.test_readme import blocks, run
from vertex_emulator.emulator import Emulator
from vertex_emulator.script import answer, silence, status, wait_for

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "deploy/web"
BUILD, SERVE, EDGE = next(
    block.splitlines() for block in blocks("bash", (ROOT / "docs/http.md").read_text()) if "deploy/web" in block
)
"""The three commands of docs/http.md."""

# npm fetches what it hasn't kept, once for all tests here.
pytestmark = [pytest.mark.browser, pytest.mark.process, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
async def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh clone, as far as the page needs it, in which it has been built."""
    clone = tmp_path_factory.mktemp("clone")
    shutil.copy(ROOT / "buf.yaml", clone)
    shutil.copytree(ROOT / "protos", clone / "protos")
    shutil.copytree(SOURCES, clone / "deploy/web", ignore=shutil.ignore_patterns("node_modules", "build"))
    await run("sh", "-ec", BUILD, cwd=clone)
    return clone


@asynccontextmanager
async def serving(clone: Path) -> AsyncIterator[str]:
    """Serve the page as its documentation says, on a free port; gives its origin."""
    port = free_port()
    python, *arguments = shlex.split(SERVE.replace("8000", str(port)), comments=True)
    assert python == "python3"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-u", *arguments), cwd=clone, stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(60):
            assert b"Serving HTTP" in await process.stdout.readline()
        yield f"http://localhost:{port}"
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()


@dataclass(frozen=True)
class Shown:
    """A page of one origin, and an edge of another that lets it call."""

    origin: str
    edge: Edge

    async def ask(self, tab: Page, edge: Edge | None = None) -> None:
        """Open the page, and ask its question of that edge, or of its own."""
        await tab.goto(self.origin)
        await tab.get_by_label("Service").fill((edge or self.edge).url)
        await tab.get_by_role("button", name="Ask").click()


@pytest.fixture(scope="module")
async def shown(clone: Path, running: Running) -> AsyncIterator[Shown]:
    async with serving(clone) as origin:
        _, _, *flags = shlex.split(EDGE.replace("http://localhost:8000", origin), comments=True)
        async with running_edge(*flags, "--replica", running.service) as edge:
            yield Shown(origin, edge)


async def test_words_are_shown_while_the_model_writes(shown: Shown, vertex: Emulator, tab: Page) -> None:
    vertex.script.play(answer("Baseball ", wait_for("rest"), "is a game."))
    await shown.ask(tab)
    await expect(tab.locator("output")).to_have_text("Baseball ")
    assert [call.waiting_for for call in vertex.open_calls] == ["rest"]
    vertex.open_gate("rest")
    await expect(tab.locator("output")).to_have_text("Baseball is a game.")
    await expect(tab.locator("#state")).to_have_text("Done: STOP")
    assert len(vertex.calls) == 1


@pytest.mark.parametrize(
    ("upstream", "told"),
    [
        ("INTERNAL", r"Failed: Internal - UPSTREAM_FAULT \{.*\} - .*Vertex"),
        ("UNAVAILABLE", r'Failed: Unavailable - UPSTREAM_UNAVAILABLE \{.*"last_sequence":"1".*\} - .*Vertex'),
    ],
)
async def test_an_error_in_the_middle_is_told_with_its_details(
    shown: Shown, vertex: Emulator, tab: Page, upstream: str, told: str
) -> None:
    vertex.script.play(answer("Half of ", wait_for("trouble"), status(upstream)))
    await shown.ask(tab)
    await expect(tab.locator("output")).to_have_text("Half of ")
    vertex.open_gate("trouble")
    await expect(tab.locator("#state")).to_have_text(re.compile(told))
    await expect(tab.locator("output")).to_have_text("Half of ")


async def test_an_error_before_the_first_word_is_told_with_its_details(
    shown: Shown, vertex: Emulator, tab: Page
) -> None:
    """Here the status comes in headers, which the browser shows to a page of another origin only where it may."""
    vertex.script.play(default=answer(status("INVALID_ARGUMENT")))
    await shown.ask(tab)
    told = re.compile(r"Failed: InvalidArgument - UPSTREAM_REJECTED \{.*\} - .*refused")
    await expect(tab.locator("#state")).to_have_text(told)


@pytest.mark.parametrize("leave", ["stop", "close", "ask again"])
async def test_who_stops_or_closes_the_tab_or_asks_again_cancels_upstream(
    shown: Shown, vertex: Emulator, tab: Page, leave: str
) -> None:
    vertex.script.play(answer("Baseball ", silence()), answer("Another."))
    await shown.ask(tab)
    await expect(tab.locator("output")).to_have_text("Baseball ")
    assert vertex.open_calls
    if leave == "stop":
        await tab.get_by_role("button", name="Stop").click()
        await expect(tab.locator("#state")).to_have_text("Stopped")
    elif leave == "close":
        await tab.close()
    else:
        await tab.get_by_role("button", name="Ask").click()
        await expect(tab.locator("output")).to_have_text("Another.")
        await expect(tab.locator("#state")).to_have_text("Done: STOP")
    await vertex.wait_until(lambda emulator: not emulator.open_calls)
    assert vertex.calls[0].code is grpc.StatusCode.CANCELLED
    assert len(vertex.calls) == (2 if leave == "ask again" else 1)


async def test_who_leaves_the_page_cancels_upstream(shown: Shown, vertex: Emulator, kept_tab: Page) -> None:
    vertex.script.play(answer("Baseball ", silence()))
    await shown.ask(kept_tab)
    await expect(kept_tab.locator("output")).to_have_text("Baseball ")
    await kept_tab.goto(f"{shown.origin}/main.js")
    await vertex.wait_until(lambda emulator: not emulator.open_calls)
    assert [call.code for call in vertex.calls] == [grpc.StatusCode.CANCELLED]


async def test_an_origin_that_is_not_allowed_can_not_call(
    shown: Shown, edge: Edge, vertex: Emulator, tab: Page
) -> None:
    """That edge lets another origin call, and not this one."""
    await shown.ask(tab, edge)
    await expect(tab.locator("#state")).to_have_text(re.compile("Failed: .*fetch"))
    assert vertex.calls == ()


def test_it_is_short() -> None:
    assert sum(len((SOURCES / name).read_text().splitlines()) for name in ("index.html", "main.js")) < 60


def test_what_is_installed_is_pinned_and_comes_from_wherever_the_registry_is() -> None:
    lock = (SOURCES / "package-lock.json").read_text()
    assert lock.count('"integrity": "sha512-') == lock.count('"node_modules/')
    assert "://" not in lock
