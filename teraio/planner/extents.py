"""Where on its tier each move keeps its copy.

In: a Trace, choices, the tiers. Out: moves with extents, and the size of the spill space. Must not
know: time, channels, budgets.

A copy is needed from the op after which its write begins to the op before which it was last read;
two copies may share an extent if they are not needed at once. Each tier has its own space, counted
from 0.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Sequence
from dataclasses import dataclass

from teraio.planner.periods import Period, age
from teraio.planner.selection import aligned
from teraio.planner.timing import Choice
from teraio.records import Extent, Hardware, Move, Trace


@dataclass(frozen=True, slots=True)
class _Copy:
    """A copy on a tier: needed after op ``start`` until op ``end``, counted past the last op, or
    from before the first one.

    ``choices`` are the indices of the choices that use it. ``always``: needed at all times.
    ``back`` is the first op before which it is read, the number of ops if it never is.
    """

    storage: int
    nbytes: int
    start: int
    end: int
    always: bool
    choices: tuple[int, ...]
    back: int

    def across(self, n: int) -> bool:
        """Whether it is needed across the end of the iteration."""
        return self.always or self.end > n or self.start < 0

    def free(self, n: int) -> tuple[int, int]:
        """Where one that is needed across the end is not needed: from an op until another."""
        if self.always:
            return n, 0
        lap = n if self.start >= 0 else 0
        return self.end - lap, self.start + n - lap


def moves_with_extents(
    trace: Trace, hardware: Hardware, choices: Sequence[Choice]
) -> tuple[tuple[Move, ...], int]:
    """The moves of ``choices`` in the order in which they leave, and the bytes of spill space."""
    n = len(trace.ops)
    extents: dict[int, Extent] = {}
    spill_bytes = 0
    for tier in hardware.tiers:
        here = [i for i, choice in enumerate(choices) if choice.tier == tier.name]
        copies = _copies(trace, choices, here)
        offsets = _pack(copies, n)
        if _size(copies, offsets) > tier.capacity_bytes:
            offsets = _one_place_each(copies)
        spill_bytes = max(spill_bytes, _size(copies, offsets))
        for copy, offset in zip(copies, offsets, strict=True):
            for index in copy.choices:
                extents[index] = Extent(offset=offset, nbytes=copy.nbytes)
    moves = [_move(choice, extents[i], n) for i, choice in enumerate(choices)]
    moves.sort(key=lambda move: (move.offload_after, move.storage))
    return tuple(moves), spill_bytes


def _move(choice: Choice, extent: Extent, n: int) -> Move:
    period = choice.period
    comes_back = period.before is not None
    return Move(
        storage=period.storage,
        tier=choice.tier,
        extent=extent,
        write=choice.write,
        offload_after=choice.leave % n,
        gone_before=choice.first % n,
        fetch_after=(choice.first + choice.length - 1) % n if comes_back else None,
        needed_by=period.before,
    )


def _copies(trace: Trace, choices: Sequence[Choice], here: Sequence[int]) -> list[_Copy]:
    """Choices grouped by the copy that they share: each write makes a new one."""
    n = len(trace.ops)
    groups: dict[tuple[int, int | None, int], list[int]] = {}
    made: dict[tuple[int, int | None], int] = {}
    for index in sorted(here, key=lambda i: age(choices[i].period, n)):
        period = choices[index].period
        data = period.storage, period.written_at
        made[data] = made.get(data, 0) + choices[index].write
        groups.setdefault((*data, made[data]), []).append(index)
    return [
        _copy(trace, storage, written_at is None and not writes, members, choices, n)
        for (storage, written_at, writes), members in sorted(
            groups.items(), key=lambda item: item[1][0]
        )
    ]


def _copy(
    trace: Trace, storage: int, always: bool, members: list[int], choices: Sequence[Choice], n: int
) -> _Copy:
    """The copy that ``members`` share, which are sorted by age."""
    nbytes = aligned(trace.storages[storage].nbytes)
    periods: list[Period] = [choices[index].period for index in members]
    back = min((p.before for p in periods if p.before is not None), default=n)
    if always:
        return _Copy(storage, nbytes, 0, n, True, tuple(members), back)
    first, last = choices[members[0]], periods[-1]
    start = min(first.leave, first.period.after)
    end = first.period.after + age(last, n) - age(first.period, n) + last.length + 1
    return _Copy(storage, nbytes, start, end, end - start >= n, tuple(members), back)


def _size(copies: Sequence[_Copy], offsets: Sequence[int]) -> int:
    return max((at + copy.nbytes for copy, at in zip(copies, offsets, strict=True)), default=0)


def _one_place_each(copies: Sequence[_Copy]) -> list[int]:
    """An extent for every storage, shared with nothing: the space that the choices counted on."""
    places: dict[int, int] = {}
    top = 0
    for copy in copies:
        if copy.storage not in places:
            places[copy.storage] = top
            top += copy.nbytes
    return [places[copy.storage] for copy in copies]


def _pack(copies: Sequence[_Copy], n: int) -> list[int]:
    """Offsets of the copies. Those needed across the end of the iteration come first.

    They lie in the order in which they are needed back, so that they are read in a row. The others
    lie where those are not needed, or behind them.
    """
    offsets = [0] * len(copies)
    across = [i for i, copy in enumerate(copies) if copy.across(n)]
    events = []
    places: list[tuple[int, float]] = []
    top = 0
    for index in sorted(across, key=lambda i: (copies[i].back, copies[i].start, i)):
        offsets[index] = top
        free_from, free_until = copies[index].free(n)
        if free_from < free_until:
            events.append((free_from, 0, index))
        places.append((top, free_until))
        top += copies[index].nbytes
    space = _FreeSpace([*places, (top, float("inf"))])
    inside = [i for i, copy in enumerate(copies) if not copy.across(n)]
    events += [(copies[i].end, 0, i) for i in inside] + [(copies[i].start, 1, i) for i in inside]
    for _, starts, index in sorted(events):
        if starts:
            offsets[index] = space.take(copies[index].nbytes, copies[index].end)
        else:
            space.give_back(offsets[index], copies[index].nbytes)
    return offsets


class _FreeSpace:
    """Best fit over the holes.

    ``places`` begin at offsets in a row, each free until an op. Holes are in those that were given
    back, and in the last one, which grows where no hole fits.
    """

    def __init__(self, places: Sequence[tuple[int, float]]) -> None:
        self._places = [offset for offset, _ in places]
        self._free_until = [until for _, until in places]
        self._top = self._places[-1]
        self._holes: list[tuple[int, int]] = []
        self._by_start: dict[int, int] = {}
        self._by_end: dict[int, int] = {}

    def take(self, nbytes: int, until: int) -> int:
        """The offset of bytes that are needed until an op."""
        for size, hole in self._holes[bisect_left(self._holes, (nbytes, 0)) :]:
            offset = hole + size - nbytes  # the places there are needed last, mostly
            if self._is_free(offset, nbytes, until):
                self._close(hole, size)
                if size > nbytes:
                    self._open(hole, size - nbytes)
                return offset
        offset = self._top
        self._top += nbytes
        return offset

    def _is_free(self, offset: int, nbytes: int, until: int) -> bool:
        """Whether no place there is needed again before an op."""
        first = bisect_right(self._places, offset) - 1
        last = bisect_left(self._places, offset + nbytes)
        return all(free >= until for free in self._free_until[first:last])

    def give_back(self, offset: int, nbytes: int) -> None:
        if not nbytes:
            return
        after = self._by_start.get(offset + nbytes)
        if after is not None:
            self._close(offset + nbytes, after)
            nbytes += after
        before = self._by_end.get(offset)
        if before is not None:
            self._close(offset - before, before)
            offset, nbytes = offset - before, nbytes + before
        self._open(offset, nbytes)

    def _open(self, offset: int, nbytes: int) -> None:
        insort(self._holes, (nbytes, offset))
        self._by_start[offset] = nbytes
        self._by_end[offset + nbytes] = nbytes

    def _close(self, offset: int, nbytes: int) -> None:
        del self._holes[bisect_left(self._holes, (nbytes, offset))]
        del self._by_start[offset]
        del self._by_end[offset + nbytes]
