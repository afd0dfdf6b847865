"""Draws the simulation's figures as an SVG: one bar a policy, two panels."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

Bar = tuple[str, float, float]

_ROW, _TOP, _NAME, _PANEL, _GAP = 30, 56, 140, 300, 90
_SHORTEST_S = 0.1
_INK, _SOFT, _FILL, _BEST = "#1f2933", "#7b8794", "#9fb3c8", "#2f6f9f"


def chart(bars: Sequence[Bar]) -> str:
    height = _TOP + _ROW * len(bars) + 20
    width = _NAME + 2 * (_PANEL + _GAP)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" font-family="sans-serif" font-size="13">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        *_names(bars),
        *_panel(_NAME, "First token, p99 (logarithmic; shorter is better)",
                [b[1] for b in bars], "s"),
        *_panel(_NAME + _PANEL + _GAP, "Answers within the SLO (longer is better)",
                [100 * b[2] for b in bars], "%"),
        "</svg>",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _names(bars: Sequence[Bar]) -> Iterator[str]:
    for row, (name, _, _) in enumerate(bars):
        y = _TOP + _ROW * row + 16
        yield f'<text x="{_NAME - 10}" y="{y}" text-anchor="end" fill="{_INK}">{name}</text>'


def _panel(x: int, title: str, values: Sequence[float], unit: str) -> Iterator[str]:
    largest = max(values) or 1.0
    best = min(values) if unit == "s" else max(values)
    yield f'<text x="{x}" y="28" fill="{_INK}" font-weight="bold">{title}</text>'
    for row, value in enumerate(values):
        y = _TOP + _ROW * row
        length = max(1.0, _PANEL * _share(value, largest, unit))
        colour = _BEST if value == best else _FILL
        yield f'<rect x="{x}" y="{y}" width="{length:.1f}" height="22" fill="{colour}"/>'
        label = f"{value:.2f} s" if unit == "s" else f"{value:.1f} %"
        yield f'<text x="{x + length + 6:.1f}" y="{y + 16}" fill="{_SOFT}">{label}</text>'


def _share(value: float, largest: float, unit: str) -> float:
    """Waiting times lie orders of magnitude apart: their logarithms show all of them."""
    if unit != "s" or largest <= _SHORTEST_S:
        return value / largest
    return math.log(max(value, _SHORTEST_S) / _SHORTEST_S) / math.log(largest / _SHORTEST_S)
