"""Text from right to left: the direction of each block."""

import re
from unicodedata import bidirectional

from markdown_it.rules_core import StateCore
from markdown_it.token import Token

_RIGHT_TO_LEFT = re.compile("[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefe\U00010800-\U00010fff\U0001e800-\U0001efff]")
_LAID_OUT = {
    *("paragraph_open", "heading_open", "bullet_list_open", "ordered_list_open", "list_item_open"),
    *("blockquote_open", "table_open", "th_open", "td_open"),
}


def direction_rule(state: StateCore) -> None:
    """Give each block its direction, by its first letter that has one; nothing where all text goes to the right.

    A paragraph, a heading and a cell have dir="auto". What holds other blocks has the direction itself: "auto" doesn't
    look into blocks that have one of their own, and it is this that tells where a list's marks and a table's first
    column are.
    """
    if not _RIGHT_TO_LEFT.search(state.src):
        return
    open_: list[Token] = []
    for token in state.tokens:
        if token.type in _LAID_OUT:
            holds_text = token.type in ("paragraph_open", "heading_open", "th_open", "td_open")
            token.attrSet("dir", "auto" if holds_text else "")
            open_.append(token)
        elif token.nesting < 0 and f"{token.type.removesuffix('_close')}_open" in _LAID_OUT:
            open_.pop()
        elif token.type == "inline":
            first = next((one for one in token.content if bidirectional(one) in ("L", "R", "AL")), "")
            for one in open_ if first else ():
                if one.attrs["dir"] == "":
                    one.attrSet("dir", "ltr" if bidirectional(first) == "L" else "rtl")
    for token in state.tokens:
        if token.attrs.get("dir") == "":
            token.attrSet("dir", "auto")  # without a letter
