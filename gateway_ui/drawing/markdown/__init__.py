r"""Turns an answer's Markdown into HTML that is safe to draw, also while the answer is still growing.

CommonMark with GFM's tables, strikethrough and bare addresses (of http and https only), code in colours, and formulas.
Nothing else has a meaning: no HTML, no emoji, no typography. Nothing that a model names is fetched: an image is shown
as words.

A formula is an element that shows its source and carries MathML in `data-tw-math`. Streamlit's `st.html` allows no
MathML, so `assets/markdown.js` puts it in place, before the browser paints. Without that script the page shows the
source. A file to share has no script, and gets the MathML itself: `standalone`.

A long list, table or block of code is cut into segments, so that what has been drawn needn't be drawn again. A segment
that goes on with a block begins with an element of the class `tw-more`; the same script moves its items, rows or lines
to where the block begins.
"""

from pathlib import Path

from .ends import closed
from .env import STANDALONE
from .growing import SEGMENT_CHARACTERS, Growing, segments
from .parser import as_html

__all__ = ["SEGMENT_CHARACTERS", "STYLE", "Growing", "closed", "render", "segments", "standalone"]

STYLE = Path(__file__).parent.with_name("assets").joinpath("markdown.css").read_text()
"""How all of it looks, below an element of the class `tw-md`."""


def render(text: str) -> str:
    """Give the whole answer as HTML."""
    return as_html(text, {})


def standalone(text: str) -> str:
    """Give the whole answer as HTML for a file with `STYLE` in it: formulas are MathML there, and need no script."""
    return f'<div class="tw-md">{as_html(text, {STANDALONE: True})}</div>'
