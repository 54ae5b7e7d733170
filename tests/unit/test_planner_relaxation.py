"""The relaxation: cases worked out by hand, and that no plan beats it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from teraio.planner import least_budget, live_by_op, plan, simulate, validate
from teraio.planner.columns import NONE, columns
from teraio.planner.relaxation import relaxation
from teraio.records import Extent, Hardware, Move, Trace
from tests.unit import strategies
from tests.unit.small import machine, plan_of, storage, trace
from tests.unit.traces import HOST, SSD, hardware, transformer_trace


def bound_s(on: Trace, machine: Hardware) -> float:
    return relaxation(columns(on), machine).bound_s


def near(seconds: float) -> Any:
    return pytest.approx(seconds, rel=2e-3)


def test_what_fits_is_bounded_by_the_ops_alone() -> None:
    assert bound_s(trace([1, 2, 3], storage([0])), machine(1000)) == near(0.006)


def test_data_beyond_the_budget_has_to_be_read_once_per_iteration() -> None:
    weights = [storage([k]) for k in range(8)]
    assert bound_s(trace([0.1] * 8, *weights), machine(3000)) == near((8 - 16 / 7) * 1e-3)


def test_changed_data_beyond_the_budget_has_to_be_written_too() -> None:
    weights = [storage([k], [k]) for k in range(8)]
    assert bound_s(trace([0.1] * 8, *weights), machine(3000, both=1e6)) == near(
        (16 - 32 / 7) * 1e-3
    )


def test_a_copy_that_was_written_once_is_not_written_again() -> None:
    # Away from 0 to 2 and from 2 to 4: written once, read twice, while b takes the memory.
    weight = storage([0, 2, 4], [4], name="a")
    others = [storage([k], birth=k, death=k, name="b") for k in (1, 3)]
    ops = trace([10] * 5, weight, *others)
    assert bound_s(ops, machine(1000)) == near(0.050)
    ops = trace([0.0] * 5, weight, *others)
    assert bound_s(ops, machine(1000)) == near(0.003)


def test_a_tier_that_is_full_does_not_help() -> None:
    on = transformer_trace(layers=4)
    budget = int(live_by_op(on).max() * 0.4)
    free = replace(HOST, capacity_bytes=1 << 40)
    small = replace(HOST, capacity_bytes=1 << 20)
    alone = bound_s(on, hardware(budget, SSD))
    assert bound_s(on, hardware(budget, free, SSD)) < alone
    assert bound_s(on, hardware(budget, small, SSD)) == near(alone)


def test_a_limit_of_writing_bounds_the_iteration() -> None:
    weights = [storage([k], [k]) for k in range(8)]
    on = trace([0.1] * 8, *weights)
    plain = machine(3000)
    rated = replace(plain.tiers[0], rated_write_bytes=10**12)
    limited = replace(plain, tiers=(rated,), max_write_bytes_per_day=5000 * 86400.0)
    assert bound_s(on, limited) == near((8 - 16 / 7) / 5)


@st.composite
def cases(draw: Any) -> tuple[Trace, Hardware]:
    on = draw(strategies.traces().filter(lambda on: live_by_op(on).max() > least_budget(on)))
    least, most = least_budget(on), int(live_by_op(on).max())
    return on, draw(strategies.hardware(draw(st.integers(least, most))))


@given(cases())
@settings(max_examples=200, deadline=None)
def test_no_plan_of_the_planner_beats_it(case: tuple[Trace, Hardware]) -> None:
    on, machine = case
    assert plan(on, machine).predicted_s >= bound_s(on, machine) * (1 - 1e-9) - 1e-12


def random_moves(draw: Any, on: Trace) -> list[Move]:
    """Moves in some of the periods, at any ops that they allow, each with its own extent; writes
    begin at any op since the data was changed."""
    periods, n = columns(on).periods, len(on.ops)
    moves: list[Move] = []
    for i in range(len(periods)):
        if not draw(st.booleans()):
            continue
        after, length = int(periods.after[i]), int(periods.length[i])
        gone = draw(st.integers(0, length - 1))
        alone = np.count_nonzero(periods.storage == periods.storage[i]) == 1
        early = 0
        if alone and periods.written_at[i] != NONE:
            early = draw(st.integers(0, max(0, min(int(periods.age[i]), n - 1 - length))))
        end = draw(st.integers(gone, length - 1))
        comes_back = bool(periods.returns[i])
        size = -(-int(periods.nbytes[i]) // 4096) * 4096
        moves.append(
            Move(
                storage=int(periods.storage[i]),
                tier="ssd",
                extent=Extent(offset=sum(m.extent.nbytes for m in moves), nbytes=size),
                write=True,
                offload_after=(after - early) % n,
                gone_before=(after + 1 + gone) % n,
                fetch_after=(after + 1 + end) % n if comes_back else None,
                needed_by=int(periods.before[i]) if comes_back else None,
            )
        )
    return moves


@given(strategies.traces(), st.data())
@settings(max_examples=300, deadline=None)
def test_no_valid_plan_beats_it(on: Trace, data: st.DataObject) -> None:
    moves = random_moves(data.draw, on)
    tier = data.draw(strategies.tiers("ssd"))
    machine = Hardware(name="random", budget_bytes=1 << 40, tiers=(tier,))
    made = plan_of(on, moves, 1 << 30, machine)
    machine = replace(machine, budget_bytes=made.peak_bytes)
    validate(on, machine, made)
    simulated_s = simulate(on, machine, moves).iteration_s
    assert simulated_s >= bound_s(on, machine) * (1 - 1e-9) - 1e-12
