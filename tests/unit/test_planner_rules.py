"""Static rules are plans like any others, and slower than the planner's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from teraio.planner import live_by_op, memory_by_op, plan, simulate, validate
from teraio.records import Hardware, Move, Trace
from tests.unit import strategies
from tests.unit.rules import keep_all, layer_ahead, on_demand
from tests.unit.small import machine, plan_of, storage, trace
from tests.unit.traces import hardware, transformer_trace

Rule = Callable[[Trace, Hardware], tuple[Move, ...]]
RULES: list[Rule] = [keep_all, layer_ahead, on_demand]


@pytest.mark.parametrize("rule", RULES)
@given(strategies.traces(), st.floats(0.3, 1.0))
@settings(max_examples=60, deadline=None)
def test_a_rule_gives_a_valid_plan(rule: Rule, on: Trace, share: float) -> None:
    budget = int(live_by_op(on).max() * share)
    moves = rule(on, hardware(budget))
    validate(on, hardware(1 << 40), replace(plan_of(on, moves, 1 << 40), budget_bytes=1 << 40))


def test_the_rules_are_slower_than_a_plan() -> None:
    on = transformer_trace(layers=4)
    limited = hardware(int(live_by_op(on).max() * 0.6))
    planned_s = plan(on, limited).predicted_s
    for rule in (layer_ahead, on_demand):
        assert simulate(on, limited, rule(on, limited)).iteration_s > 1.05 * planned_s


def test_on_demand_keeps_what_fits_and_evicts_what_was_not_used_for_longest() -> None:
    on = trace([1] * 6, *(storage([k, k + 3], name=f"s{k}") for k in range(3)))
    assert on_demand(on, machine(3000)) == ()
    moves = on_demand(on, machine(2000))
    assert memory_by_op(on, moves).max() <= 2000
    assert all(move.fetch_after == (move.needed_by or 6) - 1 for move in moves)


def test_layer_ahead_moves_weights_and_states_only() -> None:
    on = transformer_trace(layers=3)
    kinds = {on.storages[move.storage].kind for move in layer_ahead(on, hardware(0))}
    assert kinds == {"parameter", "optimizer_state"}
