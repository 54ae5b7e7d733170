"""Why a plan takes the time it takes, and what would make it faster.

In: a Trace, a Hardware, a Plan. Out: records of what binds, what costs most, and what more hardware
would give. Must not know: how any of it is shown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Literal

import numpy as np

from teraio.planner.simulate import Simulation, moved_bytes, simulate
from teraio.records import Hardware, Phase, Plan, Stall, Tier, Trace

_BUSY = 0.9
_MOST = 10
_MOST_STRETCHES = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """Ops ``first`` to ``last`` of one phase and module, and what they wait for.

    ``busy`` are the parts of the stretch's time in which each channel ("ssd0 read") carries data,
    ``memory`` the greatest part of the budget that is held in it.
    """

    first: int
    last: int
    phase: Phase
    module: str
    seconds: float
    stall_s: float
    waits_for_memory_s: float
    waits_for_data_s: float
    busy: tuple[tuple[str, float], ...]
    memory: float
    binds: Literal["ops", "memory", "channel"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CostlyMove:
    """A storage whose moves ops wait for, with its seconds per iteration and bytes moved."""

    storage: int
    name: str
    nbytes: int
    stall_s: float
    moved_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """``stretches`` are those with the longest stalls, ``costly`` the moves that cost most.

    ``unavoidable_s`` is how much the bound says any plan loses, ``avoidable_s`` how much less than
    this plan the best one might lose at most.
    """

    predicted_s: float
    ideal_s: float
    bound_s: float
    bound_by: str
    unavoidable_s: float
    avoidable_s: float
    stretches: tuple[Stretch, ...]
    costly: tuple[CostlyMove, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """The same training on other hardware; ``saved_s`` per iteration against the plan at hand."""

    change: str
    predicted_s: float
    saved_s: float


def explain(trace: Trace, hardware: Hardware, plan: Plan) -> Explanation:
    """What binds ``plan``, where, and by which moves."""
    simulation = simulate(trace, hardware, plan.moves)
    bound = max(plan.bounds, key=lambda bound: bound.seconds, default=None)
    return Explanation(
        predicted_s=plan.predicted_s,
        ideal_s=plan.ideal_s,
        bound_s=plan.bound_s,
        bound_by=bound.name if bound else "",
        unavoidable_s=max(0.0, plan.bound_s - plan.ideal_s),
        avoidable_s=max(0.0, plan.predicted_s - plan.bound_s),
        stretches=_stretches(trace, hardware, plan, simulation),
        costly=_costly(trace, hardware, plan, simulation.stalls),
    )


def replanned(
    trace: Trace,
    plan: Plan,
    make_plan: Callable[[Trace, Hardware], Plan],
    changes: Iterable[tuple[str, Hardware]],
) -> tuple[Variant, ...]:
    """What planning again for each changed machine gives, against ``plan``."""
    found = []
    for change, changed in changes:
        predicted_s = make_plan(trace, changed).predicted_s
        saved_s = plan.predicted_s - predicted_s
        found.append(Variant(change=change, predicted_s=predicted_s, saved_s=saved_s))
    return tuple(found)


def grown(tier: Tier, drives: int) -> Tier:
    """The tier, of so many drives that are alike, with one drive more."""
    factor = (drives + 1) / drives
    rated = tier.rated_write_bytes
    return replace(
        tier,
        capacity_bytes=int(factor * tier.capacity_bytes),
        read_bytes_per_s=factor * tier.read_bytes_per_s,
        write_bytes_per_s=factor * tier.write_bytes_per_s,
        mixed_bytes_per_s=factor * tier.mixed_bytes_per_s,
        rated_write_bytes=None if rated is None else int(factor * rated),
    )


def _stretches(
    trace: Trace, hardware: Hardware, plan: Plan, simulation: Simulation
) -> tuple[Stretch, ...]:
    """The stretches with stalls, the longest stall first."""
    waited: dict[int, list[Stall]] = {}
    for stall in simulation.stalls:
        waited.setdefault(stall.op, []).append(stall)
    busy = _busy_until(hardware, plan, simulation)
    # A stretch begins when the op before it ends: its stalls come before its ops.
    end_s = simulation.start_s + np.array([op.duration_ns * 1e-9 for op in trace.ops])
    found = []
    for (phase, module), ops in groupby(
        range(len(trace.ops)), key=lambda op: (trace.ops[op].phase, _block(trace.ops[op].module))
    ):
        inside = list(ops)
        stalls = [stall for op in inside for stall in waited.get(op, ())]
        if not stalls:
            continue
        first, last = inside[0], inside[-1]
        begin_s = float(end_s[first - 1]) if first else 0.0
        seconds = float(end_s[last]) - begin_s
        shares = tuple(
            (name, min(1.0, max(0.0, (at(float(end_s[last])) - at(begin_s)) / seconds)))
            for name, at in busy
            if seconds > 0.0
        )
        held = int(simulation.memory_bytes[first : last + 1].max())
        memory_s = sum(stall.seconds for stall in stalls if stall.waits_for == "memory")
        data_s = sum(stall.seconds for stall in stalls if stall.waits_for == "data")
        full = any(share >= _BUSY for _, share in shares)
        found.append(
            Stretch(
                first=first,
                last=last,
                phase=phase,
                module=module,
                seconds=seconds,
                stall_s=memory_s + data_s,
                waits_for_memory_s=memory_s,
                waits_for_data_s=data_s,
                busy=shares,
                memory=held / max(1, hardware.budget_bytes),
                binds="channel" if full else "memory" if memory_s + data_s > 0 else "ops",
            )
        )
    found.sort(key=lambda stretch: (-stretch.stall_s, stretch.first))
    return tuple(found[:_MOST_STRETCHES])


def _block(module: str) -> str:
    """The layer that a module belongs to: its name up to the first number."""
    parts = module.split(".")
    numbers = [index for index, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[: numbers[0] + 1]) if numbers else module


def _busy_until(
    hardware: Hardware, plan: Plan, simulation: Simulation
) -> list[tuple[str, Callable[[float], float]]]:
    """For each channel a function of the seconds that it has been busy up to a time."""
    found = []
    for tier in hardware.tiers:
        for direction in ("read", "write"):
            spans = sorted(
                (moved.begin_s, max(moved.begin_s, moved.end_s - tier.latency_s))
                for moved in simulation.transfers
                if moved.direction == direction and plan.moves[moved.move].tier == tier.name
            )
            found.append((f"{tier.name} {direction}", _counter(spans)))
    return found


def _counter(spans: Sequence[tuple[float, float]]) -> Callable[[float], float]:
    begins = np.array([begin for begin, _ in spans])
    ends = np.array([end for _, end in spans])

    def busy_s(time_s: float) -> float:
        return float(np.clip(np.minimum(ends, time_s) - begins, 0.0, None).sum())

    return busy_s


def _costly(
    trace: Trace, hardware: Hardware, plan: Plan, stalls: Sequence[Stall]
) -> tuple[CostlyMove, ...]:
    stall_s: dict[int, float] = {}
    for stall in stalls:
        stall_s[stall.storage] = stall_s.get(stall.storage, 0.0) + stall.seconds
    moved: dict[int, int] = {}
    for move, nbytes in zip(plan.moves, moved_bytes(trace, hardware, plan.moves), strict=True):
        times = int(move.write) + int(move.needed_by is not None)
        moved[move.storage] = moved.get(move.storage, 0) + times * nbytes
    order = sorted(moved, key=lambda index: (-stall_s.get(index, 0.0), -moved[index], index))
    return tuple(
        CostlyMove(
            storage=index,
            name=trace.storages[index].name,
            nbytes=trace.storages[index].nbytes,
            stall_s=stall_s.get(index, 0.0),
            moved_bytes=moved[index],
        )
        for index in order[:_MOST]
    )
