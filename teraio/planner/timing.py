"""When the moves of chosen periods begin and end.

In: Columns, which periods are used, the time that passes during each op. Out: choices, which become
moves. Must not know: how periods are chosen, extents, the simulator.

Every move first takes the whole of its period. Then moves give back the memory that the budget
leaves them, in rounds, as time to spare for their writes and reads.

A write may begin before the period does, from when the data was last written: it is only read until
then, so the copy stays valid, and the memory is free as soon as the period begins. Gradients above
all, of which the backward pass has time to write copies, can leave in the optimizer's step without
any traffic.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from teraio.planner.arrays import Flags, Floats, Ints
from teraio.planner.columns import NONE, Columns
from teraio.planner.feasibility import held_by_op
from teraio.planner.latest import latest_begins
from teraio.planner.memory import Profile
from teraio.planner.periods import Period
from teraio.records import Hardware


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One period in use: memory is free during ``length`` ops from ``first`` on.

    Its write starts after op ``leave``, which may be before the period; a negative one is of the
    iteration before. Both may be past the last op: then in the next iteration. ``write`` is False
    where the tier holds a valid copy.
    """

    period: Period
    tier: str
    leave: int
    first: int
    length: int
    write: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """What variants of a plan differ in.

    ``slack``: times that moves should have to spare, in parts of the iteration.
    ``pace``: writes begin as late as a channel with this part of the rate allows, which leaves the
    tier to reads that are more urgent; None: they begin as soon as they can.
    ``queue``: how many times as long as alone transfers take when it is asked which periods memory
    can do without. 0: no time.
    ``headroom``: part of the budget that the choice leaves free, for moves to have time to spare.
    """

    pace: float | None = None
    queue: float = 0.0
    headroom: float = 0.0
    slack: tuple[float, ...] = (0.0005, 0.0025, 0.0125, 0.05, 0.2)


def writing(on: Columns, used: Ints, reuse_copies: bool) -> Flags:
    """Which of the used periods (indices) have to write; the others find a valid copy."""
    periods = on.periods
    if not reuse_copies:
        return np.ones(len(used), np.bool_)
    order = np.lexsort((periods.age[used], periods.copy[used]))
    copy = periods.copy[used][order]
    found = np.zeros(len(used), np.bool_)
    found[order[np.append(True, copy[1:] != copy[:-1])[: len(used)]]] = True
    return np.asarray(found & (periods.written_at[used] != NONE), dtype=np.bool_)


def timed(
    on: Columns,
    hardware: Hardware,
    tier_of: Ints,
    op_s: Floats,
    tuning: Tuning,
    target_bytes: int,
    reuse_copies: bool,
) -> Timing:
    """The timing of the periods that have a tier in ``tier_of``.

    ``op_s`` is the channel time that passes during each op. Periods that memory can do without,
    within ``target_bytes``, are dropped.
    """
    used = np.flatnonzero(tier_of >= 0)
    whole = Timing(on, hardware, used, tier_of[used], op_s, reuse_copies)
    needed = used[whole.needed(tuning.queue, target_bytes)]
    timing = Timing(on, hardware, needed, tier_of[needed], op_s, reuse_copies)
    timing.share_out_room(tuning.slack)
    return timing


class _Clock:
    """When ops start, in seconds from the iteration's begin; ops of the laps before and after it
    are counted on."""

    def __init__(self, op_s: Floats) -> None:
        self._n = len(op_s)
        starts = np.concatenate(([0.0], np.cumsum(np.tile(op_s, 3))))
        self._starts = starts - starts[self._n]
        self.lap_s = float(starts[self._n])

    def at(self, op: Ints) -> Floats:
        return np.asarray(self._starts[op + self._n], dtype=np.float64)

    def first_from(self, time_s: Floats) -> Ints:
        """The first op that starts then or later."""
        return np.searchsorted(self._starts, time_s, "left") - self._n

    def last_until(self, time_s: Floats) -> Ints:
        """The last op that starts then or before."""
        return np.searchsorted(self._starts, time_s, "right") - 1 - self._n


class Timing:
    """From periods to the ops before which they are gone and after which they come back.

    Period ``i`` of those used is away from op ``low[i]`` to before op ``end[i]``.
    """

    def __init__(
        self,
        on: Columns,
        hardware: Hardware,
        used: Ints,
        tiers: Ints,
        op_s: Floats,
        reuse_copies: bool,
    ) -> None:
        periods = on.periods
        self._on, self._budget = on, hardware.budget_bytes
        self._clock = _Clock(op_s)
        self._writes = writing(on, used, reuse_copies)
        self._returns = periods.returns[used]
        self._after = periods.after[used]
        # Where a copy is written twice, the storage is away in between; and none lasts for longer
        # than an iteration.
        first = writing(on, used, reuse_copies=True)
        age = np.where(first, periods.age[used], 0)
        most = np.maximum(0, on.n - 1 - periods.length[used])
        self._written = self._after - np.minimum(age, most)
        nbytes = periods.nbytes[used]
        self._nbytes: list[int] = nbytes.tolist()
        self._low: list[int] = (self._after + 1).tolist()
        self._end: list[int] = (self._after + 1 + periods.length[used]).tolist()
        self._names = [hardware.tiers[tier].name for tier in tiers.tolist()]
        storage, latency_s = periods.storage[used], [tier.latency_s for tier in hardware.tiers]
        writes = np.array([on.copies.writes(tier).transfer for tier in hardware.tiers])
        reads = np.array([on.copies.reads(tier).transfer for tier in hardware.tiers])
        self._write_s = writes[tiers, storage] + np.array(latency_s)[tiers]
        self._read_s = reads[tiers, storage] + np.array(latency_s)[tiers]
        self._away = np.zeros(len(periods), np.bool_)
        self._away[used] = True
        self._profile = Profile(held_by_op(on, self._away))

    def needed(self, queue: float, target_bytes: int) -> Flags:
        """Those of the used periods that memory can't do without, looked at from the shortest on.

        Within ``target_bytes`` both if moves took no time, or no plan is left, and if each took
        ``queue`` times as long as it does alone, or what takes much time stays and what takes none
        goes.
        """
        on = self._on
        low, end = np.array(self._low, np.int64), np.array(self._end, np.int64)
        gone, back = self._wanted(queue)
        nbytes = np.array(self._nbytes, np.int64)
        steps = np.zeros(2 * on.n + 2, np.int64)
        np.add.at(steps, gone, -nbytes)
        np.add.at(steps, np.maximum(gone, back), nbytes)
        change = np.cumsum(steps)
        whole = Profile(held_by_op(on, self._away))
        moving = Profile(on.live + change[: on.n] + change[on.n : 2 * on.n])
        needed = np.ones(len(nbytes), np.bool_)
        area = nbytes * (end - low)
        for index in np.argsort(area, kind="stable").tolist():
            size = self._nbytes[index]
            spans = [
                (whole, int(low[index]), int(end[index] - low[index])),
                (moving, int(gone[index]), int(back[index] - gone[index])),
            ]
            spans = [span for span in spans if span[2] > 0]
            if all(held.top(first, length) + size <= target_bytes for held, first, length in spans):
                for held, first, length in spans:
                    held.add(first, length, size)
                needed[index] = False
        return needed

    def share_out_room(self, slack: tuple[float, ...]) -> None:
        """Let every move leave later and come back earlier, as memory allows, in rounds.

        ``slack`` is what each round strives for, as parts of the iteration. Memory only fills up
        here, so a move that met an op without room has come as far as it ever can: it is left out
        of the rounds that follow.
        """
        order = np.lexsort((np.arange(len(self._end)), np.array(self._end, np.int64)))
        coming, going = order[self._returns[order]].tolist(), order.tolist()
        gone, back = self._wanted()
        clock = self._clock
        for part in (0.0, *slack):
            extra_s = part * clock.lap_s
            ops = clock.last_until(clock.at(back) - extra_s).tolist()
            coming = [index for index in coming if self._come_back_at(index, ops[index])]
            ops = clock.first_from(clock.at(gone) + extra_s).tolist()
            going = [index for index in going if self._be_gone_at(index, ops[index])]

    def _wanted(self, queue: float = 1.0) -> tuple[Ints, Ints]:
        """First op to be gone at and first op to be there at again, if memory allows.

        Transfers take ``queue`` times as long as they do alone.
        """
        clock = self._clock
        low, end = np.array(self._low, np.int64), np.array(self._end, np.int64)
        done = clock.first_from(clock.at(self._written + 1) + queue * self._write_s)
        gone = np.where(self._writes, np.clip(done, low, end - 1), low)
        start = clock.last_until(clock.at(end) - queue * self._read_s)
        return gone, np.where(self._returns, np.minimum(end, start), end)

    def _come_back_at(self, index: int, op: int) -> bool:
        """Be back at ``op``, or as soon after it as memory allows; False if that is later."""
        end = self._end[index]
        length = end - max(op, self._low[index] + 1)
        if length <= 0:
            return True
        nbytes = self._nbytes[index]
        room = self._profile.room_behind(end - length, length, self._budget - nbytes)
        self._profile.add(end - room, room, nbytes)
        self._end[index] = end - room
        return room == length

    def _be_gone_at(self, index: int, op: int) -> bool:
        """Be gone at ``op``, or as late before it as memory allows; False if that is earlier."""
        low = self._low[index]
        length = min(op, self._end[index] - 1) - low
        if length <= 0:
            return True
        nbytes = self._nbytes[index]
        room = self._profile.room_ahead(low, length, self._budget - nbytes)
        self._profile.add(low, room, nbytes)
        self._low[index] = low + room
        return room == length

    def choices(self, pace: float | None) -> tuple[Choice, ...]:
        """The choices as they stand, by storage, with writes at this pace."""
        leave = self._leave(pace).tolist()
        return tuple(
            Choice(
                period=period,
                tier=name,
                leave=after,
                first=low,
                length=end - low,
                write=write,
            )
            for period, name, after, low, end, write in zip(
                self._on.periods.those(self._away),
                self._names,
                leave,
                self._low,
                self._end,
                self._writes.tolist(),
                strict=True,
            )
        )

    def _leave(self, pace: float | None) -> Ints:
        """The op after which each write begins; the start of the period where there is none."""
        clock, leave = self._clock, self._after.copy()
        write = np.flatnonzero(self._writes)
        written, low = self._written[write], np.array(self._low, np.int64)[write]
        begin = written
        if pace is not None:
            ready_s, due_s = clock.at(written + 1), clock.at(low)
            work_s = self._write_s[write] / pace
            begin_s = latest_begins(ready_s, due_s, work_s, clock.lap_s)
            begin = np.maximum(written, clock.last_until(begin_s) - 1)
        # What is carried into the next iteration goes by another name there: it leaves before.
        last = np.where(self._returns[write], low - 1, np.minimum(low - 1, self._on.n - 1))
        leave[write] = np.minimum(begin, last)
        return leave
