"""The parser: CommonMark with the rules of the modules beside it."""

import re

from markdown_it import MarkdownIt
from markdown_it.token import Token

from .direction import direction_rule
from .env import Env
from .formulas import environment_rule, maths_block_rule, maths_rule
from .links import LINK, bare_link_rule, definition_rule, half_link_rule
from .paragraphs import DEEPEST, deep_rule
from .renderer import Renderer


def _parser() -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"html": False, "maxNesting": 2 * DEEPEST}, renderer_cls=Renderer)
    parser.enable(["table", "strikethrough"])
    parser.validateLink = lambda url: LINK.match(url) is not None  # type: ignore[method-assign]
    parser.block.ruler.before("table", "deep", deep_rule)
    parser.block.ruler.before(
        "table", "maths_block", maths_block_rule, {"alt": ["paragraph", "reference", "blockquote", "list"]}
    )
    parser.block.ruler.before(
        "table", "environment", environment_rule, {"alt": ["paragraph", "reference", "blockquote", "list"]}
    )
    parser.core.ruler.before("inline", "definition", definition_rule)
    parser.inline.ruler.before("escape", "maths", maths_rule)
    parser.inline.ruler.after("link", "half_link", half_link_rule)
    parser.inline.ruler.after("text", "bare_link", bare_link_rule)
    parser.core.ruler.push("direction", direction_rule)
    return parser


PARSER = _parser()


def as_html(text: str, env: Env) -> str:
    return str(PARSER.render(text, env))


def parsed_blocks(text: str, env: Env) -> list[Token]:
    """The tokens of all blocks; `env` learns the links defined."""
    tokens: list[Token] = []
    PARSER.block.parse(_normal(text), PARSER, env, tokens)
    return tokens


def _normal(text: str) -> str:
    return re.sub(r"\r\n?", "\n", text).replace("\0", "\N{REPLACEMENT CHARACTER}")
