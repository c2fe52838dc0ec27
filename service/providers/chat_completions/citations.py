"""What an answer rests on, as servers of Chat Completions tell it. No I/O."""

from collections.abc import Mapping, Sequence
from typing import Any

from ...generation.events import Grounding, Source, Support
from .foreign_json import json_list, plain


def pages(told: Any) -> Grounding | None:
    """Addresses of pages, as xAI and Perplexity tell them; None: nothing. Each chunk may tell all of them again."""
    cited = told if isinstance(told, Sequence) and not isinstance(told, str) else ()
    sources = tuple(Source(uri=uri, title=_title(one)) for one in cited if (uri := plain(_url(one))))
    return Grounding(sources=sources) if sources else None


def annotations(told: Any) -> Grounding | None:
    """Those of a message, as OpenAI tells them; None: nothing."""
    cited = [
        one["url_citation"]
        for one in json_list(told, "choices.delta.annotations")
        if isinstance(one, Mapping) and isinstance(one.get("url_citation"), Mapping)
    ]
    if not cited:
        return None
    return Grounding(
        sources=tuple(Source(uri=plain(one.get("url")), title=plain(one.get("title"))) for one in cited),
        # Places are counted in characters there, and in bytes here; the words themselves aren't told.
        supports=tuple(Support(text="", sources=(place,)) for place, _ in enumerate(cited)),
    )


def _url(cited: Any) -> Any:
    return cited.get("url") if isinstance(cited, Mapping) else cited


def _title(cited: Any) -> str:
    return plain(cited.get("title")) if isinstance(cited, Mapping) else ""
