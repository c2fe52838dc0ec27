"""What an answer of Gemini rests on: sources and citations, at their places in its text. No I/O.

As `answers.py` has it: what can't be read is read past, since nothing of the answer is lost by that.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ...generation import json_values
from ...generation.events import Grounding, Source, Support
from ..foreign_json import is_object, list_or_empty, object_or_empty, plain
from .prompts import Json

_LONGEST_CITED_CHARACTERS = 128 * 1024
_MOST_PLACED = 500
"""Of an answer whose text is looked at for the places of what rests on sources: each costs some 30 us then."""


class Said:
    """The answer's text so far, in which Gemini tells the places of what rests on sources."""

    def __init__(self) -> None:
        self._pieces: list[str] | None = []
        """None: it is not looked at any more."""
        self._length = 0
        self._placed = 0
        """How many supports have been looked for."""

    def add(self, piece: str) -> None:
        """More of it has come."""
        self._length += len(piece)
        if self._length > _LONGEST_CITED_CHARACTERS:
            self._pieces = None
        if self._pieces is not None:
            self._pieces.append(piece)

    def placed(self, supports: Sequence[tuple[Support, int]]) -> tuple[Support, ...]:
        """Each at its place in the text; Gemini tells it in one of the answer's parts, of whichever message."""
        if not supports:
            return ()
        self._placed += len(supports)
        if self._placed > _MOST_PLACED:
            self._pieces = None
        whole = "".join(self._pieces or ()).encode(errors="surrogatepass")
        return tuple(_placed(support, part, whole) for support, part in supports)


def _placed(support: Support, part: int, whole: bytes) -> Support:
    """At the place where its own words stand in the text, if there is but one; else as told, or not told.

    Which part is which, where an answer comes in many messages, nobody says; a place in the first is one in the text.
    """
    words = support.text.encode(errors="surrogatepass")
    if words and not part and whole[support.start : support.end] == words:
        return support
    start = whole.find(words) if words else -1
    if start >= 0 and whole.find(words, start + 1) < 0:
        return replace(support, start=start, end=start + len(words))
    return replace(support, start=None, end=None) if part else support


class Sources:
    """What the answer rests on, as far as it has been told. Sources may come before or behind what rests on them."""

    def __init__(self) -> None:
        self._all: tuple[Source, ...] = ()
        self._early: tuple[tuple[Support, int], ...] = ()
        """Those whose sources have not come."""

    def grounding(self, candidate: Json, text: Said, *, last: bool) -> Grounding | None:
        """What this message tells of it, with all the sources that its supports point to; None: nothing.

        `text` is the answer's so far; `last`: no more sources will come.
        """
        found = object_or_empty(candidate.get("groundingMetadata"))
        sources = tuple(map(_source, list_or_empty(found.get("groundingChunks"))))
        queries = tuple(
            words
            for name in ("webSearchQueries", "retrievalQueries")
            for one in list_or_empty(found.get(name))
            if (words := plain(one))
        )
        supports = tuple(map(_support, filter(is_object, list_or_empty(found.get("groundingSupports")))))
        # All so far, told again, or some more.
        self._all = sources if sources[: len(self._all)] == self._all else self._all + sources
        again = set(supports)
        supports = (*(one for one in self._early if one not in again), *supports)
        early = () if last else (place for place, (one, _) in enumerate(supports) if _highest(one) >= len(self._all))
        ready = next(iter(early), len(supports))
        supports, self._early = supports[:ready], supports[ready:]
        told = text.placed(supports)
        if max(map(_highest, told), default=-1) >= len(sources):
            sources = self._all
        # What points beyond all sources points to nothing.
        told = tuple(
            replace(one, sources=tuple(place for place in one.sources if place < len(sources))) for one in told
        )
        grounding = Grounding(sources=sources, supports=told, queries=queries)
        return None if grounding == Grounding() else grounding


def citations(candidate: Json) -> Iterator[Grounding]:
    """The works that a message cites."""
    if cited := list(
        filter(is_object, list_or_empty(object_or_empty(candidate.get("citationMetadata")).get("citations")))
    ):
        yield Grounding(
            sources=tuple(
                Source(uri=plain(one.get("uri")), title=plain(one.get("title")), license=plain(one.get("license")))
                for one in cited
            ),
            supports=tuple(
                Support(text="", sources=(place,), start=_index(one, "startIndex", 0), end=_index(one, "endIndex"))
                for place, one in enumerate(cited)
            ),
        )


def _source(chunk: Any) -> Source:
    """One that can't be read keeps its place: others are pointed to by theirs."""
    kinds = [value for value in object_or_empty(chunk).values() if isinstance(value, Mapping)]
    told = kinds[0] if kinds else {}
    return Source(uri=plain(told.get("uri")), title=plain(told.get("title")))


def _support(support: Json) -> tuple[Support, int]:
    """With its place in a part, and that part's number."""
    segment = object_or_empty(support.get("segment"))
    told = Support(
        text=plain(segment.get("text")),
        sources=tuple(
            one for one in list_or_empty(support.get("groundingChunkIndices")) if json_values.count(one) is not None
        ),
        start=_index(segment, "startIndex", 0) if segment else None,
        end=_index(segment, "endIndex"),
    )
    return told, json_values.count(segment.get("partIndex")) or 0


def _highest(support: Support) -> int:
    return max(support.sources, default=-1)


def _index(holder: Json, field: str, default: int | None = None) -> int | None:
    """One that upstream can't mean is as good as none."""
    return json_values.count(holder.get(field, default))
