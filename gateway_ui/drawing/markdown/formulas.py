"""Which text is a formula: its marks, where it ends, and what tells it from prices and prose."""

import re

from markdown_it.rules_block import StateBlock
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token

from .env import GROWING
from .paragraphs import push_paragraph

LONGEST_FORMULA = 4000
# In characters. Bounds the search for an end, so that many beginnings in one line cost no more than each so much.

ENDS = {"\\(": "\\)", "\\[": "\\]", "$$": "$$", "$": "$"}

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
    end = source.find(ENDS[mark], first, first + LONGEST_FORMULA)
    while mark[0] == "$" and end > 0 and source[end - 1] == "\\":
        end = source.find(ENDS[mark], end + 1, first + LONGEST_FORMULA)
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
    if pair in ENDS:
        return pair
    return "$" if pair[:1] == "$" else ""


def maths_rule(state: StateInline, silent: bool) -> bool:
    r"""Take `\( \)`, `\[ \]`, `$$ $$` and `$ $` inside a paragraph."""
    mark = _mark_at(state.src, state.pos)
    if not mark:
        return False
    end = _maths_end(state.src, state.pos, mark)
    if 0 <= end < state.posMax:
        if not silent:
            token = state.push("maths", "span", 0)
            token.markup, token.content = mark, state.src[state.pos + len(mark) : end]
        state.pos = end + len(ENDS[mark])
        return True
    rest = state.src[state.pos : state.pos + LONGEST_FORMULA]
    if mark[0] == "\\" and state.env.get(GROWING) and ENDS[mark] not in rest and len(rest) < LONGEST_FORMULA:
        # It ends in what hasn't come yet. Without this rule its backslashes would be taken for escapes.
        if not silent:
            state.push("code_inline", "code", 0).content = state.src[state.pos : state.posMax]
        state.pos = state.posMax
        return True
    return False


_ENVIRONMENT = re.compile(r"\\begin\{((?:equation|align|alignat|flalign|gather|multline|eqnarray|displaymath)\*?)\}")


def environment_rule(state: StateBlock, start: int, end: int, silent: bool) -> bool:
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


_PUNCTUATION = re.compile(r"[.,;:!?]{0,3}")


def _push_after(state: StateBlock, token: Token, after: str) -> None:
    """Add what stands behind a formula in its last line."""
    if _PUNCTUATION.fullmatch(after):
        token.info = after
    elif after:
        push_paragraph(state, state.line - 1, state.line, after)


def maths_block_rule(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    r"""Take `$$ $$` and `\[ \]` that begin a line; what has no end ends with the paragraph, and is shown as its source.

    Whether it is one depends on its first line alone: else a block above, which is closed, might change later.
    """
    if state.is_code_block(start):
        return False
    line = _line(state, start)
    mark = line[:2]
    if mark not in ("$$", "\\["):
        return False
    if ENDS[mark] in line[2:]:
        # On one line: a formula with words around it is the paragraph's.
        if not line.endswith(ENDS[mark]) or line.index(ENDS[mark], 2) != len(line) - 2 or _maths_end(line, 0, mark) < 0:
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
    return above[-LONGEST_FORMULA:].count("$$") % 2 == 1


def _gather(state: StateBlock, start: int, end: int, mark: str) -> tuple[str, int, str, str]:
    """The formula's token type, the line below it, its content, and what stands behind it in its last line."""
    lines = [_line(state, start)[2:]]
    for number in range(start + 1, end):
        if state.isEmpty(number) or state.sCount[number] < state.blkIndent:
            return "maths_source", number, "\n".join(lines), ""
        before, found, after = _line(state, number).partition(ENDS[mark])
        lines.append(before)
        if found:
            return "maths_block", number + 1, "\n".join(lines), after.strip()
    return "maths_source", end, "\n".join(lines), ""
