"""What an answer rests on, as servers of Chat Completions tell it. No I/O."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ...generation import json_values
from ...generation.events import Grounding, Source, Support
from .foreign_json import json_list, plain

_WIDE = re.compile("[\U00010000-\U0010ffff]")
"""What counts as two in UTF-16, as JavaScript counts."""


def pages(told: Any) -> Grounding | None:
    """Addresses of pages, as xAI and Perplexity tell them; None: nothing. Each chunk may tell all of them again."""
    cited = told if isinstance(told, Sequence) and not isinstance(told, str) else ()
    sources = tuple(Source(uri=uri, title=_title(one)) for one in cited if (uri := plain(_url(one))))
    return Grounding(sources=sources) if sources else None


def annotations(told: Any, text: Callable[[], str]) -> Grounding | None:
    """Those of a message, as OpenAI tells them; None: nothing. `text`: the answer's so far, for their places in it."""
    cited = [
        one["url_citation"]
        for one in json_list(told, "choices.delta.annotations")
        if isinstance(one, Mapping) and isinstance(one.get("url_citation"), Mapping)
    ]
    if not cited:
        return None
    return Grounding(
        sources=tuple(Source(uri=plain(one.get("url")), title=plain(one.get("title"))) for one in cited),
        supports=tuple(_supports(text(), cited)),
    )


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


def _url(cited: Any) -> Any:
    return cited.get("url") if isinstance(cited, Mapping) else cited


def _title(cited: Any) -> str:
    return plain(cited.get("title")) if isinstance(cited, Mapping) else ""
