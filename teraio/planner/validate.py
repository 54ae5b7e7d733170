"""The rules of a plan, checked from scratch.

In: a Trace, a Hardware, a Plan. Out: nothing, or a PlanError. Must not know: any other module of
the planner but what a recomputation makes of a trace; what it needs it derives again, slowly and
plainly, so that an error there is seen here.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import ceil

from teraio.errors import PlanError
from teraio.planner.recomputation import replayed
from teraio.records import Hardware, Move, Plan, Storage, Trace

_ALIGNMENT = 4096


@dataclass(frozen=True, slots=True)
class _Away:
    """A move in ops counted on past the last one: away from ``gone`` until before ``back``.

    Its write begins after ``left``; its copy must last until ``needed``.
    """

    left: int
    gone: int
    back: int
    needed: int


@dataclass(frozen=True, slots=True)
class _Copy:
    """What an extent holds after op ``start`` and until op ``end``."""

    move: int
    start: int
    end: int


def validate(trace: Trace, hardware: Hardware, plan: Plan) -> None:
    """Raise PlanError, naming move, storage and op, if ``plan`` breaks a rule on ``trace``."""
    _check_recomputations(trace, plan)
    checker = _Checker(trace, hardware, plan)
    away = [checker.away(index) for index in range(len(plan.moves))]
    checker.check_extents(checker.copies(away))
    checker.check_memory(away)
    checker.check_totals()


def _check_recomputations(trace: Trace, plan: Plan) -> None:
    """What is made again comes from the same op with the same operands, in time for its uses."""
    n = len(trace.ops)
    gaps = {again.storage: again for again in plan.recomputations}
    if len(gaps) < len(plan.recomputations):
        raise PlanError("a storage is made again twice in the iteration")
    reads = defaultdict(list)
    for index, storage in enumerate(trace.storages):
        for op in storage.uses:
            reads[op].append(index)
    if any(not 0 <= storage < len(trace.storages) for storage in gaps):
        raise PlanError("a storage is made again that the trace does not have")
    made_at = defaultdict(list)
    for again in plan.recomputations:
        made_at[trace.storages[again.storage].birth].append(again)
    for again in plan.recomputations:
        storage = trace.storages[again.storage]
        made, dropped, need = storage.birth, again.drop_after, again.needed_by
        name = f"storage {again.storage} ({storage.name})"
        last = n - 1 if storage.death is None else storage.death
        if not storage.repeatable or made is None:
            raise PlanError(f"{name} is made again, but it is no result of an op that allows that")
        if not made < dropped < need <= last or any(op > made for op in storage.writes):
            raise PlanError(f"{name} can't be given up after op {dropped} until op {need}")
        for operand in reads[made]:
            other = trace.storages[operand]
            if other.birth == made:
                continue
            what = f"{name} is made again before op {need} from storage {operand}"
            if other.death is not None and other.death < need:
                raise PlanError(f"{what}, which is freed before")
            if any(made < op <= need for op in other.writes):
                raise PlanError(f"{what}, which is written to meanwhile")
            gap = gaps.get(operand)
            if gap is not None and gap.drop_after < need < gap.needed_by:
                raise PlanError(f"{what}, which is made again only before op {gap.needed_by}")
        others = {other.needed_by for op in storage.uses for other in made_at.get(op, ())}
        if need not in {*storage.uses, *others} or any(dropped < op < need for op in storage.uses):
            raise PlanError(f"{name} is given up after op {dropped} but not needed by op {need}")


class _Checker:
    def __init__(self, recorded: Trace, hardware: Hardware, plan: Plan) -> None:
        trace = replayed(recorded, plan.recomputations)
        self._trace, self._hardware, self._plan = trace, hardware, plan
        self._unlimited = recorded
        self._n = len(trace.ops)
        self._capacity = {tier.name: tier.capacity_bytes for tier in hardware.tiers}
        self._carried_to = self._find_carried()

    def _find_carried(self) -> dict[int, int]:
        """Storages that outlive the iteration, and what they are called in the next one."""
        storages = self._trace.storages
        starting = defaultdict(list)
        ending = defaultdict(list)
        for index, s in enumerate(storages):
            if s.birth is None and s.death is not None:
                starting[s.name, s.kind, s.nbytes].append(index)
            if s.birth is not None and s.death is None:
                ending[s.name, s.kind, s.nbytes].append(index)
        found: dict[int, int] = {}
        for key, first in ending.items():
            if len(starting[key]) == len(first):
                found.update(zip(first, starting[key], strict=True))
        return found

    def _error(self, index: int, reason: str, op: int | None = None) -> PlanError:
        move = self._plan.moves[index]
        known = 0 <= move.storage < len(self._trace.storages)
        name = self._trace.storages[move.storage].name if known else "unknown"
        at = move.offload_after if op is None else op % self._n
        return PlanError(f"move {index} of storage {move.storage} ({name}), op {at}: {reason}")

    def away(self, index: int) -> _Away:
        """Check a move by itself; returns when its storage is away."""
        move = self._plan.moves[index]
        if not 0 <= move.storage < len(self._trace.storages):
            raise self._error(index, "there is no such storage in the trace")
        if move.tier not in self._capacity:
            raise self._error(index, f"there is no tier named {move.tier!r}")
        self._check_extent(index, move)
        if (move.fetch_after is None) != (move.needed_by is None):
            raise self._error(index, "fetch_after and needed_by must both be there or both be None")
        positions = (move.offload_after, move.gone_before, move.fetch_after, move.needed_by)
        if any(op is not None and not 0 <= op < self._n for op in positions):
            raise self._error(index, f"a position is not one of the {self._n} ops")
        storage = self._trace.storages[move.storage]
        found = self._returning(index, storage) if move.needed_by is not None else None
        return found or self._leaving_for_good(index, storage)

    def _check_extent(self, index: int, move: Move) -> None:
        extent = move.extent
        if extent.offset % _ALIGNMENT or extent.nbytes % _ALIGNMENT:
            raise self._error(index, f"its extent is not aligned to {_ALIGNMENT} bytes")
        if extent.nbytes < self._trace.storages[move.storage].nbytes:
            raise self._error(index, "its extent is smaller than the storage")
        end = extent.offset + extent.nbytes
        if extent.offset < 0 or end > self._plan.spill_bytes:
            raise self._error(
                index, f"its extent is outside the {self._plan.spill_bytes} bytes of spill space"
            )
        if end > self._capacity[move.tier]:
            reason = f"its extent ends at byte {end}, past the capacity of {move.tier}"
            raise self._error(index, reason)

    def _returning(self, index: int, storage: Storage) -> _Away:
        move, n = self._plan.moves[index], self._n
        if move.fetch_after is None or move.needed_by is None:
            raise self._error(index, "it comes back, but not for an op")
        left = move.offload_after
        heir = self._heir(move.storage)
        if heir is not None and left < (storage.birth or 0):
            left += n  # it leaves in the next iteration
        gone = left + 1 + (move.gone_before - left - 1) % n
        last_away = gone + (move.fetch_after - move.gone_before) % n
        needed = last_away + 1 + (move.needed_by - move.fetch_after - 1) % n
        if needed > left + n:
            raise self._error(index, "offload, gone, fetch and need are not in cyclic order")
        user = storage
        if heir is not None and needed >= n:
            user = heir
            self._check_carried(index, storage, heir, needed - n)
        elif not storage.persistent:
            self._check_live(index, storage, left, needed)
        if move.needed_by not in user.uses:
            raise self._error(index, "the op it is needed by does not use it", needed)
        self._check_no_use(index, storage, left, gone, needed)
        return _Away(left, gone, last_away + 1, needed)

    def _heir(self, storage: int) -> Storage | None:
        """What a storage is in the next iteration, if it is carried there."""
        heir = self._carried_to.get(storage)
        return None if heir is None else self._trace.storages[heir]

    def _check_carried(self, index: int, storage: Storage, heir: Storage, needed: int) -> None:
        """It comes back before the next iteration uses it, or makes what takes its place."""
        if heir.uses and heir.uses[0] < needed:
            raise self._error(index, "it is used while away", heir.uses[0])
        if needed > (storage.birth or 0):
            raise self._error(index, "its successor is made while it is away", storage.birth)

    def _check_live(self, index: int, storage: Storage, left: int, end: int) -> None:
        last = self._n - 1 if storage.death is None else storage.death
        if left < (storage.birth or 0) or end > last:
            raise self._error(index, "it moves outside of the storage's life", end)

    def _check_no_use(self, index: int, storage: Storage, left: int, gone: int, end: int) -> None:
        events = storage.uses if storage.birth is None else (storage.birth, *storage.uses)
        used = self._first_between(storage.uses, gone - 1, end)
        if used is not None:
            raise self._error(index, "it is used while away", used)
        self._check_unchanged(index, storage, left, gone)
        if storage.birth is not None and left < events[0] < end:
            raise self._error(index, "it is allocated while away", events[0])

    def _check_unchanged(self, index: int, storage: Storage, left: int, gone: int) -> None:
        """Of what is written while its copy is made, the copy is none."""
        changed = self._first_between(storage.writes, left, gone)
        if changed is not None:
            raise self._error(index, "it is changed after its write has begun", changed)

    def _first_between(self, ops: tuple[int, ...], low: int, high: int) -> int | None:
        """The first of ``ops`` after ``low`` and before ``high``, in this iteration or the next."""
        for shift in (0, self._n):
            at = bisect_right(ops, low - shift)
            if at < len(ops) and ops[at] + shift < high:
                return ops[at]
        return None

    def _leaving_for_good(self, index: int, storage: Storage) -> _Away:
        move, n = self._plan.moves[index], self._n
        left, gone = move.offload_after, move.gone_before
        if storage.persistent:
            if storage.uses:
                raise self._error(index, "it is used again but never comes back", storage.uses[0])
            return _Away(left, gone, gone + n, left + n)
        gone = gone if gone > left else gone + n
        if storage.uses and storage.uses[-1] >= gone:
            raise self._error(index, "it is used again but never comes back", storage.uses[-1])
        self._check_unchanged(index, storage, left, min(gone, n))
        last = storage.death
        if last is None:
            last = n - 1
            heir = self._heir(move.storage)
            if heir is not None:
                if heir.uses:
                    raise self._error(index, "it is used in the next iteration", heir.uses[0])
                last = n + (heir.death or 0)
        if left < (storage.birth or 0) or gone > last or last - left > n:
            raise self._error(index, "it moves outside of the storage's life", gone)
        return _Away(left, gone, last + 1, last)

    def copies(self, away: list[_Away]) -> list[_Copy]:
        """Check which moves find a valid copy; returns how long each copy is needed."""
        by_storage: dict[int, list[int]] = defaultdict(list)
        for index, move in enumerate(self._plan.moves):
            by_storage[move.storage].append(index)
        found: list[_Copy] = []
        for storage, moves in by_storage.items():
            moves.sort(key=lambda index: away[index].left)
            self._check_apart(self._trace.storages[storage], moves, away)
            found.extend(self._copies_of(self._trace.storages[storage], moves, away))
        for storage, heir in self._carried_to.items():
            for one in by_storage[storage][-1:]:
                self._check_arrived(one, by_storage[heir], away)
        return found

    def _check_arrived(self, one: int, moves: list[int], away: list[_Away]) -> None:
        """What was carried into the iteration does not leave it before it has come back."""
        for other in moves:
            if away[other].left < away[one].needed - self._n:
                raise self._error(other, f"it starts before move {one} of the same data ends")

    def _check_apart(self, storage: Storage, moves: list[int], away: list[_Away]) -> None:
        pairs = [(one, other, 0) for one, other in pairwise(moves)]
        if storage.persistent:
            pairs.append((moves[-1], moves[0], self._n))
        for one, other, lap in pairs:
            if away[other].left + lap < away[one].needed:
                raise self._error(other, f"it starts before move {one} of the same storage ends")

    def _copies_of(self, storage: Storage, moves: list[int], away: list[_Away]) -> Iterator[_Copy]:
        n = self._n
        first = next((i for i, index in enumerate(moves) if self._plan.moves[index].write), None)
        if first is None:
            self._check_clean(storage, moves[-1], moves[0], away, away[moves[-1]].left - n)
            for one, other in pairwise(moves):
                self._check_clean(storage, one, other, away, away[one].left)
            yield _Copy(moves[0], 0, n)
            return
        order = moves[first:] + moves[:first]
        copy = order[0]
        start, end = away[copy].left, away[copy].needed
        for position, (one, other) in enumerate(pairwise(order), start=first + 1):
            lap = n if position >= len(moves) else 0
            if self._plan.moves[other].write:
                yield _Copy(copy, start, end)
                copy, start = other, away[other].left + lap
            else:
                before = away[one].left - (n if position == len(moves) else 0)
                self._check_clean(storage, one, other, away, before)
            end = away[other].needed + lap
        yield _Copy(copy, start, end)

    def _check_clean(
        self, storage: Storage, before: int, index: int, away: list[_Away], since: int
    ) -> None:
        """A move without a write: nothing was written since the one before, after op ``since``."""
        if since < 0 and not storage.persistent:
            raise self._error(index, "it does not write, and no move before it left a copy")
        one, other = self._plan.moves[before], self._plan.moves[index]
        if (one.tier, one.extent) != (other.tier, other.extent):
            raise self._error(index, "it does not write, and its extent is not where the copy is")
        for op in storage.writes:
            if since < op <= away[index].left or since < op - self._n <= away[index].left:
                raise self._error(index, "it does not write, but the copy is out of date", op)

    def check_extents(self, copies: list[_Copy]) -> None:
        """No byte of a tier holds two copies at once."""
        n = self._n
        events = []
        for copy in copies:
            start, end = (0, n) if copy.end - copy.start >= n else (copy.start, copy.end)
            laps = [(start, min(end, n)), (0, end - n)] if start < n else [(start - n, end - n)]
            for low, high in laps:
                if low < high and self._plan.moves[copy.move].extent.nbytes:
                    events += [(low, 1, copy.move), (high, 0, copy.move)]
        held: dict[str, list[tuple[int, int, int]]] = defaultdict(list)
        for op, starts, index in sorted(events):
            move = self._plan.moves[index]
            space = held[move.tier]
            entry = (move.extent.offset, move.extent.offset + move.extent.nbytes, index)
            at = bisect_left(space, entry)
            if not starts:
                del space[at]
                continue
            for other in space[max(0, at - 1) : at + 1]:
                if other[0] < entry[1] and entry[0] < other[1]:
                    raise self._error(index, f"its extent holds the copy of move {other[2]}", op)
            space.insert(at, entry)

    def check_memory(self, away: list[_Away]) -> None:
        """Memory is within the budget at every op, and its peak is as stated."""
        n = self._n
        unlimited = self._by_op(self._unlimited, self._held(self._unlimited))
        change = self._held(self._trace)
        for move, when in zip(self._plan.moves, away, strict=True):
            nbytes = self._trace.storages[move.storage].nbytes
            low, high = when.gone, when.back
            laps = [(low, min(high, n)), (0, high - n)] if low < n else [(low - n, high - n)]
            for low, high in laps:
                if low < high:
                    change[low] -= nbytes
                    change[high] += nbytes
        memory = self._by_op(self._trace, change)
        budget = min(self._plan.budget_bytes, self._hardware.budget_bytes)
        peak = max(memory, default=self._trace.base_bytes)
        if peak > budget:
            op = memory.index(peak)
            raise PlanError(
                f"op {op} ({self._trace.ops[op].name}) holds {peak} bytes, "
                f"more than the budget of {budget} bytes"
            )
        unlimited_peak = max(unlimited, default=self._trace.base_bytes)
        if (peak, unlimited_peak) != (self._plan.peak_bytes, self._plan.unlimited_peak_bytes):
            raise PlanError(
                f"the peaks are {peak} bytes, and {unlimited_peak} without moves; the plan says "
                f"{self._plan.peak_bytes} and {self._plan.unlimited_peak_bytes}"
            )

    def _held(self, trace: Trace) -> list[int]:
        """By how much the bytes of live storages change from each op to the next."""
        change = [0] * (self._n + 1)
        for storage in trace.storages:
            change[storage.birth or 0] += storage.nbytes
            change[self._n if storage.death is None else storage.death + 1] -= storage.nbytes
        return change

    def _by_op(self, trace: Trace, change: list[int]) -> list[int]:
        sums = accumulate(change[: self._n], initial=trace.base_bytes)
        next(sums)
        return [held + op.workspace_bytes for held, op in zip(sums, trace.ops, strict=True)]

    def _copy_bytes(self, move: Move) -> int:
        storage = self._trace.storages[move.storage]
        encodes = any(tier.encodes for tier in self._hardware.tiers if tier.name == move.tier)
        if not encodes or storage.encoding is None:
            return storage.nbytes
        return ceil(storage.nbytes * self._trace.encodings[storage.encoding].share)

    def check_totals(self) -> None:
        """The bytes moved are as stated."""
        moved = [(self._copy_bytes(move), move) for move in self._plan.moves]
        read = sum(nbytes for nbytes, move in moved if move.needed_by is not None)
        written = sum(nbytes for nbytes, move in moved if move.write)
        if (read, written) != (self._plan.read_bytes, self._plan.written_bytes):
            raise PlanError(
                f"the moves read {read} and write {written} bytes; the plan says "
                f"{self._plan.read_bytes} and {self._plan.written_bytes}"
            )
