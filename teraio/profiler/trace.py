"""From the native core's recording of one iteration to a Trace.

In: columns of events, and names of known storages. Out: a Trace, and which of its storages are
which blocks of this process. Must not know: plans, budgets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from typing import Any

from teraio.engine.places import Places
from teraio.records import Anchor, Kind, Op, Storage, Trace


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """A Trace, and what ties it to this process.

    ``blocks`` maps storages that outlive the iteration to block ids; ``births`` lists per op the
    storages it makes, in order. ``dtypes`` has one per storage, such as "float32"; None
    where tensors of several were on it.
    """

    trace: Trace
    blocks: Mapping[int, int]
    births: list[list[int]]
    dtypes: list[str | None]


@dataclass(slots=True)
class _Life:
    nbytes: int
    birth: int | None
    order: int = -1  # among the births of its op; -1: made where the engine did not see it
    death: int | None = None
    dtype: int = -1
    uses: list[int] = field(default_factory=list)
    writes: list[int] = field(default_factory=list)


def build_trace(
    recording: Mapping[str, Any],
    live_at_start: Sequence[tuple[int, int, bool]],
    names: Mapping[int, tuple[Kind, str]],
    places: Places,
    device: str,
) -> Recorded:
    """The Trace of a recording (see ``_C.take_recording``).

    ``live_at_start`` lists (block id, bytes, movable) of the storages that were there when it
    began; ``names`` gives kind and name of the blocks that are known by name.
    """
    ops = _ops(recording, places)
    lives = _lives(recording, live_at_start, len(ops))
    idle = {block for block, life in lives.items() if not life.uses and life.birth is None}
    movable = {block for block, _, can_move in live_at_start if can_move}
    # What is never used leaves for good when memory is short; what can't leave is always there.
    fixed_bytes = sum(lives[block].nbytes for block in idle - movable if lives[block].death is None)
    names = {**_carried_names(lives, names, ops), **names}
    kept = [block for block in lives if block not in idle]
    index = {block: i for i, block in enumerate(kept)}
    repeatable = set(zip(*recording["repeatables"], strict=True))
    births: list[list[int]] = [[] for _ in ops]
    for block in kept:
        life = lives[block]
        if life.birth is not None and life.order >= 0:
            births[life.birth].append(index[block])
    trace = Trace(
        device=device,
        ops=ops,
        storages=tuple(_storage(block, lives[block], names, ops, repeatable) for block in kept),
        anchors=tuple(
            Anchor(key=places.anchor_name(key), occurrence=occurrence, op=op)
            for key, occurrence, op in zip(*recording["anchors"], strict=True)
            if op < len(ops)
        ),
        base_bytes=recording["untracked_peak_bytes"] + fixed_bytes,
    )
    lasting = {i: block for block, i in index.items() if lives[block].death is None}
    names_of_dtypes = recording["dtype_names"]
    dtypes = [names_of_dtypes.get(lives[block].dtype) for block in kept]
    return Recorded(trace=trace, blocks=lasting, births=births, dtypes=dtypes)


def with_durations(recorded: Recorded, recording: Mapping[str, Any]) -> Recorded | None:
    """``recorded`` with the op durations of a later iteration; None if that had other ops."""
    durations_ns = recording["ops"][3]
    ops = recorded.trace.ops
    if len(durations_ns) != len(ops):
        return None
    timed = tuple(
        replace(op, duration_ns=duration_ns)
        for op, duration_ns in zip(ops, durations_ns, strict=True)
    )
    return replace(recorded, trace=replace(recorded.trace, ops=timed))


def with_blocks(recorded: Recorded, recording: Mapping[str, Any]) -> Recorded:
    """``recorded`` with the blocks that outlive a later iteration of the same ops."""
    made: list[list[int]] = [[] for _ in recorded.births]
    for block, _, op in zip(*recording["births"], strict=True):
        if op < len(made):
            made[op].append(block)
    lasting = {
        storage: block
        for storages, blocks in zip(recorded.births, made, strict=True)
        for storage, block in zip(storages, blocks, strict=False)
        if storage in recorded.blocks
    }
    return replace(recorded, blocks={**recorded.blocks, **lasting})


def _ops(recording: Mapping[str, Any], places: Places) -> tuple[Op, ...]:
    op_names = recording["op_names"]
    return tuple(
        Op(
            name=op_names[name],
            module=places.module_name(module),
            phase=places.phase(phase),
            duration_ns=duration_ns,
            workspace_bytes=workspace_bytes,
        )
        for name, module, phase, duration_ns, workspace_bytes in zip(*recording["ops"], strict=True)
    )


def _lives(
    recording: Mapping[str, Any], live_at_start: Sequence[tuple[int, int, bool]], op_count: int
) -> dict[int, _Life]:
    lives = {block: _Life(nbytes, None) for block, nbytes, _ in live_at_start}
    orders: dict[int, int] = {}
    for block, nbytes, op in zip(*recording["births"], strict=True):
        lives[block] = _Life(nbytes, op, orders.get(op, 0))
        orders[op] = orders.get(op, 0) + 1
    for block, op, write, dtype in zip(*recording["uses"], strict=True):
        life = lives.get(block)
        if life is None:
            continue  # made where no op of the training loop was running; served on demand
        life.dtype = dtype
        if not life.uses or life.uses[-1] != op:
            life.uses.append(op)
        if write and (not life.writes or life.writes[-1] != op):
            life.writes.append(op)
    for block, op in zip(*recording["deaths"], strict=True):
        life = lives.get(block)
        if life is not None:
            last = life.uses[-1] if life.uses else -1
            life.death = max(last, -1 if life.birth is None else life.birth, min(op, op_count - 1))
    return lives


def _storage(
    block: int,
    life: _Life,
    names: Mapping[int, tuple[Kind, str]],
    ops: tuple[Op, ...],
    repeatable: AbstractSet[tuple[int, int]],
) -> Storage:
    kind, name = names.get(block) or _unnamed(block, life, ops)
    return Storage(
        nbytes=life.nbytes,
        kind=kind,
        name=name,
        birth=life.birth,
        death=life.death,
        uses=tuple(life.uses),
        writes=tuple(life.writes),
        repeatable=(block, life.birth) in repeatable,
    )


def _carried_names(
    lives: Mapping[int, _Life], names: Mapping[int, tuple[Kind, str]], ops: tuple[Op, ...]
) -> dict[int, tuple[Kind, str]]:
    """Names of nameless blocks that the iteration finds and frees: those of their successors.

    A program that keeps a result until the next iteration has made another one by then. Ids count
    up, so both are in the order in which they were made; blocks of a size whose numbers differ get
    no names.
    """
    found: dict[int, list[int]] = {}
    made: dict[int, list[int]] = {}
    for block, life in sorted(lives.items()):
        if block in names or (life.birth is None) == (life.death is None):
            continue
        (found if life.birth is None else made).setdefault(life.nbytes, []).append(block)
    return {
        block: _unnamed(successor, lives[successor], ops)
        for nbytes, blocks in found.items()
        if len(blocks) == len(made.get(nbytes, ()))
        for block, successor in zip(blocks, made[nbytes], strict=True)
    }


def _unnamed(block: int, life: _Life, ops: tuple[Op, ...]) -> tuple[Kind, str]:
    if life.birth is None:
        return ("buffer" if life.death is None else "activation"), f"storage {block}"
    op = ops[life.birth]
    name = f"{op.module}/{op.name.removeprefix('aten::')}#{life.birth}.{max(0, life.order)}"
    return ("input" if op.phase == "other" else "activation"), name.removeprefix("/")
