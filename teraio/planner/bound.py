"""Times that no plan can beat, from simple sums.

In: a Trace, a Hardware. Out: Bounds. Must not know: any plan.

[Note: why these are bounds]
Take any stretch of consecutive ops. The data that it uses and that existed before must be in memory
when it starts, which holds for at most the budget, or be read during it. The data that it changes
and that is needed later must be in memory when it ends, or be written during it. So a stretch lasts
at least as long as reading (bytes used - budget) and writing (bytes changed - budget) takes, and
never less than its ops. Stretches that share no op add up. One stretch may be a whole iteration
that starts anywhere. All tiers work together, so the choice of tier does not matter. Data that is
carried into the next iteration under another name, and persistent data that is never used, is left
out, which can only lower the bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from teraio.planner.arrays import Floats, Ints
from teraio.planner.columns import flattened
from teraio.planner.copies import Copies, copies
from teraio.records import Bound, Hardware, Tier, Trace

_STARTS = 96


def _corners(tier: Tier) -> list[tuple[float, float]]:
    """Write and read rates between which a tier can only change over time.

    It writes, or reads, or does both, each slowed down so that they add up to the mixed rate.
    """
    write, read = tier.write_bytes_per_s, tier.read_bytes_per_s
    slowed = tier.mixed_share
    return [(write, 0.0), (write * slowed, read * slowed), (0.0, read)]


def tier_cuts(tiers: Sequence[Tier]) -> list[tuple[float, float]]:
    """Pairs of seconds per byte written and per byte read.

    For each pair, ``tiers`` together take at least the sum of bytes times seconds.
    """
    corners = [_corners(tier) for tier in tiers]
    # For every direction a valid cut; tight are those of the edges between corners.
    directions = [(1.0, 0.0), (0.0, 1.0)]
    for alone_write, both, alone_read in corners:
        for a, b in ((alone_write, both), (both, alone_read), (alone_write, alone_read)):
            directions.append((b[1] - a[1], a[0] - b[0]))
    found = []
    for w, r in directions:
        if w >= 0.0 and r >= 0.0 and w + r > 0.0:
            most = sum(max(w * x + r * y for x, y in tier) for tier in corners)
            found.append((w / most, r / most))
    return sorted(set(found))


def _at_best(tier: Tier, on: Copies) -> Tier:
    """The tier as fast as for the storages whose bytes cost least there."""
    if not (tier.encodes and len(on.nbytes)):
        return tier
    write = tier.write_bytes_per_s / float(on.write_costs(tier).min())
    read = tier.read_bytes_per_s / float(on.read_costs(tier).min())
    return replace(
        tier,
        write_bytes_per_s=write,
        read_bytes_per_s=read,
        mixed_bytes_per_s=tier.mixed_share * (write + read),
    )


class _Rates:
    """Least seconds for some bytes read and written, by all tiers together."""

    def __init__(self, tiers: Sequence[Tier]) -> None:
        self._cuts = tier_cuts(tiers)

    def seconds(self, read_bytes: Floats, written_bytes: Floats) -> Floats:
        least = np.zeros(len(read_bytes))
        for w, r in self._cuts:
            least = np.maximum(least, w * written_bytes + r * read_bytes)
        return least


@dataclass(frozen=True, slots=True)
class _Uses:
    """Uses of storages in two iterations in a row, sorted by op.

    ``since`` is the use before of the same storage, or what stands for it: -1 for what is always
    there, ``op`` itself for what is only made here. ``last`` is the last use of all.
    """

    op: Ints
    since: Ints
    last: Ints
    nbytes: Ints


def ideal_s(trace: Trace) -> float:
    """Seconds of the iteration without any limit on memory."""
    return sum(op.duration_ns for op in trace.ops) * 1e-9


def simple_bounds(trace: Trace, hardware: Hardware) -> tuple[Bound, ...]:
    """Seconds per iteration that no plan for ``hardware`` can beat, by three ways to reason.

    "ops": the ops alone; "bytes": at least what does not fit has to move in each iteration;
    "stretches": the same in stretches of the iteration, which add up.
    """
    ideal = ideal_s(trace)
    whole, parts = ideal, ideal
    if trace.ops and hardware.tiers:
        whole, parts = _bounds_by_bytes(trace, hardware, ideal)
    return (
        Bound(name="ops", seconds=ideal),
        Bound(name="bytes", seconds=whole),
        Bound(name="stretches", seconds=parts),
    )


def lower_bound_s(trace: Trace, hardware: Hardware) -> float:
    """The greatest of the simple bounds, in seconds per iteration."""
    return max(bound.seconds for bound in simple_bounds(trace, hardware))


def _bounds_by_bytes(trace: Trace, hardware: Hardware, ideal: float) -> tuple[float, float]:
    on = copies(trace)
    rates = _Rates([_at_best(tier, on) for tier in hardware.tiers])
    room = hardware.budget_bytes - trace.base_bytes
    n = len(trace.ops)
    durations = np.fromiter((op.duration_ns for op in trace.ops), np.float64, n) * 1e-9
    clock = np.concatenate(([0.0], np.cumsum(np.tile(durations, 2))))
    reads, writes = _uses(trace)
    starts = np.unique(np.linspace(0, n, min(n, _STARTS) + 1).astype(np.int64)[:-1])
    ends = np.append(starts[1:], n)
    best = np.zeros(len(starts) + 1)
    whole = ideal
    for i in reversed(range(len(starts))):
        start = int(starts[i])
        stretches = np.append(ends[i:], start + n)
        least = rates.seconds(
            _excess(_bytes_read(reads, start, stretches), room),
            _excess(_bytes_written(writes, start, stretches), room),
        )
        lost = least - (clock[stretches] - clock[start])
        whole = max(whole, ideal + float(lost[-1]))
        best[i] = max(best[i + 1], float((np.maximum(lost[:-1], 0.0) + best[i + 1 :]).max()))
    return whole, ideal + float(best[0])


def _uses(trace: Trace) -> tuple[_Uses, _Uses]:
    """All uses, and the writes among them."""
    storages, n = trace.storages, len(trace.ops)
    last = np.fromiter((s.uses[-1] if s.uses else 0 for s in storages), np.int64, len(storages))
    reads = _table(trace, flattened([s.uses for s in storages]), last, n)
    return reads, _table(trace, flattened([s.writes for s in storages]), last, n)


def _table(trace: Trace, uses: tuple[Ints, Ints], last_use: Ints, n: int) -> _Uses:
    owner, op = uses
    storages = trace.storages
    count = len(storages)
    nbytes = np.fromiter((s.nbytes for s in storages), np.int64, count)
    persistent = np.fromiter((s.persistent for s in storages), np.bool_, count)
    early = np.fromiter((s.birth is None for s in storages), np.bool_, count)
    is_first = np.append(True, owner[1:] != owner[:-1])[: len(owner)]
    before = np.append(0, op[:-1])[: len(op)]
    final = np.zeros(count, np.int64)
    final[owner] = op  # the last of each owner stays
    laps = []
    for lap in (0, n):
        made_here = np.where(early[owner] & (lap == 0), -1, op + lap)
        around = final[owner] if lap else np.full(len(op), -1)
        first = np.where(persistent[owner], around, made_here)
        since = np.where(is_first, first, before + lap)
        last = np.where(persistent[owner], 3 * n, last_use[owner] + lap)
        laps.append((op + lap, since, last, nbytes[owner]))
    columns = [np.concatenate(parts) for parts in zip(*laps, strict=True)]
    order = np.argsort(columns[0], kind="stable")
    return _Uses(*(column[order] for column in columns))


def _excess(nbytes: Ints, room: int) -> Floats:
    return np.maximum(nbytes - room, 0).astype(np.float64)


def _bytes_read(reads: _Uses, start: int, ends: Ints) -> Ints:
    """Bytes older than ``start`` that are used from there to before each of ``ends``."""
    first = (reads.op >= start) & (reads.since < start)
    return _up_to(reads.op[first], reads.nbytes[first], ends)


def _bytes_written(writes: _Uses, start: int, ends: Ints) -> Ints:
    """Bytes changed from ``start`` to before each of ``ends`` that are used later."""
    kept = (writes.op >= start) & (writes.last > writes.op)
    kept &= (writes.since < start) | (writes.since == writes.op)
    op, last, nbytes = writes.op[kept], writes.last[kept], writes.nbytes[kept]
    order = np.argsort(last, kind="stable")
    return _up_to(op, nbytes, ends) - _up_to(last[order], nbytes[order], ends)


def _up_to(ops: Ints, nbytes: Ints, ends: Ints) -> Ints:
    """Sums of the bytes of ``ops``, which ascend, before each of ``ends``."""
    sums = np.concatenate((np.zeros(1, np.int64), np.cumsum(nbytes)))
    return sums[np.searchsorted(ops, ends, side="left")]
