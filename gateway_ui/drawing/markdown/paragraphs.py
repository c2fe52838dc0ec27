"""Paragraphs that rules of ours make: of what is nested too deep, and of what stands behind a formula."""

from markdown_it.rules_block import StateBlock

DEEPEST = 40
# Levels of quotes and lists (a list takes two); what is deeper is a paragraph. Also of brackets in brackets.


def deep_rule(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    """Take what is nested too deep as a paragraph; markdown-it would leave it out."""
    if state.level < DEEPEST or silent:
        return False
    push_paragraph(state, start, end, state.getLines(start, end, state.blkIndent, False).strip())
    state.line = end
    return True


def push_paragraph(state: StateBlock, start: int, end: int, content: str) -> None:
    state.push("paragraph_open", "p", 1).map = [start, end]
    inline = state.push("inline", "", 0)
    inline.content, inline.map, inline.children = content, [start, end], []
    state.push("paragraph_close", "p", -1)
