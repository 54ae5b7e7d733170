"""The least budget that any plan can meet.

In: a Trace. Out: bytes, or a BudgetError that names the op in the way. Must not know: time, tiers.
"""

from __future__ import annotations

import math

import numpy as np

from teraio.errors import BudgetError
from teraio.planner.arrays import Flags, Ints
from teraio.planner.columns import Columns, columns
from teraio.records import Trace
from teraio.sizes import format_least, format_size

# A run plans for a budget that is less by this part of its own; it stays free for what differs from
# iteration to iteration.
PLAN_RESERVE = 0.01


def held_by_op(on: Columns, away: Flags) -> Ints:
    """Bytes in memory during each op with everything away in the periods flagged by ``away``."""
    periods = on.periods
    nbytes, first = periods.nbytes[away], periods.after[away] + 1
    steps = np.zeros(2 * on.n + 1, np.int64)
    np.add.at(steps, first, -nbytes)
    np.add.at(steps, first + periods.length[away], nbytes)
    change = np.cumsum(steps)
    return on.live + change[: on.n] + change[on.n : 2 * on.n]


def least_by_op(on: Columns) -> Ints:
    """Bytes in memory during each op with everything away in all inactive periods."""
    return held_by_op(on, np.ones(len(on.periods), np.bool_))


def least_budget(trace: Trace) -> int:
    """The least budget in bytes that a plan for ``trace`` can meet."""
    return int(least_by_op(columns(trace)).max(initial=trace.base_bytes))


def run_budget(plan_bytes: int) -> int:
    """The budget that a run must have to plan for ``plan_bytes``."""
    return math.ceil((plan_bytes + 1) / (1 - PLAN_RESERVE))  # rounded down again, it is enough


def check_budget(trace: Trace, on: Columns, allowed: Flags, budget_bytes: int) -> None:
    """Raise BudgetError, naming the op that needs most, if no plan can meet ``budget_bytes``.

    ``allowed`` flags the periods that a plan may use.
    """
    by_op = held_by_op(on, allowed)
    if not len(by_op) or int(by_op.max()) <= budget_bytes:
        return
    index = int(by_op.argmax())
    op, nbytes = trace.ops[index], int(by_op[index])
    kept = "" if allowed.all() else ", or a smaller resident_state_share"
    needed, budget = format_least(nbytes), format_size(budget_bytes)
    if format_size(nbytes) == budget or needed == budget:
        needed, budget = f"{needed} ({nbytes} bytes)", f"{budget} ({budget_bytes} bytes)"
    raise BudgetError(
        f"op {index} ({op.name} in {op.module or 'the model'}) needs {needed} of memory at once, "
        f"more than the budget of {budget}; the least budget for this iteration is "
        f"{format_least(nbytes)}{kept}"
    )
