"""Inactive periods: the gaps between uses in which a storage could be away.

In: a Trace. Out: its periods, each with the write that its data stems from. Must not know: budgets,
tiers, which periods a plan chooses.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from teraio.planner.memory import carried_twins, tail_end
from teraio.records import Storage, Trace

BEFORE_THE_ITERATION = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Period:
    """One storage may be away during the ``length`` ops that follow op ``after``, cyclically.

    ``before`` is the op that uses it next; None if it is freed, or never used, instead.
    ``written_at`` is the op that last wrote the data (-1: written before the iteration); moves of a
    storage in periods with the same ``written_at`` share one copy, so only the first of them
    writes. It is None if nothing ever writes the storage: then one copy stays valid for all
    iterations.
    """

    storage: int
    after: int
    before: int | None
    length: int
    written_at: int | None


def inactive_periods(trace: Trace) -> tuple[Period, ...]:
    """All inactive periods of at least one op, by storage and then in order of ``after``."""
    n = len(trace.ops)
    twins = carried_twins(trace)
    found: list[Period] = []
    for index, storage in enumerate(trace.storages):
        if storage.persistent:
            found.extend(_cyclic_periods(index, storage, n))
        else:
            twin = trace.storages[twins[index]] if index in twins else None
            found.extend(_linear_periods(index, storage, twin, n))
    return tuple(found)


def writers(periods: Iterable[Period], n: int) -> frozenset[Period]:
    """Those of the chosen periods whose move has to write; the others find a valid copy."""
    first: dict[tuple[int, int], Period] = {}
    for period in periods:
        if period.written_at is None:
            continue
        key = (period.storage, period.written_at)
        if key not in first or age(period, n) < age(first[key], n):
            first[key] = period
    return frozenset(first.values())


def age(period: Period, n: int) -> int:
    """Ops from the write of the data to the start of the period; the youngest one writes."""
    if period.written_at is None:
        return n  # nothing was written
    return (period.after - period.written_at) % n if period.written_at >= 0 else period.after


def _cyclic_periods(index: int, storage: Storage, n: int) -> Iterator[Period]:
    if not storage.uses:
        yield Period(storage=index, after=n - 1, before=None, length=n, written_at=None)
        return
    for after, before in pairwise((*storage.uses, storage.uses[0])):
        length = (before - after - 1) % n
        if length:
            written_at = _last_at(storage.writes, after, storage.writes[-1:])
            yield Period(
                storage=index, after=after, before=before, length=length, written_at=written_at
            )


def _linear_periods(index: int, storage: Storage, twin: Storage | None, n: int) -> Iterator[Period]:
    events = _events(storage.birth, storage.uses)
    if not events:
        return
    writes = _events(storage.birth, storage.writes)
    for after, before in pairwise(events):
        if before - after > 1:
            yield Period(
                storage=index,
                after=after,
                before=before,
                length=before - after - 1,
                written_at=_last_at(writes, after, (BEFORE_THE_ITERATION,)),
            )
    last = events[-1]
    length = tail_end(storage, twin, n) - last
    if 0 < length <= n and not (twin and twin.uses):
        written_at = _last_at(writes, last, (BEFORE_THE_ITERATION,))
        yield Period(storage=index, after=last, before=None, length=length, written_at=written_at)


def _events(birth: int | None, ops: Sequence[int]) -> tuple[int, ...]:
    return tuple(ops) if birth is None or birth in ops[:1] else (birth, *ops)


def _last_at(writes: Sequence[int], op: int, otherwise: Sequence[int]) -> int | None:
    found = bisect_right(writes, op)
    if found:
        return writes[found - 1]
    return otherwise[0] if otherwise else None
