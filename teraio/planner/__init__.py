"""The planner: what leaves device memory when, and when it comes back.

In: a Trace and a Hardware. Out: a Plan. Must not know: torch, files, the engine.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np

from teraio.planner.bound import lower_bound_s, simple_bounds
from teraio.planner.columns import Columns, columns
from teraio.planner.extents import moves_with_extents
from teraio.planner.feasibility import check_budget, least_budget
from teraio.planner.greedy import Seconds, Tuning, choose
from teraio.planner.memory import live_by_op, memory_by_op
from teraio.planner.periods import Period, inactive_periods
from teraio.planner.relaxation import Relaxation, relaxation
from teraio.planner.simulate import Moved, Simulation, simulate
from teraio.planner.validate import validate
from teraio.planner.wear import Wear, wear
from teraio.records import Bound, Hardware, Move, Plan, PlanOptions, Stall, Trace

__all__ = [
    "Moved",
    "Period",
    "Simulation",
    "Stall",
    "Wear",
    "inactive_periods",
    "least_budget",
    "live_by_op",
    "lower_bound_s",
    "memory_by_op",
    "plan",
    "simple_bounds",
    "simulate",
    "validate",
    "wear",
]

# A plan this close to the bound is not worth another try.
_GOOD_ENOUGH = 1.002
_MANY_OPS = 20_000
_VERY_MANY_OPS = 100_000
_MOST_STALLS = 50


@dataclass(frozen=True, slots=True)
class _Try:
    moves: tuple[Move, ...]
    spill_bytes: int
    simulation: Simulation


def plan(trace: Trace, hardware: Hardware, options: PlanOptions | None = None) -> Plan:
    """The moves that keep ``trace`` within the budget of ``hardware`` at the least predicted time.

    Raises BudgetError, naming the op, where no plan can meet the budget or the tiers are too small.
    """
    options = options or PlanOptions()
    on = columns(trace)
    check_budget(trace, on, hardware.budget_bytes)
    peak = int(on.live.max(initial=trace.base_bytes))
    bounds, _ = _bounds(trace, on, hardware, options, peak)
    bound = max(found.seconds for found in bounds)
    best = _Try((), 0, simulate(trace, hardware, ()))
    if peak > hardware.budget_bytes:
        best = _best_try(trace, hardware, bound)
    simulation = best.simulation
    result = Plan(
        budget_bytes=hardware.budget_bytes,
        moves=best.moves,
        unlimited_peak_bytes=peak,
        peak_bytes=max(simulation.peak_bytes, trace.base_bytes),
        ideal_s=bounds[0].seconds,
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
    )
    validate(trace, hardware, result)
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


def _best_try(trace: Trace, hardware: Hardware, bound: float) -> _Try:
    tries = _tries(trace, hardware)
    best = next(tries)
    for found in chain((best,), tries):
        if found.simulation.iteration_s < best.simulation.iteration_s:
            best = found
        if best.simulation.iteration_s <= bound * _GOOD_ENOUGH:
            break
    return best


def _tries(trace: Trace, hardware: Hardware) -> Iterator[_Try]:
    """Plans made in different ways, the most promising first."""
    periods = inactive_periods(trace)
    ideal = np.fromiter((op.duration_ns for op in trace.ops), np.float64, len(trace.ops)) * 1e-9

    def attempt(op_s: Seconds, tuning: Tuning) -> _Try:
        moves, spill_bytes = moves_with_extents(
            trace, hardware, choose(trace, hardware, periods, op_s, tuning)
        )
        return _Try(moves, spill_bytes, simulate(trace, hardware, moves))

    many = len(trace.ops) > _MANY_OPS
    nearly = 0.6 if len(trace.ops) > _VERY_MANY_OPS else 0.8 if many else 0.9
    tuning = Tuning(nearly=nearly)
    patient = replace(tuning, patience=10.0)
    found = attempt(ideal, tuning)
    yield found
    for other in (patient,) if many else (patient, patient, replace(patient, headroom=0.03)):
        # While the device stalls the channels work on: plan again with the time they really have.
        found = attempt(ideal + _stalled_s(found.simulation, len(ideal)), other)
        yield found
    if not many:
        yield attempt(ideal, replace(tuning, benefit_power=1.5))


def _stalled_s(simulation: Simulation, n: int) -> Seconds:
    """Seconds of stalls, each counted to the op before the one that waited."""
    stalled = np.zeros(n)
    for stall in simulation.stalls:
        stalled[stall.op - 1] += stall.seconds
    return stalled
