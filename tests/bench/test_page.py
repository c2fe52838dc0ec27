"""A session without a browser sees what the page writes to one. No time is judged."""

import re
from collections.abc import AsyncIterator, Iterator

import pytest

from bench.page.__main__ import page, run
from bench.page.sessions import Session
from bench.page.stamped import question
from bench.processes import BenchError, Process, started
from gateway_ui.drawing.reader import COOKIE


@pytest.fixture(scope="module")
def service() -> Iterator[Process]:
    with started("service", "-m", "bench.page.stamped") as process:
        yield process


@pytest.fixture(scope="module")
def url(service: Process) -> Iterator[str]:
    with page(service.address) as (_, url):
        yield url


@pytest.fixture
async def session(url: str) -> AsyncIterator[Session]:
    session = await Session.opened(url, COOKIE)
    yield session
    await session.close()


async def test_every_word_comes_once_and_has_its_age(session: Session) -> None:
    await session.ask(question(100, 0.001, 0))
    await session.answered()
    assert sorted(session.delays) == [*range(1, 101)]
    # Its time is in whole milliseconds.
    assert all(delay > -0.001 for delay in session.delays.values())


async def test_the_words_of_an_earlier_answer_are_not_those_of_the_next(session: Session) -> None:
    for words in (50, 10):
        await session.ask(question(words, 0, 0))
        await session.answered()
        assert len(session.delays) == words
    await session.begin_anew()
    await session.ask(question(3, 0, 0))
    await session.answered()
    assert len(session.delays) == 3


async def test_a_large_message_comes_once_and_is_referred_to_later(session: Session) -> None:
    await session.ask(f"{question(1, 0, 0)} {'x' * 20_000}")
    await session.answered()
    before, referred = session.bytes, session.references
    await session.ask(question(1, 0, 0))
    await session.answered()
    assert session.references > referred
    assert session.bytes - before < 45_000


async def test_what_the_page_does_not_answer_is_told(session: Session) -> None:
    await session.ask("no such question")
    with pytest.raises(BenchError, match="no answer"):
        await session.answered()


@pytest.mark.browser
async def test_a_browser_tells_when_the_first_words_could_be_read(capsys: pytest.CaptureFixture[str]) -> None:
    await run("first", answers=2)
    assert re.fullmatch(r"first words after the first chunk: \d+ ms, at most \d+ of 2\n", capsys.readouterr().out)
