"""Explanations: where the time goes, and what more hardware would give."""

from __future__ import annotations

from dataclasses import replace

import pytest

from teraio.planner import explain, grown, live_by_op, plan, replanned
from teraio.records import Hardware, Plan, Trace
from tests.unit import small
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
    more_memory = replace(machine, budget_bytes=machine.budget_bytes * 11 // 10)
    more_drives = replace(machine, tiers=tuple(grown(tier, 1) for tier in machine.tiers))
    changes = replanned(on, found, plan, [("memory", more_memory), ("drives", more_drives)])
    assert [variant.change for variant in changes] == ["memory", "drives"]
    assert all(variant.saved_s > 0 for variant in changes)


def test_a_drive_more_of_two_has_half_as_much_again() -> None:
    tier = replace(small.machine().tiers[0], rated_write_bytes=100)
    more = grown(tier, 2)
    assert more.read_bytes_per_s == 1.5 * tier.read_bytes_per_s
    assert more.mixed_bytes_per_s == 1.5 * tier.mixed_bytes_per_s
    assert more.rated_write_bytes == 150 and more.latency_s == tier.latency_s
