"""Inactive periods, one by one: the slow twin of ``teraio.planner.columns``."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import pairwise

from teraio.planner.memory import carried_twins, returning_twins, tail_end
from teraio.planner.periods import BEFORE_THE_ITERATION, Period
from teraio.records import Storage, Trace


def periods_one_by_one(trace: Trace) -> tuple[Period, ...]:
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
