"""What of a growing answer can be drawn for good: closed segments, the open tail, and where a block may be cut."""

import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass

from markdown_it.token import Token

from .colours import COLOURED_CHARACTERS, language_of, lexer_of, seam_in
from .env import GROWING, Env
from .parser import PARSER, as_html, parsed_blocks

SEGMENT_CHARACTERS = 2000
"""A closed segment is at least so long, in characters of Markdown, so that an answer has some dozens of them."""

_LOOKED_AT = 250
# Characters of code among whose lines one is looked for where it may be cut, and of those below that are looked at.


def segments(text: str) -> list[str]:
    """Give the whole answer as HTML in segments, for an answer that has ended.

    The same segments as `Growing` gives, except that a link may be defined below the segment that uses it.
    """
    growing = Growing()
    parsed_blocks(text, growing.env)
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
        self.env: Env = {}
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
        return closed, self._draw(_told(opening + rest)[len(opening) :], {**env, GROWING: True})

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
        for block in _top_level(parsed_blocks(cut.opening + complete, {})):
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

    def _draw(self, markdown: str, env: Env) -> str:
        self.parsed += len(markdown)
        if not self._cut.kind:
            return as_html(markdown, env)
        tokens = PARSER.parse(self._cut.opening + markdown, env)
        return str(PARSER.renderer.render(_rest_of(tokens, self._cut), PARSER.options, env))


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
            paragraphs = parsed_blocks(f"{opening}{self._text[begun:place]}{item}", {})
            loose = not next(one.hidden for one in reversed(paragraphs) if one.type == "paragraph_open")
            opening = item + "\n" if loose else item
            yield place, _Cut(self._block[0].type, opening)
            begun = place

    def _of_code(self, begun: int) -> Iterator[tuple[int, _Cut]]:
        fence = self._block[0]
        first = (fence.map or [0])[0]
        opening = self._cut.opening or self._line(first)
        colours = self._cut.colours if self._cut.kind else COLOURED_CHARACTERS
        starts = [0, *(end.end() for end in re.finditer("\n", fence.content))]
        places = [self._lines[first + 1 + line - self._opening] for line in range(len(starts) - 1)]
        language = language_of(fence)
        piece, line = 0, 1
        while (line := _after(places, begun + SEGMENT_CHARACTERS, line)) < len(places):
            cut, spent = line, starts[line] - starts[piece]
            if colours > 0 and lexer_of(language) is not None:
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
            place = seam_in(*(code[begin:end] for begin, end in parts), language)
            if place >= 0:
                cut = starts.index(starts[line] + place)
                return cut, starts[cut] - starts[piece]
            if starts[until] - starts[piece] >= 4 * SEGMENT_CHARACTERS:
                return until, COLOURED_CHARACTERS  # rather no colours than wrong ones
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
