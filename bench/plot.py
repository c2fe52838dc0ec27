"""Horizontal bars as SVG, by hand: an image in a README can follow the reader's light or dark only by its own CSS."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from bench.figures import Spread

_WIDTH = 860
_LEFT = 200
_RIGHT = 80
_TOP = 74
_BAR = 17
_PITCH = 22
_GROUP_GAP = 26

_STYLE = """
  text { font: 13px system-ui, sans-serif; fill: #1f2328 }
  .title { font-size: 17px; font-weight: 600 }
  .quiet { fill: #59636e }
  .group { font-weight: 600 }
  .bar { fill: #9aa4b0 }
  .ours { fill: #0969da }
  .spread { stroke: #1f2328; stroke-width: 1.5 }
  @media (prefers-color-scheme: dark) {
    text { fill: #f0f6fc }
    .quiet { fill: #9198a1 }
    .bar { fill: #656c76 }
    .ours { fill: #4493f8 }
    .spread { stroke: #f0f6fc }
  }
"""


@dataclass(frozen=True, slots=True)
class Bar:
    name: str
    value: Spread | None


@dataclass(frozen=True, slots=True)
class Group:
    """Bars under one heading."""

    name: str
    bars: Sequence[Bar]


def svg(title: str, note: str, groups: Sequence[Group]) -> str:
    """The picture; names that begin with "tokenwire" are ours."""
    most = max((bar.value.high for group in groups for bar in group.bars if bar.value), default=1.0)
    scale = (_WIDTH - _LEFT - _RIGHT) / most
    shapes: list[str] = []
    y = _TOP
    for group in groups:
        shapes.append(f'<text class="group" x="16" y="{y + 13}">{escape(group.name)}</text>')
        y += _PITCH
        for bar in group.bars:
            if bar.value is not None:
                shapes += _bar(bar.name, bar.value, y, scale)
                y += _PITCH
        y += _GROUP_GAP - (_PITCH - _BAR)
    return "\n".join(
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {y}" width="{_WIDTH}" role="img">',
            f"<title>{escape(title)}</title>",
            f"<style>{_STYLE}</style>",
            f'<text class="title" x="16" y="30">{escape(title)}</text>',
            f'<text class="quiet" x="16" y="51">{escape(note)}</text>',
            *shapes,
            "</svg>\n",
        )
    )


def _bar(name: str, value: Spread, y: int, scale: float) -> list[str]:
    kind = "bar ours" if name.startswith("tokenwire") else "bar"
    middle = y + _BAR / 2
    low, high = _LEFT + value.low * scale, _LEFT + value.high * scale
    return [
        f'<text x="{_LEFT - 8}" y="{y + 13}" text-anchor="end">{escape(name)}</text>',
        f'<rect class="{kind}" x="{_LEFT}" y="{y}" width="{value.median * scale:.1f}" height="{_BAR}" rx="2"/>',
        f'<line class="spread" x1="{low:.1f}" y1="{middle}" x2="{high:.1f}" y2="{middle}"/>',
        f'<text x="{high + 8:.1f}" y="{y + 13}">{value.median:,.0f}</text>',
    ]
