"""Draws a question and its answer: whole, or as far as it has come."""

import html
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import streamlit as st

from tokenwire.cli.meter import duration
from tokenwire.endings import finish
from tokenwire.v1.content_pb2 import Message, Part
from tokenwire.v1.generation_service_pb2 import Grounding

from .conversation import STOPPED, Exchange, Piece, pretty

_ASSETS = Path(__file__).with_name("assets")

_COPY = st.components.v2.component(
    "tokenwire_copy",
    html='<button type="button"><svg viewBox="0 0 24 24" aria-hidden="true">'
    '<path d="M9 4h9a2 2 0 0 1 2 2v11h-2V6H9z M6 7h8a2 2 0 0 1 2 2v10a2 2 0 0 1-2 2H6a2 2 0 0 1-2-2V9a2 2 0 0 1 2-2z'
    'm0 2v10h8V9z"/></svg><span>Copy</span></button>',
    css=(_ASSETS / "copying.css").read_text(),
    js=(_ASSETS / "copying.js").read_text(),
)


def style() -> None:
    """Give the page its looks."""
    st.html(_ASSETS / "style.css")


def question(message: Message) -> None:
    """Draw what was asked: text, files, or the results of tool calls."""
    images = [part.inline_data.data for part in message.parts if part.inline_data.mime_type.startswith("image/")]
    if images:
        with st.container(horizontal=True):
            for image in images:
                st.image(image)
    for part in message.parts:
        _draw_part(part)


def _draw_part(part: Part) -> None:
    match part.WhichOneof("data"):
        case "text":
            st.text(part.text)
        case "tool_result":
            _card(f"Result of {part.tool_result.name}", pretty(part.tool_result.response))
        case "inline_data" if part.inline_data.mime_type.startswith("audio/"):
            st.audio(part.inline_data.data, part.inline_data.mime_type)
        case "inline_data" if not part.inline_data.mime_type.startswith("image/"):
            kilobytes = len(part.inline_data.data) / 1024
            st.html(f'<div class="tw-file">{html.escape(part.inline_data.mime_type)} · {kilobytes:,.0f} kB</div>')
        case "inline_data":
            pass  # images stand side by side above
        case "file_data" | "tool_call" | "reasoning" | None:
            pass  # nothing that the page lets its user say


class Drawing:
    """One answer on the page; draws again only what has changed."""

    def __init__(self, exchange: Exchange, *, borders: bool) -> None:
        self._exchange = exchange
        self._borders = borders
        self._fold: Any = None
        self._fold_place, self._text, self._calls, self._sources = st.empty(), st.empty(), st.empty(), st.empty()
        self._note = st.empty()
        self._drawn: tuple[int, ...] = ()
        self._size = 0

    def update(self, shown: int | None = None) -> int:
        """Draw the first `shown` letters of the text, or all, and everything else; gives its size in characters."""
        exchange = self._exchange
        state = (len(exchange.pieces), len(exchange.groundings), -1 if shown is None else shown, exchange.ended)
        if state != self._drawn:
            self._drawn = state
            self._size = self._think() + self._write(shown)
            _call(self._calls, exchange)
            _cite(self._sources, exchange.groundings)
        return self._size

    def note(self, now: float | None = None) -> None:
        """Draw the line under the answer: how it ended, or how it is coming along."""
        exchange, parts = self._exchange, []
        if now is not None:
            parts.append(f'<div class="tw-problem tw-if-stopped">{STOPPED}</div>')
        elif exchange.problem:
            parts.append(f'<div class="tw-problem" role="alert">{words(exchange.problem)}</div>')
        figures = [*exchange.meter.figures(now)]
        if exchange.meter.completed is not None:
            figures = [exchange.model, finish(exchange.meter.completed), *figures]
        dot = '<span class="tw-dot"></span>' if now is not None else ""
        parts.append(f'<div class="tw-figures">{dot}{" · ".join(html.escape(one) for one in figures if one)}</div>')
        self._note.html("".join(parts))

    def _think(self) -> int:
        thoughts = [piece for piece in self._exchange.pieces if piece.kind == "thought"]
        if not thoughts:
            return 0
        thinking = not self._exchange.ended and self._exchange.pieces[-1].kind == "thought"
        if self._fold is None:
            self._fold = self._fold_place.status("Thinking", expanded=thinking, type="compact")
            # Not in a `with`: the end of that would say that the thinking is over.
            self._thoughts = self._fold.empty()
        if not thinking:
            self._fold.update(label=f"Thought for {duration(thoughts[-1].after)}", state="complete", expanded=False)
        text = "".join(piece.text for piece in thoughts)
        self._thoughts.markdown(_harmless(text))
        return len(text)

    def _write(self, shown: int | None) -> int:
        text = self._exchange.text
        if not text:
            return 0
        if self._borders:
            picture = _pieces(self._exchange.pieces, len(text) if shown is None else shown)
            self._text.html(picture)
        else:
            picture = _harmless(text[:shown])
            self._text.markdown(picture)
        return len(picture)


def copy_button(exchange: Exchange, key: str) -> None:
    """Draw a button that puts the answer's text on the clipboard."""
    _COPY(data={"text": exchange.text}, key=key, width="content", height="content")


def chart(pieces: Iterable[Piece]) -> None:
    """Draw when each chunk came, and how long it was."""
    bars = [{"seconds": piece.after, "characters": len(piece.text), "kind": piece.kind} for piece in pieces]
    st.vega_lite_chart(
        {
            "data": {"values": bars},
            "mark": {"type": "bar", "width": 4, "tooltip": True},
            "encoding": {
                "x": {
                    "field": "seconds",
                    "type": "quantitative",
                    "title": "seconds after the question",
                    "scale": {"domainMin": 0},
                },
                "y": {"field": "characters", "type": "quantitative", "title": "characters", "stack": None},
                "color": {"field": "kind", "type": "nominal", "title": None, "legend": {"orient": "top"}},
            },
        },
        height=260,
    )


def words(text: str) -> str:
    """Give words as HTML, with what stands between backticks as code."""
    return re.sub("`([^`]*)`", r"<code>\1</code>", html.escape(text))


def _harmless(markdown: str) -> str:
    # An image would be fetched from wherever the model says, and would tell that place that it was shown.
    return markdown.replace("![", "!\N{ZERO WIDTH SPACE}[")


def _pieces(pieces: Iterable[Piece], left: int) -> str:
    rows = []
    for number, piece in enumerate((piece for piece in pieces if piece.kind == "text"), 1):
        if left <= 0:
            break
        rows.append(
            f'<div class="tw-piece"><b>{number} · {duration(piece.after)}</b>'
            f"<span>{html.escape(piece.text[:left])}</span></div>"
        )
        left -= len(piece.text)
    return f'<div class="tw-pieces"><div>{"".join(rows)}</div></div>'


def _call(place: Any, exchange: Exchange) -> None:
    cards = [_card_html(f"Calls {call.name}", pretty(call.arguments)) for call in exchange.tool_calls]
    if cards:
        place.html("".join(cards))


def _card(title: str, body: str) -> None:
    st.html(_card_html(title, body))


def _card_html(title: str, body: str) -> str:
    return f'<div class="tw-call"><b>{html.escape(title)}</b><pre>{html.escape(body)}</pre></div>'


def _cite(place: Any, groundings: Iterable[Grounding]) -> None:
    sources = [source for one in groundings for source in one.sources]
    queries = [query for one in groundings for query in one.search_queries]
    lines = []
    if queries:
        lines.append(f"<div>Searched for: {html.escape(', '.join(queries))}</div>")
    if sources:
        links = "".join(f"<li>{_link(source)}</li>" for source in sources)
        lines.append(f"<div>Sources</div><ol>{links}</ol>")
    if lines:
        place.html(f'<div class="tw-sources">{"".join(lines)}</div>')


def _link(source: Grounding.Source) -> str:
    title, uri = html.escape(source.title or source.uri), html.escape(source.uri)
    try:
        address = urlsplit(source.uri)
    except ValueError:
        return title
    if address.scheme not in ("http", "https") or not address.hostname:
        # Not a place that a browser should be sent to.
        return f"{title} <small>{uri}</small>"
    host = html.escape(address.hostname)
    return f'<a href="{uri}" target="_blank" rel="noopener noreferrer">{title}</a> <small>{host}</small>'
