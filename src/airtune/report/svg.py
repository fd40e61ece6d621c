"""A small line-chart writer: the quality curves as plain SVG, for papers and for the README.

The file follows the reader's colour scheme by a style rule of its own and needs nothing else.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterator, Sequence

from airtune.plan import Floats
from airtune.report.curves import Chart, Curve
from airtune.report.figure import COLOURS, palette_place

_WIDTH, _HEIGHT = 760, 430
_LEFT, _RIGHT, _TOP, _BOTTOM = 66, 22, 70, 78

_LIGHT = (
    "#6b7280",
    "#0b6bb0",
    "#c8500a",
    "#007d5b",
    "#a8447f",
    "#9a6a00",
    "#2f8fc4",
    "#7a2048",
    "#5b6b16",
)
_DARK = (
    "#9aa3b2",
    "#62b3f0",
    "#ff9257",
    "#3ccaa0",
    "#e79cc8",
    "#efbd55",
    "#9ad8fb",
    "#e0809f",
    "#bccb6a",
)
_DASHES = ("", "7 4", "2 4", "8 3 2 3")


def write_chart(chart: Chart, title: str, note: str) -> str:
    """Return the chart as an SVG document.

    Args:
        chart: the curves.
        title: what is shown, one line.
        note: the assumptions under which it was made, wrapped below the axis.
    """
    scale = _Scale(chart)
    body = [
        *_grid(scale, chart),
        *(_band(curve, scale) for curve in chart.curves),
        *(_line(curve, scale) for curve in chart.curves),
        *_target(chart, scale),
        *(_marker(curve, chart, scale) for curve in chart.curves if curve.reached is not None),
        *_legend(chart.curves),
        *_note(note),
    ]
    safe = html.escape(title)
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
            f'aria-label="{safe}" font-family="system-ui, sans-serif" font-size="13">',
            f"<title>{safe}</title>",
            f"<style>{_style()}</style>",
            f'<rect class="paper" width="{_WIDTH}" height="{_HEIGHT}"/>',
            f'<text class="ink" x="{_LEFT}" y="22" font-size="15" font-weight="600">{safe}</text>',
            *body,
            "</svg>\n",
        ]
    )


class _Scale:
    """The linear maps from data to the drawing, and their ticks."""

    def __init__(self, chart: Chart) -> None:
        self.right = max((float(curve.spent[-1]) for curve in chart.curves), default=1.0) or 1.0
        lows = [float(curve.low.min()) for curve in chart.curves]
        highs = [float(curve.high.max()) for curve in chart.curves]
        values = [*lows, *highs, *([] if chart.target is None else [chart.target])] or [0.0, 1.0]
        low, high = min(values), max(values)
        margin = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
        self.low, self.high = low - margin, high + margin

    def x(self, value: float) -> float:
        """Return the horizontal place of a cost."""
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * value / self.right

    def y(self, value: float) -> float:
        """Return the vertical place of a quality."""
        part = (value - self.low) / (self.high - self.low)
        return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * part


def ticks(low: float, high: float) -> list[float]:
    """Return round numbers between two values, about six of them.

    >>> ticks(0.0, 10.0)
    [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]
    """
    raw = (high - low) / 6
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def _style() -> str:
    def rules(ink: str, soft: str, paper: str, grid: str, colours: Sequence[str]) -> str:
        lines = "".join(
            f".c{index}{{stroke:{colour}}}.f{index}{{fill:{colour}}}"
            for index, colour in enumerate(colours)
        )
        return (
            f".paper{{fill:{paper}}}.ink{{fill:{ink}}}.soft{{fill:{soft}}}"
            f".grid{{stroke:{grid}}}.edge{{stroke:{paper}}}.rule{{stroke:{soft}}}{lines}"
        )

    light = rules("#1c2430", "#5c6675", "#ffffff", "#e6e9ee", _LIGHT)
    dark = rules("#e8ebf0", "#a3acba", "#12161c", "#2a313b", _DARK)
    return f"{light}@media (prefers-color-scheme:dark){{{dark}}}"


def _grid(scale: _Scale, chart: Chart) -> Iterator[str]:
    base = _HEIGHT - _BOTTOM
    for value in ticks(scale.low, scale.high):
        y = scale.y(value)
        yield f'<path class="grid" d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}"/>'
        text = f"{100 * value:g} %" if chart.metric.is_share else f"{value:g}"
        yield (
            f'<text class="soft" x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{text}</text>'
        )
    for value in ticks(0.0, scale.right):
        yield (
            f'<text class="soft" x="{scale.x(value):.1f}" y="{base + 20}" '
            f'text-anchor="middle">{value:g}</text>'
        )
    yield f'<path class="rule" d="M{_LEFT} {base}H{_WIDTH - _RIGHT}"/>'
    yield (
        f'<text class="soft" x="{_WIDTH - _RIGHT}" y="{base + 40}" text-anchor="end">'
        f"{html.escape(chart.x_title)}</text>"
    )


def _points(scale: _Scale, spent: Floats, values: Floats) -> str:
    pairs = zip(spent.tolist(), values.tolist(), strict=True)
    return " ".join(f"{scale.x(x):.1f},{scale.y(y):.1f}" for x, y in pairs)


def _band(curve: Curve, scale: _Scale) -> str:
    around = f"{_points(scale, curve.spent, curve.high)} "
    around += _points(scale, curve.spent[::-1], curve.low[::-1])
    return f'<polygon class="f{palette_place(curve.colour)}" opacity="0.15" points="{around}"/>'


def _line(curve: Curve, scale: _Scale) -> str:
    dash = "7 4" if curve.colour == 0 else _DASHES[(curve.colour - 1) // COLOURS % len(_DASHES)]
    return (
        f'<polyline class="c{palette_place(curve.colour)}" fill="none" stroke-width="2.25" '
        f'stroke-linejoin="round" stroke-dasharray="{dash}" '
        f'points="{_points(scale, curve.spent, curve.mean)}"/>'
    )


def _target(chart: Chart, scale: _Scale) -> Iterator[str]:
    if chart.target is None:
        return
    y = scale.y(chart.target)
    yield (f'<path class="rule" stroke-dasharray="2 4" d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}"/>')
    yield (
        f'<text class="soft" x="{_WIDTH - _RIGHT}" y="{y - 6:.1f}" text-anchor="end">'
        f"target {chart.metric.write(chart.target)}</text>"
    )


def _marker(curve: Curve, chart: Chart, scale: _Scale) -> str:
    x = scale.x(curve.reached or 0.0)
    y = scale.y(chart.target or 0.0)
    return (
        f'<circle class="f{palette_place(curve.colour)} edge" stroke-width="2" cx="{x:.1f}" '
        f'cy="{y:.1f}" r="5.5"/>'
    )


def _legend(curves: Sequence[Curve]) -> Iterator[str]:
    left, base = float(_LEFT), 42
    for curve in curves if len(curves) > 1 else ():
        width = 46 + 7.2 * len(curve.method)
        if left + width > _WIDTH:
            left, base = float(_LEFT), base + 17
        dash = "7 4" if curve.colour == 0 else ""
        yield (
            f'<path class="c{palette_place(curve.colour)}" stroke-width="2.5" '
            f'stroke-dasharray="{dash}" d="M{left:.0f} {base - 4}h22"/>'
        )
        yield (
            f'<text class="soft" x="{left + 28:.0f}" y="{base}">{html.escape(curve.method)}</text>'
        )
        left += width


def _note(note: str) -> Iterator[str]:
    lines = [""]
    for word in note.split():
        if len(lines[-1]) + len(word) > 118:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    shown = lines[:2] if len(lines) <= 2 else [lines[0], f"{lines[1]} …"]
    for index, line in enumerate(shown):
        yield (
            f'<text class="soft" font-size="11" x="{_LEFT}" '
            f'y="{_HEIGHT - 20 + 14 * index}">{html.escape(line)}</text>'
        )
