"""The planner: what leaves device memory when, and when it comes back.

In: a Trace and a Hardware. Out: a Plan. Must not know: torch, files, the engine.
"""

from __future__ import annotations

from dataclasses import replace

from teraio.errors import BudgetError
from teraio.planner.bound import ideal_s, lower_bound_s, simple_bounds
from teraio.planner.columns import Columns, columns
from teraio.planner.explanation import Explanation, Variant, explain, replanned, variants
from teraio.planner.feasibility import check_budget, least_budget
from teraio.planner.memory import live_by_op, memory_by_op
from teraio.planner.periods import Period, inactive_periods
from teraio.planner.recomputation import replayed, worthwhile
from teraio.planner.relaxation import Relaxation, relaxation
from teraio.planner.rules import keep_all, layer_ahead, on_demand
from teraio.planner.search import VERY_MANY_OPS, Found, Search, allowed
from teraio.planner.simulate import Moved, Simulation, simulate
from teraio.planner.validate import validate
from teraio.planner.wear import Wear, wear
from teraio.records import Bound, Hardware, Plan, PlanOptions, Recomputation, Stall, Trace

__all__ = [
    "Explanation",
    "Moved",
    "Period",
    "Simulation",
    "Stall",
    "Variant",
    "Wear",
    "explain",
    "ideal_s",
    "inactive_periods",
    "keep_all",
    "layer_ahead",
    "least_budget",
    "live_by_op",
    "lower_bound_s",
    "memory_by_op",
    "on_demand",
    "plan",
    "replanned",
    "replayed",
    "simple_bounds",
    "simulate",
    "validate",
    "variants",
    "wear",
]

_MOST_STALLS = 50
# A plan whose stalls are a smaller part of the iteration is not worth planning again.
_FEW_STALLS = 0.01
# How often more results are made again, judged by the plan before.
_ROUNDS = 3


def plan(trace: Trace, hardware: Hardware, options: PlanOptions | None = None) -> Plan:
    """The moves that keep ``trace`` within the budget of ``hardware`` at the least predicted time.

    Raises BudgetError, naming the op, where no plan can meet the budget or the tiers are too small.
    """
    options = options or PlanOptions()
    moving = _plan(trace, hardware, options, ())
    if not options.recompute or len(trace.ops) > VERY_MANY_OPS or _few_stalls(moving):
        return moving
    # What to make again is judged by quick plans.
    quick = replace(options, improve=False)
    again = _recomputing(trace, hardware, quick).recomputations
    if not again:
        return moving
    return min(_plan(trace, hardware, options, again), moving, key=lambda plan: plan.predicted_s)


def _few_stalls(plan: Plan) -> bool:
    return plan.predicted_s - plan.ideal_s <= _FEW_STALLS * plan.predicted_s


def _recomputing(trace: Trace, hardware: Hardware, options: PlanOptions) -> Plan:
    """The best plan found that makes results again; one that makes none if none is better."""
    best = _plan(trace, hardware, options, ())
    for _ in range(_ROUNDS):
        base = best
        if _few_stalls(base):
            break
        for again in worthwhile(trace, hardware, base):
            try:
                found = _plan(trace, hardware, options, again)
            except BudgetError:  # operands that come back for an op run again take memory too
                continue
            if found.predicted_s < best.predicted_s:
                best = found
        if best is base:
            break
    return best


def _plan(
    recorded: Trace,
    hardware: Hardware,
    options: PlanOptions,
    recomputations: tuple[Recomputation, ...],
) -> Plan:
    """The plan for the trace with these results made again."""
    trace = replayed(recorded, recomputations)
    on = columns(trace)
    check_budget(trace, on, allowed(trace, on, options), hardware.budget_bytes)
    peak = int(on.live.max(initial=trace.base_bytes))
    bounds, solution = _bounds(trace, on, hardware, options, peak)
    bound = max(found.seconds for found in bounds)
    best = Found((), 0, simulate(trace, hardware, ()))
    if peak > hardware.budget_bytes:
        best = Search(trace, on, hardware, options, solution).best(bound)
    simulation = best.simulation
    result = Plan(
        budget_bytes=hardware.budget_bytes,
        moves=best.moves,
        unlimited_peak_bytes=int(live_by_op(recorded).max(initial=recorded.base_bytes)),
        peak_bytes=max(simulation.peak_bytes, trace.base_bytes),
        ideal_s=ideal_s(recorded),
        # Both are sums of many numbers: where they are equal, rounding must not turn them round.
        bound_s=min(bound, simulation.iteration_s),
        predicted_s=simulation.iteration_s,
        spill_bytes=best.spill_bytes,
        read_bytes=simulation.read_bytes,
        written_bytes=simulation.written_bytes,
        options=options,
        bounds=bounds,
        stalls=simulation.stalls[:_MOST_STALLS],
        tiers=simulation.tiers,
        recomputations=recomputations,
    )
    validate(recorded, hardware, result)
    return result


def _bounds(
    trace: Trace, on: Columns, hardware: Hardware, options: PlanOptions, peak: int
) -> tuple[tuple[Bound, ...], Relaxation | None]:
    bounds = simple_bounds(trace, hardware)
    solve = options.bound == "relaxation" and peak > hardware.budget_bytes and hardware.tiers
    if not solve:
        return bounds, None
    solution = relaxation(on, hardware)
    return (*bounds, Bound(name="relaxation", seconds=solution.bound_s)), solution
