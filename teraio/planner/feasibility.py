"""The least budget that any plan can meet.

In: a Trace. Out: bytes, or a BudgetError that names the op in the way. Must not know: time, tiers.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from teraio.errors import BudgetError
from teraio.planner.memory import Bytes, live_by_op, pieces
from teraio.planner.periods import Period, inactive_periods
from teraio.records import Trace


def least_by_op(trace: Trace, periods: Iterable[Period]) -> Bytes:
    """Bytes in memory during each op with everything away in all inactive periods."""
    n = len(trace.ops)
    steps = np.zeros(n + 1, dtype=np.int64)
    for period in periods:
        nbytes = trace.storages[period.storage].nbytes
        for low, high in pieces(period.after + 1, period.length, n):
            steps[low] -= nbytes
            steps[high] += nbytes
    return live_by_op(trace) + np.cumsum(steps)[:n]


def least_budget(trace: Trace) -> int:
    """The least budget in bytes that a plan for ``trace`` can meet."""
    return int(least_by_op(trace, inactive_periods(trace)).max(initial=trace.base_bytes))


def check_budget(trace: Trace, budget_bytes: int) -> None:
    """Raise BudgetError, naming the op that needs most, if no plan can meet ``budget_bytes``."""
    by_op = least_by_op(trace, inactive_periods(trace))
    if not len(by_op) or int(by_op.max()) <= budget_bytes:
        return
    index = int(by_op.argmax())
    op, nbytes = trace.ops[index], int(by_op[index])
    raise BudgetError(
        f"op {index} ({op.name} in {op.module or 'the model'}) needs {nbytes} bytes of memory "
        f"at once, more than the budget of {budget_bytes} bytes; the least "
        f"budget for this iteration is {nbytes} bytes"
    )
