"""Wear of drives, and the limit of what is written per day."""

from __future__ import annotations

from dataclasses import replace

import pytest

from teraio.errors import BudgetError
from teraio.planner import Wear, live_by_op, plan, wear
from teraio.records import Hardware, PlanOptions, Trace
from tests.unit.traces import HOST, SSD, hardware, transformer_trace

RATED = replace(SSD, rated_write_bytes=10**15)


@pytest.fixture(scope="module")
def on() -> Trace:
    return transformer_trace(layers=4)


def limited(on: Trace, per_day: float | None, *, host: bool = False) -> Hardware:
    tiers = (replace(HOST, capacity_bytes=1 << 40), RATED) if host else (RATED,)
    made = hardware(int(live_by_op(on).max() * 0.5), *tiers)
    return replace(made, max_write_bytes_per_day=per_day)


def test_wear_is_what_is_written_in_a_day_of_iterations(on: Trace) -> None:
    machine = limited(on, None)
    made = plan(on, machine)
    (found,) = wear(made, machine)
    assert found.bytes_per_iteration == made.written_bytes > 0
    assert found.bytes_per_day == pytest.approx(made.written_bytes / made.predicted_s * 86400)
    assert found.days_to_rated == pytest.approx(10**15 / found.bytes_per_day)


def test_a_tier_without_a_rating_never_wears_out(on: Trace) -> None:
    machine = hardware(int(live_by_op(on).max() * 0.5), SSD)
    assert wear(plan(on, machine), machine)[0].days_to_rated is None
    idle = plan(on, hardware(1 << 40, RATED))
    nothing = Wear(tier="ssd0", bytes_per_iteration=0, bytes_per_day=0.0, days_to_rated=None)
    assert wear(idle, hardware(1 << 40, RATED)) == (nothing,)


def test_a_limit_is_kept_or_refused(on: Trace) -> None:
    machine = limited(on, None)
    per_day = wear(plan(on, machine), machine)[0].bytes_per_day
    roomy = limited(on, per_day * 1.01)
    assert wear(plan(on, roomy), roomy)[0].bytes_per_day <= per_day * 1.01
    with pytest.raises(BudgetError, match="writes more than 1000 B per day"):
        plan(on, limited(on, 1000.0))


def test_host_memory_takes_what_a_limited_drive_must_not(on: Trace) -> None:
    machine = limited(on, 1000.0, host=True)
    made = plan(on, machine)
    assert {move.tier for move in made.moves} == {"host"}


def test_the_states_that_are_to_stay_do(on: Trace) -> None:
    machine = hardware(int(live_by_op(on).max() * 0.7))
    states = {i for i, s in enumerate(on.storages) if s.kind == "optimizer_state"}
    made = plan(on, machine, PlanOptions(resident_state_share=1.0))
    assert made.moves
    assert not states & {move.storage for move in made.moves}
    with pytest.raises(BudgetError, match="resident_state_share"):
        plan(on, hardware(int(live_by_op(on).max() * 0.2)), PlanOptions(resident_state_share=1.0))
