"""Links: which addresses lead anywhere, addresses without brackets, and links of which a part is still coming."""

import re

from markdown_it.common.utils import normalizeReference, unescapeAll
from markdown_it.rules_core import StateCore
from markdown_it.rules_inline import StateInline

from .env import GROWING

LINK = re.compile(r"https?://[^/?#]|mailto:[^?#]", re.IGNORECASE)
_HALF_LINK = re.compile(r"\[([^\[\]\n]{1,300})\]\([^()\s]*\Z")


def half_link_rule(state: StateInline, silent: bool) -> bool:
    """Take a link whose address is still coming as its text, without the address."""
    if not state.env.get(GROWING):
        return False
    found = _HALF_LINK.match(state.src, state.pos)
    if not found:
        return False
    if not silent:
        state.push("text", "", 0).content = found[1]
    state.pos = state.posMax
    return True


_SCHEME = re.compile(r"(?<![A-Za-z0-9])https?\Z", re.IGNORECASE)
_LONGEST_ADDRESS = 2000
# In characters; what is longer is no link. Bounds the search for an end.

# Up to a space, a bracket, a quotation mark, what has a meaning in Markdown anywhere, or the end of a sentence in
# Japanese or Chinese, where no space follows.
_NO_ADDRESS = (
    r"\s<>\[\]\\`\"\u201c\u201d\u201e\xab\xbb"
    r"\u3001\u3002\uff0c\uff01\uff1f\uff1b\uff1a\uff08\uff09\u300c-\u300f\u3010\u3011"
)
_HOST = r"(?![^\s/?#]{0,300}@)[\w.-]{1,300}(?::\d+)?"
_BARE_ADDRESS = re.compile(rf"{_HOST}(?:[/?#](?:[^{_NO_ADDRESS}]|\\[_*~&#-]){{0,{_LONGEST_ADDRESS}}})?")
_ENTITY_AT_THE_END = re.compile(r"&\w+;\Z")


def bare_link_rule(state: StateInline, silent: bool) -> bool:
    """Take an address without brackets as a link, as GFM does; what is read stays the same.

    https://github.github.com/gfm/#autolinks-extension-
    """
    if silent or state.linkLevel or not state.src.startswith("://", state.pos):
        return False
    scheme = _SCHEME.search(state.pending, max(0, len(state.pending) - 6))
    found = _BARE_ADDRESS.match(state.src, state.pos + 3, state.posMax)
    if scheme is None or found is None or len(found[0]) > _LONGEST_ADDRESS:
        return False
    rest = _without_punctuation(found[0])
    address = f"{scheme[0]}://{unescapeAll(rest)}"
    href = state.md.normalizeLink(scheme[0].lower() + address[len(scheme[0]) :])
    if not rest[:1].isalnum() or not state.md.validateLink(href):
        return False
    state.pending = state.pending[: scheme.start()]
    state.push("link_open", "a", 1).attrs = {"href": href}
    state.push("text", "", 0).content = address
    state.push("link_close", "a", -1)
    state.pos += len("://") + len(rest)
    return True


def _without_punctuation(address: str) -> str:
    """An address without what ends the sentence around it, and without a bracket that was opened before it."""
    while True:
        if entity := _ENTITY_AT_THE_END.search(address):
            address = address[: entity.start()]
        elif address[-1:] and (
            address[-1] in "?!.,:;*_~'|\\" or (address[-1] == ")" and address.count(")") > address.count("("))
        ):
            address = address[:-1]
        else:
            return address


_LABEL = re.compile(r"\[(?:[^\[\]\\]|\\.)*\]?:?", re.DOTALL)
_LABEL_ENDS = re.compile(r"\[(?:[^\[\]\\]|\\.)*\S(?:[^\[\]\\]|\\.)*\]:", re.DOTALL)
_ADDRESS = re.compile(r"\s*(?:<[^<>\n]*>?|[^\s<]\S*)?")
_TITLE = re.compile(r"""\s*(?:"(?:[^"\\]|\\.)*"?|'(?:[^'\\]|\\.)*'?|\((?:[^()\\]|\\.)*\)?)?[ \t]*""", re.DOTALL)
_TITLE_BEGINS = re.compile(r"""\s*["'(]""")
_KNOWN = re.compile(r"\[((?:[^\[\]\\]|\\.)+)\]:\s*<?([^\s<>]+)", re.DOTALL)
_DEFINED_ABOVE = re.compile(r"[ \t>]*(?:(?:[-+*]|\d{1,9}[.)])[ \t]+)*\[[^\[\]]+\]:")


def _may_be_defined(paragraph: str, above: str) -> bool:
    """Whether all of a paragraph may still turn out to be a link's definition, of which nothing is shown.

    `above` is the line above it: there the definition may stand whose title this is.
    """
    if _DEFINED_ABOVE.match(above) and _TITLE_BEGINS.match(paragraph):
        return _TITLE.fullmatch(paragraph) is not None
    label = _LABEL.match(paragraph)
    if not label or label.end() == len(paragraph):
        return label is not None
    if not _LABEL_ENDS.fullmatch(label[0]):
        return False
    address = _ADDRESS.match(paragraph, label.end())
    end = address.end() if address else label.end()
    return _TITLE.fullmatch(paragraph, end) is not None


def definition_rule(state: StateCore) -> None:
    """Leave out the end of an answer that grows, as long as it may be a link's definition: it would vanish again."""
    if not state.env.get(GROWING):
        return
    last = next((place for place in reversed(range(len(state.tokens))) if state.tokens[place].type == "inline"), 0)
    if last == 0 or state.tokens[last - 1].type != "paragraph_open" or not state.tokens[last].map:
        return
    first, end = state.tokens[last].map or (0, 0)
    lines = state.src.rstrip("\n").count("\n") + 1
    if end < lines:
        return  # there is something below it
    above = state.src.split("\n")[first - 1] if first else ""
    paragraph = state.tokens[last].content
    if _may_be_defined(paragraph, above):
        del state.tokens[last - 1 : last + 2]
        if (known := _KNOWN.match(paragraph)) and state.md.validateLink(known[2]):
            # Only the title is still coming: what leads there is a link already.
            link = {"title": "", "href": state.md.normalizeLink(known[2]), "map": [first, end]}
            state.env.setdefault("references", {}).setdefault(normalizeReference(known[1]), link)
