"""The records that the stages of teraio exchange: Trace, Hardware, Plan, StepReport, RunReport.

In: nothing. Out: plain frozen dataclasses. Must not know: torch, files, any module of teraio.

Positions. The ops of one iteration are numbered ``0 .. N-1`` in the order in which the program
issues them; training is cyclic, so "after op N-1" is the start of the next iteration. All sizes are
in bytes, trace durations in integer nanoseconds, times of plans and reports in seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import Literal

Phase = Literal["forward", "backward", "optimizer", "other"]
Kind = Literal["parameter", "gradient", "optimizer_state", "activation", "buffer", "input"]
BoundKind = Literal["relaxation", "simple"]
WaitsFor = Literal["memory", "data"]
Unit = Literal["bytes", "bytes/s", "share", "cores", "W"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Op:
    """One operator call as the program issues it; what it calls in turn is part of it.

    ``duration_ns`` reaches from the end of the op before to the end of this one, without any
    waiting for I/O, so the durations of a trace add up to the iteration. ``workspace_bytes`` is
    what the op allocates beyond the trace's storages and frees again before it ends.
    """

    name: str
    module: str
    phase: Phase
    duration_ns: int
    workspace_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Storage:
    """One piece of memory, shared by all tensors that view it.

    Live during op ``k`` when ``(birth is None or birth <= k) and (death is None or k <= death)``.
    ``birth`` is the op that allocates it (None: it exists when the iteration starts), ``death`` the
    op after which it is freed (None: it outlives the iteration; -1: freed before op 0). ``uses``
    are the ops that touch its data, ascending, the making one included; ``writes`` is the part of
    ``uses`` that changes the data. ``repeatable``: it is the result of the op that makes it, which
    gives the same result to the last bit when it is run again with the same operands. ``encoding``
    is the place among the trace's of how its copies are encoded; None: they are as it is.
    """

    nbytes: int
    kind: Kind
    name: str
    birth: int | None
    death: int | None
    uses: tuple[int, ...]
    writes: tuple[int, ...]
    repeatable: bool = False
    encoding: int | None = None

    @property
    def persistent(self) -> bool:
        """True for a storage that lives from iteration to iteration (weights, optimizer states)."""
        return self.birth is None and self.death is None


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoding:
    """How copies of storages of one dtype are encoded on tiers that encode, and how fast.

    A copy takes ``share`` of the storage's bytes. Rates are in bytes of storages per second, of
    encoding or decoding alone: the trace's device does both, one at a time.
    """

    codec: str
    dtype: str
    share: float
    encode_bytes_per_s: float
    decode_bytes_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Anchor:
    """A place found again by name: the ``occurrence``-th time ``key`` comes up, op ``op`` is next.

    ``key`` is such as ``forward:model.layers.3`` or ``optimizer:``.
    """

    key: str
    occurrence: int
    op: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """What one training iteration does with memory.

    ``base_bytes`` is counted memory that no storage of the trace explains (tensors too small to
    move): it is there all the time. Memory during op ``k`` with nothing moved away is
    ``base_bytes`` + ``ops[k].workspace_bytes`` + the sizes of all storages live during ``k``.
    ``encodings`` are those of its storages.
    """

    device: str
    ops: tuple[Op, ...]
    storages: tuple[Storage, ...]
    anchors: tuple[Anchor, ...]
    base_bytes: int
    encodings: tuple[Encoding, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SpillFolder:
    """A folder of a tier: the path by which its bytes move, and why by that one; in words."""

    folder: str
    path: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Tier:
    """A place that storages move to. Rates in bytes/s; ``mixed`` is their sum while both run.

    ``rated_write_bytes`` is the endurance of all its drives together: what their maker allows to
    be written to them in their life. None where it is unknown, or where writing wears nothing.
    ``folders`` are those of a machine that was measured; empty for any other. ``encodes``: copies
    are encoded there, of those storages that have an encoding.
    """

    name: str
    capacity_bytes: int
    read_bytes_per_s: float
    write_bytes_per_s: float
    mixed_bytes_per_s: float
    latency_s: float
    rated_write_bytes: int | None = None
    folders: tuple[SpillFolder, ...] = ()
    encodes: bool = False

    @property
    def mixed_share(self) -> float:
        """The part of its own rate that each direction has while both run."""
        return min(1.0, self.mixed_bytes_per_s / (self.write_bytes_per_s + self.read_bytes_per_s))


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """What a plan may use: the device memory budget and the tiers, the SSDs' first.

    ``max_write_bytes_per_day`` limits what is written to the tiers that have a
    ``rated_write_bytes``, all together and with the training running all day; None: no limit.
    """

    name: str
    budget_bytes: int
    tiers: tuple[Tier, ...]
    max_write_bytes_per_day: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """A range of the spill space; ``offset`` and ``nbytes`` are multiples of 4096."""

    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """One storage leaves during one inactive period, and comes back if it is used again.

    Its write starts after op ``offload_after``; ops that only read it may still come then. Its
    memory is free during the ops from ``gone_before`` to ``fetch_after``, both included, counted
    cyclically; coming back starts after op ``fetch_after`` and must be done before op
    ``needed_by``. ``write`` is False when the tier still holds a valid copy, so leaving costs
    nothing. ``fetch_after`` and ``needed_by`` are None for a storage that is freed without being
    used again: then its memory is free from ``gone_before`` to its death.

    What is carried into the next iteration is another storage of the trace there, of equal name,
    kind and size, and may come back as that: then ``needed_by`` is that one's first use.
    """

    storage: int
    tier: str
    extent: Extent
    write: bool
    offload_after: int
    gone_before: int
    fetch_after: int | None
    needed_by: int | None

    def leaves_after(self, storage: Storage, n: int) -> int:
        """The op after which its memory can go: ``offload_after``, or the last one of ``n`` that
        uses ``storage`` while its copy is made."""
        uses = storage.uses if storage.birth is None else (storage.birth, *storage.uses)
        begun, span = self.offload_after, (self.gone_before - self.offload_after) % n
        after = max(((op - begun) % n for op in uses if (op - begun) % n < span), default=0)
        return (begun + after) % n


@dataclass(frozen=True, slots=True, kw_only=True)
class Recomputation:
    """A result is given up after op ``drop_after``, and made again before op ``needed_by``."""

    storage: int
    drop_after: int
    needed_by: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanOptions:
    """What a planner may do; each can be switched, so that its gain can be measured.

    ``bound``: "relaxation" solves a linear program for the lower bound, "simple" leaves that out.
    ``improve``: search for better plans near the first ones, judged by simulation.
    ``reuse_copies``: a storage not written since it was last away is not written again.
    ``capacity_by_time``: storages that are away at different times share room on a tier; else each
    keeps its place there for the whole iteration.
    ``resident_state_share``: this share of the bytes of optimizer states never leaves.
    ``recompute``: results may be made again by their ops instead of being moved.
    """

    bound: BoundKind = "relaxation"
    improve: bool = True
    reuse_copies: bool = True
    capacity_by_time: bool = True
    resident_state_share: float = 0.0
    recompute: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """Seconds per iteration that no plan can beat, and by which reasoning ("ops", "bytes", ...)."""

    name: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Stall:
    """Op ``op`` waited ``seconds`` for ``storage``.

    It waited for the "memory" that the storage was still leaving, or for "data" still coming.
    """

    op: int
    storage: int
    waits_for: WaitsFor
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TierUse:
    """What one iteration of a plan does on a tier.

    ``space_bytes`` is the room its extents take; ``read_bytes`` and ``written_bytes`` are of copies
    as they are there, encoded or not; ``read_s`` and ``write_s`` are the seconds during which each
    channel is busy.
    """

    tier: str
    space_bytes: int
    read_bytes: int
    written_bytes: int
    read_s: float
    write_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The moves of one iteration, and what they are predicted to give.

    ``ideal_s`` is the iteration without any limit on memory, ``bound_s`` a time that no plan can
    beat (the greatest of ``bounds``), ``predicted_s`` the time of this plan. ``read_bytes`` and
    ``written_bytes`` are of copies as they are on the tiers, encoded or not. ``spill_bytes`` is the
    size of the largest tier's spill space. ``stalls`` are the longest that are predicted, the
    longest first; all of them add up to ``predicted_s - ideal_s``. ``tiers`` has one entry per tier
    of the hardware, in its order.

    ``recomputations`` are results that are made again. Such a storage is two in the moves and
    stalls: its own number is that of the one the program makes; the one that is made again has the
    number of storages of the trace, plus its place among the recomputations. The bound is that of
    all plans that make the same results again.
    """

    budget_bytes: int
    moves: tuple[Move, ...]
    unlimited_peak_bytes: int
    peak_bytes: int
    ideal_s: float
    bound_s: float
    predicted_s: float
    spill_bytes: int
    read_bytes: int
    written_bytes: int
    options: PlanOptions = PlanOptions()
    bounds: tuple[Bound, ...] = ()
    stalls: tuple[Stall, ...] = ()
    tiers: tuple[TierUse, ...] = ()
    recomputations: tuple[Recomputation, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredStall:
    """Op ``op`` waited ``seconds``, for "data" that was coming or for "memory" to be free for it.

    ``storage`` is what was to come; None for a new one, or one that the trace doesn't know.
    """

    op: int
    storage: int | None
    waits_for: WaitsFor
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """What one iteration really did.

    ``recomputed_bytes`` is the size of results made again. ``drift_ops`` counts ops that the plan
    did not foresee. ``stalls`` are the longest, the longest first; all of them add up to
    ``stall_s``. On an accelerator that is the time in which the device stands still, as the host
    issues ops ahead of it; ``duration_s`` is always the host's time. What the device has not got to
    when the iteration ends for the host is in the next step. ``peak_bytes`` counts storages; for an
    accelerator, in an iteration that fits the budget, it is the most that PyTorch's allocator has
    given out since that counter was last set back.
    """

    iteration: int
    phase: Literal["profile", "run"]
    duration_s: float
    stall_s: float
    peak_bytes: int
    read_bytes: int
    written_bytes: int
    ops: int
    drift_ops: int
    stalls: tuple[MeasuredStall, ...] = ()
    recomputed_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """A figure of the machine over some time, such as ``what`` "resident memory" ``of`` "process".

    "share" is between 0 and 1, "cores" are seconds of the processor in a second. ``mean`` is over
    all looks, or for what the machine counts itself, over all of the time.
    """

    of: str
    what: str
    unit: Unit
    last: float
    mean: float
    least: float
    most: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Telemetry:
    """What the machine did in the ``seconds`` between the first and the last of ``samples`` looks.

    ``missing`` says, a line for each, what is not known and why.
    """

    seconds: float
    samples: int
    readings: tuple[Reading, ...] = ()
    missing: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RunReport:
    """The state of an offloaded run. ``plan`` and the times are None until a plan exists.

    In phase ``planned`` nothing has run: it is a plan with the trace and hardware it is for.
    ``telemetry`` is of the iterations since that plan was made, or since profiling began. Of a long
    run ``steps`` has the latest 10,000 at least; only the last 100 have their ``stalls``.
    """

    budget_bytes: int
    phase: Literal["planned", "profile", "run", "closed"]
    hardware: Hardware
    trace: Trace | None
    plan: Plan | None
    steps: tuple[StepReport, ...]
    telemetry: Telemetry | None = None

    @property
    def predicted_s(self) -> float | None:
        """Predicted seconds per iteration under the plan."""
        return self.plan.predicted_s if self.plan else None

    @property
    def ideal_s(self) -> float | None:
        """Seconds per iteration without a memory limit, from the profile."""
        return self.plan.ideal_s if self.plan else None

    @property
    def bound_s(self) -> float | None:
        """Seconds per iteration that no plan can beat."""
        return self.plan.bound_s if self.plan else None

    def where_time_goes(self) -> str:
        """Seconds per iteration under the plan, and what they hold beside the ideal, in words."""
        steps = [step for step in self.steps if step.phase == "run"]
        if self.plan is None or not steps:
            return "no iteration has run under a plan yet"
        duration_s = median(step.duration_s for step in steps)
        stall_s = median(step.stall_s for step in steps)
        again_s = self._again_s(self.plan)
        other_s = duration_s - stall_s - again_s - self.plan.ideal_s
        again = f"{again_s:.3f} s making results again, " if self.plan.recomputations else ""
        return (
            f"{duration_s:.3f} s per iteration: {self.plan.ideal_s:.3f} s ideal, {again}"
            f"{stall_s:.3f} s waiting for data to move, {other_s:+.3f} s ops that ran slower or "
            "faster than in the profile"
        )

    def _again_s(self, plan: Plan) -> float:
        """Seconds of the ops whose results the plan makes again, as the profile has them."""
        if self.trace is None:
            return 0.0
        births = (self.trace.storages[again.storage].birth for again in plan.recomputations)
        return (
            sum(self.trace.ops[birth].duration_ns for birth in births if birth is not None) * 1e-9
        )
