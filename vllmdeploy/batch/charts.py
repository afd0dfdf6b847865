"""Small charts as inline SVG that takes its colours from the page around it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

_WIDTH = 420  # about a phone: text then keeps its size there
_HEIGHT = 170
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 6, 10, 28
_ROUND = (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0)  # halves of these are round as well


class Bar(NamedTuple):
    """`label` is what a pointer on the bar shows."""

    height: float
    label: str


def bars(values: Sequence[Bar], ticks: Sequence[str], *, title: str) -> str:
    """`ticks` are spread evenly under the bars, from the left end to the right."""
    top = round_up(max((value.height for value in values), default=0.0))
    step = (_WIDTH - _LEFT - _RIGHT) / max(1, len(values))
    shapes = [_grid(top)]
    for index, value in enumerate(values):
        tall = (_HEIGHT - _TOP - _BOTTOM) * value.height / top
        shapes.append(
            f'<rect class="bar" x="{_LEFT + index * step:.1f}" y="{_HEIGHT - _BOTTOM - tall:.1f}" '
            f'width="{max(0.5, step - min(2.0, step / 5)):.1f}" height="{tall:.1f}">'
            f"<title>{escape(value.label)}</title></rect>"
        )
    shapes.append(_ticks(ticks))
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">'
        f"{''.join(shapes)}</svg>"
    )


def round_up(highest: float) -> float:
    """The top of an axis that reaches `highest`: a number people have names for."""
    if highest <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(highest))
    return next(step * power for step in _ROUND if highest <= step * power * (1 + 1e-9))


def _grid(top: float) -> str:
    lines: list[str] = []
    for share in (0.0, 0.5, 1.0):
        y = _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * share
        value = escape(short(top * share))
        lines.append(
            f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value}</text>'
        )
    return "".join(lines)


def _ticks(ticks: Sequence[str]) -> str:
    texts: list[str] = []
    for index, tick in enumerate(ticks):
        share = index / (len(ticks) - 1) if len(ticks) > 1 else 0.5
        anchor = "start" if share == 0 else "end" if share == 1 else "middle"
        x = _LEFT + (_WIDTH - _LEFT - _RIGHT) * share
        texts.append(
            f'<text x="{x:.1f}" y="{_HEIGHT - 10}" text-anchor="{anchor}">{escape(tick)}</text>'
        )
    return "".join(texts)


def short(value: float) -> str:
    """A number in few characters: 950, 1.2k, 34M."""
    for factor, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.3g}{suffix}"
    return f"{value:.3g}"


def counted(value: int) -> str:
    """Exact for as long as a person reads it at a glance."""
    return f"{value:,}" if value < 1_000_000 else short(value)


def seconds(value: float) -> str:
    if value < 1:
        return f"{value * 1000:.3g} ms"
    return f"{value:.3g} s" if value < 120 else f"{value / 60:.3g} min"
