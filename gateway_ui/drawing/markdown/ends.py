"""Ends of blocks that would go on to the end of a file."""

from markdown_it import MarkdownIt

# Of HTML, each by what would end it. Fences end as they begin.
_HTML_ENDS = ("-->", "?>", ">", "]]>", "</pre>")

_MARKDOWN = MarkdownIt("commonmark")


def closed(text: str) -> str:
    """Give Markdown an end to what it leaves open, as an answer does that was cut in its code.

    Else all that stands behind it in a file would be code as well.
    """
    behind = "This stands behind it."
    blocks = [token for token in _MARKDOWN.parse(text) if token.level == 0]
    fences = [token.markup for token in blocks[-1:] if token.type == "fence"]
    for end in ("", *(f"\n{end}" for end in (*fences, *_HTML_ENDS))):
        tokens = _MARKDOWN.parse(f"{text}{end}\n\n{behind}")
        if [(token.level, token.content) for token in tokens[-2:]] == [(1, behind), (0, "")]:
            return f"{text}{end}"
    return text
