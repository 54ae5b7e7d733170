"""Which periods to use, and when to leave and come back in them.

In: a Trace, a Hardware, the time that channels have at each op. Out: choices, which become moves.
Must not know: extents, the simulator, files.

The method is TERAIO's Algorithm 1: while memory exceeds the budget, take the period with the most
benefit per cost. Benefit is the integral over time of what the period takes off the excess, cost is
the time on the channels. It runs on at most ``_CELLS`` cells of ops in a row, counting for each the
op that needs most, so a plan that fits by cell fits by op. What the channels can't carry in time is
then chosen regardless of them: the budget always holds, and time suffers instead. At last every
move gives back the memory that the budget leaves it, as slack for its write and its read.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from teraio.errors import BudgetError
from teraio.planner.channels import ChannelTime, Reservation
from teraio.planner.columns import columns
from teraio.planner.feasibility import least_by_op
from teraio.planner.memory import Bytes, Profile, live_by_op, pieces
from teraio.planner.periods import Period, age, writers
from teraio.records import Hardware, Trace

_CELLS = 4096
_SMALL_BYTES = 64 << 10
_ALIGNMENT = 4096

Seconds = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One period in use: memory is free during ``length`` ops from ``first`` on.

    Leaving starts after op ``leave``. Both may be past the last op: then in the next iteration.
    """

    period: Period
    tier: str
    leave: int
    first: int
    length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """What variants of a plan differ in.

    ``nearly``: a period is taken if it is worth this part of what any other can be worth.
    ``slack``: times that moves should have to spare, in parts of the iteration.
    ``patience``: how early a write begins, in multiples of the time it takes alone. A write that
    waits until it must begin leaves the tier to reads that are more urgent.
    ``headroom``: part of the budget that the choice leaves free, for moves to have time to spare.
    """

    benefit_power: float = 1.0
    patience: float = float("inf")
    headroom: float = 0.0
    nearly: float = 0.9
    slack: tuple[float, ...] = (0.0005, 0.0025, 0.0125, 0.05)


class _Grid:
    """Ops in groups ("cells"), and what periods cover of them."""

    def __init__(self, n: int, op_s: Seconds, most: int) -> None:
        count = min(n, most)
        self.edges = np.linspace(0, n, count + 1).astype(np.int64)
        self.count, self.n = count, n
        self.cell_of = np.repeat(np.arange(count), np.diff(self.edges))
        self.seconds = np.add.reduceat(op_s, self.edges[:-1])

    def tops(self, by_op: Bytes) -> Bytes:
        """The most of each cell."""
        return np.maximum.reduceat(by_op, self.edges[:-1])

    def inside(self, first: int, length: int) -> tuple[int, int]:
        """First cell and number of cells that lie wholly in a range of ops."""
        low = self._cell_from(first)
        return low, max(0, self._cell_until(first + length) - low)

    def first_op(self, cell: int) -> int:
        """First op of a cell, both counted on past the end."""
        lap, cell = divmod(cell, self.count)
        return int(self.edges[cell]) + lap * self.n

    def _cell_from(self, op: int) -> int:
        lap, op = divmod(op + self.n - 1, self.n)
        return int(self.cell_of[op]) + 1 + (lap - 1) * self.count

    def _cell_until(self, op: int) -> int:
        lap, op = divmod(op, self.n)
        return int(self.cell_of[op]) + lap * self.count


@dataclass(slots=True)
class _Candidate:
    """A period that may be taken, as the last look at it found it; cells count on past the last."""

    period: Period
    tier: int
    low: int
    length: int
    value: float
    write: Reservation
    read: Reservation


_Copy = tuple[int, int | None]


def _copy(period: Period) -> _Copy:
    """Periods for which this is equal share one copy on a tier."""
    return period.storage, period.written_at


class _Selection:
    """Takes periods until memory fits the budget, by cell."""

    def __init__(
        self, trace: Trace, hardware: Hardware, op_s: Seconds, tuning: Tuning, target_bytes: int
    ) -> None:
        self._trace, self._hardware, self._tuning = trace, hardware, tuning
        self.target_bytes = target_bytes
        self._op_s = op_s
        self.chosen: dict[Period, _Candidate] = {}
        self._tier_of: dict[int, int] = {}
        self._room = [tier.capacity_bytes for tier in hardware.tiers]
        self._writer: dict[_Copy, Period] = {}
        self.use_grid(_CELLS)

    def use_grid(self, most_cells: int) -> None:
        """Group the ops into at most this many cells, with all their channel time free."""
        self.grid = _Grid(len(self._trace.ops), self._op_s, most_cells)
        cell_s = self.grid.seconds.tolist()
        self._channels = [ChannelTime(cell_s, tier) for tier in self._hardware.tiers]
        # Ops without any duration count a little, or nothing would be gained by covering them.
        self._weight = self.grid.seconds + 1e-6
        self._weight /= self._weight.sum()

    def cover(self, memory: Bytes, periods: Iterable[Period], in_time: bool) -> Bytes:
        """Take periods while memory by op exceeds the target; returns the excess left by cell.

        ``in_time``: only as far as the channels can carry the data while it is not needed.
        """
        excess = self.grid.tops(memory) - self.target_bytes
        heap = self._first_look(excess, periods)
        siblings: dict[_Copy, list[tuple[int, Period]]] = {}
        for _, order, period in heap:
            siblings.setdefault(_copy(period), []).append((order, period))
        over = bool(excess.max() > 0)
        while heap and over:
            _, order, period = heapq.heappop(heap)
            if period in self.chosen:
                continue
            candidate = self._look(period, excess, in_time)
            if candidate is None:
                continue
            if heap and candidate.value < -heap[0][0] * self._tuning.nearly:
                heapq.heappush(heap, (-candidate.value, order, period))
                continue
            is_first = _copy(period) not in self._writer
            self._take(candidate, excess)
            over = bool(excess.max() > 0)
            if is_first:
                # What the first period of a copy paid for, the others have free of charge.
                for item, other in siblings[_copy(period)]:
                    if other not in self.chosen:
                        heapq.heappush(heap, (-float("inf"), item, other))
        return excess

    def _first_look(
        self, excess: Bytes, periods: Iterable[Period]
    ) -> list[tuple[float, int, Period]]:
        """A heap of periods by a value that each of them can't exceed."""
        over = np.maximum(excess, 0.0)
        time = np.concatenate(([0.0], np.cumsum(np.tile(self._weight * (over > 0), 2))))
        area = np.concatenate(([0.0], np.cumsum(np.tile(self._weight * over, 2))))
        heap = []
        for order, period in enumerate(periods):
            low, length = self.grid.inside(period.after + 1, period.length)
            low %= self.grid.count
            if length <= 0 or time[low + length] <= time[low]:
                continue
            nbytes = self._trace.storages[period.storage].nbytes
            most = min(nbytes * (time[low + length] - time[low]), area[low + length] - area[low])
            least = min(self._cost(period, nbytes, channel) for channel in self._channels)
            heap.append((-self._value(float(most), least), order, period))
        heapq.heapify(heap)
        return heap

    def _value(self, benefit: float, cost: float) -> float:
        return float(benefit**self._tuning.benefit_power) / cost

    def _cost(self, period: Period, nbytes: int, channel: ChannelTime) -> float:
        cost = channel.read_s(nbytes) if period.before is not None else 0.0
        if period.written_at is not None and _copy(period) not in self._writer:
            cost += channel.write_s(nbytes)
        return max(cost, channel.tier.latency_s, 1e-9)

    def _must_write(self, period: Period) -> bool:
        if period.written_at is None:
            return False
        writer = self._writer.get(_copy(period))
        n = self.grid.n
        return writer is None or age(period, n) < age(writer, n)

    def _look(self, period: Period, excess: Bytes, in_time: bool) -> _Candidate | None:
        """The period on the tier where it is worth most now; None where it is worth nothing."""
        best: _Candidate | None = None
        for tier in self._tiers_for(period.storage):
            found = self._look_at(period, tier, excess, in_time)
            if found and (best is None or found.value > best.value):
                best = found
        return best

    def _tiers_for(self, storage: int) -> Iterable[int]:
        if storage in self._tier_of:
            return (self._tier_of[storage],)
        nbytes = aligned(self._trace.storages[storage].nbytes)
        return [tier for tier, room in enumerate(self._room) if nbytes <= room]

    def _look_at(
        self, period: Period, tier: int, excess: Bytes, in_time: bool
    ) -> _Candidate | None:
        nbytes = self._trace.storages[period.storage].nbytes
        channel = self._channels[tier]
        low, length = self.grid.inside(period.after + 1, period.length)
        end = low + length
        write: Reservation = []
        read: Reservation = []
        if in_time and self._must_write(period):
            write = channel.find("write", low, length, channel.write_s(nbytes))
            if not write:
                return None
            low = write[-1][0] + 1
        if in_time and period.before is not None:
            read = channel.find("read", end - 1, end - low, channel.read_s(nbytes))
            if not read:
                return None
            end = read[-1][0]
        benefit = self._benefit(excess, low, end - low, nbytes)
        if benefit <= 0.0:
            return None
        value = self._value(benefit, self._cost(period, nbytes, channel))
        return _Candidate(period, tier, low, end - low, value, write, read)

    def _benefit(self, excess: Bytes, low: int, length: int, nbytes: int) -> float:
        benefit = 0.0
        for a, b in pieces(low, length, self.grid.count):
            reduction = np.minimum(np.maximum(excess[a:b], 0), nbytes)
            benefit += float(reduction.dot(self._weight[a:b]))
        return benefit

    def _take(self, candidate: _Candidate, excess: Bytes) -> None:
        period, tier = candidate.period, candidate.tier
        nbytes = self._trace.storages[period.storage].nbytes
        if period.storage not in self._tier_of:
            self._tier_of[period.storage] = tier
            self._room[tier] -= aligned(nbytes)
        self._channels[tier].reserve("write", candidate.write)
        self._channels[tier].reserve("read", candidate.read)
        if self._must_write(period):
            self._writer[_copy(period)] = period
        self.chosen[period] = candidate
        for a, b in pieces(candidate.low, candidate.length, self.grid.count):
            excess[a:b] -= nbytes

    def grid_span(self, candidate: _Candidate) -> tuple[int, int]:
        """First op of a candidate and the op after its last, counted past the end."""
        first = self.grid.first_op(candidate.low)
        return first, self.grid.first_op(candidate.low + candidate.length)

    def tier_name(self, period: Period) -> str:
        """Name of the tier that the storage of a chosen period moves to."""
        return self._hardware.tiers[self._tier_of[period.storage]].name


def aligned(nbytes: int) -> int:
    """Bytes that a copy takes on a tier."""
    return -(-nbytes // _ALIGNMENT) * _ALIGNMENT


def choose(
    trace: Trace, hardware: Hardware, periods: Sequence[Period], op_s: Seconds, tuning: Tuning
) -> tuple[Choice, ...]:
    """Periods whose moves keep memory within the budget at every op, in the order of ``periods``.

    ``op_s`` is the channel time in seconds that passes during each op. Raises BudgetError where the
    capacity of the tiers is too small; that the budget can be met at all is checked before.
    """
    memory = live_by_op(trace)
    target_bytes = int(hardware.budget_bytes * (1.0 - tuning.headroom))
    target_bytes = max(target_bytes, int(least_by_op(columns(trace)).max()))
    selection = _Selection(trace, hardware, op_s, tuning, target_bytes)
    large = [p for p in periods if trace.storages[p.storage].nbytes >= _SMALL_BYTES]
    left = selection.cover(memory, large, in_time=True)
    planned = {p: selection.grid_span(c) for p, c in selection.chosen.items()}
    in_time = bool(left.max() <= 0)
    if not in_time:
        _force(trace, hardware, selection, memory, (large, periods))
    timing = _Timing(trace, hardware, memory, op_s, selection, planned, in_time)
    timing.drop_needless()
    timing.share_out_room(tuning.slack)
    return timing.choices(periods, tuning.patience)


def _force(
    trace: Trace,
    hardware: Hardware,
    selection: _Selection,
    memory: Bytes,
    wider_and_wider: tuple[Sequence[Period], ...],
) -> None:
    """Take periods for all they are worth in memory, whether or not the channels can keep up."""
    profile = Profile(memory)
    counted: set[Period] = set()

    def left_by_op() -> Bytes:
        for period in selection.chosen.keys() - counted:
            nbytes = trace.storages[period.storage].nbytes
            profile.add(period.after + 1, period.length, -nbytes)
            counted.add(period)
        return profile.values()

    for most_cells in (_CELLS, len(trace.ops)):
        for periods in wider_and_wider:
            if left_by_op().max() <= selection.target_bytes:
                return
            selection.use_grid(most_cells)
            selection.cover(left_by_op(), periods, in_time=False)
    if left_by_op().max() > hardware.budget_bytes:
        tiers = ", ".join(f"{tier.name} {tier.capacity_bytes}" for tier in hardware.tiers)
        raise BudgetError(
            f"the tiers have too little capacity ({tiers or 'there are none'}, in bytes) to "
            f"keep memory within {hardware.budget_bytes} bytes: "
            "give a larger budget or more room to move to"
        )


class _Timing:
    """From chosen periods to the ops before which they are gone and after which they come back."""

    def __init__(
        self,
        trace: Trace,
        hardware: Hardware,
        memory: Bytes,
        op_s: Seconds,
        selection: _Selection,
        planned: dict[Period, tuple[int, int]],
        in_time: bool,
    ) -> None:
        self._n, self._budget = len(trace.ops), hardware.budget_bytes
        self._target = selection.target_bytes
        self._nbytes = {p: trace.storages[p.storage].nbytes for p in selection.chosen}
        self._tier = {tier.name: tier for tier in hardware.tiers}
        self._name = {p: selection.tier_name(p) for p in selection.chosen}
        self._clock = np.concatenate(([0.0], np.cumsum(np.tile(op_s, 2))))
        self._in_time = in_time
        self._planned = planned
        self._away = {
            p: planned[p] if self._in_time else (p.after + 1, p.after + 1 + p.length)
            for p in selection.chosen
        }
        self._profile = Profile(memory)
        for period, (low, end) in self._away.items():
            self._profile.add(low, end - low, -self._nbytes[period])

    def drop_needless(self) -> None:
        """Drop what memory can do without, the last choice first."""
        for period in reversed(list(self._away)):
            if not self._in_time and period in self._planned:
                continue
            low, end = self._away[period]
            nbytes = self._nbytes[period]
            if self._profile.top(low, end - low) + nbytes <= self._target:
                self._profile.add(low, end - low, nbytes)
                del self._away[period]

    def share_out_room(self, slack: tuple[float, ...]) -> None:
        """Let every move leave later and come back earlier, as memory allows, in rounds.

        ``slack`` is what each round strives for, as parts of the iteration.
        """
        wanted = self._wanted()
        iteration_s = float(self._clock[self._n])
        for part in (0.0, *slack):
            extra_s = part * iteration_s
            for period, (_, end) in wanted.items():
                if period.before is not None:
                    latest = int(np.searchsorted(self._clock, self._clock[end] - extra_s, "right"))
                    self._come_back_at(period, latest - 1)
            for period, (low, _) in wanted.items():
                self._be_gone_at(
                    period, int(np.searchsorted(self._clock, self._clock[low] + extra_s, "left"))
                )

    def _wanted(self) -> dict[Period, tuple[int, int]]:
        """First op to be gone at and first op to be there at again, if memory allows."""
        writing = writers(self._away, self._n)
        wanted = {}
        for period in sorted(self._away, key=lambda p: (p.after + p.length, p.storage)):
            low, end = self._planned.get(period, self._away[period])
            tier, nbytes = self._tier[self._name[period]], self._nbytes[period]
            if period in writing:
                done_s = self._clock[period.after + 1] + nbytes / tier.write_bytes_per_s
                low = min(max(low, int(np.searchsorted(self._clock, done_s, "left"))), end - 1)
            if period.before is not None:
                due_s = self._clock[period.after + 1 + period.length]
                start_s = due_s - nbytes / tier.read_bytes_per_s
                end = min(end, int(np.searchsorted(self._clock, start_s, "right")) - 1)
            wanted[period] = low, end
        return wanted

    def _come_back_at(self, period: Period, op: int) -> None:
        low, end = self._away[period]
        op = max(op, low + 1)
        if op < end:
            nbytes = self._nbytes[period]
            room = self._profile.room_behind(op, end - op, self._budget - nbytes)
            self._profile.add(end - room, room, nbytes)
            self._away[period] = low, end - room

    def _be_gone_at(self, period: Period, op: int) -> None:
        low, end = self._away[period]
        op = min(op, end - 1)
        if op > low:
            nbytes = self._nbytes[period]
            room = self._profile.room_ahead(low, op - low, self._budget - nbytes)
            self._profile.add(low, room, nbytes)
            self._away[period] = low + room, end

    def choices(self, order: Iterable[Period], patience: float) -> tuple[Choice, ...]:
        """The choices as they stand."""
        writing = writers(self._away, self._n)
        return tuple(
            Choice(
                period=p,
                tier=self._name[p],
                leave=self._leave(p, patience) if p in writing else p.after,
                first=low,
                length=end - low,
            )
            for p in order
            if p in self._away
            for low, end in [self._away[p]]
        )

    def _leave(self, period: Period, patience: float) -> int:
        """The last op after which a write still has ``patience`` times the time it takes."""
        low, _ = self._away[period]
        tier = self._tier[self._name[period]]
        write_s = tier.latency_s + self._nbytes[period] / tier.write_bytes_per_s
        begin_s = self._clock[low] - patience * write_s
        op = int(np.searchsorted(self._clock, begin_s, "right")) - 2
        # What is carried into the next iteration goes by another name there: it leaves before.
        last = low - 1 if period.before is not None else min(low - 1, self._n - 1)
        return min(max(period.after, op), last)
