"""A running job on one screen.

In: a RunStatus. Out: renderables of rich. Must not know: where it comes from.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import timedelta
from statistics import median

from rich.console import RenderableType
from rich.text import Text

from teraio.records import StepReport
from teraio.reports.table import bar, spaced, sparkline, table
from teraio.reports.telemetry import telemetry_text
from teraio.reports.units import count, format_size, rate, seconds, share
from teraio.status import RunStatus

_PHASES = {
    "profile": "profiling: storages move on demand, the plan comes next",
    "run": "running",
    "closed": "closed",
}
_OLD_S = 10.0
_LATEST = 20
_COMMAND_WIDTH = 80


def live_text(status: RunStatus) -> RenderableType:
    """Phase, step time, memory, channels, stalls and drift, and what the machine does."""
    steps = [step for step in status.steps if step.phase == status.phase] or list(status.steps)
    parts: list[RenderableType] = [_head(status)]
    if steps:
        parts += [_times(status, steps), _memory(status), _channels(status, steps[-1])]
    parts.append(telemetry_text(status.telemetry))
    return spaced(*parts)


def runs_text(runs: Sequence[RunStatus]) -> RenderableType:
    """One line for each of several runs."""
    return table(
        "Runs; pass the PID of one, or one of its folders",
        ("pid", "phase", "iterations", "last", "memory", "budget", "folder", "command"),
        (
            (
                str(run.pid),
                run.phase,
                count(run.steps[-1].iteration + 1) if run.steps else "0",
                seconds(run.steps[-1].duration_s) if run.steps else "",
                format_size(run.used_bytes),
                format_size(run.budget_bytes),
                ", ".join(run.folders),
                _shortened(run.command),
            )
            for run in runs
        ),
    )


def _shortened(command: str) -> str:
    return command if len(command) <= _COMMAND_WIDTH else f"{command[: _COMMAND_WIDTH - 3]}..."


def _head(status: RunStatus) -> Text:
    running = timedelta(seconds=round(status.updated_s - status.started_s))
    moves = "" if status.predicted_s is not None or status.phase != "run" else ", without a plan"
    lines = [
        f"{status.command}   (pid {status.pid}, {running} so far)",
        f"{_PHASES.get(status.phase, status.phase)}{moves}; "
        f"{count(status.steps[-1].iteration + 1) if status.steps else 0} iterations done",
    ]
    age_s = time.time() - status.updated_s
    if age_s > _OLD_S:
        lines.append(f"the last iteration ended {seconds(age_s)} ago")
    return Text("\n".join(lines))


def _times(status: RunStatus, steps: Sequence[StepReport]) -> RenderableType:
    latest = steps[-_LATEST:]
    durations = [step.duration_s for step in latest]
    stalls = [step.stall_s for step in latest]
    last = steps[-1]
    rows = [
        ("last iteration", seconds(last.duration_s), _against(last.duration_s, status.predicted_s)),
        (
            f"median of {len(latest)}",
            seconds(median(durations)),
            _against(median(durations), status.predicted_s),
        ),
        ("stall", seconds(last.stall_s), f"{share(last.stall_s, last.duration_s)} of the time"),
        ("drift", count(last.drift_ops), f"of {count(last.ops)} ops"),
    ]
    if status.predicted_s is not None and status.ideal_s is not None:
        ideal = f"ideal {seconds(status.ideal_s)}"
        rows.insert(2, ("predicted", seconds(status.predicted_s), ideal))
    if len(latest) > 2:
        rows += [("iterations", "", sparkline(durations)), ("stalls", "", sparkline(stalls))]
    return table("Time", ("", " ", "  "), rows)


def _against(duration_s: float, predicted_s: float | None) -> str:
    return f"{duration_s / predicted_s - 1:+.1%} against the prediction" if predicted_s else ""


def _memory(status: RunStatus) -> RenderableType:
    whole = max(status.budget_bytes, status.away_bytes)
    rows = [
        ("in memory", status.used_bytes, f"of a budget of {format_size(status.budget_bytes)}"),
        ("on SSD", status.away_bytes, f"of {format_size(status.spill_bytes)} reserved"),
    ]
    return table(
        "Memory",
        ("", "size", " ", "  "),
        ((name, format_size(n), bar(n, whole), what) for name, n, what in rows),
    )


def _channels(status: RunStatus, last: StepReport) -> RenderableType:
    rows = [
        ("write", last.written_bytes, status.write_bytes_per_s),
        ("read", last.read_bytes, status.read_bytes_per_s),
    ]
    return table(
        "SSD, last iteration",
        ("", "moved", "speed", " ", "  "),
        (
            (
                name,
                format_size(nbytes),
                rate(nbytes / last.duration_s) if last.duration_s else "",
                bar(nbytes / last.duration_s if last.duration_s else 0, most),
                f"of {rate(most)} measured",
            )
            for name, nbytes, most in rows
        ),
    )
