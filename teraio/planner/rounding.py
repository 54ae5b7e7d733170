"""From the relaxation's bytes to whole periods.

In: Columns, a Relaxation. Out: which periods to use, and on which tier. Must not know: time,
channels.
"""

from __future__ import annotations

import numpy as np

from teraio.planner.arrays import Ints
from teraio.planner.columns import Columns
from teraio.planner.relaxation import Relaxation

NOWHERE = -1


def rounded(on: Columns, solution: Relaxation) -> Ints:
    """For each period the index of the tier that it moves to, or NOWHERE.

    Of each group as many bytes move as in the solution, as near as whole storages allow, spread
    evenly over the group. A copy is on one tier only.
    """
    periods, groups = on.periods, solution.groups
    chosen = np.full(len(periods), NOWHERE, np.int64)
    share = solution.leaving_bytes / np.maximum(groups.nbytes, 1.0)[:, None]
    share = np.where(share < _NOTHING, 0.0, np.where(share > 1.0 - _NOTHING, 1.0, share))
    seen = np.flatnonzero(groups.of_period >= 0)
    seen = seen[np.lexsort((periods.after[seen], groups.of_period[seen]))]
    tier_of: dict[int, int] = {}
    owed = np.zeros_like(share)
    moving = seen[share[groups.of_period[seen]].sum(axis=1) > 0.0]
    rows = zip(
        moving.tolist(),
        groups.of_period[moving].tolist(),
        periods.copy[moving].tolist(),
        periods.nbytes[moving].tolist(),
        strict=True,
    )
    for index, group, copy, nbytes in rows:
        owed[group] += share[group] * nbytes
        tier = tier_of.get(copy, int(owed[group].argmax()))
        if owed[group].sum() >= 0.5 * nbytes > 0:
            chosen[index] = tier_of[copy] = tier
            owed[group, tier] -= nbytes
    return chosen


_NOTHING = 1e-6
