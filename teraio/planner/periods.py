"""Inactive periods: the gaps between uses in which a storage could be away.

In: a Trace. Out: its periods, each with the write that its data stems from. Must not know: budgets,
tiers, which periods a plan chooses.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from teraio.planner.memory import carried_twins, returning_twins, tail_end
from teraio.records import Storage, Trace

BEFORE_THE_ITERATION = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Period:
    """One storage may be away during the ``length`` ops that follow op ``after``, cyclically.

    ``before`` is the op that uses it next; None if it is freed, or never used, instead. Of a
    storage that is carried into the next iteration it may be the first use of its twin there.
    ``written_at`` is the op that last wrote the data (-1: written before the iteration); moves of a
    storage in periods with the same ``written_at`` share one copy, so only the first of them
    writes. It is None if nothing ever writes the storage: then one copy stays valid for all
    iterations. Data that may have come from the iteration before as that of a twin counts as
    written by its first use: until then it may have been away.
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
    returning = returning_twins(trace, twins)
    arriving = set(returning.values())
    found: list[Period] = []
    for index, storage in enumerate(trace.storages):
        if storage.persistent:
            found.extend(_cyclic_periods(index, storage, n))
            continue
        since = storage.uses[0] if index in arriving else BEFORE_THE_ITERATION
        found.extend(_inner_periods(index, storage, since))
        twin = trace.storages[twins[index]] if index in twins else None
        if twin is not None and index in returning:
            found.extend(_carried_period(index, storage, twin, n))
        else:
            found.extend(_tail(index, storage, twin, n, since))
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


def _inner_periods(index: int, storage: Storage, since: int) -> Iterator[Period]:
    """Those between the events of a storage that lives for a part of the iteration.

    ``since`` is when its data was written, if no op of the iteration has written it.
    """
    events = _events(storage.birth, storage.uses)
    for after, before in pairwise(events):
        if before - after > 1:
            yield Period(
                storage=index,
                after=after,
                before=before,
                length=before - after - 1,
                written_at=_written_at(storage, after, since),
            )


def _carried_period(index: int, storage: Storage, twin: Storage, n: int) -> Iterator[Period]:
    after, before = _events(storage.birth, storage.uses)[-1], twin.uses[0]
    length = n + before - after - 1
    if length:
        written_at = _written_at(storage, after, BEFORE_THE_ITERATION)
        yield Period(
            storage=index, after=after, before=before, length=length, written_at=written_at
        )


def _tail(
    index: int, storage: Storage, twin: Storage | None, n: int, since: int
) -> Iterator[Period]:
    events = _events(storage.birth, storage.uses)
    if not events:
        return
    last = events[-1]
    length = tail_end(storage, twin, n) - last
    if 0 < length <= n and not (twin and twin.uses):
        written_at = _written_at(storage, last, since)
        yield Period(storage=index, after=last, before=None, length=length, written_at=written_at)


def _written_at(storage: Storage, op: int, since: int) -> int | None:
    return _last_at(_events(storage.birth, storage.writes), op, (since,))


def _events(birth: int | None, ops: Sequence[int]) -> tuple[int, ...]:
    return tuple(ops) if birth is None or birth in ops[:1] else (birth, *ops)


def _last_at(writes: Sequence[int], op: int, otherwise: Sequence[int]) -> int | None:
    found = bisect_right(writes, op)
    if found:
        return writes[found - 1]
    return otherwise[0] if otherwise else None
