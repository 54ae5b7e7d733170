"""A time that no plan can beat.

In: a Trace, a Hardware. Out: seconds. Must not know: any plan.

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

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from teraio.records import Hardware, Tier, Trace

_STARTS = 96

_Ints = npt.NDArray[np.int64]
_Floats = npt.NDArray[np.float64]


def _corners(tier: Tier) -> list[tuple[float, float]]:
    """Write and read rates that a tier can keep up at once; it can keep up any mean of them too."""
    write, read, both = tier.write_bytes_per_s, tier.read_bytes_per_s, tier.mixed_bytes_per_s
    return [
        (write, min(read, max(0.0, both - write))),
        (min(write, max(0.0, both - read)), read),
    ]


class _Rates:
    """Least seconds for some bytes read and written, by all tiers together."""

    def __init__(self, tiers: tuple[Tier, ...]) -> None:
        corners = [_corners(tier) for tier in tiers]
        weights = [(1.0, 0.0), (0.0, 1.0), (1.0, 1.0)]
        weights += [(b[1] - a[1], a[0] - b[0]) for a, b in corners if b[1] > a[1] and a[0] > b[0]]
        self._cuts = [
            (w / most, r / most)
            for w, r in weights
            for most in [sum(max(w * x + r * y for x, y in tier) for tier in corners)]
        ]

    def seconds(self, read_bytes: _Floats, written_bytes: _Floats) -> _Floats:
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

    op: _Ints
    since: _Ints
    last: _Ints
    nbytes: _Ints


def ideal_s(trace: Trace) -> float:
    """Seconds of the iteration without any limit on memory."""
    return sum(op.duration_ns for op in trace.ops) * 1e-9


def lower_bound_s(trace: Trace, hardware: Hardware) -> float:
    """Seconds per iteration that no plan for ``hardware`` can beat; at least ``ideal_s``."""
    ideal = ideal_s(trace)
    if not trace.ops or not hardware.tiers:
        return ideal
    rates = _Rates(hardware.tiers)
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
    return max(whole, ideal + float(best[0]))


def _uses(trace: Trace) -> tuple[_Uses, _Uses]:
    """All uses, and the writes among them."""
    n = len(trace.ops)
    reads: list[tuple[int, int, int, int]] = []
    writes: list[tuple[int, int, int, int]] = []
    for storage in trace.storages:
        for rows, ops in ((reads, storage.uses), (writes, storage.writes)):
            if storage.persistent:
                ops = (*ops, *(op + n for op in ops))
                rows += _rows(ops, -1, 3 * n, storage.nbytes)
            elif ops:
                for lap in (0, n):
                    first = -1 if storage.birth is None and not lap else ops[0] + lap
                    shifted = [op + lap for op in ops]
                    rows += _rows(shifted, first, storage.uses[-1] + lap, storage.nbytes)
    return _table(reads), _table(writes)


def _rows(
    ops: Sequence[int], first_since: int, last: int, nbytes: int
) -> Iterator[tuple[int, int, int, int]]:
    for op, since in zip(ops, (first_since, *ops), strict=False):
        yield op, since, last, nbytes


def _table(rows: list[tuple[int, int, int, int]]) -> _Uses:
    table = np.array(rows, dtype=np.int64).reshape(-1, 4)
    table = table[np.argsort(table[:, 0], kind="stable")]
    return _Uses(table[:, 0], table[:, 1], table[:, 2], table[:, 3])


def _excess(nbytes: _Ints, room: int) -> _Floats:
    return np.maximum(nbytes - room, 0).astype(np.float64)


def _bytes_read(reads: _Uses, start: int, ends: _Ints) -> _Ints:
    """Bytes older than ``start`` that are used from there to before each of ``ends``."""
    first = (reads.op >= start) & (reads.since < start)
    return _up_to(reads.op[first], reads.nbytes[first], ends)


def _bytes_written(writes: _Uses, start: int, ends: _Ints) -> _Ints:
    """Bytes changed from ``start`` to before each of ``ends`` that are used later."""
    kept = (writes.op >= start) & (writes.last > writes.op)
    kept &= (writes.since < start) | (writes.since == writes.op)
    op, last, nbytes = writes.op[kept], writes.last[kept], writes.nbytes[kept]
    order = np.argsort(last, kind="stable")
    return _up_to(op, nbytes, ends) - _up_to(last[order], nbytes[order], ends)


def _up_to(ops: _Ints, nbytes: _Ints, ends: _Ints) -> _Ints:
    """Sums of the bytes of ``ops``, which ascend, before each of ``ends``."""
    sums = np.concatenate((np.zeros(1, np.int64), np.cumsum(nbytes)))
    return sums[np.searchsorted(ops, ends, side="left")]
