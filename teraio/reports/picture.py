"""The charts of a page as one picture, for papers.

In: a Subject. Out: a PNG, SVG or PDF file. Must not know: HTML.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from teraio.errors import ConfigurationError
from teraio.records import Trace
from teraio.reports.colours import AWAY, BUDGET, READ, ROW_COLOURS, STALL, WRITE
from teraio.reports.curves import channel_use, telling_ops
from teraio.reports.memory import ROW_TITLES, ROWS, Seconds, memory_by_kind, op_starts
from teraio.reports.subject import Subject
from teraio.reports.timeline import Span, Timeline, timeline

FORMATS = (".png", ".svg", ".pdf")
_WIDTH = 9.0
_DOTS_PER_INCH = 200
_STORAGES = 24
_NAME_LENGTH = 44
# What stays the longest at the bottom.
_STACK = ("small", "parameter", "optimizer_state", "gradient", "activation", "buffer", "input")
_STALL_OPACITY = 0.14
_MOVES = (
    (WRITE, "leaving"),
    (AWAY, "away"),
    (READ, "coming back"),
    ((STALL, _STALL_OPACITY), "the device waits"),
)
_STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 8.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#9aa3af",
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "svg.fonttype": "none",
    "svg.hashsalt": "teraio",
}
_LEGEND: dict[str, Any] = {
    "frameon": False,
    "fontsize": 7.5,
    "handlelength": 1.2,
    "columnspacing": 1.2,
    "handletextpad": 0.5,
}


def draw(subject: Subject, path: Path) -> None:
    """Draws the picture into ``path``, in the format of its ending.

    Raises ConfigurationError for another ending, or where matplotlib is not installed.
    """
    if path.suffix.lower() not in FORMATS:
        raise ConfigurationError(f"{path}: a picture's name ends in {', '.join(FORMATS)}.")
    try:
        import matplotlib
        from matplotlib.figure import Figure
        from matplotlib.patches import Patch
    except ImportError:
        raise ConfigurationError(
            "pictures are drawn by matplotlib, which is not installed; "
            "pip install 'teraio[reports]', or pip install matplotlib."
        ) from None
    times = timeline(subject)
    channels = channel_use(times.transfers, times.iteration_s)
    heights = [2.0, *([2.0] if subject.moves else []), *[0.8 for _ in channels], 4.0]
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, sum(heights) + 0.35 * len(heights)), layout="constrained")
        axes = list(
            figure.subplots(len(heights), 1, sharex=True, gridspec_kw={"height_ratios": heights})
        )
        scale = _Scale(subject, times)
        starts = op_starts(subject.unlimited)
        before = axes.pop(0)
        _draw_memory(before, subject.unlimited, (), starts[:-1], starts[1:], scale)
        handles, _ = before.get_legend_handles_labels()
        if subject.moves:
            handles += [Patch(color=colour, label=title) for colour, title in _MOVES]
        figure.legend(handles=handles, loc="outside upper left", ncols=6, **_LEGEND)
        if subject.moves:
            after = axes.pop(0)
            _draw_memory(after, subject.trace, subject.moves, times.start_s, times.end_s, scale)
        for use in channels:
            _draw_channel(axes.pop(0), use, times, scale)
        _draw_lifetimes(axes[0], subject, times, scale)
        # No date in the file, so that the same record gives the same picture.
        metadata = {"Date": None} if path.suffix.lower() == ".svg" else None
        figure.savefig(path, dpi=_DOTS_PER_INCH, metadata=metadata)


class _Scale:
    """One unit for all times and one for all sizes of a picture."""

    def __init__(self, subject: Subject, times: Timeline) -> None:
        whole_s = max(times.iteration_s, float(op_starts(subject.unlimited)[-1]))
        self.time_unit, self.time = ("s", 1.0) if whole_s >= 2 else ("ms", 1e3)
        self.most_time = whole_s * self.time
        most = int(memory_by_kind(subject.unlimited).sum(axis=0).max())
        self.size_unit, self.size = ("GiB", 2.0**30) if most >= 2 << 30 else ("MiB", 2.0**20)
        self.most_size = 1.08 * most / self.size
        self.budget = subject.plan.budget_bytes / self.size if subject.plan else None


def _draw_memory(
    axes: Any, trace: Trace, moves: Any, start_s: Seconds, end_s: Seconds, scale: _Scale
) -> None:
    rows = memory_by_kind(trace, moves)
    ops = telling_ops(rows.sum(axis=0), start_s)
    time = np.append(start_s[ops], end_s[-1]) * scale.time
    below = np.zeros(len(time))
    for row in (*_STACK, "workspace"):
        values = rows[ROWS.index(row)]
        if not values.any():
            continue
        above = below + np.append(values[ops], values[-1]) / scale.size
        colour, title = ROW_COLOURS[row], ROW_TITLES[row]
        axes.fill_between(time, below, above, step="post", color=colour, lw=0, label=title)
        below = above
    if scale.budget is not None:
        axes.axhline(scale.budget, color=BUDGET, lw=1.2, ls="--", label="budget")
    axes.set(
        ylim=(0, scale.most_size),
        xlim=(0, scale.most_time),
        ylabel=f"memory ({scale.size_unit})",
        title="With the plan" if moves else "Without a limit",
    )


def _draw_channel(axes: Any, use: Any, times: Timeline, scale: _Scale) -> None:
    edges = np.linspace(0, times.iteration_s, len(use.bytes_per_s) + 1) * scale.time
    axes.stairs(use.bytes_per_s / 1e9, edges, fill=True, color=WRITE if use.write else READ)
    for stall in times.stalls:
        start = stall.start_s * scale.time
        axes.axvspan(
            start,
            start + stall.seconds * scale.time,
            color=STALL,
            alpha=_STALL_OPACITY,
            lw=0,
            zorder=0,
        )
    axes.set(ylabel="GB/s", title=f"{use.tier} {'write' if use.write else 'read'}")
    axes.set_ylim(bottom=0)


def _draw_lifetimes(axes: Any, subject: Subject, times: Timeline, scale: _Scale) -> None:
    storages = subject.trace.storages
    order = sorted(range(len(storages)), key=lambda index: -storages[index].nbytes)[:_STORAGES]

    def bars(line: int, spans: Any, colour: str, height: float) -> None:
        scaled = [(start * scale.time, (end - start) * scale.time) for start, end in spans]
        axes.broken_barh(scaled, (line - height / 2, height), facecolors=colour, lw=0)

    for line, index in enumerate(order):
        where, storage = times.whereabouts[index], storages[index]
        bars(line, where.away, AWAY, 0.34)
        bars(line, _without(where.life, where.away), ROW_COLOURS[storage.kind], 0.66)
        bars(line, where.writing, WRITE, 0.66)
        bars(line, where.reading, READ, 0.66)
        used = [float(times.start_s[op]) * scale.time for op in storage.uses]
        axes.plot(used, [line] * len(used), "|", color=STALL, ms=5, mew=0.7)
    axes.set_yticks(range(len(order)), [_label(storages[index].name) for index in order])
    axes.tick_params(axis="y", labelsize=6.5, length=0)
    axes.set(
        ylim=(len(order) - 0.4, -0.6),
        xlabel=f"time in the iteration ({scale.time_unit})",
        title="Lifetimes of the largest storages",
    )


def _without(span: Span, holes: tuple[Span, ...]) -> list[Span]:
    parts = [span]
    for hole_start, hole_end in holes:
        cut = [
            piece
            for start, end in parts
            for piece in ((start, min(end, hole_start)), (max(start, hole_end), end))
        ]
        parts = [(start, end) for start, end in cut if end > start]
    return parts


def _label(name: str) -> str:
    # A dollar sign would start a formula.
    text = name if len(name) <= _NAME_LENGTH else f"...{name[3 - _NAME_LENGTH :]}"
    return text.replace("$", r"\$")
