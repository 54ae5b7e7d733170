"""Traces of a few ops, written out by hand in tests.

In: short descriptions. Out: records. Must not know: how plans are made.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from teraio.planner.memory import live_by_op, memory_by_op
from teraio.records import Extent, Hardware, Move, Op, Phase, Plan, Storage, Tier, Trace


def storage(
    uses: Sequence[int],
    writes: Sequence[int] = (),
    *,
    nbytes: int = 1000,
    birth: int | None = None,
    death: int | None = None,
    name: str = "s",
    repeatable: bool = False,
) -> Storage:
    """A storage; persistent unless told."""
    return Storage(
        nbytes=nbytes,
        kind="parameter",
        name=name,
        birth=birth,
        death=death,
        uses=tuple(uses),
        writes=tuple(writes),
        repeatable=repeatable,
    )


def trace(durations_ms: Sequence[float], *storages: Storage, phase: Phase = "other") -> Trace:
    """A trace of ops with these durations."""
    ops = tuple(
        Op(name=f"op{i}", module="m", phase=phase, duration_ns=round(ms * 1e6))
        for i, ms in enumerate(durations_ms)
    )
    return Trace(device="cpu", ops=ops, storages=storages, anchors=(), base_bytes=0)


def machine(budget_bytes: int = 0, *, both: float = 2e6, latency_s: float = 0.0) -> Hardware:
    """One tier that reads and writes a million bytes per second: 1,000 bytes take 1 ms."""
    tier = Tier(
        name="ssd",
        capacity_bytes=1 << 30,
        read_bytes_per_s=1e6,
        write_bytes_per_s=1e6,
        mixed_bytes_per_s=both,
        latency_s=latency_s,
    )
    return Hardware(name="small", budget_bytes=budget_bytes, tiers=(tier,))


def move(
    index: int,
    offload_after: int,
    gone_before: int,
    fetch_after: int | None,
    needed_by: int | None,
    *,
    write: bool = True,
    offset: int = 0,
) -> Move:
    """A move to the tier of ``machine``."""
    return Move(
        storage=index,
        tier="ssd",
        extent=Extent(offset=offset, nbytes=4096),
        write=write,
        offload_after=offload_after,
        gone_before=gone_before,
        fetch_after=fetch_after,
        needed_by=needed_by,
    )


def copy_bytes(on: Trace, of: Move, encodes: bool) -> int:
    """What is written and read of a move."""
    made = on.storages[of.storage]
    share = on.encodings[made.encoding].share if encodes and made.encoding is not None else 1.0
    return math.ceil(made.nbytes * share)


def plan_of(
    on: Trace, moves: Sequence[Move], spill_bytes: int = 1 << 20, target: Hardware | None = None
) -> Plan:
    """A plan with honest totals; none of the tiers encodes where ``target`` is not given."""
    encoding = {tier.name for tier in target.tiers if tier.encodes} if target else set()
    sizes = [(copy_bytes(on, m, m.tier in encoding), m) for m in moves]
    return Plan(
        budget_bytes=1 << 30,
        moves=tuple(moves),
        unlimited_peak_bytes=int(live_by_op(on).max()),
        peak_bytes=int(memory_by_op(on, moves).max()),
        ideal_s=0.0,
        bound_s=0.0,
        predicted_s=0.0,
        spill_bytes=spill_bytes,
        read_bytes=sum(nbytes for nbytes, m in sizes if m.needed_by is not None),
        written_bytes=sum(nbytes for nbytes, m in sizes if m.write),
    )
