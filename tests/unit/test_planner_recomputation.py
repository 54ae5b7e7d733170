"""Results made again: what becomes of a trace, when it pays, and what the validator refuses."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings

from teraio.errors import PlanError
from teraio.planner import live_by_op, plan, replayed, validate
from teraio.planner.columns import Columns
from teraio.planner.recomputation import worthwhile
from teraio.planner.relaxation import Detail, Relaxation, relaxation
from teraio.records import Hardware, Plan, PlanOptions, Recomputation, Trace
from tests.unit import strategies
from tests.unit.small import machine, plan_of, storage, trace
from tests.unit.test_planner_plan import cases
from tests.unit.traces import MIB, SSD, hardware, transformer_trace

# Op 1 makes 1 from 0, op 2 makes 2 from 1; both are needed again by ops 6 and 7, and 0 by op 8.
# Storage 3 is written to meanwhile, 4 is gone by then; ops 3 and 4 make 5 and 6 from them.
ON = trace(
    [1.0] * 10,
    storage([0, 1, 8], [0], birth=0, death=8, name="x"),
    storage([1, 2, 7], [1], birth=1, death=7, name="y", repeatable=True),
    storage([2, 5, 6], [2], birth=2, death=6, name="z", repeatable=True),
    storage([3, 5], [5], name="changed"),
    storage([0, 4], [0], birth=0, death=4, name="gone"),
    storage([3, 4, 7], [3], birth=3, death=7, name="of what changes", repeatable=True),
    storage([4, 5, 7], [4], birth=4, death=7, name="of what goes", repeatable=True),
    phase="forward",
)
Y = Recomputation(storage=1, drop_after=2, needed_by=7)
Z = Recomputation(storage=2, drop_after=5, needed_by=6)
Z_OF_Y = (replace(Y, needed_by=6), Z)


def plan_with(*again: Recomputation) -> Plan:
    made = plan_of(replayed(ON, again), [])
    peak = int(live_by_op(ON).max())
    return replace(made, recomputations=again, unlimited_peak_bytes=peak)


def test_a_result_made_again_is_two_storages() -> None:
    then = replayed(ON, (Y,))
    first, second = then.storages[1], then.storages[len(ON.storages)]
    assert (first.birth, first.death, first.uses) == (1, 2, (1, 2))
    assert (second.birth, second.death, second.uses, second.writes) == (7, 7, (7,), (7,))
    assert then.storages[0].uses == (0, 1, 7, 8)  # the operand must be there
    assert then.ops[7].duration_ns == ON.ops[7].duration_ns + ON.ops[1].duration_ns
    assert live_by_op(then).tolist() == [
        held - (1000 if 2 < op < 7 else 0) for op, held in enumerate(live_by_op(ON).tolist())
    ]


def test_a_result_may_be_made_again_from_another() -> None:
    then = replayed(ON, Z_OF_Y)
    y, z = then.storages[len(ON.storages) :]
    assert (y.birth, y.uses) == (6, (6, 7))
    assert (z.birth, z.uses) == (6, (6,))
    assert then.ops[6].duration_ns == 3 * ON.ops[6].duration_ns
    validate(ON, machine(1 << 30), plan_with(*Z_OF_Y))


BROKEN = {
    "no such storage": ((replace(Y, storage=99),), "does not have"),
    "twice": ((Y, replace(Y, needed_by=6)), "twice"),
    "a storage of the program's own": ((replace(Y, storage=0),), "no result of an op"),
    "before its last use": ((replace(Y, drop_after=1),), "given up after op 1"),
    "at its birth": ((replace(Z, drop_after=2),), "can't be given up"),
    "needed too late": ((replace(Y, needed_by=8),), "can't be given up"),
    "not needed then": ((replace(Z, drop_after=2, needed_by=4),), "given up"),
    "from what is given up": ((Y, Z), "made again only before op 7"),
    "from what changes": ((Recomputation(storage=5, drop_after=4, needed_by=7),), "written to"),
    "from what goes": ((Recomputation(storage=6, drop_after=5, needed_by=7),), "freed before"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_the_validator_refuses(name: str) -> None:
    again, reason = BROKEN[name]
    broken = replace(plan_of(ON, []), recomputations=again)
    with pytest.raises(PlanError, match=reason):
        validate(ON, machine(1 << 30), broken)


def pointwise(on: Trace) -> Trace:
    """The trace with the results of pointwise ops marked as repeatable."""
    marked = tuple(
        replace(s, repeatable=s.birth is not None and on.ops[s.birth].name in POINTWISE)
        for s in on.storages
    )
    return replace(on, storages=marked)


POINTWISE = ("aten::mul", "aten::silu", "aten::pow", "aten::add")
SLOW = replace(SSD, read_bytes_per_s=4e8, write_bytes_per_s=4e8, mixed_bytes_per_s=6e8)


def test_on_a_slow_drive_it_is_faster_and_moves_less() -> None:
    on = pointwise(transformer_trace(layers=6, tokens=6144))
    slow = hardware(int(live_by_op(on).max()) // 2, SLOW)
    without = plan(on, slow, PlanOptions(recompute=False))
    made = plan(on, slow)
    assert made.recomputations
    assert made.predicted_s < 0.9 * without.predicted_s
    assert made.read_bytes + made.written_bytes < without.read_bytes + without.written_bytes
    assert made.ideal_s == without.ideal_s
    assert made.unlimited_peak_bytes == without.unlimited_peak_bytes


def test_a_forward_pass_outside_of_modules_counts_as_one() -> None:
    on = pointwise(transformer_trace(layers=6, tokens=6144))
    ops = (replace(op, phase="other") if op.phase == "forward" else op for op in on.ops)
    slow = hardware(int(live_by_op(on).max()) // 2, SLOW)
    assert plan(replace(on, ops=tuple(ops)), slow).recomputations == plan(on, slow).recomputations


def chain_of(length: int) -> Trace:
    """Each result is made from the one before; the second half of the ops needs them in turn."""
    ops = 2 * length
    results = (
        storage(
            [i, min(i + 1, ops - 1 - i), ops - 1 - i],
            [i],
            nbytes=1000,
            birth=i,
            death=ops - 1 - i,
            repeatable=i > 0,
        )
        for i in range(length)
    )
    return trace([0.001] * ops, *results, phase="forward")


def longest_chain(on: Trace, hardware: Hardware) -> int:
    """Of results that a plan that only moves would be better off making again."""
    moving = plan(on, hardware, PlanOptions(recompute=False))
    longest = 0
    for again in worthwhile(on, hardware, moving):
        kept = sorted({*range(len(on.storages) + 1)} - {entry.storage for entry in again})
        longest = max(longest, *(b - a - 1 for a, b in itertools.pairwise(kept)))
    return longest


def test_chains_end_where_they_would_hold_too_much_at_once() -> None:
    """However slow the drive: some results are kept, from which the others are made."""
    on, slow = chain_of(40), machine(24_000)
    assert longest_chain(on, slow) == 24 / 4
    made = plan(on, slow)
    without = plan(on, slow, PlanOptions(recompute=False))
    assert len(made.recomputations) > 10
    assert made.predicted_s < 0.8 * without.predicted_s


def test_chains_end_where_they_would_cost_too_much() -> None:
    """Moving takes 2 ms, each op 0.3 ms: at most three are run for one result."""
    on = chain_of(40)
    on = replace(on, ops=tuple(replace(op, duration_ns=300_000) for op in on.ops))
    assert longest_chain(on, machine(24_000)) == 3


def test_what_is_no_gain_is_left_alone() -> None:
    on = pointwise(transformer_trace(layers=4))
    fits = plan(on, hardware(1 << 40, SLOW))
    assert fits.recomputations == ()
    costly = replace(
        on,
        ops=tuple(
            replace(op, duration_ns=100 * op.duration_ns) if op.name in POINTWISE else op
            for op in on.ops
        ),
    )
    assert plan(costly, hardware(900 * MIB, SLOW)).recomputations == ()


@given(cases())
@settings(max_examples=150, deadline=None)
def test_every_choice_worth_a_try_is_valid(case: tuple[Trace, Hardware]) -> None:
    on, given_machine = case
    slow = machine(given_machine.budget_bytes)
    least = replace(plan(on, slow, PlanOptions(recompute=False)), predicted_s=1.0, ideal_s=0.0)
    for again in worthwhile(on, slow, least):
        then = replayed(on, again)
        assert len(then.storages) == len(on.storages) + len(again)
        assert np.all(live_by_op(then) <= live_by_op(on) + max(o.workspace_bytes for o in on.ops))
        moved = plan_of(then, [])
        peak = int(live_by_op(on).max())
        # Without any moves, which is not within the budget.
        validate(
            on, machine(1 << 30), replace(moved, recomputations=again, unlimited_peak_bytes=peak)
        )


@given(strategies.traces())
@settings(max_examples=50, deadline=None)
def test_nothing_made_again_leaves_the_trace(on: Trace) -> None:
    assert replayed(on, ()) is on


def test_no_relaxation_is_solved_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    solved: list[tuple[bytes, Detail]] = []

    def counted(on: Columns, machine: Hardware, detail: Detail) -> Relaxation:
        solved.append((on.live.tobytes() + on.duration_s.tobytes(), detail))
        return relaxation(on, machine, detail)

    monkeypatch.setattr("teraio.planner.relaxation", counted)
    on = pointwise(transformer_trace(layers=2, tokens=6144))
    made = plan(on, hardware(int(live_by_op(on).max()) // 2, SLOW))
    assert made.recomputations
    assert len(set(solved)) == len(solved) > 1
