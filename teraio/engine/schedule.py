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
    carried: Mapping[int, int],
    births: list[list[int]],
    places: Places,
    codecs: Sequence[int],
) -> None:
    """Makes the engine carry out ``plan`` from the next iteration on.

    ``trace`` is as the plan has it, with results that are made again. ``blocks`` maps storages of
    the trace that outlive the iteration to their block ids; ``carried`` maps those of them that
    come back in the next iteration as another storage to that one. ``births`` lists, per op, the
    storages it makes, in the order it makes them. ``codecs`` are the numbers of the codecs of all
    storages, as ``encoded_path`` counts them; 0 is none.
    """
    count = len(trace.ops)
    # [Note: carried storages]
    # The engine knows a block as the storage that it was born as, until that one is born again: so
    # both storages of a carried block are the first to it, which is used like one that lives on.
    first_of = {second: first for first, second in carried.items()}
    uses = [storage.uses for storage in trace.storages]
    for first, second in carried.items():
        made = trace.storages[first].birth or 0
        before = (op for op in trace.storages[second].uses if op < made)
        uses[first] = (*before, made, *(op for op in uses[first] if op > made))

    def known_as(storage: int, op: int) -> int:
        first = first_of.get(storage, storage)
        return first if op < (trace.storages[first].birth or 0) else storage

    actions: list[list[tuple[int, int, int, int]]] = [[] for _ in trace.ops]
    needed = {}
    for move in plan.moves:
        place = (_TIERS[move.tier], move.extent.offset)
        leave = move.leaves_after(trace.storages[move.storage], count)
        if leave != move.offload_after:
            begin = move.offload_after
            actions[begin].append((known_as(move.storage, begin), _COPY, *place))
        actions[leave].append((known_as(move.storage, leave), _LEAVE, *place))
        if move.fetch_after is not None:
            storage = known_as(move.storage, move.fetch_after)
            actions[move.fetch_after].append((storage, _FETCH, *place))
            needed[storage, move.fetch_after] = move.needed_by
    recorded = len(trace.storages) - len(plan.recomputations)
    again = []
    for number, recomputation in enumerate(plan.recomputations, recorded):
        storage = recomputation.storage
        actions[recomputation.drop_after].append((storage, _LEAVE, 0, -1))
        again.append((trace.storages[storage].birth or 0, storage, number))
    # Of the fetches due after one op, the one needed first goes first.
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
        uses,
        [storage.persistent or index in carried for index, storage in enumerate(trace.storages)],
        [storage.nbytes for storage in trace.storages],
        codecs,
        [(places.anchor_key(anchor.key), anchor.occurrence, anchor.op) for anchor in trace.anchors],
        [
            (storage, block)
            for storage, block in blocks.items()
            if trace.storages[storage].persistent or storage in carried
        ],
        again,
    )


def _needs(trace: Trace) -> list[int]:
    """Bytes that each op takes beside its operands: its results, and what it frees again."""
    needs = [op.workspace_bytes for op in trace.ops]
    for storage in trace.storages:
        if storage.birth is not None:
            needs[storage.birth] += storage.nbytes
    return needs
