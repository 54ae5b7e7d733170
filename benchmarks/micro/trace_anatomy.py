"""What a trace's storages are like: how much is active, for how long the rest is not, how large.

In: a Trace. Out: Anatomy. Must not know: plans, budgets, where the trace is from.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from teraio.planner import inactive_periods, live_by_op
from teraio.records import Trace
from teraio.reports.memory import alive, op_starts
from teraio.reports.overview import period_seconds

PERIODS_S = (0.001, 0.01, 0.1, 1.0)
SIZES = (1 << 20, 16 << 20, 256 << 20)


@dataclass(frozen=True, slots=True, kw_only=True)
class Anatomy:
    """Shares are between 0 and 1.

    ``active_share``: bytes that the running op touches of the bytes in memory, the mean over ops;
    ``active_share_of_time`` weighs ops by how long they take. ``longer``: for each of PERIODS_S,
    the share of bytes (each storage's counted once per inactive period) that stay inactive for at
    least so long. ``by_size``: the share of bytes in storages below each of SIZES, and above;
    ``by_kind``: of what is in memory at the peak.
    """

    active_share: float
    active_share_of_time: float
    longer: tuple[float, ...]
    by_size: tuple[float, ...]
    by_kind: dict[str, float]
    peak_bytes: int


def anatomy(trace: Trace) -> Anatomy:
    """The figures of ``trace``, which must have ops."""
    n = len(trace.ops)
    live = live_by_op(trace)
    active = np.zeros(n)
    for storage in trace.storages:
        active[list(storage.uses)] += storage.nbytes
    share = active / np.maximum(live, 1)
    durations = np.fromiter((op.duration_ns for op in trace.ops), np.float64, n)
    total = sum(storage.nbytes for storage in trace.storages)
    peak = int(live.argmax())
    kinds: Counter[str] = Counter()
    for storage in trace.storages:
        if alive(storage, peak):
            kinds[storage.kind] += storage.nbytes
    return Anatomy(
        active_share=float(share.mean()),
        active_share_of_time=float(np.average(share, weights=durations)),
        longer=_longer(trace),
        by_size=_by_size(trace, total),
        by_kind={kind: nbytes / int(live[peak]) for kind, nbytes in sorted(kinds.items())},
        peak_bytes=int(live[peak]),
    )


def _longer(trace: Trace) -> tuple[float, ...]:
    periods = inactive_periods(trace)
    lasted = period_seconds(periods, op_starts(trace))
    sizes = [trace.storages[period.storage].nbytes for period in periods]
    total = sum(sizes)
    return tuple(
        sum(size for size, s in zip(sizes, lasted, strict=True) if s >= least) / total
        for least in PERIODS_S
    )


def _by_size(trace: Trace, total: int) -> tuple[float, ...]:
    held = [0] * (len(SIZES) + 1)
    for storage in trace.storages:
        held[sum(storage.nbytes >= size for size in SIZES)] += storage.nbytes
    return tuple(nbytes / total for nbytes in held)
