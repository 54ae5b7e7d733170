"""The curves that pictures of results show: speed over limit, model size and number of drives.

In: Results. Out: Curves. Must not know: how they are drawn.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from benchmarks.comparison import Results
from benchmarks.rows import Row, Speed, rows

Point = tuple[float, Speed]


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """Lines of % of ideal speed over something; each with two points or more, left to right."""

    name: str
    over: str
    lines: dict[str, tuple[Point, ...]]


def curves(results: Results) -> tuple[Curve, ...]:
    """Those that the results have points for."""
    found = {compared.comparison.name: rows(compared) for compared in results.compared}
    whole = (
        _curve("limit", "limit, % of the ideal run's peak", _over_limit(found)),
        _curve("model", "million parameters", _over_model(results)),
        _curve("drives", "drives", _over_drives(found)),
    )
    return tuple(curve for curve in whole if curve.lines)


def _curve(name: str, over: str, points: dict[str, list[Point]]) -> Curve:
    lines = {
        label: tuple(sorted(some, key=lambda point: point[0]))
        for label, some in points.items()
        if len({x for x, _ in some}) > 1
    }
    return Curve(name=name, over=over, lines=lines)


def _over_limit(found: dict[str, tuple[Row, ...]]) -> dict[str, list[Point]]:
    return {
        name: [(100 * row.share, row.speed) for row in _ours(some) if row.share and row.speed]
        for name, some in found.items()
    }


def _over_model(results: Results) -> dict[str, list[Point]]:
    """The speed at half of the ideal run's peak."""
    lines: dict[str, list[Point]] = {}
    for compared in results.compared:
        ideal, some = compared.results[0].outcome, rows(compared)
        half = [row for row in _ours(some) if row.share == 0.5]
        for row in (*half, *(row for row in some if row.system == "infinity")):
            if ideal and row.speed:
                name = f"{row.system} {compared.comparison.dtype}"
                lines.setdefault(name, []).append((ideal.parameters / 1e6, row.speed))
    return lines


def _over_drives(found: dict[str, tuple[Row, ...]]) -> dict[str, list[Point]]:
    return {
        name: [(row.drives, row.speed) for row in some if row.drives and row.speed]
        for name, some in found.items()
    }


def _ours(some: Iterable[Row]) -> list[Row]:
    """teraio's, with all drives, without host memory, with an ordinary step."""
    return [
        row
        for row in some
        if row.system == "teraio" and not (row.host_share or row.in_backward) and row.drives is None
    ]
