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

import html
import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, MutableMapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import lru_cache
from itertools import zip_longest
from pathlib import Path
from typing import Any
from unicodedata import bidirectional
from xml.etree.ElementTree import Element

from latex2mathml.converter import Converter
from markdown_it import MarkdownIt
from markdown_it.common.utils import normalizeReference, unescapeAll
from markdown_it.renderer import RendererHTML
from markdown_it.rules_block import StateBlock
from markdown_it.rules_core import StateCore
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token
from markdown_it.utils import OptionsDict
from pygments import token as kinds
from pygments.lexer import Lexer
from pygments.lexers import get_lexer_by_name
from pygments.util import ClassNotFound

from .kept import kept

SEGMENT_CHARACTERS = 2000
"""A closed segment is at least so long, in characters of Markdown, so that an answer has some dozens of them."""

_DEEPEST = 40
# Levels of quotes and lists (a list takes two); what is deeper is a paragraph. Also of brackets in brackets.

_LONGEST_FORMULA = 4000
# In characters. Bounds the search for an end, so that many beginnings in one line cost no more than each so much.

_LETTERS_OF_A_PHONE = 24
# Of a formula; what is shorter fits into a cell or a list on a phone, and isn't reached by keyboard.

_COLOURED_CHARACTERS = 20_000
# Of one block of code: some lexers are slow.

_LOOKED_AT = 250
# Characters of code among whose lines one is looked for where it may be cut, and of those below that are looked at.

_KEPT_BYTES = 2**20
# Of formulas, and of code in colours.

STYLE = Path(__file__).with_name("assets").joinpath("markdown.css").read_text()
"""How all of it looks, below an element of the class `tw-md`."""

_Env = MutableMapping[str, Any]
_GROWING = "growing"
_STANDALONE = "standalone"


def render(text: str) -> str:
    """Give the whole answer as HTML."""
    return _html(text, {})


def standalone(text: str) -> str:
    """Give the whole answer as HTML for a file with `STYLE` in it: formulas are MathML there, and need no script."""
    return f'<div class="tw-md">{_html(text, {_STANDALONE: True})}</div>'


def segments(text: str) -> list[str]:
    """Give the whole answer as HTML in segments, for an answer that has ended.

    The same segments as `Growing` gives, except that a link may be defined below the segment that uses it.
    """
    growing = Growing()
    _parsed_blocks(text, growing.env)
    closed, tail = growing.update(text, ended=True)
    return [*closed, tail] if tail else closed


@dataclass(frozen=True, slots=True)
class _Cut:
    """A block that the segments so far have cut: its rest goes on in the next one."""

    kind: str = ""
    """The type of the block's first token; empty: no block was cut."""
    opening: str = ""
    """Whole lines that make a parser take the rest for part of the block: a fence, a table's head, or an item."""
    colours: int = 0
    """So many characters of the rest of the code may be coloured."""


_NOTHING_CUT = _Cut()


class Growing:
    """An answer that is being written, as HTML in segments. Closed ones never change, so they are drawn once.

    All closed segments and the last tail together show what `render` of the whole text does, if the last update says
    `ended`. Two exceptions: a link's definition (`[1]: https://...`) is known to its own segment and to later ones, not
    to earlier; and where the first blank line between a list's items comes after a cut, the items above stay close.

    An update costs time in proportion to the open tail. It has at most about `SEGMENT_CHARACTERS` and the last item of
    a top-level list, row of a table, line of code, or other block.
    """

    def __init__(self) -> None:
        self.parsed = 0
        """Characters that all updates so far have parsed, each as often as it was."""
        self.env: _Env = {}
        self._start = 0
        self._cut = _NOTHING_CUT

    def update(self, text: str, *, ended: bool = False) -> tuple[list[str], str]:
        """Take the text so far, which begins with that of the last update.

        Gives the segments that have been closed since then, and the rest as it looks for now. Until it has `ended`, the
        rest leaves out a last line that can't be told yet: a dash may become a list, a rule or a heading.
        """
        closed = []
        rest = text[self._start :]
        for end, cut in self._ends(rest):
            closed.append(self._draw(rest[:end], self.env))
            self._cut = cut
            self._start += len(rest[:end])
            rest = rest[end:]
        if ended:
            return closed, self._draw(rest, self.env) if rest else ""
        env = {key: copy(value) for key, value in self.env.items()}
        opening = self._cut.opening
        return closed, self._draw(_told(opening + rest)[len(opening) :], {**env, _GROWING: True})

    def _ends(self, rest: str) -> Iterator[tuple[int, _Cut]]:
        """Where segments end, each counted in characters from the end of the last, and which block that cuts."""
        # A line that isn't complete may still change the block above it: `a`, then `-`, is a heading or a list.
        complete = rest[: rest.rfind("\n") + 1]
        if len(complete) < SEGMENT_CHARACTERS:
            return
        self.parsed += len(complete)
        cut = self._cut
        opening = cut.opening.count("\n")
        lines = [*_line_starts(complete)]
        begun = last_end = 0
        for block in _top_level(_parsed_blocks(cut.opening + complete, {})):
            # Counted in lines of `complete`.
            first, end = (max(number - opening, 0) for number in block[0].map or ())
            start = lines[first]
            # A link's definition leaves no block. One that ends here may go on in the next line, with a title.
            if not complete[lines[last_end] : start].strip() and start - begun >= SEGMENT_CHARACTERS:
                yield start - begun, _NOTHING_CUT
                begun, cut = start, _NOTHING_CUT
            last_end = end
            within = _Inside(block, complete, lines, opening, cut if first == 0 and opening else _NOTHING_CUT)
            for place, inner in within.cuts(max(begun, start)):
                yield place - begun, inner
                begun, cut = place, inner

    def _draw(self, markdown: str, env: _Env) -> str:
        self.parsed += len(markdown)
        if not self._cut.kind:
            return _html(markdown, env)
        tokens = _PARSER.parse(self._cut.opening + markdown, env)
        return str(_PARSER.renderer.render(_rest_of(tokens, self._cut), _PARSER.options, env))


class _Inside:
    """Where a long block may be cut."""

    def __init__(self, block: list[Token], text: str, lines: list[int], opening: int, cut: _Cut) -> None:
        """`lines`: where each line of the text starts. The block's lines are counted with `opening` lines above it."""
        self._block, self._text, self._lines, self._opening, self._cut = block, text, lines, opening, cut

    def cuts(self, begun: int) -> Iterator[tuple[int, _Cut]]:
        """Places in the text, each at least a segment after the last, or after `begun`."""
        match self._block[0].type:
            case "fence":
                yield from self._of_code(begun)
            case "table_open":
                yield from self._of_table(begun)
            case "bullet_list_open" | "ordered_list_open":
                yield from self._of_list(begun)
            case _:
                pass

    def _places(self, kind: str, level: int) -> Iterator[int]:
        for token in self._block:
            if token.type == kind and token.level == level and token.map and token.map[0] >= self._opening:
                yield self._lines[token.map[0] - self._opening]

    def _line(self, number: int) -> str:
        number -= self._opening
        return self._text[self._lines[number] : self._lines[number + 1]].rstrip("\r\n") + "\n"

    def _of_table(self, begun: int) -> Iterator[tuple[int, _Cut]]:
        first = (self._block[0].map or [0])[0]
        head = self._cut.opening or self._line(first) + self._line(first + 1)
        rows = [*self._places("tr_open", 2)]
        for place in rows if self._cut.kind else rows[1:]:
            if place - begun >= SEGMENT_CHARACTERS:
                yield place, _Cut("table_open", head)
                begun = place

    def _of_list(self, begun: int) -> Iterator[tuple[int, _Cut]]:
        mark = self._block[0].markup
        # Its content stands so far to the right that no item of a list's first level is taken for part of it.
        item = f"1{mark}   x\n" if self._block[0].type == "ordered_list_open" else f"{mark}    x\n"
        opening = self._cut.opening
        for place in self._places("list_item_open", 1):
            if place - begun < SEGMENT_CHARACTERS:
                continue
            paragraphs = _parsed_blocks(f"{opening}{self._text[begun:place]}{item}", {})
            loose = not next(one.hidden for one in reversed(paragraphs) if one.type == "paragraph_open")
            opening = item + "\n" if loose else item
            yield place, _Cut(self._block[0].type, opening)
            begun = place

    def _of_code(self, begun: int) -> Iterator[tuple[int, _Cut]]:
        fence = self._block[0]
        first = (fence.map or [0])[0]
        opening = self._cut.opening or self._line(first)
        colours = self._cut.colours if self._cut.kind else _COLOURED_CHARACTERS
        starts = [0, *(end.end() for end in re.finditer("\n", fence.content))]
        places = [self._lines[first + 1 + line - self._opening] for line in range(len(starts) - 1)]
        language = _language(fence)
        piece, line = 0, 1
        while (line := _after(places, begun + SEGMENT_CHARACTERS, line)) < len(places):
            cut, spent = line, starts[line] - starts[piece]
            if colours > 0 and _lexer(language) is not None:
                cut, spent = self._seam(starts, piece, line, language)
                if cut < 0:
                    return  # it can't be told yet
            colours = max(0, colours - spent)
            yield places[cut], _Cut("fence", opening, colours)
            begun, piece, line = places[cut], cut, cut + 1

    def _seam(self, starts: list[int], piece: int, line: int, language: str) -> tuple[int, int]:
        """The line where code may be cut, and how many characters' colours that costs. No line (-1): not known yet."""
        code = self._block[0].content
        while True:
            until = _after(starts, starts[line] + _LOOKED_AT, line)
            ahead = _after(starts, starts[min(until, len(starts) - 1)] + _LOOKED_AT, until)
            if ahead >= len(starts):
                return -1, 0
            parts = (starts[piece], starts[line]), (starts[line], starts[until]), (starts[until], starts[ahead])
            place = _seam_in(*(code[begin:end] for begin, end in parts), language)
            if place >= 0:
                cut = starts.index(starts[line] + place)
                return cut, starts[cut] - starts[piece]
            if starts[until] - starts[piece] >= 4 * SEGMENT_CHARACTERS:
                return until, _COLOURED_CHARACTERS  # rather no colours than wrong ones
            line = until


def _after(numbers: Sequence[int], least: int, begin: int) -> int:
    """The place, from `begin` on, of the first of these ascending numbers that is as large; else one behind all."""
    return bisect_left(numbers, least, begin)


def _rest_of(tokens: list[Token], cut: _Cut) -> list[Token]:
    """The tokens without those of the cut block's opening."""
    block = tokens[0]
    if cut.kind == "fence":
        block.meta = {"more": True, "colours": cut.colours}
        return tokens
    block.attrJoin("class", "tw-more")
    last = "thead_close" if cut.kind == "table_open" else "list_item_close"
    end = next(place for place, one in enumerate(tokens) if one.type == last and one.level == 1)
    return [block, *tokens[end + 1 :]]


# ---- parsing -----------------------------------------------------------------------------------------------------


def _html(text: str, env: _Env) -> str:
    return str(_PARSER.render(text, env))


def _parsed_blocks(text: str, env: _Env) -> list[Token]:
    """The tokens of all blocks; `env` learns the links defined."""
    tokens: list[Token] = []
    _PARSER.block.parse(_normal(text), _PARSER, env, tokens)
    return tokens


def _top_level(tokens: Iterable[Token]) -> Iterator[list[Token]]:
    """The tokens of each top-level block, of which the first tells its lines."""
    block: list[Token] = []
    end = 0
    for token in tokens:
        if token.level == 0 and token.map and token.map[0] >= end:
            if block:
                yield block
            block, end = [], token.map[1]
        block.append(token)
    if block:
        yield block


def _normal(text: str) -> str:
    return re.sub(r"\r\n?", "\n", text).replace("\0", "\N{REPLACEMENT CHARACTER}")


def _line_starts(text: str) -> Iterator[int]:
    yield 0
    for end in re.finditer(r"\r\n?|\n", text):
        yield end.end()


# A line of nothing but marks, or of a number: a list, a rule, a fence, a heading, a table's second row.
_UNTOLD = re.compile(
    r"[ \t>]*(?:>|\\(?:b(?:e(?:g(?:i(?:n(?:\{[a-z]{0,11}\*?\}?)?)?)?)?)?)?|[-=*_+#`~|:$\\ \t]+|\d{1,9}[.)]?[ \t]*)"
)
_ROW = re.compile(r" {0,3}\|")
_SECOND_ROW = re.compile(r"[ \t|:-]*")


def _told(tail: str) -> str:
    """The tail without the lines that can't be told yet, and would be drawn as something else a moment later."""
    *above, before, last = ["", "", *tail.rsplit("\n", 3)[-3:]]
    row = _ROW.match(before) is not None
    if _ROW.match(last) and not row:
        untold = 1  # a table's first row looks like a paragraph
    elif row and _SECOND_ROW.fullmatch(last) and not _ROW.match(above[-1]):
        untold = 2
    else:
        untold = 1 if _UNTOLD.fullmatch(last) else 0
    for _ in range(untold):
        tail = tail[: max(tail.rfind("\n"), 0)]
    return tail + "\n" if untold and tail else tail


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


def _definition_rule(state: StateCore) -> None:
    """Leave out the end of an answer that grows, as long as it may be a link's definition: it would vanish again."""
    if not state.env.get(_GROWING):
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


def _deep_rule(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    """Take what is nested too deep as a paragraph; markdown-it would leave it out."""
    if state.level < _DEEPEST or silent:
        return False
    _push_paragraph(state, start, end, state.getLines(start, end, state.blkIndent, False).strip())
    state.line = end
    return True


# ---- formulas ----------------------------------------------------------------------------------------------------

_ENDS = {"\\(": "\\)", "\\[": "\\]", "$$": "$$", "$": "$"}

# What holds letters that are no words of prose.
_NO_PROSE = re.compile(
    r"\\(?:text\w*|math\w+|operatorname\*?|mbox|begin|end)\s*\{[^{}]*\}|[_^]\s*\{[^{}]*\}|\\[A-Za-z]+"
)
_WORD = re.compile(r"[^\W\d_]{4,}")
_SHORT_WORD = re.compile(r"(?<![^\W\d_])[^\W\d_A-Z]{2,3}(?![^\W\d_])")
# Between spaces they join two prices, whatever else stands there.
_JOINS = re.compile(r"(?:^|\s)(?:an|and|are|at|but|by|for|if|in|is|it|of|on|or|per|the|to|was)(?:\s|$)")
_SIGNS = re.compile(r"[\\^_={}<>+]")


# An amount of money, or a range of such, and what follows it in a sentence. `$5x$`, `$5/2$` and `$5 + x$` are formulas,
# and so are numbers in a row without separators of thousands: `$1, 2, 3$`.
_PRICE = re.compile(
    r"\d[\d.,]*(?:\s?[-\u2013]\s?\d[\d.,]*)?[kKmM%+]?"
    r"(?:[,;:.]\s|\s?/\s?[^\W\d_]{2,}|\s[^\W\d_]{2,}|[-,;:.\u2013]\Z)"
)
_NUMBERS_IN_A_ROW = re.compile(r"\d+|\d{1,3}(?:,\s+\d{1,3}){2,}")
_TEX = re.compile(r"[\\^_{}]")


def _begins_with_a_price(content: str) -> bool:
    if _TEX.search(content) or _NUMBERS_IN_A_ROW.fullmatch(content) or re.fullmatch(r"[\d.,]*\d", content):
        return False
    return _PRICE.match(content) is not None


def _is_prose(content: str) -> bool:
    """Whether what stands between two dollars reads as words rather than as a formula."""
    bare = _NO_PROSE.sub(" ", content)
    if _WORD.search(bare) or _JOINS.search(bare):
        return True
    # `ax^2 + bx` is a formula, `5 und 10` isn't.
    return _SHORT_WORD.search(bare) is not None and not _SIGNS.search(content)


def _joins_a_word(character: str) -> bool:
    # Not of scripts that put no spaces between words: a formula stands right beside them.
    return character.isdigit() or character.lower() != character.upper()


def _maths_end(source: str, start: int, mark: str) -> int:
    """Where the formula's content ends that begins after the mark at `start`, or -1 if it is none."""
    first = start + len(mark)
    end = source.find(_ENDS[mark], first, first + _LONGEST_FORMULA)
    while mark[0] == "$" and end > 0 and source[end - 1] == "\\":
        end = source.find(_ENDS[mark], end + 1, first + _LONGEST_FORMULA)
    content = source[first:end] if end >= 0 else ""
    if not content.strip() or "\n\n" in content:
        return -1
    if mark == "\\[" and source.startswith("(", end + 2):
        return -1  # a link that somebody wants shown, not made
    if mark == "$$" and "\\" not in content and _is_prose(content) and not _SIGNS.search(content):
        return -1
    return -1 if mark == "$" and not _may_be_dollars(source, start, end) else end


def _may_be_dollars(source: str, start: int, end: int) -> bool:
    before, after = source[start - 1 : start], source[end + 1 : end + 2]
    content = source[start + 1 : end]
    return not (
        before in ("$", "\\")
        or after == "$"
        or (before and _joins_a_word(before))
        or (after and _joins_a_word(after))
        or content[0].isspace()
        or content[-1].isspace()
        or "`" in content
        or _begins_with_a_price(content)
        or _is_prose(content)
    )


def _mark_at(source: str, place: int) -> str:
    pair = source[place : place + 2]
    if pair in _ENDS:
        return pair
    return "$" if pair[:1] == "$" else ""


def _maths_rule(state: StateInline, silent: bool) -> bool:
    r"""Take `\( \)`, `\[ \]`, `$$ $$` and `$ $` inside a paragraph."""
    mark = _mark_at(state.src, state.pos)
    if not mark:
        return False
    end = _maths_end(state.src, state.pos, mark)
    if 0 <= end < state.posMax:
        if not silent:
            token = state.push("maths", "span", 0)
            token.markup, token.content = mark, state.src[state.pos + len(mark) : end]
        state.pos = end + len(_ENDS[mark])
        return True
    rest = state.src[state.pos : state.pos + _LONGEST_FORMULA]
    if mark[0] == "\\" and state.env.get(_GROWING) and _ENDS[mark] not in rest and len(rest) < _LONGEST_FORMULA:
        # It ends in what hasn't come yet. Without this rule its backslashes would be taken for escapes.
        if not silent:
            state.push("code_inline", "code", 0).content = state.src[state.pos : state.posMax]
        state.pos = state.posMax
        return True
    return False


_ENVIRONMENT = re.compile(r"\\begin\{((?:equation|align|alignat|flalign|gather|multline|eqnarray|displaymath)\*?)\}")


def _environment_rule(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    r"""Take `\begin{align} ... \end{align}` that begins a line, without any other mark around it."""
    found = None if state.is_code_block(start) else _ENVIRONMENT.match(_line(state, start))
    if not found:
        return False
    if silent:
        return True
    lines = []
    closing, closed, after = f"\\end{{{found[1]}}}", "", ""
    number = start
    while number < end and not closed and not state.isEmpty(number) and state.sCount[number] >= state.blkIndent:
        before, closed, after = _line(state, number).partition(closing)
        lines.append(before + closed)
        number += 1
    state.line = number
    token = state.push("maths_block" if closed else "maths_source", "div", 0)
    token.map, token.content = [start, number], "\n".join(lines)
    _push_after(state, token, after.strip())
    return True


def _push_after(state: StateBlock, token: Token, after: str) -> None:
    """Add what stands behind a formula in its last line."""
    if _PUNCTUATION.fullmatch(after):
        token.info = after
    elif after:
        _push_paragraph(state, state.line - 1, state.line, after)


def _maths_block_rule(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    r"""Take `$$ $$` and `\[ \]` that begin a line; what has no end ends with the paragraph, and is shown as its source.

    Whether it is one depends on its first line alone: else a block above, which is closed, might change later.
    """
    if state.is_code_block(start):
        return False
    line = _line(state, start)
    mark = line[:2]
    if mark not in ("$$", "\\["):
        return False
    if _ENDS[mark] in line[2:]:
        # On one line: a formula with words around it is the paragraph's.
        if (
            not line.endswith(_ENDS[mark])
            or line.index(_ENDS[mark], 2) != len(line) - 2
            or _maths_end(line, 0, mark) < 0
        ):
            return False
        token_type, below, content, after = "maths_block", start + 1, line[2:-2], ""
    else:
        if mark == "$$" and (line[2:3] == "$" or _is_prose(line[2:]) or _is_open(state, start)):
            return False
        token_type, below, content, after = _gather(state, start, end, mark)
    if silent:
        return True
    state.line = below
    token = state.push(token_type, "div", 0)
    token.map, token.markup, token.content = [start, below], mark, content
    _push_after(state, token, after)
    return True


def _line(state: StateBlock, number: int) -> str:
    return state.src[state.bMarks[number] + state.tShift[number] : state.eMarks[number]].rstrip()


def _is_open(state: StateBlock, start: int) -> bool:
    """Whether the paragraph above this line has an odd number of `$$`: then the one in this line ends it."""
    above = state.src[state.bMarks[state.line] : state.bMarks[start]] if state.line < start else ""
    return above[-_LONGEST_FORMULA:].count("$$") % 2 == 1


def _gather(state: StateBlock, start: int, end: int, mark: str) -> tuple[str, int, str, str]:
    """The formula's token type, the line below it, its content, and what stands behind it in its last line."""
    lines = [_line(state, start)[2:]]
    for number in range(start + 1, end):
        if state.isEmpty(number) or state.sCount[number] < state.blkIndent:
            return "maths_source", number, "\n".join(lines), ""
        before, found, after = _line(state, number).partition(_ENDS[mark])
        lines.append(before)
        if found:
            return "maths_block", number + 1, "\n".join(lines), after.strip()
    return "maths_source", end, "\n".join(lines), ""


def _push_paragraph(state: StateBlock, start: int, end: int, content: str) -> None:
    state.push("paragraph_open", "p", 1).map = [start, end]
    inline = state.push("inline", "", 0)
    inline.content, inline.map, inline.children = content, [start, end], []
    state.push("paragraph_close", "p", -1)


_PUNCTUATION = re.compile(r"[.,;:!?]{0,3}")

# latex2mathml knows the one, models write the other.
_SAME = [
    (re.compile(r"\\(begin|end)\{(?:aligned|align|flalign\*?|split|eqnarray\*?)\}"), r"\\\1{align*}"),
    (re.compile(r"\\begin\{alignat\*?\}(?:\{\d+\})?"), r"\\begin{align*}"),
    (re.compile(r"\\end\{alignat\*?\}"), r"\\end{align*}"),
    (re.compile(r"\\(begin|end)\{(?:gather(?:ed|\*)?|multline\*?)\}"), r"\\\1{matrix}"),
    (re.compile(r"\\(?:begin|end)\{(?:equation|displaymath|math)\*?\}"), ""),
    (re.compile(r"\\(?:label\{[^{}]*\}|nonumber\b|notag\b)"), ""),
    (re.compile(r"\\(?:bm|boldsymbol)\b"), r"\\mathbf"),
    (re.compile(r"\\[dt]frac\b"), r"\\frac"),
]
_REFUSED = re.compile(r"\\(?:(?:re)?newcommand|g?def|let|href|url|includegraphics|style|class)\b")

_MATHS_ELEMENTS = frozenset(
    [
        "math",
        "mrow",
        "mi",
        "mn",
        "mo",
        "ms",
        "mspace",
        "mtext",
        "mfrac",
        "msqrt",
        "mroot",
        "mstyle",
        "mpadded",
        "mphantom",
        "msub",
        "msup",
        "msubsup",
        "munder",
        "mover",
        "munderover",
        "mmultiscripts",
        "mprescripts",
        "mtable",
        "mtr",
        "mtd",
        "merror",
    ]
)
_MATHS_ATTRIBUTES = frozenset(
    [
        "accent",
        "accentunder",
        "depth",
        "display",
        "displaystyle",
        "fence",
        "form",
        "height",
        "largeop",
        "linethickness",
        "lspace",
        "mathvariant",
        "maxsize",
        "minsize",
        "movablelimits",
        "rspace",
        "scriptlevel",
        "separator",
        "stretchy",
        "symmetric",
        "voffset",
        "width",
    ]
)


@kept(_KEPT_BYTES)
def _mathml(latex: str, display: str) -> str:
    """Convert a formula; empty if that isn't possible. `display` is "inline" or "block"."""
    if _REFUSED.search(latex) or len(latex) > _LONGEST_FORMULA:
        return ""
    for pattern, instead in _SAME:
        latex = pattern.sub(instead, latex)
    if "\\\\" in latex and "\\begin" not in latex:
        latex = f"\\begin{{matrix}}{latex}\\end{{matrix}}"
    try:
        element = Converter(display=display).convert_to_element(latex.strip())
    except Exception:  # noqa: BLE001 - it raises whatever comes of what it doesn't know, from IndexError to RecursionError
        return ""
    try:
        return "".join(_written(element))
    except (_UnknownError, RecursionError):
        return ""


class _UnknownError(Exception):
    """Part of a formula that can't be drawn."""


_ARROW = re.compile("[\u2190-\u21ff\u27f0-\u27ff]")
_NAME = re.compile("[a-z]{2,}")


def _written(element: Element) -> Iterator[str]:
    # Not the library's own writing, which takes back the escaping of what stands in \text{...}.
    tag, attributes = element.tag, {key: value for key, value in element.attrib.items() if key in _MATHS_ATTRIBUTES}
    if tag == "menclose":
        # Browsers don't know it any more.
        tag, attributes["class"] = "mrow", " ".join(f"tw-{name}" for name in element.get("notation", "").split())
    if align := element.get("columnalign"):
        attributes["class"] = " ".join(f"tw-{name}" for name in align.split()[:1])
    if tag not in _MATHS_ELEMENTS or element.get("linebreak"):
        raise _UnknownError(tag)
    text = re.sub(r"&#x[0-9A-Fa-f]+;", lambda found: html.unescape(found[0]), element.text or "")
    if tag != "mtext" and (text.startswith("\\") or text == "&"):
        raise _UnknownError(text)  # a command that the library doesn't know
    if tag == "mi" and _ARROW.fullmatch(text):
        tag = "mo"  # only an operator has space around it
    yield f"<{tag}" + "".join(f' {key}="{html.escape(value)}"' for key, value in attributes.items()) + ">"
    yield html.escape(text, quote=False)
    children = [*element]
    for child, following in zip_longest(children, children[1:]):
        yield from _written(child)
        if child.tag == "mi" and _NAME.fullmatch(child.text or "") and following is not None and following.tag != "mo":
            yield '<mspace width="0.167em"></mspace>'  # sin x
    yield f"</{tag}>"


def _maths(token: Token, *, standalone: bool) -> str:
    """A formula's element. `markup` is the mark that it begins with; none where its content tells that it is one."""
    source = token.markup + token.content + _ENDS.get(token.markup, "")
    display = "inline" if token.markup in ("$", "\\(") else "block"
    mathml = _mathml(token.content, display)
    if not mathml:
        return f'<code class="tw-source">{html.escape(source, quote=False)}</code>'
    # A block's element scrolls already, and is reached by keyboard.
    scrolls = ' tabindex="0"' if token.type == "maths" and _is_wide(mathml) else ""
    element = f'<span class="tw-math tw-math-{display}"{scrolls}'
    if standalone:
        return f'{element} title="{html.escape(source)}">{mathml}</span>'
    return f'{element} data-tw-math="{html.escape(mathml)}">{html.escape(source, quote=False)}</span>'


def _is_wide(mathml: str) -> bool:
    """Whether a formula may be wider than what holds it on a phone, and then has to be scrolled."""
    letters = html.unescape(re.sub("<[^>]*>", "", mathml))
    return len(letters) > _LETTERS_OF_A_PHONE or re.search(r'width="[\d.]{2,}', mathml) is not None


# ---- code --------------------------------------------------------------------------------------------------------

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
def _lexer(language: str) -> Lexer | None:
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
def _seam_in(above: str, window: str, below: str, language: str) -> int:
    """Where a line of the window begins at which code may be cut, since it looks the same in two parts; else -1.

    Else a text or a comment goes on from one to the other, or a mode, as in a script within HTML.
    """
    lexer = _lexer(language)
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
    lexer = _lexer(language)
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


def _language(fence: Token) -> str:
    return (fence.info.split() or [""])[0].lower()


def _code(code: str, language: str, *, more: bool = False, colours: int = _COLOURED_CHARACTERS) -> str:
    label = f'<div class="tw-language">{html.escape(language)}</div>' if language and not more else ""
    most = len(code) if len(code) <= colours else code.rfind("\n", 0, colours) + 1
    head, rest = (code[:most], code[most:]) if language else ("", code)
    drawn = _coloured(head, language.lower()) + html.escape(rest, quote=False)
    kind = "tw-code tw-more" if more else "tw-code"
    return f'<div class="{kind}">{label}<pre tabindex="0"><code>{drawn}</code></pre></div>\n'


# ---- links, images, tables, headings ----------------------------------------------------------------------------

_LINK = re.compile(r"https?://[^/?#]|mailto:[^?#]", re.IGNORECASE)
_HALF_LINK = re.compile(r"\[([^\[\]\n]{1,300})\]\([^()\s]*\Z")


def _half_link_rule(state: StateInline, silent: bool) -> bool:
    """Take a link whose address is still coming as its text, without the address."""
    if not state.env.get(_GROWING):
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


def _bare_link_rule(state: StateInline, silent: bool) -> bool:
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


class _Renderer(RendererHTML):
    """Writes tokens. A method's name is the type of the token that it writes; all others are written as usual."""

    def link_open(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: _Env) -> str:
        tokens[idx].attrSet("target", "_blank")
        tokens[idx].attrSet("rel", "noopener noreferrer")
        return self.renderToken(tokens, idx, options, env)

    def heading_open(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: _Env) -> str:
        # The page's own heading is the first; an answer's stand below it.
        tokens[idx].tag = f"h{min(6, int(tokens[idx].tag[1]) + 2)}"
        return self.renderToken(tokens, idx, options, env)

    heading_close = heading_open

    def td_open(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: _Env) -> str:
        align = str(tokens[idx].attrs.pop("style", "")).removeprefix("text-align:")
        if align:
            tokens[idx].attrSet("class", f"tw-{align}")
        return self.renderToken(tokens, idx, options, env)

    th_open = td_open

    def table_open(self, tokens: Sequence[Token], idx: int, *_: object) -> str:
        kind = " ".join(filter(None, ["tw-table", str(tokens[idx].attrs.pop("class", ""))]))
        attributes = self.renderAttrs(tokens[idx])
        return f'<div class="{kind}"{attributes} tabindex="0" role="region" aria-label="Table"><table>\n'

    def table_close(self, *_: object) -> str:
        return "</table></div>\n"

    def image(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: _Env) -> str:
        alt = self.renderInlineAsText(tokens[idx].children, options, env)
        address = str(tokens[idx].attrs.get("src", ""))
        return f'<span class="tw-image">{html.escape(f"{alt} ({address})" if alt else address, quote=False)}</span>'

    def fence(self, tokens: Sequence[Token], idx: int, *_: object) -> str:
        return _code(tokens[idx].content, (tokens[idx].info.split() or [""])[0], **tokens[idx].meta)

    def code_block(self, tokens: Sequence[Token], idx: int, *_: object) -> str:
        return _code(tokens[idx].content, "")

    def maths(self, tokens: Sequence[Token], idx: int, _: OptionsDict, env: _Env) -> str:
        return _maths(tokens[idx], standalone=_STANDALONE in env)

    def maths_block(self, tokens: Sequence[Token], idx: int, _: OptionsDict, env: _Env) -> str:
        formula = _maths(tokens[idx], standalone=_STANDALONE in env)
        return f'<div class="tw-formula" tabindex="0">{formula}{tokens[idx].info}</div>\n'

    def maths_source(self, tokens: Sequence[Token], idx: int, *_: object) -> str:
        return _code(tokens[idx].markup + tokens[idx].content, "")


# ---- direction ---------------------------------------------------------------------------------------------------

_RIGHT_TO_LEFT = re.compile("[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefe\U00010800-\U00010fff\U0001e800-\U0001efff]")
_LAID_OUT = {
    *("paragraph_open", "heading_open", "bullet_list_open", "ordered_list_open", "list_item_open"),
    *("blockquote_open", "table_open", "th_open", "td_open"),
}


def _direction_rule(state: StateCore) -> None:
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


def _parser() -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"html": False, "maxNesting": 2 * _DEEPEST}, renderer_cls=_Renderer)
    parser.enable(["table", "strikethrough"])
    parser.validateLink = lambda url: _LINK.match(url) is not None  # type: ignore[method-assign]
    parser.block.ruler.before("table", "deep", _deep_rule)
    parser.block.ruler.before(
        "table", "maths_block", _maths_block_rule, {"alt": ["paragraph", "reference", "blockquote", "list"]}
    )
    parser.block.ruler.before(
        "table", "environment", _environment_rule, {"alt": ["paragraph", "reference", "blockquote", "list"]}
    )
    parser.core.ruler.before("inline", "definition", _definition_rule)
    parser.inline.ruler.before("escape", "maths", _maths_rule)
    parser.inline.ruler.after("link", "half_link", _half_link_rule)
    parser.inline.ruler.after("text", "bare_link", _bare_link_rule)
    parser.core.ruler.push("direction", _direction_rule)
    return parser


_PARSER = _parser()
