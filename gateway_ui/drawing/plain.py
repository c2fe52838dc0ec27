"""Text of others in Streamlit's labels, shown as it is: a label is Markdown, and an image in it would be fetched."""

import re

# An invisible character that no line breaks at. Streamlit replaces icons, emoji and arrows after the Markdown is read,
# when a backslash no longer tells; this keeps the replaced pieces apart.
_JOINER = "\N{WORD JOINER}"

# What Markdown reads anywhere in a line. An underscore within a word is none of it: tools are called get_weather.
_ANYWHERE = re.compile(r"[\\`*\[\]<>&$~|#!]|_(?![A-Za-z0-9])|(?<![A-Za-z0-9])_")

# A list or a line: only where the text begins.
_AT_THE_START = re.compile(r"^([-+=]|\d+(?=[.)]))")

# `:red[...]`, `:material/...:`, `:smile:`, `https://`; then the other links that are found without brackets.
_COLON = re.compile(r":(?=[\w+:/-])")
_BARE_LINK = re.compile(r"@(?=\w)|\bwww(?=\.)", re.IGNORECASE)

_ARROW = re.compile(r"(?<!\S)(<->|->|<-|--|>=|<=|~=)(?!\S)")

# Characters that are not seen, and those that turn the direction of what follows.
_UNSEEN = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def label(text: str) -> str:
    """Escape any text for a label, a tooltip or a title of Streamlit's, which then shows exactly that text.

    White space becomes single spaces, as a label is one line. Not for what Streamlit shows as plain text anyway, as the
    options of a selectbox, placeholders and the names of downloads: the backslashes would be seen there.
    """
    line = " ".join(_UNSEEN.sub("\N{REPLACEMENT CHARACTER}", text).split())
    line = _ARROW.sub(lambda found: found[0][0] + _JOINER + found[0][1:], line)
    line = _BARE_LINK.sub(lambda found: found[0] + _JOINER, _COLON.sub(":" + _JOINER, line))
    line = _ANYWHERE.sub(r"\\\g<0>", line)
    return _AT_THE_START.sub(_begun, line)


def _begun(found: re.Match[str]) -> str:
    # A digit can't be escaped, but the sign behind it needn't be: it doesn't follow the digits any more.
    return found[0] + _JOINER if found[0].isdigit() else "\\" + found[0]
