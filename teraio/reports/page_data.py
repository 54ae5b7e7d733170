"""What an HTML page shows, as plain data.

In: a Subject. Out: nested dicts and lists for JSON. Must not know: HTML, JavaScript.

Times are in seconds from the iteration's start, rounded to what a screen can show.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median
from typing import Any

import numpy as np

from teraio import __version__
from teraio.records import StepReport, Trace
from teraio.reports.colours import PHASES, ROW_COLOURS
from teraio.reports.curves import channel_use, telling_ops
from teraio.reports.memory import (
    KINDS,
    ROW_TITLES,
    ROWS,
    Seconds,
    memory_by_kind,
    op_starts,
    storage_name,
)
from teraio.reports.overview import Overview, overview
from teraio.reports.planning import Planning, planning
from teraio.reports.subject import Subject
from teraio.reports.telemetry import HEADS, looks, telemetry_rows
from teraio.reports.timeline import Span, Timeline, timeline
from teraio.reports.units import count, format_least, format_size, seconds, share

Data = dict[str, Any]

_MOST_STORAGES = 20_000
_MOST_USES = 400_000
_PHASES_DRAWN = 200
_STALLS_SHOWN = 10


def page_data(subject: Subject) -> Data:
    """Everything on the page about ``subject``."""
    times, facts = timeline(subject), overview(subject.unlimited)
    plan = planning(subject) if subject.plan else None
    return {
        "title": subject.name,
        "subtitle": _subtitle(subject, facts),
        "version": __version__,
        "tiles": _tiles(subject, facts, plan),
        "iteration_s": _short(times.iteration_s),
        "ideal_s": _short(facts.seconds),
        "budget": subject.plan.budget_bytes if subject.plan else None,
        "rows": [{"title": ROW_TITLES[row], "colour": ROW_COLOURS[row]} for row in ROWS],
        "kinds": len(KINDS),
        "before": _before(subject),
        "after": _after(subject, times) if subject.moves else None,
        "channels": _channels(subject, times),
        "stalls": _stalls(subject, times),
        "storages": _storages(subject, times),
        "measured": _measured(subject),
        "sizes": [[s.from_bytes, s.below_bytes, s.storages, s.nbytes] for s in facts.sizes],
        "binds": plan.binds if plan else None,
        "telemetry": _telemetry(subject),
    }


def _subtitle(subject: Subject, facts: Overview) -> str:
    parts = [
        f"{count(facts.ops)} ops",
        f"{count(facts.storages)} storages",
        f"traced on {facts.device}",
    ]
    if subject.hardware:
        parts.append(f"planned for {subject.hardware.name}")
    return ", ".join(parts)


def _tile(label: str, value: str, note: str) -> Data:
    return {"label": label, "value": value, "note": note}


def _tiles(subject: Subject, facts: Overview, plan: Planning | None) -> list[Data]:
    tiles = [
        _tile("Peak memory without a limit", format_size(facts.peak_bytes), _where(facts)),
        _tile("In use at a time", share(facts.active_share, 1), "of the memory held, on average"),
    ]
    if plan is None:
        return [
            *tiles,
            _tile("Iteration", seconds(facts.seconds), "without a limit on memory"),
            _tile(
                "Least budget",
                format_least(facts.least_budget_bytes),
                f"{share(facts.least_budget_bytes, facts.peak_bytes)} of the peak",
            ),
        ]
    tiles += [
        _tile(
            "Budget",
            format_size(plan.budget_bytes),
            f"{share(plan.budget_bytes, plan.unlimited_peak_bytes)} of that peak",
        ),
        _tile(
            "Predicted iteration",
            seconds(plan.predicted_s),
            f"ideal {seconds(plan.ideal_s)}, bound {seconds(plan.bound_s)}",
        ),
        _tile(
            "Moved per iteration",
            format_size(plan.written_bytes + plan.read_bytes),
            f"{format_size(plan.written_bytes)} out, {format_size(plan.read_bytes)} back"
            + (f"; {format_size(plan.recomputed_bytes)} made again" if plan.recomputed else ""),
        ),
    ]
    steps = [step.duration_s for step in subject.steps if step.phase == "run"]
    if steps:
        step_s = median(steps)
        tiles.append(
            _tile(
                "Measured iteration",
                seconds(step_s),
                f"{step_s / plan.predicted_s - 1:+.1%} against the prediction",
            )
        )
    return tiles


def _where(facts: Overview) -> str:
    return f"in {facts.peak_phase}, {facts.peak_module or 'outside of modules'}"


def _before(subject: Subject) -> Data:
    starts = op_starts(subject.unlimited)
    return _curves(subject.unlimited, (), starts[:-1], starts[1:])


def _after(subject: Subject, times: Timeline) -> Data:
    return _curves(subject.trace, subject.moves, times.start_s, times.end_s)


def _curves(trace: Trace, moves: Any, start_s: Seconds, end_s: Seconds) -> Data:
    rows = memory_by_kind(trace, moves)
    ops = telling_ops(rows.sum(axis=0), start_s)
    times = np.append(start_s[ops], end_s[-1])
    drawn = np.concatenate((rows[:, ops], rows[:, -1:]), axis=1)
    names = [
        f"op {op}: {trace.ops[op].name.removeprefix('aten::')} in "
        f"{trace.ops[op].module or 'the program'}"
        for op in ops.tolist()
    ]
    return {
        "time": _rounded(times),
        "memory": [row.tolist() for row in drawn],
        "ops": [*names, "the iteration's end"],
        "phases": _phases(trace, start_s, end_s),
    }


def _phases(trace: Trace, start_s: Seconds, end_s: Seconds) -> list[list[Any]]:
    """Stretches of one phase; those too short to be seen are left out."""
    found: list[list[Any]] = []
    shortest = float(end_s[-1]) / _PHASES_DRAWN
    for op, start, end in zip(trace.ops, start_s.tolist(), end_s.tolist(), strict=True):
        if found and found[-1][0] == op.phase:
            found[-1][2] = end
        else:
            found.append([op.phase, start, end, PHASES[op.phase]])
    return [phase for phase in found if phase[2] - phase[1] >= shortest]


def _channels(subject: Subject, times: Timeline) -> list[Data]:
    tiers = {tier.name: tier for tier in subject.hardware.tiers} if subject.hardware else {}
    found = []
    for use in channel_use(times.transfers, times.iteration_s):
        tier = tiers[use.tier]
        found.append(
            {
                "title": f"{use.tier} {'write' if use.write else 'read'}",
                "write": use.write,
                "limit": tier.write_bytes_per_s if use.write else tier.read_bytes_per_s,
                "rates": [round(value) for value in use.bytes_per_s.tolist()],
            }
        )
    return found


def _stalls(subject: Subject, times: Timeline) -> Data:
    trace = subject.trace
    longest = sorted(times.stalls, key=lambda stall: -stall.seconds)
    return {
        "spans": [
            [_short(stall.start_s), _short(stall.start_s + stall.seconds)] for stall in times.stalls
        ],
        "total_s": _short(sum(stall.seconds for stall in times.stalls)),
        "longest": [
            {
                "op": stall.op,
                "name": trace.ops[stall.op].name.removeprefix("aten::"),
                "module": trace.ops[stall.op].module,
                "storage": storage_name(trace, stall.storage),
                "waits_for": "room in memory" if stall.waits_for == "memory" else "its data",
                "seconds": _short(stall.seconds),
            }
            for stall in longest[:_STALLS_SHOWN]
        ],
    }


def _storages(subject: Subject, times: Timeline) -> Data:
    """The largest storages, each as a list: name, kind, bytes, life, uses, moves."""
    trace = subject.trace
    order = sorted(range(len(trace.storages)), key=lambda i: -trace.storages[i].nbytes)
    listed: list[list[Any]] = []
    uses = 0
    for index in order[:_MOST_STORAGES]:
        storage, where = trace.storages[index], times.whereabouts[index]
        uses += len(storage.uses)
        if uses > _MOST_USES:
            break
        listed.append(
            [
                storage.name,
                KINDS.index(storage.kind),
                storage.nbytes,
                _rounded(where.life),
                [_short(float(times.start_s[op])) for op in storage.uses],
                _spans(where.writing),
                _spans(where.away),
                _spans(where.reading),
            ]
        )
    return {"listed": listed, "all": len(trace.storages)}


def _measured(subject: Subject) -> Data | None:
    if not subject.steps:
        return None
    steps = subject.steps
    return {
        "iteration": [step.iteration for step in steps],
        "profile": [step.phase == "profile" for step in steps],
        "duration_s": [_short(step.duration_s) for step in steps],
        "stall_s": [_short(step.stall_s) for step in steps],
        "peak": [step.peak_bytes for step in steps],
        "read": [step.read_bytes for step in steps],
        "written": [step.written_bytes for step in steps],
        "drift": [step.drift_ops for step in steps],
        "longest": [_longest(subject, step) for step in steps],
        "predicted_s": _short(subject.plan.predicted_s) if subject.plan else None,
        "plan_ideal_s": _short(subject.plan.ideal_s) if subject.plan else None,
        "bound_s": _short(subject.plan.bound_s) if subject.plan else None,
    }


def _telemetry(subject: Subject) -> Data | None:
    telemetry = subject.telemetry
    if telemetry is None:
        return None
    return {
        "lead": looks(telemetry),
        "heads": HEADS,
        "rows": telemetry_rows(telemetry),
        "missing": telemetry.missing,
    }


def _longest(subject: Subject, step: StepReport) -> str:
    """The longest stall of an iteration, in words; empty where it had none that is known."""
    stall = max(step.stalls, key=lambda stall: stall.seconds, default=None)
    if stall is None:
        return ""
    name = storage_name(subject.trace, stall.storage)
    return f"{seconds(stall.seconds)} before op {stall.op}, for {name}"


def _short(value: float) -> float:
    return float(f"{value:.6g}")


def _rounded(values: Iterable[float]) -> list[float]:
    return [_short(float(value)) for value in values]


def _spans(spans: Sequence[Span]) -> list[list[float]]:
    return [_rounded(span) for span in spans]
