"""Results as pictures: bars with their spread, and curves over budget, size and drives.

In: Results. Out: picture files (matplotlib). Must not know: where figures come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.comparison import Results
from benchmarks.rows import Row, Speed, rows
from benchmarks.series import Curve, curves

_OURS, _THEIRS, _IDEAL = "#0b6e4f", "#8c8c8c", "#c9c9c9"


def draw(results: Results, folder: Path, stem: str, suffix: str = "svg") -> list[Path]:
    """One picture per comparison that has something to show, and one per curve."""
    found = {compared.comparison.name: rows(compared) for compared in results.compared}
    bars = [
        _bars(some, name, folder / f"{stem}-{name.replace(' ', '-')}.{suffix}")
        for name, some in found.items()
        if sum(row.speed is not None for row in some) > 1
    ]
    return bars + [
        _curve(curve, folder / f"{stem}-over-{curve.name}.{suffix}") for curve in curves(results)
    ]


def _bars(some: Sequence[Row], title: str, path: Path) -> Path:
    shown = [row for row in some if row.speed is not None][::-1]
    speeds = [row.speed for row in shown if row.speed is not None]
    figure, axes = _axes(height=1.2 + 0.42 * len(shown))
    middles = [speed.of_ideal.middle * 100 for speed in speeds]
    axes.barh(
        range(len(shown)),
        middles,
        xerr=_errors(speeds),
        color=[_colour(row) for row in shown],
        ecolor="#404040",
        capsize=2,
    )
    labels = [f"{row.name}\n{(row.peak_bytes or 0) / 1e9:.2f} GB" for row in shown]
    axes.set_yticks(range(len(shown)), labels, fontsize=7)
    axes.set_xlabel("% of the ideal run's speed; median, least and largest of the timed steps")
    axes.set_title(title, loc="left", fontsize=9)
    return _saved(figure, path)


def _curve(curve: Curve, path: Path) -> Path:
    figure, axes = _axes(height=3.2)
    for label, points in curve.lines.items():
        speeds = [speed for _, speed in points]
        axes.errorbar(
            [x for x, _ in points],
            [speed.of_ideal.middle * 100 for speed in speeds],
            yerr=_errors(speeds),
            marker="o",
            capsize=2,
            label=label,
        )
    axes.set_xlabel(curve.over)
    axes.set_ylabel("% of ideal speed")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=7, frameon=False)
    return _saved(figure, path)


def _errors(speeds: Sequence[Speed]) -> list[list[float]]:
    below = [(one.of_ideal.middle - one.of_ideal.low) * 100 for one in speeds]
    above = [(one.of_ideal.high - one.of_ideal.middle) * 100 for one in speeds]
    return [below, above]


def _colour(row: Row) -> str:
    return {"teraio": _OURS, "ideal": _IDEAL}.get(row.system, _THEIRS)


def _axes(height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _saved(figure: Any, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=150)
    return path
