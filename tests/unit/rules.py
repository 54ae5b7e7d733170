"""Static rules that other systems follow, as moves, to compare plans with.

In: a Trace, a Hardware. Out: moves, on the first tier; they need not keep the budget.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

import numpy as np

from teraio.planner.arrays import Flags, Ints
from teraio.planner.columns import Columns, columns
from teraio.planner.extents import moves_with_extents
from teraio.planner.timing import Choice, writing
from teraio.records import Hardware, Move, Trace


def keep_all(trace: Trace, hardware: Hardware) -> tuple[Move, ...]:
    """Nothing ever leaves."""
    return ()


def layer_ahead(trace: Trace, hardware: Hardware) -> tuple[Move, ...]:
    """Like ZeRO-Infinity: optimizer states and parameters are away whenever they are not used.

    They leave right after a use and come back while the module before the one that uses them runs.
    """
    on = columns(trace)
    kinds = (s.kind in ("parameter", "optimizer_state") for s in trace.storages)
    moving = np.fromiter(kinds, np.bool_, len(trace.storages))
    used = np.flatnonzero(moving[on.periods.storage])
    starts = _stretch_starts(trace)
    before = on.periods.before[used]
    place = np.searchsorted(starts, before, side="right") - 1
    # The first op of the module before; at the iteration's begin it is the last module of all.
    ahead = np.where(place > 0, before - starts[np.maximum(place - 1, 0)], before + 1)
    return _moves(trace, on, hardware, used, np.maximum(ahead, 1))


def on_demand(trace: Trace, hardware: Hardware) -> tuple[Move, ...]:
    """Like paging: what has not been used for longest leaves when memory is short.

    It comes back when an op needs it, and no earlier.
    """
    on = columns(trace)
    used = np.flatnonzero(_evicted(trace, on, hardware.budget_bytes))
    return _moves(trace, on, hardware, used, np.zeros(len(used), np.int64))


def _stretch_starts(trace: Trace) -> Ints:
    """First ops of stretches in which one module and phase runs, deeper modules by their parent."""

    def owner(index: int) -> tuple[str, str]:
        op = trace.ops[index]
        return op.phase, ".".join(op.module.split(".")[:3])

    firsts = [next(group) for _, group in groupby(range(len(trace.ops)), key=owner)]
    return np.array(firsts, np.int64)


def _evicted(trace: Trace, on: Columns, budget_bytes: int) -> Flags:
    """Periods during which a memory of ``budget_bytes`` under LRU would not hold their storage.

    Played through twice, so that the second iteration begins as any other does.
    """
    away = np.zeros(len(on.periods), np.bool_)
    begins, ends = (
        _by_op(on.periods.after, on.n),
        _by_op((on.periods.after + on.periods.length + 1) % on.n, on.n),
    )
    idle: dict[int, None] = {}  # periods under way whose storage is in memory, longest first
    gone_bytes = 0
    for lap in range(2):
        for op in range(on.n):
            for index in ends[op]:
                if away[index]:
                    gone_bytes -= int(on.periods.nbytes[index])
                    away[index] = False
                idle.pop(index, None)
            if op == 0 and lap == 1:
                settled = away.copy()
            while int(on.live[op]) - gone_bytes > budget_bytes and idle:
                index = next(iter(idle))
                del idle[index]
                away[index] = True
                gone_bytes += int(on.periods.nbytes[index])
                if lap == 1:
                    settled[index] = True
            for index in begins[op]:
                idle[index] = None
    return settled if on.n else away


def _by_op(ops: Ints, n: int) -> list[list[int]]:
    found: list[list[int]] = [[] for _ in range(n)]
    for index, op in enumerate(ops.tolist()):
        found[op].append(index)
    return found


def _moves(
    trace: Trace, on: Columns, hardware: Hardware, used: Ints, ahead: Ints
) -> tuple[Move, ...]:
    """Moves that take all of the used periods, and come back ``ahead`` ops before the need."""
    if not hardware.tiers or not len(used):
        return ()
    flags = np.zeros(len(on.periods), np.bool_)
    flags[used] = True
    choices = list(_choices(on, hardware.tiers[0].name, used, flags, ahead))
    return moves_with_extents(trace, hardware, choices)[0]


def _choices(on: Columns, tier: str, used: Ints, flags: Flags, ahead: Ints) -> Iterator[Choice]:
    writes = writing(on, used, reuse_copies=True)
    for period, write, early in zip(
        on.periods.those(flags), writes.tolist(), ahead.tolist(), strict=True
    ):
        returns = period.before is not None
        length = max(1, period.length - early) if returns else period.length
        yield Choice(
            period=period,
            tier=tier,
            leave=period.after,
            first=period.after + 1,
            length=length,
            write=write,
        )
