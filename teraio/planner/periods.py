"""Inactive periods: the gaps between uses in which a storage could be away.

In: nothing. Out: the record of one. Must not know: how they are found, budgets, tiers.
"""

from __future__ import annotations

from dataclasses import dataclass

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


def age(period: Period, n: int) -> int:
    """Ops from the write of the data to the start of the period; the youngest one writes."""
    if period.written_at is None:
        return n  # nothing was written
    return (period.after - period.written_at) % n if period.written_at >= 0 else period.after
