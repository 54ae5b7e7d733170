"""Which periods to use, and on which tier.

In: Columns, a Hardware, the relaxation's solution rounded to whole periods. Out: a tier for each
period in use. Must not know: extents, the simulator, when moves begin and end.

What rounding left uncovered is covered by TERAIO's Algorithm 1: while memory exceeds the target,
take the period with the most benefit per cost. Benefit is the integral over time of what the period
takes off the excess, cost is the time on the channels. It runs on cells of ops in a row, counting
for each the op that needs most and only periods that cover it wholly; what that can't cover is
covered op by op.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np

from teraio.errors import BudgetError
from teraio.planner.arrays import Flags, Floats, Ints
from teraio.planner.columns import NONE, Columns
from teraio.planner.feasibility import held_by_op
from teraio.planner.memory import pieces
from teraio.planner.rounding import NOWHERE
from teraio.records import Hardware, Tier
from teraio.sizes import format_size

_CELLS = 4096
_ALIGNMENT = 4096
# A period is taken if it is worth this part of what any other can be worth.
_NEARLY = 0.8


def aligned(nbytes: int) -> int:
    """Bytes that a copy takes on a tier."""
    return -(-nbytes // _ALIGNMENT) * _ALIGNMENT


class Selection:
    """Tiers of periods. ``rings`` flag those that may be used, each ring a part of the next.

    ``shared_room`` is the part of each tier that copies may fill taking turns; None: each storage
    has its place for the whole iteration.
    """

    def __init__(
        self,
        on: Columns,
        hardware: Hardware,
        rings: Sequence[Flags],
        op_s: Floats,
        *,
        reuse_copies: bool,
        shared_room: float | None,
        write_price: float = 1.0,
    ) -> None:
        self._on, self._hardware, self._rings, self._op_s = on, hardware, rings, op_s
        self._reuse_copies, self._write_price = reuse_copies, write_price
        # Seconds by storage, of writing and of reading.
        self._seconds = [on.copies.ways(tier) for tier in hardware.tiers]
        self._rooms = [_Room(on, tier, shared_room) for tier in hardware.tiers]
        copies = int(on.periods.copy.max(initial=-1)) + 1
        self._tier_of_copy = np.full(copies, NOWHERE, np.int64)
        # The period in use for which a copy is kept longest.
        self._last_of_copy = np.full(copies, NONE, np.int64)
        self.tier_of = np.full(len(on.periods), NOWHERE, np.int64)

    def seed(self, tier_of: Ints) -> None:
        """Use these periods as far as the tiers have room."""
        for index in np.flatnonzero((tier_of != NOWHERE) & self._rings[-1]).tolist():
            wanted, found = int(tier_of[index]), self._tiers_with_room(index)
            if found:
                self._take(index, wanted if wanted in found else found[0])

    def _tiers_with_room(self, index: int) -> list[int]:
        """Tiers that a period may use: that of its copy, if there is one, while that has room.

        Else the copy may go elsewhere, or what has taken the room would keep the data in memory.
        """
        last, tier = self._last_with(index), int(self._tier_of_copy[self._on.periods.copy[index]])
        if tier != NOWHERE and self._rooms[tier].fits(last):
            return [tier]
        return [at for at, room in enumerate(self._rooms) if room.fits(last)]

    def _last_with(self, index: int) -> int:
        """The period for which a copy is kept longest, if this one uses it too."""
        periods = self._on.periods
        last = int(self._last_of_copy[periods.copy[index]])
        if last == NONE:
            return index
        return max(last, index, key=lambda one: int(periods.age[one] + periods.length[one]))

    def _take(self, index: int, tier: int) -> bool:
        """Use a period on a tier, with all that share its copy; False where that has no room."""
        last, copy = self._last_with(index), self._on.periods.copy[index]
        if not self._rooms[tier].take(last):
            return False
        before = int(self._tier_of_copy[copy])
        if before not in (NOWHERE, tier):
            self._rooms[before].give_back(index)
            self.tier_of[(self.tier_of != NOWHERE) & (self._on.periods.copy == copy)] = tier
        self.tier_of[index] = self._tier_of_copy[copy] = tier
        self._last_of_copy[copy] = last
        return True

    def cover(self, target_bytes: int) -> None:
        """Take periods until memory is within ``target_bytes`` at every op.

        Raises BudgetError where the tiers have too little room.
        """
        for most_cells in (_CELLS, self._on.n):
            for ring in self._rings:
                by_op = held_by_op(self._on, self.tier_of != NOWHERE)
                if by_op.max() <= target_bytes:
                    return
                _Cover(self, ring, by_op - target_bytes, most_cells).run()
        if held_by_op(self._on, self.tier_of != NOWHERE).max() > self._hardware.budget_bytes:
            tiers = ", ".join(
                f"{tier.name} {format_size(tier.capacity_bytes)}" for tier in self._hardware.tiers
            )
            raise BudgetError(
                f"the tiers have too little capacity ({tiers or 'there are none'}) to keep memory "
                f"within {format_size(self._hardware.budget_bytes)}: give a larger budget or more "
                "room to move to"
            )

    def cost_s(self, index: int, tier: int) -> float:
        """Seconds that a period takes on the channels of a tier."""
        periods, latency_s = self._on.periods, self._hardware.tiers[tier].latency_s
        write_s, read_s = (seconds[periods.storage[index]] for seconds in self._seconds[tier])
        cost_s = latency_s + 1e-9
        if periods.before[index] != NONE:
            cost_s += read_s
        copied = self._tier_of_copy[periods.copy[index]] != NOWHERE
        clean = periods.written_at[index] == NONE or copied
        if not (clean and self._reuse_copies):
            cost_s += self._write_price * (latency_s + write_s)
        return cost_s

    def cheapest(self, index: int) -> tuple[float, int] | None:
        """Least seconds on the channels, and the tier; None where no tier has room."""
        found = [(self.cost_s(index, at), at) for at in self._tiers_with_room(index)]
        return min(found, default=None)

    def use(self, index: int, tier: int) -> bool:
        """Use a period; False if it is in use, or the tier has no room."""
        return self.tier_of[index] == NOWHERE and self._take(index, tier)

    @property
    def on(self) -> Columns:
        """The columns of the trace."""
        return self._on

    @property
    def op_s(self) -> Floats:
        """Seconds that pass during each op."""
        return self._op_s


class _Room:
    """What a tier holds: storages for the whole iteration, or copies while they are needed.

    ``share`` of the tier's capacity is counted on if copies count by time, as they can't be packed
    without gaps; None: each storage has its place for the whole iteration.
    """

    def __init__(self, on: Columns, tier: Tier, share: float | None) -> None:
        self._periods = on.periods
        self._capacity = int(tier.capacity_bytes * (1.0 if share is None else share))
        total = int(on.nbytes.sum()) + _ALIGNMENT * len(on.nbytes)
        self._unlimited = total <= tier.capacity_bytes
        self._by_time = share is not None
        self._n = on.n
        self._cells = min(on.n, _CELLS // 4)
        self._held = np.zeros(self._cells, np.int64)
        # By storage or, if they count by time, by copy: the cell before which its room ends.
        self._ends: dict[int, int] = {}

    def _span(self, index: int) -> tuple[int, int, int]:
        """What a period's room counts for, and the cells that it takes: from one until before
        another, counted on past the last one.
        """
        periods, n = self._periods, self._n
        if not self._by_time:
            return int(periods.storage[index]), 0, self._cells
        copy, after = int(periods.copy[index]), int(periods.after[index])
        if periods.written_at[index] == NONE:
            return copy, 0, self._cells
        # From the write, as early as it may be, until the data is read or dies.
        age, length = int(periods.age[index]), int(periods.length[index])
        op = (after - age) % n
        first = op * self._cells // n
        last = op + min(age + length, n - 1)
        return copy, first, min(last * self._cells // n + 1, first + self._cells)

    def _more(self, index: int) -> tuple[int, int, int]:
        """The same, but only the cells that have not been taken yet."""
        key, first, end = self._span(index)
        had = self._ends.get(key, first)
        return key, had, max(had, end)

    def fits(self, index: int) -> bool:
        """Whether the tier has room for the copy of a period."""
        if self._unlimited:
            return True
        _, had, end = self._more(index)
        most = self._capacity - aligned(int(self._periods.nbytes[index]))
        parts = pieces(had, end - had, self._cells)
        return all(int(self._held[low:high].max()) <= most for low, high in parts)

    def take(self, index: int) -> bool:
        """Take the room for a period, if it is there."""
        if self._unlimited:
            return True
        if not self.fits(index):
            return False
        key, had, end = self._more(index)
        self._ends[key] = end
        for low, high in pieces(had, end - had, self._cells):
            self._held[low:high] += aligned(int(self._periods.nbytes[index]))
        return True

    def give_back(self, index: int) -> None:
        """The room that was taken for the copy of a period is free again."""
        if self._unlimited:
            return
        key, first, _ = self._span(index)
        end = self._ends.pop(key)
        for low, high in pieces(first, end - first, self._cells):
            self._held[low:high] -= aligned(int(self._periods.nbytes[index]))


class _Cover:
    """One run of the greedy method over cells of ops."""

    def __init__(self, selection: Selection, ring: Flags, excess: Ints, most_cells: int) -> None:
        self._selection = selection
        on = selection.on
        self._periods = on.periods
        self._count = min(on.n, most_cells)
        edges = np.linspace(0, on.n, self._count + 1).astype(np.int64)
        self._excess = np.maximum.reduceat(excess, edges[:-1])
        # Ops without any duration count a little, or nothing would be gained by covering them.
        weight = np.add.reduceat(selection.op_s, edges[:-1]) + 1e-6
        self._weight = weight / weight.sum()
        cell_of = np.repeat(np.arange(self._count), np.diff(edges))
        self._candidates = np.flatnonzero(ring & (selection.tier_of == NOWHERE))
        first = self._periods.after[self._candidates] + 1
        end = first + self._periods.length[self._candidates]
        # The cells that lie wholly in a period.
        from_op = first + on.n - 1
        low = cell_of[from_op % on.n] + 1 + (from_op // on.n - 1) * self._count
        high = cell_of[end % on.n] + end // on.n * self._count
        self._low, self._length = low, np.maximum(0, high - low)

    def run(self) -> None:
        """Take the periods that are worth most, until there is no excess or nothing helps."""
        heap = self._first_look()
        while heap and self._excess.max() > 0:
            _, at = heapq.heappop(heap)
            index = int(self._candidates[at])
            found = self._selection.cheapest(index)
            if found is None:
                continue
            cost_s, tier = found
            benefit = self._benefit(at)
            if benefit <= 0.0:
                continue
            if heap and benefit / cost_s < -heap[0][0] * _NEARLY:
                heapq.heappush(heap, (-benefit / cost_s, at))
            elif self._selection.use(index, tier):
                for low, high in self._cells(at):
                    self._excess[low:high] -= self._periods.nbytes[index]

    def _cells(self, at: int) -> list[tuple[int, int]]:
        return list(pieces(int(self._low[at]), int(self._length[at]), self._count))

    def _first_look(self) -> list[tuple[float, int]]:
        """A heap of candidates by a value that each of them can't exceed."""
        over = np.maximum(self._excess, 0)
        time = np.concatenate(([0.0], np.cumsum(np.tile(self._weight * (over > 0), 2))))
        area = np.concatenate(([0.0], np.cumsum(np.tile(self._weight * over, 2))))
        low = self._low % self._count
        high = low + self._length
        nbytes = self._periods.nbytes[self._candidates]
        most = np.minimum(nbytes * (time[high] - time[low]), area[high] - area[low])
        helpful = np.flatnonzero((self._length > 0) & (most > 0.0))
        heap = []
        for at in helpful.tolist():
            found = self._selection.cheapest(int(self._candidates[at]))
            if found is not None:
                heap.append((-float(most[at]) / found[0], at))
        heapq.heapify(heap)
        return heap

    def _benefit(self, at: int) -> float:
        nbytes = int(self._periods.nbytes[self._candidates[at]])
        return sum(
            float(np.minimum(np.maximum(self._excess[a:b], 0), nbytes).dot(self._weight[a:b]))
            for a, b in self._cells(at)
        )
