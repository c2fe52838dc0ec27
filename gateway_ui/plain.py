"""Words of a model or a service where Streamlit takes Markdown: labels, options, titles."""

import re

_MARKS = re.compile(r"([\\`*_{}\[\]()<>#+\-.!|~$&^=@\"'/?;%,])")


def label(text: str) -> str:
    """Give a text so that Streamlit's Markdown shows it as it is, in one line."""
    # An escape doesn't help against :smile: and :red[x], which are looked for in what the Markdown has become.
    return _MARKS.sub(r"\\\1", " ".join(text.split())).replace(":", ":\N{WORD JOINER}")
