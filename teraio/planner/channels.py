"""The time that channels have left while the ops run.

In: seconds per cell (a cell is one op or some ops in a row) and a Tier. Out: reservations of
channel time in cells. Must not know: memory, storages, moves.

Cells are cyclic and counted on past the last one. Reading slows writing down and the other way
round: with ``u`` seconds of writing and ``v`` of reading in a cell, each as if alone, both ``u +
slowing * v`` and ``v + slowing * u`` fit into the cell.
"""

from __future__ import annotations

from typing import Literal

from teraio.records import Tier

Direction = Literal["write", "read"]
Reservation = list[tuple[int, float]]

_LEAST_S = 1e-9


class ChannelTime:
    """Free time of the two channels of one tier, by cell."""

    def __init__(self, cell_s: list[float], tier: Tier) -> None:
        self.tier = tier
        speed = tier.mixed_bytes_per_s / (tier.read_bytes_per_s + tier.write_bytes_per_s)
        self._slowing = min(1.0, 1.0 / min(1.0, speed) - 1.0)
        self._cell_s = cell_s
        n = len(cell_s)
        self._used: dict[Direction, list[float]] = {"write": [0.0] * n, "read": [0.0] * n}
        # Links over cells that are full: for writes to a later cell, for reads to an earlier one.
        self._skip: dict[Direction, list[int]] = {"write": [0] * n, "read": [0] * n}

    def write_s(self, nbytes: int) -> float:
        """Seconds that a write takes alone."""
        return self.tier.latency_s + nbytes / self.tier.write_bytes_per_s

    def read_s(self, nbytes: int) -> float:
        """Seconds that a read takes alone."""
        return self.tier.latency_s + nbytes / self.tier.read_bytes_per_s

    def find(
        self, direction: Direction, start: int, most_cells: int, seconds: float
    ) -> Reservation:
        """The nearest free time: from ``start`` onwards for a write, backwards for a read.

        Empty if ``most_cells`` cells do not hold ``seconds``.
        """
        step = 1 if direction == "write" else -1
        n, skip = len(self._cell_s), self._skip[direction]
        found: Reservation = []
        at = 0
        while at < most_cells:
            cell = (start + step * at) % n
            if skip[cell]:
                at += self._jump(direction, cell, step)
                continue
            free = self._free(direction, cell)
            if free > _LEAST_S:
                found.append((start + step * at, min(free, seconds)))
                seconds -= free
                if seconds <= _LEAST_S:
                    return found
            at += 1
        return []

    def reserve(self, direction: Direction, reservation: Reservation) -> None:
        """Take what ``find`` found."""
        n, used = len(self._cell_s), self._used[direction]
        for position, seconds in reservation:
            cell = position % n
            used[cell] += seconds
            for other in self._used:
                if self._free(other, cell) <= _LEAST_S:
                    self._skip[other][cell] = self._skip[other][cell] or 1

    def _free(self, direction: Direction, cell: int) -> float:
        own = self._used[direction][cell]
        other = self._used["read" if direction == "write" else "write"][cell]
        room, slowing = self._cell_s[cell], self._slowing
        free = room - own - slowing * other
        return min(free, (room - other) / slowing - own) if slowing else free

    def _jump(self, direction: Direction, cell: int, step: int) -> int:
        """Cells from a full one to the next with time; shortens the way for later calls."""
        n, skip = len(self._cell_s), self._skip[direction]
        far = 0
        path = []
        at = cell
        while skip[at] and far < n:
            path.append((at, far))
            far += skip[at]
            at = (cell + step * far) % n
        for passed, done in path:
            skip[passed] = min(far, n) - done
        return far
