"""The Streamlit page of docs/http.md, which reads lines through the edge."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from tests.edge.conftest import Running
from tests.test_readme import blocks
from vertex_emulator import Emulator
from vertex_emulator.script import answer, status

(PAGE,) = blocks("python", (Path(__file__).parents[2] / "docs/http.md").read_text())


async def asked(running: Running) -> AppTest:
    """The page, once its question has been answered."""
    page = AppTest.from_string(PAGE.replace("http://localhost:8080", running.edge.url), default_timeout=30)
    await asyncio.to_thread(page.run)
    await asyncio.to_thread(page.chat_input[0].set_value("What is baseball?").run)
    return page


async def test_the_page_shows_the_whole_answer(running: Running, vertex: Emulator) -> None:
    vertex.script.play(answer("Baseball ", "is a game."))
    page = await asked(running)
    assert [one.value for one in page.markdown] == ["Baseball is a game."]
    assert not page.exception


@pytest.mark.parametrize(
    ("says", "wanted"),
    [
        (answer(status("INVALID_ARGUMENT")), '"reason":"UPSTREAM_REJECTED"'),
        (answer("Base", status("INTERNAL")), "Vertex AI failed"),
    ],
)
async def test_the_page_says_how_an_answer_failed(running: Running, vertex: Emulator, says: Any, wanted: str) -> None:
    vertex.script.play(default=says)
    page = await asked(running)
    assert len(page.exception) == 1
    assert wanted in page.exception[0].message
