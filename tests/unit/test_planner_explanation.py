"""Explanations: where the time goes, and what more hardware would give."""

from __future__ import annotations

import pytest

from teraio.planner import explain, live_by_op, plan, variants
from teraio.records import Hardware, Plan, Trace
from tests.unit.traces import hardware, transformer_trace

Made = tuple[Trace, Hardware, Plan]


@pytest.fixture(scope="module")
def made() -> Made:
    on = transformer_trace(layers=6, ideal_s=1.0)
    machine = hardware(int(live_by_op(on).max() * 0.4))
    return on, machine, plan(on, machine)


def test_the_times_add_up(made: Made) -> None:
    on, machine, found = made
    why = explain(on, machine, found)
    assert why.predicted_s == pytest.approx(why.ideal_s + why.unavoidable_s + why.avoidable_s)
    assert why.bound_by in {bound.name for bound in found.bounds}
    stalls = sum(stretch.stall_s for stretch in why.stretches)
    assert 0 < stalls <= (found.predicted_s - found.ideal_s) * (1 + 1e-9)


def test_stretches_say_what_binds(made: Made) -> None:
    for stretch in explain(*made).stretches:
        assert stretch.stall_s == stretch.waits_for_data_s + stretch.waits_for_memory_s
        assert 0 < stretch.stall_s <= stretch.seconds * (1 + 1e-9)
        assert {name for name, _ in stretch.busy} == {"ssd0 read", "ssd0 write"}
        assert all(0 <= share <= 1 for _, share in stretch.busy)
        assert (stretch.binds == "channel") == any(share >= 0.9 for _, share in stretch.busy)


def test_costly_moves_come_with_the_longest_stall_first(made: Made) -> None:
    costs = [move.stall_s for move in explain(*made).costly]
    assert costs == sorted(costs, reverse=True)
    assert costs[0] > 0


def test_another_drive_and_more_memory_save_time(made: Made) -> None:
    on, machine, found = made
    changes = variants(on, machine, found, plan, {"ssd0": 1})
    assert [variant.change for variant in changes] == ["10 % more memory", "one more drive in ssd0"]
    assert all(variant.saved_s > 0 for variant in changes)
