"""Results that are given up without a copy, and made again by running their op a second time.

In: a Trace, and which results are made again. Out: the Trace as it is then, for which moves are
planned like for any other; and results that are worth it. Must not know: how moves are chosen.

A result that is made again is two storages: the one that the program makes lives until its last use
before the gap, the other from the op that needs it next. Just before that op the result's op runs
again, so its operands must be in memory then, and unchanged.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from teraio.records import Hardware, Plan, Recomputation, Trace

# Running an op again takes the device's time, so it must save this many times as much of a tier's.
_WORTH = 2.0
# How much of the stalls is to be saved, one try for each.
_SHARES = (1.0, 2.0, float("inf"))


def replayed(trace: Trace, recomputations: Sequence[Recomputation]) -> Trace:
    """``trace`` with results made again.

    The storages that are made again come after those of ``trace``, in order of ``recomputations``.
    """
    if not recomputations:
        return trace
    ops, storages = list(trace.ops), list(trace.storages)
    operands = _operands(trace, {trace.storages[r.storage].birth for r in recomputations})
    more: dict[int, set[int]] = defaultdict(set)
    for again in recomputations:
        for operand in operands[trace.storages[again.storage].birth]:
            more[operand].add(again.needed_by)
    numbers = {again.storage: len(storages) + i for i, again in enumerate(recomputations)}
    gaps = {again.storage: again for again in recomputations}
    second = []
    for index in sorted({*more, *gaps}):
        storage = storages[index]
        uses = tuple(sorted({*storage.uses, *more[index]}))
        if index not in gaps:
            storages[index] = replace(storage, uses=uses)
            continue
        gap = gaps[index]
        later = tuple(op for op in uses if op >= gap.needed_by)
        second.append(
            (
                numbers[index],
                replace(
                    storage,
                    name=f"{storage.name} (made again)",
                    birth=gap.needed_by,
                    uses=later,
                    writes=later[:1],
                ),
            )
        )
        earlier = tuple(op for op in uses if op <= gap.drop_after)
        storages[index] = replace(storage, death=gap.drop_after, uses=earlier)
        made, at = ops[storage.birth or 0], ops[gap.needed_by]
        ops[gap.needed_by] = replace(
            at,
            duration_ns=at.duration_ns + made.duration_ns,
            workspace_bytes=max(at.workspace_bytes, made.workspace_bytes),
        )
    storages += [storage for _, storage in sorted(second, key=lambda pair: pair[0])]
    return replace(trace, ops=tuple(ops), storages=tuple(storages))


def _operands(trace: Trace, births: Iterable[int | None]) -> dict[int | None, list[int]]:
    """For each of the ops, the storages that it reads and has not made."""
    wanted = set(births)
    found: dict[int | None, list[int]] = defaultdict(list)
    for index, storage in enumerate(trace.storages):
        if not wanted.isdisjoint(storage.uses):
            for op in wanted.intersection(storage.uses):
                if op != storage.birth:
                    found[op].append(index)
    return found


def worthwhile(trace: Trace, hardware: Hardware, plan: Plan) -> Iterator[tuple[Recomputation, ...]]:
    """Results that ``plan`` moves and whose ops take less time than their moves; more each time.

    They come beside those that the plan makes again already. Nothing if it has no stalls to save.
    """
    found = _candidates(trace, hardware, plan)
    tried = 0
    for share in _SHARES:
        left_s, count = share * (plan.predicted_s - plan.ideal_s), 0
        while count < len(found) and left_s > 0:
            left_s -= found[count][1]
            count += 1
        if count > tried:
            tried = count
            more = [again for again, _ in found[:count]]
            yield _closed(trace, [*plan.recomputations, *more])


def _candidates(trace: Trace, hardware: Hardware, plan: Plan) -> list[tuple[Recomputation, float]]:
    """What could be made again, with the seconds of moves that it saves; the cheapest first."""
    tiers = {tier.name: tier for tier in hardware.tiers}
    longest: dict[int, tuple[float, float, Recomputation]] = {}
    known = {again.storage for again in plan.recomputations}
    births = {s.birth for s in trace.storages if s.repeatable}
    operands = _operands(trace, births)
    for move in plan.moves:
        new = move.storage < len(trace.storages) and move.storage not in known
        if not new or move.needed_by is None:
            continue
        storage, tier = trace.storages[move.storage], tiers[move.tier]
        again = Recomputation(
            storage=move.storage,
            drop_after=max((op for op in storage.uses if op <= move.offload_after), default=-1),
            needed_by=move.needed_by,
        )
        if not possible(trace, again, operands[storage.birth]):
            continue
        moved_s = storage.nbytes / tier.read_bytes_per_s
        moved_s += storage.nbytes / tier.write_bytes_per_s if move.write else 0.0
        op_s = trace.ops[storage.birth or 0].duration_ns * 1e-9
        if moved_s > max(_WORTH * op_s, longest.get(move.storage, (0.0,))[0]):
            longest[move.storage] = (moved_s, op_s / moved_s, again)
    order = sorted(longest.values(), key=lambda entry: (entry[1], entry[2].storage))
    return [(again, moved_s) for moved_s, _, again in order]


def possible(trace: Trace, again: Recomputation, operands: Iterable[int]) -> bool:
    """Whether the result is still the same when its op, with these operands, is run again."""
    storage = trace.storages[again.storage]
    birth, need = storage.birth, again.needed_by
    if not storage.repeatable or birth is None or not birth < again.drop_after < need:
        return False
    if trace.ops[birth].phase != "forward" or any(op != birth for op in storage.writes):
        return False
    return all(_unchanged(trace, operand, birth, need) for operand in operands)


def _unchanged(trace: Trace, index: int, since: int, until: int) -> bool:
    storage = trace.storages[index]
    lives = storage.death is None or storage.death >= until
    return lives and not any(since < op <= until for op in storage.writes)


def _closed(trace: Trace, chosen: list[Recomputation]) -> tuple[Recomputation, ...]:
    """The same, where what is made again from another result made again finds that in time.

    An operand that is itself given up is needed by the first op before which it is read.
    """
    gaps = {again.storage: again for again in chosen}
    operands = _operands(trace, {trace.storages[again.storage].birth for again in chosen})
    for again in sorted(chosen, key=lambda a: -(trace.storages[a.storage].birth or 0)):
        need = gaps[again.storage].needed_by
        for operand in operands[trace.storages[again.storage].birth]:
            gap = gaps.get(operand)
            if gap is not None and gap.drop_after < need < gap.needed_by:
                gaps[operand] = replace(gap, needed_by=need)
    return tuple(sorted(gaps.values(), key=lambda again: again.storage))
