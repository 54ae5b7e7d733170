"""Charts as SVG, by hand: sharp at any size, with texts that can be read, found and copied.

In: rows, curves. Out: SVG elements. Must not know: pages, where figures come from.

Colours and fonts are classes of the page's style sheet.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from benchmarks.rows import Row, Speed
from benchmarks.series import Curve

_ROW, _BAR = 30, 18
_LABELS = 320  # for the names of runs
_SPEED_WIDTH, _PEAK_WIDTH = 780, 360
_CURVE_WIDTH, _CURVE_HEIGHT = 560, 340
_TOP, _BOTTOM = 8, 40
_LINES = 6  # colours of lines in the style sheet


def speed_picture(shown: Sequence[Row]) -> str:
    """% of the ideal run's speed with its spread, and a mark where the bound is."""
    speeds = [row.speed for row in shown if row.speed is not None]
    marks = [_bound(speed) for speed in speeds]
    most = max(100.0, *(speed.of_ideal.high * 100 for speed in speeds), *(m or 0.0 for m in marks))
    ticks = _ticks(most)
    left, right = _LABELS, _SPEED_WIDTH - 74
    scale = (right - left) / ticks[-1]
    parts = _grid(ticks, left, scale, len(shown), "% of the ideal run's speed")
    for number, (row, speed, bound) in enumerate(zip(shown, speeds, marks, strict=True)):
        y = _TOP + number * _ROW + _ROW / 2
        low, middle, high = (
            left + scale * 100 * part
            for part in (speed.of_ideal.low, speed.of_ideal.middle, speed.of_ideal.high)
        )
        about = (
            f"{row.name}: {speed.of_ideal.middle:.0%} of ideal ({speed.of_ideal.low:.0%} to "
            f"{speed.of_ideal.high:.0%}), {speed.seconds.middle:.3f} s per step"
        )
        parts += [
            f"<g><title>{escape(about)}</title>",
            _text(left - 10, y + 4, row.name, "end"),
            _rect(left, y - _BAR / 2, middle - left, _BAR, _kind(row)),
            _line(low, y, high, y, "spread"),
            *(_line(x, y - 4, x, y + 4, "spread") for x in (low, high)),
            _text(right + 8, y + 4, f"{speed.seconds.middle:.2f} s", "start", "muted"),
        ]
        if bound is not None:
            x = left + scale * bound
            parts.append(_line(x, y - _ROW / 2 + 2, x, y + _ROW / 2 - 2, "bound"))
        parts.append("</g>")
    return _svg(parts, _SPEED_WIDTH, _height(len(shown)), "Speed of each system")


def peak_picture(shown: Sequence[Row]) -> str:
    """Gigabytes of the limited memory, for the same rows in the same order."""
    peaks = [(row.peak_bytes or 0) / 1e9 for row in shown]
    limits = [(row.limit_bytes or 0) / 1e9 for row in shown]
    ticks = _ticks(max(*peaks, *limits, 1e-9))
    left, right = 14, _PEAK_WIDTH - 62
    scale = (right - left) / ticks[-1]
    parts = _grid(ticks, left, scale, len(shown), "peak memory, GB (dashed: the limit)")
    for number, (row, peak, limit) in enumerate(zip(shown, peaks, limits, strict=True)):
        y = _TOP + number * _ROW + _ROW / 2
        within = f", limit {limit:.3f} GB" if limit else ""
        parts += [
            f"<g><title>{escape(f'{row.name}: {peak:.3f} GB{within}')}</title>",
            _rect(left, y - _BAR / 2, scale * peak, _BAR, f"{_kind(row)} soft"),
            _text(right + 8, y + 4, f"{peak:.2f} GB", "start", "muted"),
        ]
        if limit:
            x = left + scale * limit
            parts.append(_line(x, y - _ROW / 2 + 3, x, y + _ROW / 2 - 3, "limit"))
        parts.append("</g>")
    return _svg(parts, _PEAK_WIDTH, _height(len(shown)), "Peak memory of each system")


def curve_picture(curve: Curve) -> str:
    """Lines with the spread of each point, and their names below."""
    points = [point for line in curve.lines.values() for point in line]
    across = _ticks(max(x for x, _ in points))
    up = _ticks(max(100.0, *(speed.of_ideal.high * 100 for _, speed in points)))
    left, top, right = 52, 14, _CURVE_WIDTH - 16
    bottom = _CURVE_HEIGHT - 48

    def place(x: float, percent: float) -> tuple[float, float]:
        return (
            left + (right - left) * x / across[-1],
            bottom - (bottom - top) * percent / up[-1],
        )

    parts = [_text((left + right) / 2, bottom + 36, curve.over, "middle", "axis")]
    for tick in up:
        y = place(0, tick)[1]
        parts += [_line(left, y, right, y, "grid"), _text(left - 8, y + 4, _tick(tick), "end")]
    parts.append(_text(0, 0, "% of ideal speed", "middle", "axis", turned=(14, (top + bottom) / 2)))
    parts += [_text(place(tick, 0)[0], bottom + 17, _tick(tick), "middle") for tick in across]
    for number, (name, line) in enumerate(curve.lines.items()):
        kind = f"line{number % _LINES}"
        ends = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(x, _percent(s)) for x, s in line))
        parts.append(f'<polyline class="{kind}" points="{ends}"/>')
        for x, speed in line:
            across_x, y = place(x, _percent(speed))
            low, high = (
                place(x, 100 * part)[1] for part in (speed.of_ideal.low, speed.of_ideal.high)
            )
            about = f"{name}, {x:.4g}: {speed.of_ideal.middle:.0%} of ideal"
            parts += [
                f"<g><title>{escape(about)}</title>",
                _line(across_x, low, across_x, high, kind),
                f'<circle class="{kind}" cx="{across_x:.1f}" cy="{y:.1f}" r="4"/></g>',
            ]
    height = _CURVE_HEIGHT
    for number, name in enumerate(curve.lines):
        y = height + 10 + 18 * number
        parts += [
            _line(left, y - 4, left + 22, y - 4, f"line{number % _LINES}"),
            _text(left + 30, y, name, "start"),
        ]
    return _svg(
        parts, _CURVE_WIDTH, height + 10 + 18 * len(curve.lines), f"Speed over {curve.over}"
    )


def _percent(speed: Speed) -> float:
    return 100 * speed.of_ideal.middle


def _bound(speed: Speed) -> float | None:
    """The speed of a run that reaches the bound, in % of the ideal run's."""
    return None if not speed.of_bound else _percent(speed) / speed.of_bound


def _kind(row: Row) -> str:
    return {"teraio": "ours", "ideal": "ideal"}.get(row.system, "theirs")


def _height(count: int) -> int:
    return _TOP + count * _ROW + _BOTTOM


def _ticks(most: float) -> list[float]:
    """Round values from 0 to at least ``most``, some five of them."""
    step = 10.0 ** math.floor(math.log10(most / 4))
    step *= next(factor for factor in (1, 2, 2.5, 5, 10) if factor * step * 5 >= most)
    return [step * number for number in range(math.ceil(most / step - 1e-9) + 1)]


def _tick(value: float) -> str:
    return f"{value:,.4g}" if value < 1e4 else f"{value:,.0f}"


def _grid(ticks: Sequence[float], left: float, scale: float, count: int, title: str) -> list[str]:
    bottom = _TOP + count * _ROW
    parts = []
    for tick in ticks:
        x = left + scale * tick
        parts += [
            _line(x, _TOP, x, bottom, "grid"),
            _text(x, bottom + 16, _tick(tick), "middle", "muted"),
        ]
    middle = left + scale * ticks[-1] / 2
    return [*parts, _text(middle, bottom + 34, title, "middle", "axis")]


def _svg(parts: Sequence[str], width: float, height: float, name: str) -> str:
    return (
        f'<svg role="img" aria-label="{escape(name)}" viewBox="0 0 {width} {height}">'
        f"{''.join(parts)}</svg>"
    )


def _text(
    x: float,
    y: float,
    text: str,
    anchor: str,
    kind: str = "",
    turned: tuple[float, float] | None = None,
) -> str:
    turn = f' transform="translate({turned[0]:.1f} {turned[1]:.1f}) rotate(-90)"' if turned else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{kind}"{turn}>'
        f"{escape(text)}</text>"
    )


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _rect(x: float, y: float, width: float, height: float, kind: str) -> str:
    return (
        f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{max(0.0, width):.1f}" '
        f'height="{height}" rx="2"/>'
    )
