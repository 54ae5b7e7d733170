"""What an iteration does with memory, in figures: the facts behind ``teraio inspect``.

In: a Trace. Out: an Overview. Must not know: rendering, files.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from teraio.planner import Period, inactive_periods, least_budget
from teraio.records import Telemetry, Trace
from teraio.reports.memory import (
    ROWS,
    Bytes,
    Seconds,
    active_by_op,
    by_module,
    memory_by_kind,
    op_starts,
)

_PERIODS_SHOWN = 10
_SPARK_BINS = 48
_SMALLEST_CLASS = 64 << 10
_LARGEST_CLASS = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseFacts:
    """One phase: its part of the time, its peak, and what share of memory its ops use."""

    phase: str
    ops: int
    seconds: float
    peak_bytes: int
    active_share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PeriodFacts:
    """One inactive period of a storage. ``before`` is None where it is not used again."""

    name: str
    kind: str
    nbytes: int
    seconds: float
    after: int
    before: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeClass:
    """Storages of at least ``from_bytes`` and less than ``below_bytes`` (None: no limit)."""

    from_bytes: int
    below_bytes: int | None
    storages: int
    nbytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """The figures of one iteration.

    ``active_share`` is the part of the memory held that ops use while they run, averaged over
    time; ``active_over_time`` the same in equal parts of the iteration. ``inactive_byte_seconds``
    is memory times time in inactive periods; ``held_byte_seconds`` all memory times time.
    ``telemetry`` is what the machine did in the run that the iteration is of, if there was one.
    """

    device: str
    ops: int
    storages: int
    seconds: float
    peak_bytes: int
    peak_op: int
    peak_op_name: str
    peak_module: str
    peak_phase: str
    least_budget_bytes: int
    peak_by_kind: dict[str, int]
    peak_by_module: dict[str, int]
    active_share: float
    active_share_of_peak: float
    active_over_time: tuple[float, ...]
    held_byte_seconds: float
    inactive_byte_seconds: float
    phases: tuple[PhaseFacts, ...]
    largest_periods: tuple[PeriodFacts, ...]
    longest_periods: tuple[PeriodFacts, ...]
    sizes: tuple[SizeClass, ...]
    telemetry: Telemetry | None = None


def overview(trace: Trace) -> Overview:
    """The figures of ``trace``, which has at least one op."""
    starts = op_starts(trace)
    lasting = np.diff(starts)
    rows = memory_by_kind(trace)
    held, active = rows.sum(axis=0), active_by_op(trace)
    peak_op = int(held.argmax())
    op = trace.ops[peak_op]
    periods = inactive_periods(trace)
    lengths = period_seconds(periods, starts)
    nbytes = np.array([trace.storages[p.storage].nbytes for p in periods], dtype=np.float64)
    return Overview(
        device=trace.device,
        ops=len(trace.ops),
        storages=len(trace.storages),
        seconds=float(starts[-1]),
        peak_bytes=int(held[peak_op]),
        peak_op=peak_op,
        peak_op_name=op.name,
        peak_module=op.module,
        peak_phase=op.phase,
        least_budget_bytes=least_budget(trace),
        peak_by_kind={name: int(rows[i, peak_op]) for i, name in enumerate(ROWS)},
        peak_by_module=by_module(trace.storages, peak_op),
        active_share=_average(active / held.clip(1), lasting),
        active_share_of_peak=_average(active / max(1, int(held[peak_op])), lasting),
        active_over_time=_over_time(active, held, starts),
        held_byte_seconds=float((held * lasting).sum()),
        inactive_byte_seconds=float((nbytes * lengths).sum()),
        phases=_phases(trace, held, active, lasting),
        largest_periods=_top(trace, periods, lengths, nbytes * lengths),
        longest_periods=_top(trace, periods, lengths, lengths),
        sizes=size_classes(trace),
    )


def period_seconds(periods: tuple[Period, ...], starts: Seconds) -> Seconds:
    """How long each period lasts, from the end of its first op to the start of its last."""
    n, whole = len(starts) - 1, float(starts[-1])
    first = np.array([p.after + 1 for p in periods], dtype=np.int64)
    end = first + np.array([p.length for p in periods], dtype=np.int64)
    return starts[end % n] - starts[first % n] + whole * (end // n - first // n)


def _average(values: Seconds, lasting: Seconds) -> float:
    whole = float(lasting.sum())
    return float((values * lasting).sum() / whole) if whole else float(values.mean())


def _over_time(active: Bytes, held: Bytes, starts: Seconds) -> tuple[float, ...]:
    edges = np.linspace(0.0, float(starts[-1]), _SPARK_BINS + 1)
    lasting = np.diff(starts)
    used, had = (
        np.diff(np.interp(edges, starts, np.concatenate(([0.0], np.cumsum(values * lasting)))))
        for values in (active, held)
    )
    return tuple(float(share) for share in np.divide(used, had, np.zeros_like(used), where=had > 0))


def _phases(trace: Trace, held: Bytes, active: Bytes, lasting: Seconds) -> tuple[PhaseFacts, ...]:
    phases = np.array([op.phase for op in trace.ops])
    found = []
    for phase in dict.fromkeys(op.phase for op in trace.ops):
        mine = phases == phase
        found.append(
            PhaseFacts(
                phase=phase,
                ops=int(mine.sum()),
                seconds=float(lasting[mine].sum()),
                peak_bytes=int(held[mine].max()),
                active_share=_average(active[mine] / held[mine].clip(1), lasting[mine]),
            )
        )
    return tuple(found)


def _top(
    trace: Trace, periods: tuple[Period, ...], lengths: Seconds, weights: Seconds
) -> tuple[PeriodFacts, ...]:
    order = np.argsort(-weights, kind="stable")[:_PERIODS_SHOWN]
    found = []
    for index in order.tolist():
        period = periods[index]
        storage = trace.storages[period.storage]
        found.append(
            PeriodFacts(
                name=storage.name,
                kind=storage.kind,
                nbytes=storage.nbytes,
                seconds=float(lengths[index]),
                after=period.after,
                before=period.before,
            )
        )
    return tuple(found)


def size_classes(trace: Trace) -> tuple[SizeClass, ...]:
    """How many storages there are of which size; classes without any are left out."""
    edges = [0]
    size = _SMALLEST_CLASS
    while size <= _LARGEST_CLASS:
        edges.append(size)
        size *= 4
    sizes = np.array([storage.nbytes for storage in trace.storages], dtype=np.int64)
    places = np.searchsorted(edges, sizes, side="right") - 1
    return tuple(
        SizeClass(
            from_bytes=edges[place],
            below_bytes=edges[place + 1] if place + 1 < len(edges) else None,
            storages=int((places == place).sum()),
            nbytes=int(sizes[places == place].sum()),
        )
        for place in range(len(edges))
        if (places == place).any()
    )
