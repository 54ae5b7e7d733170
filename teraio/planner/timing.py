"""When the moves of chosen periods begin and end.

In: Columns, which periods are used, the time that passes during each op. Out: choices, which become
moves. Must not know: how periods are chosen, extents, the simulator.

Every move first takes the whole of its period. Then moves give back the memory that the budget
leaves them, in rounds, as time to spare for their writes and reads.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from teraio.planner.columns import NONE, Columns, Flags, Floats, Ints
from teraio.planner.feasibility import held_by_op
from teraio.planner.memory import Profile
from teraio.planner.periods import Period
from teraio.records import Hardware


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One period in use: memory is free during ``length`` ops from ``first`` on.

    Leaving starts after op ``leave``. Both may be past the last op: then in the next iteration.
    ``write`` is False where the tier holds a valid copy.
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
    ``patience``: how early a write begins, in multiples of the time it takes alone. A write that
    waits until it must begin leaves the tier to reads that are more urgent.
    ``headroom``: part of the budget that the choice leaves free, for moves to have time to spare.
    """

    patience: float = float("inf")
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
    slack: tuple[float, ...],
    target_bytes: int,
    reuse_copies: bool,
) -> Timing:
    """The timing of the periods that have a tier in ``tier_of``.

    ``op_s`` is the channel time that passes during each op. Periods that memory can do without,
    within ``target_bytes``, are dropped.
    """
    used = _needed(on, np.flatnonzero(tier_of >= 0), target_bytes)
    timing = Timing(on, hardware, used, tier_of[used], op_s, reuse_copies)
    timing.share_out_room(slack)
    return timing


def _needed(on: Columns, used: Ints, target_bytes: int) -> Ints:
    """Those of the used periods that memory can't do without, looked at from the shortest on."""
    periods = on.periods
    away = np.zeros(len(periods), np.bool_)
    away[used] = True
    profile = Profile(held_by_op(on, away))
    area = periods.nbytes[used] * periods.length[used]
    for index in used[np.argsort(area, kind="stable")].tolist():
        first, length = int(periods.after[index]) + 1, int(periods.length[index])
        nbytes = int(periods.nbytes[index])
        if profile.top(first, length) + nbytes <= target_bytes:
            profile.add(first, length, nbytes)
            away[index] = False
    return np.flatnonzero(away)


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
        self._n, self._budget = on.n, hardware.budget_bytes
        self._clock = np.concatenate(([0.0], np.cumsum(np.tile(op_s, 2))))
        self._writes = writing(on, used, reuse_copies)
        self._returns = periods.returns[used]
        self._after = periods.after[used]
        nbytes = periods.nbytes[used]
        self._nbytes: list[int] = nbytes.tolist()
        self._low: list[int] = (self._after + 1).tolist()
        self._end: list[int] = (self._after + 1 + periods.length[used]).tolist()
        self._names = [hardware.tiers[tier].name for tier in tiers.tolist()]
        rates = np.array([(t.write_bytes_per_s, t.read_bytes_per_s) for t in hardware.tiers])
        latency_s = np.array([tier.latency_s for tier in hardware.tiers])[tiers]
        self._write_s = nbytes / rates[tiers, 0] + latency_s
        self._read_s = nbytes / rates[tiers, 1] + latency_s
        away = np.zeros(len(periods), np.bool_)
        away[used] = True
        self._periods = periods.those(away)
        self._profile = Profile(held_by_op(on, away))

    def share_out_room(self, slack: tuple[float, ...]) -> None:
        """Let every move leave later and come back earlier, as memory allows, in rounds.

        ``slack`` is what each round strives for, as parts of the iteration. Memory only fills up
        here, so a move that met an op without room has come as far as it ever can: it is left out
        of the rounds that follow.
        """
        order = np.lexsort((np.arange(len(self._end)), np.array(self._end, np.int64)))
        coming, going = order[self._returns[order]].tolist(), order.tolist()
        gone, back = self._wanted()
        iteration_s = float(self._clock[self._n])
        for part in (0.0, *slack):
            extra_s = part * iteration_s
            latest = np.searchsorted(self._clock, self._clock[back] - extra_s, "right") - 1
            earliest = np.searchsorted(self._clock, self._clock[gone] + extra_s, "left")
            ops = latest.tolist()
            coming = [index for index in coming if self._come_back_at(index, ops[index])]
            ops = earliest.tolist()
            going = [index for index in going if self._be_gone_at(index, ops[index])]

    def _wanted(self) -> tuple[Ints, Ints]:
        """First op to be gone at and first op to be there at again, if memory allows."""
        low, end = np.array(self._low, np.int64), np.array(self._end, np.int64)
        done = np.searchsorted(self._clock, self._clock[low] + self._write_s, "left")
        gone = np.where(self._writes, np.clip(done, low, end - 1), low)
        start = np.searchsorted(self._clock, self._clock[end] - self._read_s, "right") - 1
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

    def choices(self, patience: float) -> tuple[Choice, ...]:
        """The choices as they stand, by storage, with writes that begin with this patience."""
        leave = self._leave(patience).tolist()
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
                self._periods,
                self._names,
                leave,
                self._low,
                self._end,
                self._writes.tolist(),
                strict=True,
            )
        )

    def _leave(self, patience: float) -> Ints:
        """The last op after which a write still has ``patience`` times the time it takes."""
        low = np.array(self._low, np.int64)
        begin_s = self._clock[low] - np.minimum(patience * self._write_s, 1e18)
        op = np.searchsorted(self._clock, begin_s, "right") - 2
        # What is carried into the next iteration goes by another name there: it leaves before.
        last = np.where(self._returns, low - 1, np.minimum(low - 1, self._n - 1))
        return np.where(self._writes, np.minimum(np.maximum(self._after, op), last), self._after)
