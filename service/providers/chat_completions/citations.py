"""What an answer rests on, as servers of Chat Completions tell it. No I/O."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ...generation import json_values
from ...generation.events import Grounding, Source, Support
from ..foreign_json import Json, plain

_WIDE = re.compile("[\U00010000-\U0010ffff]")
"""What counts as two in UTF-16, as JavaScript counts."""

FIELDS = frozenset({"annotations", "citations", "search_results", "context"})
"""Of a chunk, a choice or a message."""

_NESTED = ("url_citation", "file_citation", "container_file_citation", "file_path")
_URIS = ("url", "uri", "link", "file_id", "filepath", "id")
_TITLES = ("title", "filename", "name")
"""The fields by which a source is told, the best first."""


def pages(told: Any) -> Grounding | None:
    """Pages and documents that somebody lists, as xAI, Perplexity and Azure do; None: nothing."""
    cited = list(_each(told))
    if isinstance(told, Mapping) and not any(map(_source, cited)):
        cited = list(told.values())  # by their numbers, or their names
    sources = tuple(filter(None, map(_source, cited)))
    return Grounding(sources=sources) if sources else None


def annotations(told: Any, text: Callable[[], str]) -> Grounding | None:
    """Those of a message, as OpenAI tells them; None: nothing. `text`: the answer's so far, for their places in it."""
    found = [(source, _inner(one)) for one in _each(told) if (source := _source(one))]
    if not found:
        return None
    return Grounding(
        sources=tuple(source for source, _ in found),
        supports=tuple(_supports(text(), [cited for _, cited in found])),
    )


def listed(holder: Json) -> Iterator[Any]:
    """What an object of the protocol, be it a chunk, a choice or a message, lists as pages; some say it twice."""
    yield holder.get("search_results") or holder.get("citations")  # the same pages, those with titles first
    if isinstance(context := holder.get("context"), Mapping):  # Azure's, where it answers from the owner's data
        yield context.get("citations")


def _each(told: Any) -> Sequence[Any]:
    """Several of them, or the only one."""
    if isinstance(told, list | tuple):
        return told
    return [told] if isinstance(told, str | Mapping) and told else ()


def _inner(cited: Any) -> Json:
    """The citation itself, which OpenAI has inside of an object that tells its type, and others flat beside that."""
    if not isinstance(cited, Mapping):
        return {}
    nested = (cited.get(name) for name in _NESTED)
    return next((one for one in nested if isinstance(one, Mapping)), cited)


def _source(cited: Any) -> Source | None:
    """None where neither an address nor a title is told."""
    if not isinstance(cited, Mapping):
        return Source(uri=uri) if (uri := plain(cited)) else None
    inner = _inner(cited)
    uri, title = (next(filter(None, (plain(inner.get(name)) for name in names)), "") for names in (_URIS, _TITLES))
    return Source(uri=uri, title=title) if uri or title else None


def _supports(text: str, cited: Sequence[Mapping[str, Any]]) -> Iterator[Support]:
    """What rests on each of these. Its place in the text is counted in characters there, and in bytes here.

    Not told where it can't be meant, nor behind a character that some count as two.
    """
    wide = None if text.isascii() else _WIDE.search(text)
    certain = wide.start() if wide else len(text)
    for source, one in enumerate(cited):
        start, end = json_values.count(one.get("start_index")), json_values.count(one.get("end_index"))
        if start is None or end is None or not start < end <= certain:
            yield Support(text="", sources=(source,))
            continue
        begin, words = _bytes(text, start), text[start:end]
        yield Support(text=words, sources=(source,), start=begin, end=begin + len(words.encode()))


def _bytes(text: str, characters: int) -> int:
    """How many bytes so many characters are."""
    return characters if text.isascii() else len(text[:characters].encode())
