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
    """Every use of every storage in two iterations in a row, sorted by op.

    ``born`` is the op that makes the data (-1: it is always there), ``last`` its last use.
    """

    op: _Ints
    storage: _Ints
    written: npt.NDArray[np.bool_]
    born: _Ints
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
    uses = _uses(trace)
    starts = np.unique(np.linspace(0, n, min(n, _STARTS) + 1).astype(np.int64)[:-1])
    ends = np.append(starts[1:], n)
    best = np.zeros(len(starts) + 1)
    whole = ideal
    for i in reversed(range(len(starts))):
        start = int(starts[i])
        stretches = np.append(ends[i:], start + n)
        least = rates.seconds(
            _excess(_bytes_read(uses, start, stretches), room),
            _excess(_bytes_written(uses, start, stretches), room),
        )
        lost = least - (clock[stretches] - clock[start])
        whole = max(whole, ideal + float(lost[-1]))
        best[i] = max(best[i + 1], float((np.maximum(lost[:-1], 0.0) + best[i + 1 :]).max()))
    return max(whole, ideal + float(best[0]))


def _uses(trace: Trace) -> _Uses:
    n = len(trace.ops)
    rows: list[tuple[int, int, bool, int, int, int]] = []
    for index, storage in enumerate(trace.storages):
        changed = set(storage.writes)
        if storage.birth is not None:
            changed.add(storage.birth)
        for lap in range(2):
            shift = lap * n
            item = index + lap * len(trace.storages) * (not storage.persistent)
            born = -1 if storage.birth is None else storage.birth + shift
            if storage.birth is None and lap and not storage.persistent:
                born = shift
            last = 3 * n if storage.persistent else storage.uses[-1] + shift if storage.uses else 0
            rows.extend(
                (op + shift, item, op in changed, born, last, storage.nbytes) for op in storage.uses
            )
    rows.sort()
    table = np.array(rows, dtype=np.int64).reshape(-1, 6)
    return _Uses(table[:, 0], table[:, 1], table[:, 2] != 0, table[:, 3], table[:, 4], table[:, 5])


def _excess(nbytes: _Ints, room: int) -> _Floats:
    return np.maximum(nbytes - room, 0).astype(np.float64)


def _bytes_read(uses: _Uses, start: int, ends: _Ints) -> _Ints:
    """Bytes older than ``start`` that are used from there to before each of ``ends``."""
    pick = (uses.op >= start) & (uses.born < start)
    ops, storages, nbytes = uses.op[pick], uses.storage[pick], uses.nbytes[pick]
    _, firsts = np.unique(storages, return_index=True)
    return _up_to(ops[firsts], nbytes[firsts], ends)


def _bytes_written(uses: _Uses, start: int, ends: _Ints) -> _Ints:
    """Bytes changed from ``start`` to before each of ``ends`` that are used later."""
    pick = (uses.op >= start) & uses.written
    ops, storages, last = uses.op[pick], uses.storage[pick], uses.last[pick]
    _, firsts = np.unique(storages, return_index=True)
    changed, until, nbytes = ops[firsts], last[firsts], uses.nbytes[pick][firsts]
    alive = until > changed
    gone = _up_to(until[alive], nbytes[alive], ends)
    return _up_to(changed[alive], nbytes[alive], ends) - gone


def _up_to(ops: _Ints, nbytes: _Ints, ends: _Ints) -> _Ints:
    order = np.argsort(ops, kind="stable")
    sums = np.concatenate((np.zeros(1, np.int64), np.cumsum(nbytes[order])))
    return sums[np.searchsorted(ops[order], ends, side="left")]
