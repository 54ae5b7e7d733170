"""A Plan in the form that the native engine follows.

In: Trace, Plan, and the module ids and block ids of this process. Out: one native call.
Must not know: how the plan was found.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import teraio._C as _C
from teraio.engine.places import Places
from teraio.records import Plan, Trace

# As the native core numbers them. Of what is due after one op, the first of these go first.
_TIERS = {"ssd": 0, "host": 1}
_LEAVE, _COPY, _FETCH = range(3)


def follow(
    trace: Trace,
    plan: Plan,
    blocks: Mapping[int, int],
    births: list[list[int]],
    places: Places,
    codecs: Sequence[int],
) -> None:
    """Makes the engine carry out ``plan`` from the next iteration on.

    ``trace`` is as the plan has it, with results that are made again. ``blocks`` maps storages of
    the trace that live from iteration to iteration to their block ids; ``births`` lists, per op,
    the storages it makes, in the order it makes them. ``codecs`` are the numbers of the codecs of
    all storages, as ``encoded_path`` counts them; 0 is none.
    """
    count = len(trace.ops)
    actions: list[list[tuple[int, int, int, int]]] = [[] for _ in trace.ops]
    for move in plan.moves:
        place = (_TIERS[move.tier], move.extent.offset)
        leave = move.leaves_after(trace.storages[move.storage], count)
        if leave != move.offload_after:
            actions[move.offload_after].append((move.storage, _COPY, *place))
        actions[leave].append((move.storage, _LEAVE, *place))
        if move.fetch_after is not None:
            actions[move.fetch_after].append((move.storage, _FETCH, *place))
    recorded = len(trace.storages) - len(plan.recomputations)
    again = []
    for number, recomputation in enumerate(plan.recomputations, recorded):
        storage = recomputation.storage
        actions[recomputation.drop_after].append((storage, _LEAVE, 0, -1))
        again.append((trace.storages[storage].birth or 0, storage, number))
    # Of the fetches due after one op, the one needed first goes first.
    needed = {(move.storage, move.fetch_after): move.needed_by for move in plan.moves}
    for op, due in enumerate(actions):
        due.sort(
            key=lambda action: (action[1], ((needed.get((action[0], op)) or 0) - op - 1) % count)
        )
    _C.follow(
        [op.name for op in trace.ops],
        [places.module_id(op.module) for op in trace.ops],
        [places.phase_id(op.phase) for op in trace.ops],
        _needs(trace),
        actions,
        births,
        [storage.uses for storage in trace.storages],
        [storage.persistent for storage in trace.storages],
        [storage.nbytes for storage in trace.storages],
        codecs,
        [(places.anchor_key(anchor.key), anchor.occurrence, anchor.op) for anchor in trace.anchors],
        list(blocks.items()),
        again,
    )


def _needs(trace: Trace) -> list[int]:
    """Bytes that each op takes beside its operands: its results, and what it frees again."""
    needs = [op.workspace_bytes for op in trace.ops]
    for storage in trace.storages:
        if storage.birth is not None:
            needs[storage.birth] += storage.nbytes
    return needs
