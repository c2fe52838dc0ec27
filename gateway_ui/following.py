"""Shows an answer while it is being written, until it has ended or what stands beside it has changed."""

import time
from collections.abc import Callable
from typing import Any

import streamlit as st

from . import leftovers
from .chat.live import Live
from .drawing import exchange_view
from .drawing.typewriter import Typewriter

# Streamlit sees that something was clicked only when the script touches the page, so it does so at least this often.
TICK_SECONDS = 0.25
# A browser can't use more pictures a second than this.
FRAME_SECONDS = 0.03
# The line under a running answer tells seconds. A message of its own with each picture would double what is sent.
_NOTE_SECONDS = 0.2
# Drawing may take a fifth of a core, and less where many tabs are drawn at once: then each picture takes longer.
_REST = 4.0


def outlast(live: Live, stop: Any, is_old: Callable[[], bool]) -> None:
    """Wait for the end of an answer that isn't drawn, since another one stands in its place, and take Stop away.

    `is_old`: tells whether what stands on the page has changed, so that it is to be drawn anew.
    """
    touched = st.empty()
    leftovers.clear()
    with live.looked_at():
        while not live.exchange.ended:
            time.sleep(TICK_SECONDS)
            touched.empty()
            if is_old():
                st.rerun()
    stop.empty()


def follow(live: Live, drawn: exchange_view.Drawing, seconds_per_letter: float, is_old: Callable[[], bool]) -> None:
    """Show the answer until it has ended and everything is on the page.

    `is_old`: tells whether what else stands on the page has changed, so that it is to be drawn anew.
    """
    exchange = live.exchange
    with live.looked_at():
        typewriter = Typewriter(time.monotonic(), shown=live.shown)
        version, noted = 0, 0.0
        while True:
            begin = time.monotonic()
            ended, available = exchange.ended, len(exchange.text)
            shown = typewriter.advance(available, begin, seconds_per_letter=seconds_per_letter)
            live.shown = shown
            drawn.update(shown)
            if ended and shown == available:
                break
            if begin - noted >= _NOTE_SECONDS:
                drawn.note(time.monotonic())
                if not noted:
                    leftovers.clear()  # until the answer ends, this run draws nothing else
                noted = begin
                if is_old():
                    st.rerun()
            rest = _REST * (time.monotonic() - begin)
            time.sleep(min(max(FRAME_SECONDS, rest), TICK_SECONDS))
            if shown == available:
                version = live.wait(version, TICK_SECONDS)
    drawn.note()
