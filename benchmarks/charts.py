"""Results as pictures: bars with their spread, and curves over budget, size and drives.

In: Results. Out: picture files (matplotlib). Must not know: where figures come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.comparison import Results
from benchmarks.rows import Row, Speed, rows

_OURS, _THEIRS, _IDEAL = "#0b6e4f", "#8c8c8c", "#c9c9c9"


def draw(results: Results, folder: Path, stem: str, suffix: str = "svg") -> list[Path]:
    """One picture per comparison that has something to show, and one per curve with two points."""
    found = {compared.comparison.name: rows(compared) for compared in results.compared}
    paths = [
        _bars(some, name, folder / f"{stem}-{name.replace(' ', '-')}.{suffix}")
        for name, some in found.items()
        if sum(row.speed is not None for row in some) > 1
    ]
    for curve, series in (
        ("limit", _over_limit(found)),
        ("model", _over_model(results)),
        ("drives", _over_drives(found)),
    ):
        if any(len(points) > 1 for points in series.values()):
            paths.append(_curve(curve, series, folder / f"{stem}-over-{curve}.{suffix}"))
    return paths


Point = tuple[float, Speed]


def _over_limit(found: dict[str, tuple[Row, ...]]) -> dict[str, list[Point]]:
    """teraio's speed over the limit as a part of the ideal run's peak."""
    return {
        name: sorted(
            (
                (row.share, row.speed)
                for row in some
                if row.system == "teraio" and row.share and row.speed and not row.host_share
                if row.drives is None
            ),
            key=lambda point: point[0],
        )
        for name, some in found.items()
    }


def _over_model(results: Results) -> dict[str, list[Point]]:
    """The speed at half of the ideal run's peak, over millions of parameters."""
    series: dict[str, list[Point]] = {}
    for compared in results.compared:
        ideal = compared.results[0].outcome
        for row in rows(compared):
            wanted = row.system == "infinity" or (row.system, row.share) == ("teraio", 0.5)
            if ideal and wanted and row.speed and not row.host_share and row.drives is None:
                name = f"{row.system} {compared.comparison.dtype}"
                series.setdefault(name, []).append((ideal.parameters / 1e6, row.speed))
    return {name: sorted(points, key=lambda point: point[0]) for name, points in series.items()}


def _over_drives(found: dict[str, tuple[Row, ...]]) -> dict[str, list[Point]]:
    return {
        name: sorted(
            ((row.drives, row.speed) for row in some if row.drives and row.speed),
            key=lambda point: point[0],
        )
        for name, some in found.items()
    }


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


def _curve(name: str, series: dict[str, list[Point]], path: Path) -> Path:
    labels = {
        "limit": "limit, % of the ideal run's peak",
        "model": "million parameters",
        "drives": "drives",
    }
    figure, axes = _axes(height=3.2)
    for label, points in series.items():
        if len(points) < 2:
            continue
        speeds = [speed for _, speed in points]
        scale = 100 if name == "limit" else 1
        axes.errorbar(
            [x * scale for x, _ in points],
            [speed.of_ideal.middle * 100 for speed in speeds],
            yerr=_errors(speeds),
            marker="o",
            capsize=2,
            label=label,
        )
    axes.set_xlabel(labels[name])
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
