"""A formula as MathML, which holds only elements and attributes known to be harmless."""

import html
import re
from collections.abc import Iterator
from itertools import zip_longest
from xml.etree.ElementTree import Element

from latex2mathml.converter import Converter
from markdown_it.token import Token

from ..kept import kept
from .formulas import ENDS, LONGEST_FORMULA

_LETTERS_OF_A_PHONE = 24
# Of a formula; what is shorter fits into a cell or a list on a phone, and isn't reached by keyboard.

_KEPT_BYTES = 2**20
# Of formulas.

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
    if _REFUSED.search(latex) or len(latex) > LONGEST_FORMULA:
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


def formula_element(token: Token, *, standalone: bool) -> str:
    """A formula's element. `markup` is the mark that it begins with; none where its content tells that it is one."""
    source = token.markup + token.content + ENDS.get(token.markup, "")
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
