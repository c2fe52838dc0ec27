"""What the page does in the browser: follows the answer, reads it out, keeps the focus and drafts, knows it again."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import streamlit as st
from streamlit.runtime.scriptrunner import get_script_run_ctx

_ASSETS = Path(__file__).with_name("assets")

_SCRIPTS = (
    "kept.js",
    "markdown.js",
    "code.js",
    "fallen.js",
    "focus.js",
    "fields.js",
    "drawer.js",
    "history.js",
    "reading.js",
)

# Streamlit sends a component whole with each run in which anything of it is another. What is large and never changes
# is one of its own, and sent once.
_CODE = st.components.v2.component(
    "tokenwire_code", js="\n".join((_ASSETS / name).read_text() for name in _SCRIPTS), isolate_styles=False
)
_COMPONENT = st.components.v2.component(
    "tokenwire_reader", js=(_ASSETS / "reader.js").read_text(), isolate_styles=False
)

# Another one with each run: what is told as before is told to nobody.
_RUNS = itertools.count()

COOKIE = "tokenwire_browser"
_SECRET_LENGTH = 64


class Told(NamedTuple):
    """What the browser has told."""

    owner: str
    """Its own secret; empty until it has told it, and the script then runs again."""
    returned: str = ""
    """The id of the last question whose words went back into the input."""
    edited: Sequence[str] = ()
    """The ids of the exchanges whose questions were being edited when the page was loaded."""
    went: object = None
    """Where the browser's Back or Forward has led: [another word each time, a conversation's id]."""
    asks: object = None
    """What became of a question that was on its way, as it came: see `taking.Sent`. None: nothing of the kind."""


def reader(
    taken: int,
    back: tuple[str, str] | None = None,
    done: Sequence[str] = (),
    shown: tuple[str, bool] | None = None,
    answer: tuple[str, bool] | None = None,
) -> Told:
    """Set it up, and tell it how many questions were taken from the input.

    `back`: id and words of a question that go back into the input if that is empty. `done`: the beginnings of the keys
    of fields whose drafts are to be forgotten, all since the page was loaded. `shown`: the id of the conversation whose
    draft stands in the input, and whether nothing has been asked in it; None: it isn't known yet.
    `answer`: what the browser asked last with, and whether the question that it asked about has been taken.
    """
    known = st.context.cookies.get(COOKIE, "")
    if len(known) < _SECRET_LENGTH:
        known = ""  # not one of ours
    context = get_script_run_ctx()
    # Another one for the same tab means that the page's process is another one.
    session = "" if context is None else context.session_id
    _CODE(key="code", height=0)
    result: Any = _COMPONENT(
        data={
            "cookie": COOKIE,
            "known": bool(known),
            "session": session,
            "run": next(_RUNS),
            "taken": taken,
            "back": back,
            "done": [*done],
            "shown": shown,
            "answer": answer,
        },
        key="reader",
        on_browser_change=lambda: None,
        on_returned_change=lambda: None,
        on_edited_change=lambda: None,
        on_asks_change=lambda: None,
        on_went_change=lambda: None,
        height=0,
    )
    return Told(
        known or result.browser or "",
        result.returned or "",
        result.edited or (),
        result.went,
        result.asks,
    )
