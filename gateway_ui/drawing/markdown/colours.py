"""Blocks of code, in colours."""

import html
import re
from functools import lru_cache
from typing import Any

from markdown_it.token import Token
from pygments import token as kinds
from pygments.lexer import Lexer
from pygments.lexers import get_lexer_by_name
from pygments.util import ClassNotFound

from ..kept import kept

COLOURED_CHARACTERS = 20_000
# Of one block of code: some lexers are slow.

_KEPT_BYTES = 2**20
# Of code in colours.

# By kind of token, the first that fits: the class that colours it. What isn't here has the text's colour.
_COLOURS = (
    (kinds.Comment, "tw-c"),
    (kinds.Keyword.Type, "tw-t"),
    (kinds.Keyword, "tw-k"),
    (kinds.Operator.Word, "tw-k"),
    (kinds.Name.Function, "tw-f"),
    (kinds.Name.Class, "tw-f"),
    (kinds.Name.Decorator, "tw-f"),
    (kinds.Name.Tag, "tw-k"),
    (kinds.Name.Attribute, "tw-t"),
    (kinds.Name.Builtin, "tw-t"),
    (kinds.Name.Exception, "tw-t"),
    (kinds.String, "tw-s"),
    (kinds.Number, "tw-n"),
    (kinds.Generic.Deleted, "tw-d"),
    (kinds.Generic.Inserted, "tw-i"),
    (kinds.Generic.Heading, "tw-f"),
    (kinds.Generic.Subheading, "tw-f"),
)


@lru_cache(maxsize=256)
def lexer_of(language: str) -> Lexer | None:
    if not re.fullmatch(r"[\w+#.-]{1,30}", language):
        return None
    try:
        return get_lexer_by_name(language, stripnl=False, ensurenl=False)
    except ClassNotFound:
        return None


@lru_cache(maxsize=1024)
def _colour(kind: Any) -> str:
    return next((colour for above, colour in _COLOURS if kind in above), "")


def _runs(code: str, lexer: Lexer) -> list[tuple[str, str]]:
    runs: list[tuple[str, str]] = []
    for kind, value in lexer.get_tokens(code):
        colour = _colour(kind)
        if runs and runs[-1][0] == colour:
            runs[-1] = colour, runs[-1][1] + value
        else:
            runs.append((colour, value))
    return runs


@lru_cache(maxsize=16)
def seam_in(above: str, window: str, below: str, language: str) -> int:
    """Where a line of the window begins at which code may be cut, since it looks the same in two parts; else -1.

    Else a text or a comment goes on from one to the other, or a mode, as in a script within HTML.
    """
    lexer = lexer_of(language)
    if lexer is None:
        return 0

    def colours(code: str) -> list[str]:
        return [colour for colour, value in _runs(code, lexer) for _ in value]

    whole = colours(above + window + below)
    for line in re.finditer(r"^", window, re.MULTILINE):
        place = line.start()
        if place < len(window) and whole[len(above) + place :] == colours(window[place:] + below):
            return place
    return -1


@kept(_KEPT_BYTES)
def _coloured(code: str, language: str) -> str:
    lexer = lexer_of(language)
    if lexer is None:
        return html.escape(code, quote=False)
    runs = _runs(code, lexer)
    if "".join(value for _, value in runs) != code:
        # What is copied must be what the model wrote; a lexer may change line ends, or leave something out.
        return html.escape(code, quote=False)
    return "".join(
        f'<span class="{colour}">{html.escape(value, quote=False)}</span>'
        if colour
        else html.escape(value, quote=False)
        for colour, value in runs
    )


def language_of(fence: Token) -> str:
    return (fence.info.split() or [""])[0].lower()


def code_element(code: str, language: str, *, more: bool = False, colours: int = COLOURED_CHARACTERS) -> str:
    label = f'<div class="tw-language">{html.escape(language)}</div>' if language and not more else ""
    most = len(code) if len(code) <= colours else code.rfind("\n", 0, colours) + 1
    head, rest = (code[:most], code[most:]) if language else ("", code)
    drawn = _coloured(head, language.lower()) + html.escape(rest, quote=False)
    kind = "tw-code tw-more" if more else "tw-code"
    return f'<div class="{kind}">{label}<pre tabindex="0"><code>{drawn}</code></pre></div>\n'
