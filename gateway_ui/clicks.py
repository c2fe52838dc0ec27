"""Buttons that do what they do, even where one is clicked before this session has drawn it.

Streamlit calls `on_click` before a run of the script, and only for a button that the session has drawn before. Once the
page's process has begun anew, the buttons of the process before still stand in the browser. A click on one of them only
makes the button tell that it was clicked, in the run that draws it first.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import streamlit as st

from .tab import Tab, this_tab


def button(
    words: str,
    key: str,
    on_click: Callable[..., None],
    args: tuple[Any, ...] = (),
    draw: Callable[..., bool] = st.button,
    **looks: Any,
) -> None:
    """Draw a button that calls `on_click` with `args`. `draw`: how; `looks`: what else that takes.

    The script runs again where the click came before.
    """
    tab = this_tab()
    is_first = key not in tab.buttons
    tab.buttons.add(key)
    if draw(words, key=key, on_click=on_click, args=args, **looks) and is_first:
        tab.clicked.append((on_click, args))
        st.rerun()


submit = partial(button, draw=st.form_submit_button)
"""The same in a form."""


def follow(tab: Tab) -> None:
    """Do what the clicks want that Streamlit hasn't called for. Nothing is drawn yet, as when Streamlit calls."""
    while tab.clicked:
        on_click, args = tab.clicked.pop(0)
        on_click(*args)
