"""The planner: what leaves device memory when, and when it comes back.

In: a Trace and a Hardware. Out: a Plan. Must not know: torch, files, the engine.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from teraio.errors import BudgetError
from teraio.planner.bound import ideal_s, lower_bound_s, simple_bounds
from teraio.planner.columns import Columns, columns, inactive_periods
from teraio.planner.copies import Copies, copies
from teraio.planner.explanation import Explanation, Variant, explain, grown, replanned
from teraio.planner.feasibility import check_budget, least_budget
from teraio.planner.memory import live_by_op, memory_by_op
from teraio.planner.periods import Period
from teraio.planner.recomputation import WORTH, replayed, worthwhile
from teraio.planner.relaxation import FINE, Detail, Relaxation, coarse, relaxation
from teraio.planner.search import GOOD_ENOUGH, VERY_MANY_OPS, Found, Search, allowed
from teraio.planner.simulate import Moved, Simulation, moved_bytes, simulate
from teraio.planner.validate import validate
from teraio.planner.wear import Wear, wear
from teraio.records import (
    Bound,
    Hardware,
    Plan,
    PlanOptions,
    Recomputation,
    Stall,
    Tier,
    TierUse,
    Trace,
)

__all__ = [
    "Copies",
    "Explanation",
    "Moved",
    "Period",
    "Simulation",
    "Stall",
    "Variant",
    "Wear",
    "copies",
    "explain",
    "grown",
    "ideal_s",
    "inactive_periods",
    "least_budget",
    "live_by_op",
    "lower_bound_s",
    "memory_by_op",
    "moved_bytes",
    "plan",
    "replanned",
    "replayed",
    "simple_bounds",
    "simulate",
    "validate",
    "wear",
]

_MOST_STALLS = 50
# A plan whose stalls are a smaller part of the iteration is not worth planning again.
_FEW_STALLS = 0.01
# Part of the fastest tier's rate below which a tier is used only where the others have no room.
_SLOW = 1 / 8
# How often more results are made again, judged by the plan before.
_ROUNDS = 3


def plan(trace: Trace, hardware: Hardware, options: PlanOptions | None = None) -> Plan:
    """The moves that keep ``trace`` within the budget of ``hardware`` at the least predicted time.

    Raises BudgetError, naming the op, where no plan can meet the budget or the tiers are too small.
    """
    options = options or PlanOptions()
    quick = _without_slow_tiers(hardware)
    if quick == hardware:
        return _planned(trace, hardware, options)
    try:
        found = _planned(trace, quick, options)
    except BudgetError:  # there is too little room on the quick ones
        return _planned(trace, hardware, options)
    return _bounded(found, trace, hardware, options)


def _without_slow_tiers(hardware: Hardware) -> Hardware:
    """Beside host memory a drive would save little, and whatever delays it would cost more.

    It is gone, not of no size: the relaxation is coarser the more tiers there are.
    """
    fastest = max((tier.mixed_bytes_per_s for tier in hardware.tiers), default=0.0)
    quick = (tier for tier in hardware.tiers if tier.mixed_bytes_per_s >= _SLOW * fastest)
    return replace(hardware, tiers=tuple(quick))


def _bounded(found: Plan, trace: Trace, hardware: Hardware, options: PlanOptions) -> Plan:
    """The plan with what no plan for ``hardware`` can beat, if it makes the same results again.

    Tiers that it has left out are unused.
    """
    trace = replayed(trace, found.recomputations)
    bounds = _bounds(trace, hardware, _solutions(trace, columns(trace), hardware, options, FINE))
    bound_s = min(max(bound.seconds for bound in bounds), found.predicted_s)
    used = {use.tier: use for use in found.tiers}
    tiers = tuple(used.get(tier.name) or _unused(tier) for tier in hardware.tiers)
    return replace(found, bounds=bounds, bound_s=bound_s, tiers=tiers)


def _unused(tier: Tier) -> TierUse:
    return TierUse(
        tier=tier.name, space_bytes=0, read_bytes=0, written_bytes=0, read_s=0.0, write_s=0.0
    )


def _planned(trace: Trace, hardware: Hardware, options: PlanOptions) -> Plan:
    problem = _problem(trace, hardware, options, ())
    # A quick plan tells whether more is to be gained, and what to make again is judged by such.
    quick = replace(options, improve=False)
    try:
        plan = _solved(problem, hardware, quick)
    except BudgetError:  # more tries may find one that writes less, or takes less room
        return _solved(problem, hardware, options)
    if len(trace.ops) > VERY_MANY_OPS:  # it is the only one
        return replace(plan, options=options)
    if options.recompute and any(storage.repeatable for storage in trace.storages):
        problem, plan = _recomputing(problem, plan, hardware, quick)
    if not options.improve or plan.predicted_s <= GOOD_ENOUGH * plan.bound_s:
        return replace(plan, options=options)
    return _solved(problem, hardware, options)


@dataclass(frozen=True, slots=True, eq=False)
class _Problem:
    """``trace`` is the one ``recorded`` with results made again; ``solutions`` are those of the
    relaxation that quick and thorough plans share, as they do the ``search``.
    """

    recorded: Trace
    recomputations: tuple[Recomputation, ...]
    trace: Trace
    on: Columns
    solutions: tuple[Relaxation, ...]
    search: Search


def _problem(
    recorded: Trace,
    hardware: Hardware,
    options: PlanOptions,
    recomputations: tuple[Recomputation, ...],
) -> _Problem:
    """Raises BudgetError where no plan can meet the budget."""
    trace = replayed(recorded, recomputations)
    on = columns(trace)
    check_budget(trace, on, allowed(trace, on, options), hardware.budget_bytes)
    solutions = _solutions(trace, on, hardware, options, coarse(on.n))
    search = Search(trace, on, hardware, options, solutions)
    return _Problem(recorded, recomputations, trace, on, solutions, search)


def _few_stalls(plan: Plan) -> bool:
    return plan.predicted_s - plan.ideal_s <= _FEW_STALLS * plan.predicted_s


def _recomputing(
    problem: _Problem, plan: Plan, hardware: Hardware, options: PlanOptions
) -> tuple[_Problem, Plan]:
    """The best plan found that makes results again, and its problem; those at hand without one."""
    for worth in WORTH:
        for _ in range(_ROUNDS):
            better = _better(plan, problem.recorded, hardware, options, worth)
            if better is None:
                break
            problem, plan = better
    return problem, plan


def _better(
    base: Plan, recorded: Trace, hardware: Hardware, options: PlanOptions, worth: float
) -> tuple[_Problem, Plan] | None:
    """The best plan that makes more results again than ``base``; None if that has no better one."""
    if _few_stalls(base):
        return None
    problem, plan = None, base
    for again in worthwhile(recorded, hardware, base, worth):
        try:
            tried = _problem(recorded, hardware, options, again)
            found = _solved(tried, hardware, options)
        except BudgetError:  # operands that come back for an op run again take memory too
            continue
        if found.predicted_s < plan.predicted_s:
            problem, plan = tried, found
    return None if problem is None else (problem, plan)


def _solved(problem: _Problem, hardware: Hardware, options: PlanOptions) -> Plan:
    """The plan for a problem."""
    recorded, trace, on = problem.recorded, problem.trace, problem.on
    solutions = problem.solutions
    if options.improve:
        # Plans that start from either are the faster ones about as often.
        fine = _solutions(trace, on, hardware, options, FINE)
        for solution in fine:
            problem.search.add_start(solution)
        solutions += fine
    bounds = _bounds(trace, hardware, solutions)
    bound = max(found.seconds for found in bounds)
    best = Found((), 0, simulate(trace, hardware, ()))
    if _peak_bytes(trace, on) > hardware.budget_bytes:
        best = problem.search.best(bound, thorough=options.improve)
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
        recomputations=problem.recomputations,
    )
    validate(recorded, hardware, result)
    return result


def _peak_bytes(trace: Trace, on: Columns) -> int:
    """Bytes in memory with nothing moved away, where they are most."""
    return int(on.live.max(initial=trace.base_bytes))


def _bounds(
    trace: Trace, hardware: Hardware, solutions: tuple[Relaxation, ...]
) -> tuple[Bound, ...]:
    bounds = simple_bounds(trace, hardware)
    if not solutions:
        return bounds
    relaxed_s = max(solution.bound_s for solution in solutions)
    return (*bounds, Bound(name="relaxation", seconds=relaxed_s))


def _solutions(
    trace: Trace, on: Columns, hardware: Hardware, options: PlanOptions, detail: Detail
) -> tuple[Relaxation, ...]:
    """The relaxation's, if there is something to move, and somewhere to move it."""
    short = _peak_bytes(trace, on) > hardware.budget_bytes
    if options.bound != "relaxation" or not short or not hardware.tiers:
        return ()
    return (relaxation(on, hardware, detail),)
