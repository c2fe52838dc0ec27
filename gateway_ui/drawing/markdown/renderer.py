"""Tokens as HTML: links, images, tables, headings, code and formulas, as the page has them."""

import html
from collections.abc import Sequence

from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from markdown_it.utils import OptionsDict

from .colours import code_element
from .env import STANDALONE, Env
from .mathml import formula_element


class Renderer(RendererHTML):
    """Writes tokens. A method's name is the type of the token that it writes; all others are written as usual."""

    def link_open(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: Env) -> str:
        tokens[idx].attrSet("target", "_blank")
        tokens[idx].attrSet("rel", "noopener noreferrer")
        return self.renderToken(tokens, idx, options, env)

    def heading_open(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: Env) -> str:
        # The page's own heading is the first; an answer's stand below it.
        tokens[idx].tag = f"h{min(6, int(tokens[idx].tag[1]) + 2)}"
        return self.renderToken(tokens, idx, options, env)

    heading_close = heading_open

    def td_open(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: Env) -> str:
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

    def image(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: Env) -> str:
        alt = self.renderInlineAsText(tokens[idx].children, options, env)
        address = str(tokens[idx].attrs.get("src", ""))
        return f'<span class="tw-image">{html.escape(f"{alt} ({address})" if alt else address, quote=False)}</span>'

    def fence(self, tokens: Sequence[Token], idx: int, *_: object) -> str:
        return code_element(tokens[idx].content, (tokens[idx].info.split() or [""])[0], **tokens[idx].meta)

    def code_block(self, tokens: Sequence[Token], idx: int, *_: object) -> str:
        return code_element(tokens[idx].content, "")

    def maths(self, tokens: Sequence[Token], idx: int, _: OptionsDict, env: Env) -> str:
        return formula_element(tokens[idx], standalone=STANDALONE in env)

    def maths_block(self, tokens: Sequence[Token], idx: int, _: OptionsDict, env: Env) -> str:
        formula = formula_element(tokens[idx], standalone=STANDALONE in env)
        return f'<div class="tw-formula" tabindex="0">{formula}{tokens[idx].info}</div>\n'

    def maths_source(self, tokens: Sequence[Token], idx: int, *_: object) -> str:
        return code_element(tokens[idx].markup + tokens[idx].content, "")
