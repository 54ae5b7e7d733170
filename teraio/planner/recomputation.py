"""Results that are given up without a copy, and made again by running their op a second time.

In: a Trace, and which results are made again. Out: the Trace as it is then, for which moves are
planned like for any other; and results that are worth it. Must not know: how moves are chosen.

A result that is made again is two storages: the one that the program makes lives until its last use
before the gap, the other from the op that needs it next. Just before that op the result's op runs
again, so its operands must be in memory then, and unchanged.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from itertools import pairwise

import numpy as np

from teraio.planner.copies import copies
from teraio.planner.memory import live_by_op
from teraio.records import Hardware, Plan, Recomputation, Trace

# Running an op again takes the device's time, so it must save this many times as much of a tier's.
# First those are chosen that save much, pointwise ops mostly; then products of matrices as well.
WORTH = (16.0, 2.0)
# What is made again at once, each from the one before, may take so much of the budget.
_CHAIN_SHARE = 1 / 4
# Whose results may be made again: a forward pass outside of modules counts as the other one.
_PHASES = frozenset(("forward", "other"))
# How much of the stalls is to be saved, one try for each.
_SHARES = (1.0, 1.5, 2.0, float("inf"))


def replayed(trace: Trace, recomputations: Sequence[Recomputation]) -> Trace:
    """``trace`` with results made again.

    The storages that are made again come after those of ``trace``, in order of ``recomputations``.
    """
    if not recomputations:
        return trace
    ops, storages = list(trace.ops), list(trace.storages)
    births = {trace.storages[r.storage].birth for r in recomputations}
    operands = _operands(trace, births)
    beside = _made_by(trace, births)
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
        birth = storage.birth or 0
        made, at = trace.ops[birth], ops[gap.needed_by]
        # What it makes beside the result is made again as well, and goes.
        workspace = made.workspace_bytes + beside[birth] - storage.nbytes
        ops[gap.needed_by] = replace(
            at,
            duration_ns=at.duration_ns + made.duration_ns,
            workspace_bytes=max(at.workspace_bytes, workspace),
        )
    storages += [storage for _, storage in sorted(second, key=lambda pair: pair[0])]
    return replace(trace, ops=tuple(ops), storages=tuple(storages))


def _made_by(trace: Trace, births: AbstractSet[int | None]) -> dict[int | None, int]:
    """For each of the ops, the bytes of all that it makes."""
    made: dict[int | None, int] = defaultdict(int)
    for storage in trace.storages:
        if storage.birth in births:
            made[storage.birth] += storage.nbytes
    return made


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


def worthwhile(
    trace: Trace, hardware: Hardware, plan: Plan, worth: float = WORTH[-1]
) -> Iterator[tuple[Recomputation, ...]]:
    """Results whose moves take ``worth`` times as long as their ops, or longer; more each time.

    At first those that ``plan`` moves, then any that are kept while memory is short, as without
    them others could stay. They come beside those that the plan makes again already. Nothing if it
    has no stalls to save.
    """
    tried = set()
    for gaps in (_moved(trace, hardware, plan), _kept(trace, hardware, plan)):
        found = _candidates(trace, plan, gaps, worth)
        saved_s = np.cumsum([moved_s for _, moved_s in found])
        stalls_s = plan.predicted_s - plan.ideal_s
        counts = [1 + int(np.searchsorted(saved_s, share * stalls_s)) for share in _SHARES]
        for count in counts:
            more = [again for again, _ in found[:count]]
            if more and frozenset(more) not in tried:
                tried.add(frozenset(more))
                yield _closed(trace, [*plan.recomputations, *more])


# A result that could be given up after an op and made again before one, and the seconds on channels
# that moving it takes.
_Gap = tuple[Recomputation, float]


def _moved(trace: Trace, hardware: Hardware, plan: Plan) -> Iterator[_Gap]:
    on = copies(trace)
    tiers = {tier.name: on.ways(tier) for tier in hardware.tiers}
    for move in plan.moves:
        if move.storage >= len(trace.storages) or move.needed_by is None:
            continue
        storage = trace.storages[move.storage]
        write_s, read_s = (seconds[move.storage] for seconds in tiers[move.tier])
        again = Recomputation(
            storage=move.storage,
            drop_after=max((op for op in storage.uses if op < move.gone_before), default=-1),
            needed_by=move.needed_by,
        )
        yield again, read_s + (write_s if move.write else 0.0)


def _kept(trace: Trace, hardware: Hardware, plan: Plan) -> Iterator[_Gap]:
    short = np.concatenate(([0], np.cumsum(live_by_op(trace) > plan.budget_bytes)))
    tier = max(hardware.tiers, key=lambda tier: tier.mixed_bytes_per_s)
    on = copies(trace)
    both_s = (on.writes(tier).transfer + on.reads(tier).transfer).tolist()
    for index, storage in enumerate(trace.storages):
        moved_s = both_s[index]
        for drop, need in pairwise(storage.uses if storage.repeatable else ()):
            if short[need] > short[drop + 1]:
                yield Recomputation(storage=index, drop_after=drop, needed_by=need), moved_s


def _candidates(trace: Trace, plan: Plan, gaps: Iterable[_Gap], worth: float) -> list[_Gap]:
    """Of each storage the gap that saves most, if making it again is worth it; cheapest first."""
    known = {again.storage: again for again in plan.recomputations}
    births = {s.birth for s in trace.storages if s.repeatable}
    operands = _operands(trace, births)
    longest: dict[int, _Gap] = {}
    for again, moved_s in gaps:
        index = again.storage
        if index in known or not possible(trace, again, operands[trace.storages[index].birth]):
            continue
        if moved_s > worth * _op_s(trace, index):
            longest[index] = max((again, moved_s), longest.get(index, (again, moved_s)), key=_saved)
    chains = _Chains(trace, operands, _CHAIN_SHARE * plan.budget_bytes)
    for again in sorted(known.values(), key=lambda again: trace.storages[again.storage].birth or 0):
        chains.add(again, float("inf"))
    order = sorted(longest, key=lambda i: (_op_s(trace, i) / longest[i][1], i))
    return [longest[i] for i in order if chains.add(*longest[i])]


def _saved(gap: _Gap) -> tuple[float, int]:
    """Seconds on channels; of equal ones, ops during which memory is free."""
    again, moved_s = gap
    return moved_s, again.needed_by - again.drop_after


def _op_s(trace: Trace, index: int) -> float:
    return trace.ops[trace.storages[index].birth or 0].duration_ns * 1e-9


class _Chains:
    """Results that are given up, each with those that it is made from again.

    What making a result again costs is its op, and the ops of all operands that are given up then
    as well. Chains end where they would cost too much, or hold too much memory at once: what is
    kept there is where they begin.
    """

    def __init__(
        self, trace: Trace, operands: Mapping[int | None, Sequence[int]], most_bytes: float
    ) -> None:
        self._trace = trace
        self._operands = operands
        self._most_bytes = most_bytes
        self._given_up: dict[int, tuple[Recomputation, float]] = {}  # and seconds of its moves
        self._chains: dict[int, frozenset[int]] = {}
        self._made_from: dict[int, list[int]] = defaultdict(list)  # results given up, by operand

    def add(self, again: Recomputation, moved_s: float) -> bool:
        """Gives up one more, unless it or another that is made from it would cost too much."""
        index = again.storage
        birth = self._trace.storages[index].birth
        above = [i for i in self._operands[birth] if self._is_away(i, again.needed_by)]
        chain = frozenset((index,)).union(*(self._chains[operand] for operand in above))
        self._given_up[index] = (again, moved_s)
        changed = {index: chain}
        for result in self._made_from_it(index):
            changed[result] = self._chains[result] | chain
        if not all(self._affordable(result, changed[result]) for result in changed):
            del self._given_up[index]
            return False
        self._chains.update(changed)
        for operand in self._operands[birth]:
            self._made_from[operand].append(index)
        return True

    def _made_from_it(self, index: int) -> set[int]:
        """Results given up that need it, or others that do, when they are made again."""
        found: set[int] = set()
        left = [index]
        while left:
            operand = left.pop()
            for result in self._made_from[operand]:
                gap, _ = self._given_up[result]
                if result not in found and self._is_away(operand, gap.needed_by):
                    found.add(result)
                    left.append(result)
        return found

    def _is_away(self, index: int, op: int) -> bool:
        gap, _ = self._given_up.get(index, (None, 0.0))
        return gap is not None and gap.drop_after < op

    def _affordable(self, index: int, chain: frozenset[int]) -> bool:
        _, moved_s = self._given_up[index]
        cost_s = sum(_op_s(self._trace, made) for made in chain)
        nbytes = sum(self._trace.storages[made].nbytes for made in chain)
        return moved_s > WORTH[-1] * cost_s and (len(chain) == 1 or nbytes <= self._most_bytes)


def possible(trace: Trace, again: Recomputation, operands: Iterable[int]) -> bool:
    """Whether the result is still the same when its op, with these operands, is run again."""
    storage = trace.storages[again.storage]
    birth, need = storage.birth, again.needed_by
    if not storage.repeatable or birth is None or not birth < again.drop_after < need:
        return False
    if trace.ops[birth].phase not in _PHASES or any(op != birth for op in storage.writes):
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
