"""Draws plots as SVG, which a page holds as text and shows in its own colours."""

import html
import math
from typing import List, NamedTuple, Sequence, Tuple

_WIDTH, _HEIGHT = 640, 340
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 24, 32, 44
# Of a bubble: the radius of the largest, and the least that is seen.
_LARGEST, _LEAST = 26.0, 5.0
# Of an axis of percents.
_LEAST_SPAN = 0.2


class Bubble(NamedTuple):
    """A model.

    Attributes:
      label: of it.
      x, y: its place, in the units of the axes.
      area: what its size stands for.
      says: for a reader who points at it.
    """

    label: str
    x: float
    y: float
    area: float
    says: str


def bubbles(items: Sequence[Bubble], x_title: str, y_title: str) -> str:
    """A plot of models as an SVG element, with an area of each in proportion.

    Args:
      items: one at least.
      x_title, y_title: of the axes.
    """
    x_ticks, y_ticks = (
        _ticks([item.x for item in items], zero=True),
        _ticks([item.y for item in items], zero=False),
    )

    def across(value: float) -> float:
        return _scaled(value, x_ticks, _LEFT, _WIDTH - _RIGHT)

    def up(value: float) -> float:
        return _scaled(value, y_ticks, _HEIGHT - _BOTTOM, _TOP)

    lines = [
        '<svg class="plot" viewBox="0 0 {} {}" role="img" aria-label="{}">'.format(
            _WIDTH, _HEIGHT, html.escape("{} against {}".format(y_title, x_title), quote=True)
        )
    ]
    for tick in y_ticks:
        lines.append(_line(_LEFT, up(tick), _WIDTH - _RIGHT, up(tick)))
        lines.append(_text(_LEFT - 8, up(tick) + 4, _number(tick), "end"))
    for tick in x_ticks:
        lines.append(_text(across(tick), _HEIGHT - _BOTTOM + 18, _number(tick), "middle"))
    lines.append(_line(_LEFT, _HEIGHT - _BOTTOM, _WIDTH - _RIGHT, _HEIGHT - _BOTTOM))
    lines.append(_text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 6, x_title, "middle"))
    lines.append(_text(4, 14, y_title, "start"))
    most = max(item.area for item in items)
    taken: List[Tuple[float, float]] = []
    for number, item in enumerate(sorted(items, key=lambda one: -one.area)):
        radius = max(_LARGEST * math.sqrt(item.area / most) if most else 0.0, _LEAST)
        x, y = across(item.x), up(item.y)
        lines.append(
            '<circle class="bubble c{}" cx="{:.1f}" cy="{:.1f}" r="{:.1f}"><title>{}</title></circle>'.format(
                number % 6, x, y, radius, html.escape(item.says)
            )
        )
        place = _free(x, y, taken)
        anchor = "end" if x > _WIDTH * 0.6 else "start"
        shift = -radius - 4 if anchor == "end" else radius + 4
        lines.append(_text(x + shift, place + 4, item.label, anchor, "label"))
    return "\n".join(lines + ["</svg>"])


def histogram(counts: Sequence[int], edges: Sequence[float], low: float, high: float) -> str:
    """A small histogram as an SVG element; what is beyond the range low to high has a colour of its own."""
    most = max(list(counts) + [1])
    width, height = 2 * len(counts), 24
    bars = []
    for index, count in enumerate(counts):
        if not count:
            continue
        # (The root shows the tails, which are what a range clips.)
        tall = max(height * math.sqrt(count / most), 1.0)
        middle = (edges[index] + edges[index + 1]) / 2
        bars.append(
            '<rect class="{}" x="{}" y="{:.1f}" width="2" height="{:.1f}"/>'.format(
                "in" if low <= middle <= high else "out", 2 * index, height - tall, tall
            )
        )
    element = (
        '<svg class="histogram" width="{0}" height="{1}" viewBox="0 0 {0} {1}" aria-hidden="true">{2}</svg>'
    )
    return element.format(width, height, "".join(bars))


def _ticks(values: Sequence[float], zero: bool) -> List[float]:
    """Round numbers from below the least to above the greatest value, four to seven of them."""
    low, high = (0.0 if zero else min(values)), max(values)
    if zero:
        high = high or 1.0
    elif high - low < _LEAST_SPAN:
        # (In percent. What differs by less has one label.)
        middle = (low + high) / 2.0
        low, high = max(middle - _LEAST_SPAN / 2.0, 0.0), min(middle + _LEAST_SPAN / 2.0, 100.0)
    rough = (high - low) / 4.0
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    first, last = math.floor(low / step), math.ceil(high / step)
    # (A bubble needs room above and below.)
    last += high > (last - 0.3) * step
    first -= not zero and low < (first + 0.3) * step
    ticks = [number * step for number in range(first, last + 1)]
    return ticks if zero else [tick for tick in ticks if 0.0 <= tick <= 100.0]


def _scaled(value: float, ticks: Sequence[float], start: float, end: float) -> float:
    return start + (end - start) * (value - ticks[0]) / (ticks[-1] - ticks[0])


def _free(x: float, y: float, taken: List[Tuple[float, float]]) -> float:
    """A height for a label near y at which no label is yet, and notes it."""
    while any(abs(y - other) < 15 and abs(x - beside) < 150 for beside, other in taken):
        y += 15
    taken.append((x, y))
    return y


def _number(value: float) -> str:
    return "{:g}".format(round(value, 6))


def _line(*ends: float) -> str:
    return '<line x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>'.format(*ends)


def _text(x: float, y: float, text: str, anchor: str, kind: str = "axis") -> str:
    return '<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>'.format(
        kind, x, y, anchor, html.escape(text)
    )
