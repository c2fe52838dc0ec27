"""Merging what waits for its reader."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.calls.coalesce import coalesced
from service.contract.delivery import Coalesce
from service.generation.events import Event, Finished, FinishReason, Started, Text
from service.generation.prompt import Reasoning

FINISHED = Finished(reason=FinishReason.STOP, upstream_reason="STOP", usage=None)


async def upstream(*events: Event | BaseException, taken: list[Event] | None = None) -> AsyncIterator[Event]:
    for event in events:
        if isinstance(event, BaseException):
            raise event
        if taken is not None:
            taken.append(event)
        yield event


async def settle() -> None:
    """Let other tasks run until they have nothing more to do."""
    for _ in range(50):
        await asyncio.sleep(0)


async def test_without_a_wish_every_piece_passes_as_it_comes() -> None:
    source = upstream(Text("a"), Text("b"))
    async with coalesced(source, None) as events:
        assert events is source
        assert [event async for event in events] == [Text("a"), Text("b")]


async def test_what_came_while_the_reader_was_busy_is_merged() -> None:
    async with coalesced(upstream(Started("m"), Text("a"), Text("b"), Text("c"), FINISHED), Coalesce()) as events:
        assert await anext(events) == Started("m")
        await settle()
        assert [event async for event in events] == [Text("abc"), FINISHED]


async def test_a_reader_that_is_quick_gets_each_piece() -> None:
    gate = asyncio.Event()

    async def slow() -> AsyncIterator[Event]:
        yield Text("a")
        await gate.wait()
        yield Text("b")

    async with coalesced(slow(), Coalesce()) as events:
        assert await anext(events) == Text("a")
        gate.set()
        assert await anext(events) == Text("b")


async def test_only_neighbouring_texts_are_merged() -> None:
    source: list[Event] = [Text("a"), Text("b"), Reasoning("hm"), Text("c"), Text("d"), FINISHED]
    async with coalesced(upstream(*source), Coalesce()) as events:
        await settle()
        assert [event async for event in events] == [Text("ab"), Reasoning("hm"), Text("cd"), FINISHED]


async def test_a_piece_is_held_back_no_longer_than_the_delay() -> None:
    async def one() -> AsyncIterator[Event]:
        yield Text("a")
        yield Text("b")
        await asyncio.Event().wait()

    async with coalesced(one(), Coalesce(max_delay=0.01)) as events:
        assert await asyncio.wait_for(anext(events), 5) == Text("ab")


async def test_the_end_is_not_held_back() -> None:
    async with coalesced(upstream(Text("a"), FINISHED), Coalesce(max_delay=1000)) as events:
        assert await asyncio.wait_for(anext(events), 5) == Text("a")
        assert await asyncio.wait_for(anext(events), 5) == FINISHED


async def test_enough_bytes_are_not_held_back() -> None:
    async def endless() -> AsyncIterator[Event]:
        while True:
            yield Text("ab")

    async with coalesced(endless(), Coalesce(max_delay=1000, max_bytes=4)) as events:
        assert await asyncio.wait_for(anext(events), 5) == Text("abab")


@pytest.mark.parametrize("piece", [Text("ab"), Reasoning("ab")])
async def test_a_reader_that_stops_stops_upstream(piece: Text | Reasoning) -> None:
    taken: list[Event] = []
    source = upstream(*[piece] * 1000, taken=taken)
    async with coalesced(source, Coalesce(max_bytes=10)) as events:
        await settle()
        held = len(taken)
        await settle()
        assert len(taken) == held <= 6
        assert (await anext(events)) in (Text("ab" * 5), Reasoning("ab"))


async def test_an_error_comes_behind_the_text_before_it() -> None:
    async with coalesced(upstream(Text("a"), Text("b"), ZeroDivisionError()), Coalesce(max_delay=1000)) as events:
        await settle()
        assert await anext(events) == Text("ab")
        with pytest.raises(ZeroDivisionError):
            await anext(events)


async def test_a_stray_cancelled_error_is_not_taken_for_the_end() -> None:
    async with coalesced(upstream(Text("a"), asyncio.CancelledError()), Coalesce()) as events:
        assert await anext(events) == Text("a")
        with pytest.raises(asyncio.CancelledError):
            await anext(events)


async def test_leaving_ends_the_reading_of_upstream() -> None:
    left = asyncio.Event()

    async def silent() -> AsyncIterator[Event]:
        try:
            yield Text("a")
            await asyncio.Event().wait()
        finally:
            left.set()

    async with coalesced(silent(), Coalesce()) as events:
        await anext(events)
    assert left.is_set()


async def test_two_cancellations_leave_nobody_reading_a_stream_that_is_being_closed() -> None:
    closing, closed = asyncio.Event(), asyncio.Event()

    async def slow_to_end() -> AsyncGenerator[Event, None]:
        try:
            yield Text("a")
            await asyncio.Event().wait()
        finally:
            closing.set()
            await closed.wait()

    source = slow_to_end()

    async def relay() -> None:
        try:
            async with coalesced(source, Coalesce()) as events:
                async for _ in events:
                    pass
        finally:
            await source.aclose()  # raises where somebody still reads it

    relaying = asyncio.ensure_future(relay())
    await settle()
    relaying.cancel()
    await closing.wait()
    relaying.cancel()
    await settle()
    assert not relaying.done()
    closed.set()
    with pytest.raises(asyncio.CancelledError):
        await relaying


async def test_a_cancellation_while_the_reading_of_upstream_ends_is_not_lost() -> None:
    closing, closed = asyncio.Event(), asyncio.Event()

    async def slow_to_end() -> AsyncIterator[Event]:
        try:
            yield Text("a")
            await asyncio.Event().wait()
        finally:
            closing.set()
            await closed.wait()

    async def relay() -> None:
        async with coalesced(slow_to_end(), Coalesce()) as events:
            await anext(events)

    relaying = asyncio.ensure_future(relay())
    await closing.wait()
    relaying.cancel()
    await settle()
    closed.set()
    with pytest.raises(asyncio.CancelledError):
        await relaying


def test_without_further_words_no_piece_is_held_back() -> None:
    assert Coalesce().max_delay == 0


pieces = st.one_of(st.text().map(Text), st.text().map(Reasoning))


@given(source=st.lists(pieces), max_bytes=st.integers(1, 40), pauses=st.lists(st.booleans()))
async def test_whatever_comes_the_text_is_the_same(
    source: Sequence[Text | Reasoning], max_bytes: int, pauses: Sequence[bool]
) -> None:
    got: list[Event] = []
    pause = iter(pauses)
    async with coalesced(upstream(*source, FINISHED), Coalesce(max_bytes=max_bytes)) as events:
        async for event in events:
            got.append(event)
            if next(pause, False):
                await settle()
    assert got[-1] == FINISHED
    assert flat(got) == flat([*source, FINISHED])


def flat(events: Sequence[Event]) -> list[tuple[type[Event], str]]:
    """Letter by letter, with the kind of each; empty pieces have none."""
    return [(type(event), letter) for event in events for letter in getattr(event, "text", "")]
