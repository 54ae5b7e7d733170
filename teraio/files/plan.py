"""Plans in files: moves and recomputations by column.

In: a Plan, or JSON values. Out: JSON values, or a Plan whose members have the right types; whether
it suits a trace is for the planner to say. Must not know: files, traces.
"""

from __future__ import annotations

from typing import Any, get_args

from teraio.files.fault import fail
from teraio.files.fields import MAX_INT, Fields, columns_of, objects_of
from teraio.files.stall import STALL, read_stall
from teraio.records import (
    Bound,
    BoundKind,
    Extent,
    Move,
    Plan,
    PlanOptions,
    Recomputation,
    TierUse,
)

_MOVE_OPS = ("offload_after", "gone_before", "fetch_after", "needed_by")
_MOVES = ("storage", "tier", "offset", "nbytes", "write", *_MOVE_OPS)
_PLAN_BYTES = (
    "budget_bytes",
    "unlimited_peak_bytes",
    "peak_bytes",
    "spill_bytes",
    "read_bytes",
    "written_bytes",
)
_PLAN_TIMES = ("ideal_s", "bound_s", "predicted_s")
_OPTIONS_LATER = {"recompute": False}
_OPTIONS = (
    "bound",
    "improve",
    "reuse_copies",
    "capacity_by_time",
    "resident_state_share",
    *_OPTIONS_LATER,
)
_RECOMPUTATION = ("storage", "drop_after", "needed_by")
_BOUND = ("name", "seconds")
_TIER_USE = ("tier", "space_bytes", "read_bytes", "written_bytes", "read_s", "write_s")
_PLAN_LATER: dict[str, object] = {
    "options": objects_of((PlanOptions(),), _OPTIONS)[0],
    "bounds": [],
    "stalls": [],
    "tiers": [],
    "recomputations": columns_of((), _RECOMPUTATION),
}
_PLAN = ("moves", *_PLAN_BYTES, *_PLAN_TIMES, *_PLAN_LATER)


def write_plan(plan: Plan) -> dict[str, Any]:
    """The plan as JSON values."""
    moves = columns_of(plan.moves, ("storage", "tier", "write", *_MOVE_OPS))
    moves["offset"] = [move.extent.offset for move in plan.moves]
    moves["nbytes"] = [move.extent.nbytes for move in plan.moves]
    return {
        "moves": moves,
        **{name: getattr(plan, name) for name in (*_PLAN_BYTES, *_PLAN_TIMES)},
        "options": objects_of((plan.options,), _OPTIONS)[0],
        "bounds": objects_of(plan.bounds, _BOUND),
        "stalls": objects_of(plan.stalls, STALL),
        "tiers": objects_of(plan.tiers, _TIER_USE),
        "recomputations": columns_of(plan.recomputations, _RECOMPUTATION),
    }


def read_plan(value: object, where: str) -> Plan:
    """The plan that ``write_plan`` gave; raises Fault for anything else."""
    fields = Fields(value, where, _PLAN, _PLAN_LATER)
    numbers: dict[str, Any] = {name: fields.integer(name) for name in _PLAN_BYTES}
    numbers.update((name, fields.number(name)) for name in _PLAN_TIMES)
    return Plan(
        moves=fields.part("moves", _read_moves),
        options=fields.part("options", _read_options),
        bounds=fields.items("bounds", _read_bound),
        stalls=fields.items("stalls", read_stall),
        tiers=fields.items("tiers", _read_tier_use),
        recomputations=fields.part("recomputations", _read_recomputations),
        **numbers,
    )


def _read_recomputations(value: object, where: str) -> tuple[Recomputation, ...]:
    fields = Fields(value, where, _RECOMPUTATION)
    columns = [fields.integers(name) for name in _RECOMPUTATION]
    fields.same_length(*columns)
    return tuple(
        Recomputation(storage=storage, drop_after=drop_after, needed_by=needed_by)
        for storage, drop_after, needed_by in zip(*columns, strict=True)
    )


def _read_options(value: object, where: str) -> PlanOptions:
    fields = Fields(value, where, _OPTIONS, _OPTIONS_LATER)
    return PlanOptions(
        bound=fields.one_of("bound", get_args(BoundKind)),
        improve=fields.flag("improve"),
        reuse_copies=fields.flag("reuse_copies"),
        capacity_by_time=fields.flag("capacity_by_time"),
        resident_state_share=fields.share("resident_state_share"),
        recompute=fields.flag("recompute"),
    )


def _read_bound(value: object, where: str) -> Bound:
    fields = Fields(value, where, _BOUND)
    return Bound(name=fields.text("name"), seconds=fields.number("seconds"))


def _read_tier_use(value: object, where: str) -> TierUse:
    fields = Fields(value, where, _TIER_USE)
    return TierUse(
        tier=fields.text("tier"),
        space_bytes=fields.integer("space_bytes"),
        read_bytes=fields.integer("read_bytes"),
        written_bytes=fields.integer("written_bytes"),
        read_s=fields.number("read_s"),
        write_s=fields.number("write_s"),
    )


def _read_moves(value: object, where: str) -> tuple[Move, ...]:
    fields = Fields(value, where, _MOVES)
    storages, tiers = fields.integers("storage"), fields.texts("tier")
    writes = fields.flags("write")
    offsets, sizes = fields.integers("offset"), fields.integers("nbytes")
    if any(nbytes % 4096 for nbytes in (*offsets, *sizes)):
        fail(f"{where} has an extent that is not a multiple of 4096 bytes")
    leave, gone = fields.integers("offload_after"), fields.integers("gone_before")
    fetch = fields.optional_integers("fetch_after", 0, MAX_INT)
    need = fields.optional_integers("needed_by", 0, MAX_INT)
    columns = (storages, tiers, writes, offsets, sizes, leave, gone, fetch, need)
    fields.same_length(*columns)
    if any((f is None) != (n is None) for f, n in zip(fetch, need, strict=True)):
        fail(f"{where} has a move with only one of fetch_after and needed_by")
    return tuple(
        Move(
            storage=storage,
            tier=tier,
            extent=Extent(offset=offset, nbytes=nbytes),
            write=write,
            offload_after=offload_after,
            gone_before=gone_before,
            fetch_after=fetch_after,
            needed_by=needed_by,
        )
        for (
            storage, tier, write, offset, nbytes, offload_after, gone_before, fetch_after, needed_by
        ) in zip(*columns, strict=True)
    )  # fmt: skip
