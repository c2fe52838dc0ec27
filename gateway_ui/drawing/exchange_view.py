"""Draws a question and its answer: whole, or as far as it has come."""

import html
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import streamlit as st

from tokenwire.cli.meter import duration
from tokenwire.endings import finish
from tokenwire.v1.content_pb2 import Message, Part
from tokenwire.v1.generation_service_pb2 import Grounding

from ..chat.conversation import Exchange, Piece
from ..chat.words import numbered, pretty
from ..input import attachments
from .kept import kept
from .markdown import Growing, render, segments
from .plain import label

_ASSETS = Path(__file__).with_name("assets")

# Some hundred answers of a page's length, for all tabs together.
_KEPT_BYTES = 2 * 2**20

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
    st.html(_ASSETS / "markdown.css")


def marked() -> None:
    """Mark a question, whether it is drawn or edited: the page follows where another is added."""
    st.html('<span class="tw-asked"></span>')


def drawn(session: str) -> None:
    """Tell the browser that this session's script has drawn all buttons that open another conversation."""
    st.html(f'<span class="tw-drawn" data-session="{html.escape(session)}"></span>')


def waiting(message: Message, names: Iterable[str], trouble: str, *, preparing: bool = False) -> None:
    """Draw a question that isn't asked yet, and why."""
    text = " ".join(part.text for part in message.parts if part.text)
    files = ", ".join(names)
    said = " · ".join(html.escape(one) for one in (text, files) if one)
    state = "Preparing the files of" if preparing else "Not asked" if trouble else "Next"
    st.html(f'<div class="tw-waiting"><b>{state}</b> {said}</div>')
    if trouble:
        problem(trouble)


def problem(text: str) -> None:
    """Draw what is wrong, so that it is noticed."""
    st.html(f'<div class="tw-problem" role="alert">{words(text)}</div>')


def question(message: Message, names: Sequence[str] = ()) -> None:
    """Draw what was asked: text, files under their names, or the results of tool calls."""
    marked()
    files = [part for part in message.parts if part.HasField("inline_data")]
    named = [*zip(files, [*names, *[""] * len(files)], strict=False)]
    images = [(part.inline_data.data, name) for part, name in named if _is_image(part)]
    if images:
        with st.container(horizontal=True):
            for image, name in images:
                st.image(image, caption=label(name) or None)
    for file, name in named:
        if not _is_image(file):
            _file(name, file)
    results = iter(numbered(part.tool_result.name for part in message.parts if part.HasField("tool_result")))
    for part in message.parts:
        match part.WhichOneof("data"):
            case "text":
                st.html(f'<div class="tw-question" dir="auto">{html.escape(part.text)}</div>')
            case "tool_result":
                _card(f"Result of {next(results)}", pretty(part.tool_result.response))
            case "inline_data":
                pass  # a file, drawn above
            case "file_data" | "tool_call" | "reasoning" | None:
                pass  # nothing that the page lets its user say


def _is_image(part: Part) -> bool:
    return part.inline_data.mime_type.startswith("image/")


def _file(name: str, part: Part) -> None:
    st.html(f'<div class="tw-file">{html.escape(attachments.described(part, name))}</div>')
    file = part.inline_data
    if file.mime_type.startswith("audio/"):
        st.audio(file.data, file.mime_type)
    elif file.mime_type.startswith("video/"):
        st.video(file.data, file.mime_type)


def left_out() -> None:
    """Say that a question and its answer don't count any more."""
    st.html('<div class="tw-place tw-left-out">Not sent along with later questions</div>')


class Drawing:
    """One answer on the page; draws again only what has changed."""

    def __init__(self, exchange: Exchange, *, borders: bool, new: bool = False) -> None:
        """`new`: it has come since its conversation was opened, so it is to be read out, once."""
        self._exchange = exchange
        self._new = new
        self._borders = borders
        self._fold: Any = None
        with st.container(key=f"answer-{exchange.id}"):
            self._fold_place, self._words = st.empty(), st.container(key=f"words-{exchange.id}")
            self._calls, self._sources, self._note = st.empty(), st.empty(), st.empty()
        self._tail = self._words.empty()
        self._growing = Growing()
        self._drawn: tuple[int, ...] = ()

    def update(self, shown: int | None = None) -> None:
        """Draw the first `shown` letters of the text, or all, and everything else."""
        exchange = self._exchange
        state = (len(exchange.pieces), len(exchange.groundings), -1 if shown is None else shown, exchange.ended)
        if state != self._drawn:
            self._drawn = state
            self._think()
            self._write(shown)
            _call(self._calls, exchange)
            _cite(self._sources, exchange.groundings)

    def note(self, now: float | None = None) -> None:
        """Draw the line under the answer: how it ended, or how it is coming along, which is told as of `now`."""
        exchange, parts = self._exchange, []
        if now is None and exchange.problem:
            parts.append(f'<div class="tw-problem" role="alert">{words(exchange.problem)}</div>')
        figures = [*exchange.meter.figures(now)]
        if exchange.meter.completed is not None:
            figures = [exchange.model, finish(exchange.meter.completed), *figures]
        dot = '<span class="tw-dot"></span>' if now is not None else ""
        running = (" data-running" if now is not None else "") + (" data-new" if self._new else "")
        line = " · ".join(html.escape(one) for one in figures if one)
        parts.append(f'<div class="tw-figures"{running}>{dot}{line}</div>')
        self._note.html("".join(parts))

    def _think(self) -> None:
        thoughts = [piece for piece in self._exchange.pieces if piece.kind == "thought"]
        if not thoughts:
            return
        thinking = not self._exchange.ended and self._exchange.pieces[-1].kind == "thought"
        if self._fold is None:
            self._fold = self._fold_place.status("Thinking", expanded=thinking, type="compact")
            # Not in a `with`: the end of that would say that the thinking is over.
            self._thoughts = self._fold.empty()
        if not thinking:
            answer = (piece for piece in self._exchange.pieces if piece.kind != "thought")
            first = next(answer, thoughts[-1])  # what it said instead, else the last thought
            self._fold.update(label=f"Thought for {duration(first.after)}", state="complete", expanded=False)
        self._thoughts.html(_markdown(render("".join(piece.text for piece in thoughts))))

    def _write(self, shown: int | None) -> None:
        text = self._exchange.text
        if not text:
            return
        if self._borders:
            self._tail.html(_pieces(self._exchange.pieces, len(text) if shown is None else shown))
            return
        if shown is None:
            *closed, tail = _segments(text)
        else:
            ended = self._exchange.ended and shown == len(text)
            closed, tail = self._growing.update(text[:shown], ended=ended)
        for segment in closed:
            # It stays as it is, and what follows gets a place of its own.
            self._tail.html(_markdown(segment))
            self._tail = self._words.empty()
        if tail:
            self._tail.html(_markdown(tail))


def _markdown(segment: str) -> str:
    return f'<div class="tw-md">{segment}</div>'


@kept(_KEPT_BYTES)
def _segments(text: str) -> tuple[str, ...]:
    """Each run of the script draws all answers, most of them as they were."""
    return tuple(segments(text)) or ("",)


def copy_button(exchange: Exchange, key: str) -> None:
    """Draw a button that puts the answer's text on the clipboard."""
    _COPY(data={"text": exchange.text}, key=key, width="content", height="content")


_AXIS = {"minExtent": 56, "maxExtent": 56}


def chart(pieces: Sequence[Piece]) -> None:
    """Draw how the answer grew, how long each chunk was, and how long it was waited for; three pictures, one time."""
    bars, before, grown = [], 0.0, 0
    for number, piece in enumerate(pieces, 1):
        grown += len(piece.text)
        bars.append(
            {
                "chunk": number,
                "seconds": piece.after,
                "characters": len(piece.text),
                "grown": grown,
                "gap": 1000 * (piece.after - before),
                "kind": piece.kind,
            }
        )
        before = piece.after
    tips = [{"field": name, "type": "quantitative"} for name in ("chunk", "seconds", "characters", "gap")]

    def picture(field: str, title: str, mark: dict[str, Any], legend: dict[str, str] | None) -> dict[str, Any]:
        return {
            "mark": mark,
            "encoding": {
                "x": {"field": "seconds", "type": "quantitative", "title": None, "scale": {"domainMin": 0}},
                # The same room for each picture's numbers, so that the times stand below each other.
                "y": {"field": field, "type": "quantitative", "title": title, "axis": _AXIS},
                "color": {"field": "kind", "type": "nominal", "title": None, "legend": legend},
                "tooltip": tips,
            },
        }

    dots = {"type": "point", "filled": True, "size": 14, "opacity": 0.7}
    steps = {"type": "line", "interpolate": "step-after", "strokeWidth": 1.5}
    # Not one picture of three: Streamlit doesn't fit such a one to the page's width.
    for height, one in (
        (240, picture("grown", "characters so far", steps, {"orient": "top"})),
        (170, picture("characters", "characters of each", dots, None)),
        (170, picture("gap", "ms waited for each", dots, None)),
    ):
        st.vega_lite_chart({"data": {"values": bars}, **one}, height=height)
    st.html('<div class="tw-place">Seconds after the question</div>')


def words(text: str) -> str:
    """Give words as HTML, with what stands between backticks as code."""
    return re.sub("`([^`]*)`", r"<code>\1</code>", html.escape(text))


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
    calls = exchange.tool_calls[:]
    names = numbered(call.name for call in calls)
    cards = [_card_html(f"Calls {name}", pretty(call.arguments)) for name, call in zip(names, calls, strict=True)]
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
