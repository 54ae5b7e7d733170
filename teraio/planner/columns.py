"""A trace as numpy columns, so that whole traces are counted and sorted at once.

In: a Trace. Out: columns by op, by storage and by inactive period. Must not know: budgets, tiers,
plans. ``teraio.planner.periods`` says what a period is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from teraio.planner.arrays import Flags, Floats, Ints
from teraio.planner.copies import Copies, copies
from teraio.planner.memory import carried_twins, returning_twins
from teraio.planner.periods import BEFORE_THE_ITERATION, Period
from teraio.records import Trace

NONE = -2  # in columns of ops: there is no such op
# Runs of ops of one phase with less than this part of them, and of what could move, are no phase.
LONG_PHASE = 0.02


@dataclass(frozen=True, slots=True, eq=False)
class PeriodColumns:
    """Inactive periods, by storage and then in order of ``after``; fields as in ``Period``.

    ``before`` is NONE for a storage that does not come back, ``written_at`` is NONE for one that is
    never written. ``copy`` numbers the copies: periods with the same number share one. ``age`` is
    the number of ops from the write of the copy's data to the start of the period.
    """

    storage: Ints
    after: Ints
    before: Ints
    length: Ints
    written_at: Ints
    nbytes: Ints
    copy: Ints
    age: Ints

    def __len__(self) -> int:
        return len(self.storage)

    def those(self, chosen: Flags) -> tuple[Period, ...]:
        """The periods flagged by ``chosen``, one by one."""
        columns = (self.storage, self.after, self.before, self.length, self.written_at)
        return tuple(
            Period(
                storage=storage,
                after=after,
                before=None if before == NONE else before,
                length=length,
                written_at=None if written_at == NONE else written_at,
            )
            for storage, after, before, length, written_at in zip(
                *(column[chosen].tolist() for column in columns), strict=True
            )
        )

    @property
    def returns(self) -> Flags:
        """Whether the storage is used again."""
        return np.not_equal(self.before, NONE)


@dataclass(frozen=True, slots=True, eq=False)
class Columns:
    """``duration_s`` and ``live`` (bytes with nothing away) by op, ``copies`` by storage.

    ``phases`` are the ops at which another phase begins; those of some length or traffic only.
    """

    n: int
    duration_s: Floats
    live: Ints
    phases: Ints
    copies: Copies
    periods: PeriodColumns

    @property
    def nbytes(self) -> Ints:
        """Bytes of each storage."""
        return self.copies.nbytes


def columns(trace: Trace) -> Columns:
    """The columns of ``trace``."""
    n, storages = len(trace.ops), trace.storages
    taken = copies(trace)
    nbytes = taken.nbytes
    birth = _column((NONE if s.birth is None else s.birth for s in storages), len(storages))
    # A death of -1 is one before op 0; what outlives the iteration is live until its last op.
    death = _column((n - 1 if s.death is None else s.death for s in storages), len(storages))
    persistent = np.fromiter((s.persistent for s in storages), np.bool_, len(storages))
    steps = np.zeros(n + 1, np.int64)
    np.add.at(steps, np.maximum(birth, 0), nbytes)
    np.add.at(steps, death + 1, -nbytes)
    workspace = _column((op.workspace_bytes for op in trace.ops), n)
    periods = _periods(trace, n, nbytes, birth, death, persistent)
    return Columns(
        n=n,
        duration_s=np.multiply(_column((op.duration_ns for op in trace.ops), n), 1e-9),
        live=np.cumsum(steps)[:n] + workspace + trace.base_bytes,
        phases=_phases(trace, periods),
        copies=taken,
        periods=periods,
    )


def inactive_periods(trace: Trace) -> tuple[Period, ...]:
    """All inactive periods of at least one op, by storage and then in order of ``after``."""
    periods = columns(trace).periods
    return periods.those(np.ones(len(periods), np.bool_))


def _phases(trace: Trace, periods: PeriodColumns) -> Ints:
    """Where phases begin that have ``LONG_PHASE`` of the ops at least, or of what could move.

    Few ops may be much traffic: an optimizer that steps by fused ops.
    """
    codes = np.unique([op.phase for op in trace.ops], return_inverse=True)[1]
    starts = np.flatnonzero(np.append(True, codes[1:] != codes[:-1])[: len(codes)])
    lengths = np.diff(np.append(starts, len(codes)))
    n = len(codes)
    traffic = np.bincount(periods.after, weights=periods.nbytes, minlength=n)
    moved = np.add.reduceat(traffic, starts) if n else traffic
    long = (lengths >= LONG_PHASE * n) | (moved > LONG_PHASE * traffic.sum())
    return np.asarray(starts[long], dtype=np.int64)


def _column(values: Iterable[int], count: int) -> Ints:
    return np.fromiter(values, np.int64, count)


def _periods(
    trace: Trace, n: int, nbytes: Ints, birth: Ints, death: Ints, persistent: Flags
) -> PeriodColumns:
    owner, event = _events([s.uses for s in trace.storages], birth)
    last = np.append(owner[1:] != owner[:-1], True) if len(owner) else np.zeros(0, np.bool_)
    first_event = event[np.flatnonzero(np.append(True, last[:-1]))] if len(owner) else event
    following = np.append(event[1:], 0) if len(event) else event
    twins = carried_twins(trace)
    # By storage: the op that uses it first in the next iteration, and the one that uses it first
    # in this one if it has come from the iteration before, as that of a twin.
    again, arrived = np.full(len(persistent), NONE), np.full(len(persistent), NONE)
    again[owner[last]] = np.where(persistent[owner[last]], first_event, NONE)
    for first, second in returning_twins(trace, twins).items():
        again[first] = arrived[second] = trace.storages[second].uses[0]
    wraps = last & (again[owner] != NONE)
    before = np.where(wraps, again[owner], np.where(last, NONE, following))
    tail = last & ~wraps
    end, movable = _tail_ends(trace, twins, n, death)
    length = np.where(tail, end[owner] - event, (before - event - 1) % max(n, 1))
    kept = (length > 0) & (~tail | ((length <= n) & movable[owner]))
    # What is never used is away all the time.
    idle = np.flatnonzero(persistent & (np.bincount(owner, minlength=len(nbytes)) == 0))
    if not n:
        idle = idle[:0]
    storage = np.concatenate((owner[kept], idle))
    after = np.concatenate((event[kept], np.full(len(idle), n - 1)))
    before = np.concatenate((before[kept], np.full(len(idle), NONE)))
    length = np.concatenate((length[kept], np.full(len(idle), n)))
    order = np.argsort(storage, kind="stable")
    storage, after, before, length = (c[order] for c in (storage, after, before, length))
    written_at = _written_at(trace, storage, after, birth, persistent, arrived)
    copy = _numbered(storage, written_at, n)
    age = np.where(written_at >= 0, (after - written_at) % max(n, 1), after)
    age = np.where(written_at == NONE, n, age)
    return PeriodColumns(storage, after, before, length, written_at, nbytes[storage], copy, age)


def flattened(lists: Sequence[Sequence[int]]) -> tuple[Ints, Ints]:
    """All numbers of all lists in a row, and for each of them the index of its list."""
    counts = _column(map(len, lists), len(lists))
    owner = np.repeat(np.arange(len(lists)), counts)
    return owner, _column(chain.from_iterable(lists), int(counts.sum()))


def _events(ops: list[tuple[int, ...]], birth: Ints) -> tuple[Ints, Ints]:
    """Storages and the ops at which they must be in memory: their birth, and ``ops`` of each."""
    owner, event = flattened(ops)
    first = _column((found[0] if found else NONE for found in ops), len(ops))
    born = np.flatnonzero((birth != NONE) & (first != birth))
    owner, event = np.concatenate((born, owner)), np.concatenate((birth[born], event))
    order = np.argsort(owner, kind="stable")
    return owner[order], event[order]


def _tail_ends(trace: Trace, twins: Mapping[int, int], n: int, death: Ints) -> tuple[Ints, Flags]:
    """Last op at which each storage is live if it is not used again, and whether it may be away."""
    end = death.copy()
    movable = np.ones(len(end), np.bool_)
    for first, second in twins.items():
        end[first] = n + death[second]
        movable[first] = not trace.storages[second].uses
    return end, movable


def _written_at(
    trace: Trace, storage: Ints, after: Ints, birth: Ints, persistent: Flags, arrived: Ints
) -> Ints:
    storages = trace.storages
    owner, event = _events([s.writes for s in storages], birth)
    span = len(trace.ops) + 1
    found = np.searchsorted(owner * span + event, storage * span + after, side="right") - 1
    known = (found >= 0) & (owner[found] == storage) if len(owner) else found >= 0
    last_write = np.full(len(storages), NONE)
    last_write[owner] = event  # the last of each owner stays
    early = np.where(arrived == NONE, BEFORE_THE_ITERATION, arrived)
    otherwise = np.where(persistent, last_write, early)[storage]
    return np.where(known, event[found], otherwise) if len(owner) else otherwise


def _numbered(storage: Ints, written_at: Ints, n: int) -> Ints:
    """The same number for equal pairs."""
    numbers = np.unique(storage * (n + 2) + written_at - NONE, return_inverse=True)[1]
    return np.asarray(numbers, dtype=np.int64)
