"""What the page does in the browser: follows the answer, reads it out, keeps the focus, knows the browser again."""

from pathlib import Path
from typing import Any

import streamlit as st
from streamlit.runtime.scriptrunner import get_script_run_ctx

_ASSETS = Path(__file__).with_name("assets")

_COMPONENT = st.components.v2.component(
    "tokenwire_reader",
    js="\n".join((_ASSETS / name).read_text() for name in ("markdown.js", "focus.js", "drawer.js", "reading.js")),
    isolate_styles=False,
)

COOKIE = "tokenwire_browser"
_SECRET_LENGTH = 64


def reader(taken: int, back: tuple[str, str] | None = None) -> tuple[str, str]:
    """Set it up, and tell it how many questions were taken from the input.

    `back`: id and words of a question that go back into the input if that is empty.

    Gives the browser's own secret, and the id of the last question whose words went back. The secret is empty until the
    browser has told it, and the script then runs again.
    """
    known = st.context.cookies.get(COOKIE, "")
    if len(known) < _SECRET_LENGTH:
        known = ""  # not one of ours
    context = get_script_run_ctx()
    # Another one for the same tab means that the page's process is another one.
    session = "" if context is None else context.session_id
    result: Any = _COMPONENT(
        data={"cookie": COOKIE, "known": bool(known), "session": session, "taken": taken, "back": back},
        key="reader",
        on_browser_change=lambda: None,
        on_returned_change=lambda: None,
        height=0,
    )
    return known or result.browser or "", result.returned or ""
