"""What a plan does and what it is predicted to give, in figures.

In: a Subject with a plan. Out: Planning. Must not know: rendering, how plans are made.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from teraio.errors import ConfigurationError
from teraio.planner import Wear, copies, wear
from teraio.records import Encoding, Move, Plan, SpillFolder, Stall, Tier, Trace
from teraio.reports.memory import Seconds, op_starts, storage_name
from teraio.reports.subject import Subject

_SHOWN = 10
# A channel that works for this part of the iteration is what limits it.
_BUSY = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class TierFacts:
    """One tier: its rates, and what an iteration does with it (seconds each channel is busy).

    ``coding_s`` is how long the device encodes and decodes for it.
    """

    tier: str
    read_bytes_per_s: float
    write_bytes_per_s: float
    space_bytes: int
    read_bytes: int
    written_bytes: int
    read_s: float
    write_s: float
    coding_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class KindFacts:
    """The moves of storages of one kind; ``away_byte_seconds``: memory that they free, by time."""

    kind: str
    moves: int
    written_bytes: int
    read_bytes: int
    away_byte_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveFacts:
    """One move: seconds on the channels, and how long its memory is free."""

    storage: str
    kind: str
    nbytes: int
    tier: str
    channel_s: float
    away_s: float
    leaves_after: int
    needed_by: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StallFacts:
    """One predicted stall, with names instead of numbers."""

    op: int
    op_name: str
    module: str
    phase: str
    storage: str
    waits_for: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Planning:
    """A plan in figures. ``binds`` says in a sentence what limits it; ``wears`` is per tier.

    ``device`` is the one that the trace's times are from. ``folders`` are those of the machine,
    where it was measured. ``recomputed`` results of ``recomputed_bytes`` together are made again in
    place of being moved.
    """

    hardware: str
    device: str
    budget_bytes: int
    unlimited_peak_bytes: int
    peak_bytes: int
    ideal_s: float
    bound_s: float
    predicted_s: float
    bounds: dict[str, float]
    moves: int
    read_bytes: int
    written_bytes: int
    spill_bytes: int
    recomputed: int
    recomputed_bytes: int
    tiers: tuple[TierFacts, ...]
    kinds: tuple[KindFacts, ...]
    costliest: tuple[MoveFacts, ...]
    stalls: tuple[StallFacts, ...]
    binds: str
    wears: tuple[Wear, ...]
    folders: tuple[SpillFolder, ...]
    encodings: tuple[Encoding, ...]


def planning(subject: Subject) -> Planning:
    """The figures of the subject's plan. Raises ConfigurationError where it has none."""
    trace, plan = subject.trace, subject.plan
    if plan is None:
        raise ConfigurationError(f"{subject.name} holds no plan; make one with `teraio plan`.")
    tiers = {tier.name: tier for tier in subject.hardware.tiers} if subject.hardware else {}
    uses = tuple(_tier_facts(trace, plan, tier) for tier in tiers.values())
    return Planning(
        hardware=subject.hardware.name if subject.hardware else "",
        device=trace.device,
        budget_bytes=plan.budget_bytes,
        unlimited_peak_bytes=plan.unlimited_peak_bytes,
        peak_bytes=plan.peak_bytes,
        ideal_s=plan.ideal_s,
        bound_s=plan.bound_s,
        predicted_s=plan.predicted_s,
        bounds={bound.name: bound.seconds for bound in plan.bounds},
        moves=len(plan.moves),
        read_bytes=plan.read_bytes,
        written_bytes=plan.written_bytes,
        spill_bytes=plan.spill_bytes,
        recomputed=len(plan.recomputations),
        recomputed_bytes=sum(trace.storages[r.storage].nbytes for r in plan.recomputations),
        tiers=uses,
        kinds=_kinds(subject),
        costliest=_costliest(trace, plan, tiers),
        encodings=trace.encodings if any(tier.encodes for tier in tiers.values()) else (),
        stalls=tuple(_stall_facts(trace, stall) for stall in plan.stalls[:_SHOWN]),
        binds=what_binds(plan, uses),
        wears=wear(plan, subject.hardware) if subject.hardware else (),
        folders=tuple(folder for tier in tiers.values() for folder in tier.folders),
    )


def _tier_facts(trace: Trace, plan: Plan, tier: Tier) -> TierFacts:
    moves = [move for move in plan.moves if move.tier == tier.name]
    on = copies(trace, [trace.storages[move.storage] for move in moves])
    nbytes = on.bytes_on(tier)
    read = np.array([move.needed_by is not None for move in moves], np.bool_)
    written = np.array([move.write for move in moves], np.bool_)
    # With the latency of each; several under way at once share theirs, so the sum may be too much.
    reads, writes = on.reads(tier), on.writes(tier)
    read_s = float((reads.transfer[read] + tier.latency_s).sum())
    write_s = float((writes.transfer[written] + tier.latency_s).sum())
    coding_s = float(reads.coding[read].sum() + writes.coding[written].sum())
    return TierFacts(
        tier=tier.name,
        read_bytes_per_s=tier.read_bytes_per_s,
        write_bytes_per_s=tier.write_bytes_per_s,
        space_bytes=max((move.extent.offset + move.extent.nbytes for move in moves), default=0),
        read_bytes=int(nbytes[read].sum()),
        written_bytes=int(nbytes[written].sum()),
        read_s=min(read_s, plan.predicted_s),
        write_s=min(write_s, plan.predicted_s),
        coding_s=min(coding_s, plan.predicted_s),
    )


def away_seconds(trace: Trace, move: Move, starts: Seconds) -> float:
    """How long the memory of a move is free, by the durations of the ops."""
    begin = float(starts[move.gone_before])
    if move.fetch_after is None:
        death = trace.storages[move.storage].death
        end = float(starts[-1] if death is None else starts[death + 1])
    else:
        end = float(starts[move.fetch_after + 1])
    return end - begin if end >= begin else end - begin + float(starts[-1])


def _kinds(subject: Subject) -> tuple[KindFacts, ...]:
    trace = subject.trace
    starts = op_starts(trace)
    by_kind: dict[str, list[tuple[Move, int]]] = {}
    for move, nbytes in zip(subject.moves, subject.copy_bytes, strict=True):
        by_kind.setdefault(trace.storages[move.storage].kind, []).append((move, nbytes))
    facts = []
    for kind, pairs in by_kind.items():
        moves = [move for move, _ in pairs]
        sizes = np.array([trace.storages[move.storage].nbytes for move in moves], dtype=np.int64)
        moved = np.array([nbytes for _, nbytes in pairs], dtype=np.int64)
        away = np.array([away_seconds(trace, move, starts) for move in moves])
        facts.append(
            KindFacts(
                kind=kind,
                moves=len(moves),
                written_bytes=int(moved[[move.write for move in moves]].sum()),
                read_bytes=int(moved[[move.needed_by is not None for move in moves]].sum()),
                away_byte_seconds=float((sizes * away).sum()),
            )
        )
    return tuple(sorted(facts, key=lambda fact: -(fact.read_bytes + fact.written_bytes)))


def _costliest(trace: Trace, plan: Plan, tiers: dict[str, Tier]) -> tuple[MoveFacts, ...]:
    on = copies(trace)
    seconds = {name: on.ways(tier) for name, tier in tiers.items()}

    def channel_s(move: Move) -> float:
        write_s, read_s = (by_storage[move.storage] for by_storage in seconds[move.tier])
        return move.write * write_s + (move.needed_by is not None) * read_s

    starts = op_starts(trace)
    moves = sorted(plan.moves, key=channel_s, reverse=True)[:_SHOWN]
    return tuple(
        MoveFacts(
            storage=trace.storages[move.storage].name,
            kind=trace.storages[move.storage].kind,
            nbytes=trace.storages[move.storage].nbytes,
            tier=move.tier,
            channel_s=channel_s(move),
            away_s=away_seconds(trace, move, starts),
            leaves_after=move.offload_after,
            needed_by=move.needed_by,
        )
        for move in moves
    )


def _stall_facts(trace: Trace, stall: Stall) -> StallFacts:
    op = trace.ops[stall.op]
    return StallFacts(
        op=stall.op,
        op_name=op.name,
        module=op.module,
        phase=op.phase,
        storage=storage_name(trace, stall.storage),
        waits_for=stall.waits_for,
        seconds=stall.seconds,
    )


def what_binds(plan: Plan, tiers: tuple[TierFacts, ...]) -> str:
    """What keeps the iteration from being shorter, in one sentence."""
    if not plan.moves:
        return "Everything fits the budget: nothing moves."
    if plan.predicted_s <= plan.ideal_s * 1.005:
        return "Nothing binds: the moves hide behind the ops."
    coding = max((tier.coding_s / plan.predicted_s for tier in tiers), default=0.0)
    if coding >= _BUSY:
        return (
            f"The codecs bind: the device encodes and decodes for {coding:.0%} of the iteration, "
            "which no other drive would change."
        )
    busy = [
        (seconds / plan.predicted_s, f"{direction} of {tier.tier}")
        for tier in tiers
        for seconds, direction in ((tier.read_s, "reading"), (tier.write_s, "writing"))
    ]
    most, what = max(busy, default=(0.0, ""))
    if most >= _BUSY:
        return f"{what.capitalize()} binds: that channel is busy {most:.0%} of the iteration."
    both = max(tiers, key=lambda tier: tier.read_s + tier.write_s)
    total = (both.read_s + both.write_s) / plan.predicted_s
    if total >= _BUSY:
        return (
            f"The drives of {both.tier} bind: reading ({both.read_s / plan.predicted_s:.0%} of the "
            f"iteration) and writing ({both.write_s / plan.predicted_s:.0%}) share them."
        )
    return (
        "Memory binds: data can't come back earlier without exceeding the budget, though the "
        f"channels have time ({what} is busiest, {most:.0%} of the iteration)."
    )
