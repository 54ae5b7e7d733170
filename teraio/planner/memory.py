"""How much memory an iteration holds at each op.

In: a Trace and moves, or an array of bytes by op. Out: numpy arrays of bytes by op, and a profile
that answers range questions quickly. Must not know: time, channels, how moves are chosen.

Ranges of ops are cyclic: a first op and a length, which may run past the last op into the next
iteration.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt

from teraio.records import Move, Storage, Trace

Bytes = npt.NDArray[np.int64]

_BLOCK = 512


def pieces(first: int, length: int, n: int) -> Iterator[tuple[int, int]]:
    """Half-open ranges inside ``0 .. n`` that make up a cyclic range of at most ``n`` ops."""
    first %= n
    end = first + length
    if length > 0:
        yield first, min(end, n)
    if end > n:
        yield 0, end - n


def live_by_op(trace: Trace) -> Bytes:
    """Bytes in memory during each op with nothing moved away."""
    n = len(trace.ops)
    steps = np.zeros(n + 1, dtype=np.int64)
    for storage in trace.storages:
        steps[storage.birth or 0] += storage.nbytes
        steps[n if storage.death is None else storage.death + 1] -= storage.nbytes
    workspace = np.fromiter((op.workspace_bytes for op in trace.ops), np.int64, n)
    return np.cumsum(steps)[:n] + workspace + trace.base_bytes


def carried_twins(trace: Trace) -> dict[int, int]:
    """Pairs of storages that are one piece of memory, carried over the end of the iteration.

    The first is born in the iteration and outlives it, the second exists when it starts and is
    freed. They are known by equal name, kind and size; where counts differ, nothing is paired.
    """
    ending: dict[tuple[str, str, int], list[int]] = {}
    starting: dict[tuple[str, str, int], list[int]] = {}
    for index, storage in enumerate(trace.storages):
        key = (storage.name, storage.kind, storage.nbytes)
        if storage.birth is not None and storage.death is None:
            ending.setdefault(key, []).append(index)
        elif storage.birth is None and storage.death is not None:
            starting.setdefault(key, []).append(index)
    return {
        first: second
        for key, firsts in ending.items()
        if len(firsts) == len(starting.get(key, ()))
        for first, second in zip(firsts, starting[key], strict=True)
    }


def returning_twins(trace: Trace, twins: dict[int, int]) -> dict[int, int]:
    """Those of ``twins`` whose second is used before its successor, the next first, is made.

    Between the last use of the first and that one the data can be away. Otherwise it would be away
    twice at once, as that of two iterations.
    """
    return {
        first: second
        for first, second in twins.items()
        if trace.storages[second].uses
        and trace.storages[second].uses[0] <= (trace.storages[first].birth or 0)
    }


def tail_end(storage: Storage, twin: Storage | None, n: int) -> int:
    """Last op at which a storage not used again is live; past ``n - 1`` in the next iteration."""
    if storage.death is not None:
        return storage.death
    return n - 1 if twin is None or twin.death is None else n + twin.death


def memory_by_op(trace: Trace, moves: Iterable[Move]) -> Bytes:
    """Bytes in memory during each op, in the order of issue, with ``moves`` carried out."""
    n = len(trace.ops)
    memory = live_by_op(trace)
    twins = carried_twins(trace)
    steps = np.zeros(n + 1, dtype=np.int64)
    for move in moves:
        nbytes = trace.storages[move.storage].nbytes
        for low, high in pieces(move.gone_before, away_length(trace, twins, move), n):
            steps[low] -= nbytes
            steps[high] += nbytes
    return memory + np.cumsum(steps)[:n]


def away_length(trace: Trace, twins: dict[int, int], move: Move) -> int:
    """Number of ops during which the memory of a move is free."""
    n = len(trace.ops)
    if move.fetch_after is not None:
        return (move.fetch_after - move.gone_before) % n + 1
    storage = trace.storages[move.storage]
    if storage.persistent:
        return n
    twin = twins.get(move.storage)
    end = tail_end(storage, trace.storages[twin] if twin is not None else None, n)
    gone = move.gone_before if move.gone_before > move.offload_after else move.gone_before + n
    return end - gone + 1


class Profile:
    """Bytes by op under many cyclic range additions and range questions, each in about sqrt(n)."""

    def __init__(self, values: Bytes) -> None:
        self.n = len(values)
        blocks = -(-self.n // _BLOCK)
        self._values = np.full(blocks * _BLOCK, np.iinfo(np.int64).min // 4, dtype=np.int64)
        self._values[: self.n] = values
        self._added = np.zeros(blocks, dtype=np.int64)
        self._tops = self._values.reshape(blocks, _BLOCK).max(axis=1)

    def values(self) -> Bytes:
        """Bytes by op."""
        return (self._values + np.repeat(self._added, _BLOCK))[: self.n]

    def add(self, first: int, length: int, nbytes: int) -> None:
        """Add ``nbytes`` to every op of a range."""
        for low, high in pieces(first, length, self.n):
            self._add(low, high, nbytes)

    def _add(self, low: int, high: int, nbytes: int) -> None:
        first, last = low // _BLOCK, (high - 1) // _BLOCK
        if first == last:
            self._add_within(first, low, high, nbytes)
            return
        self._add_within(first, low, (first + 1) * _BLOCK, nbytes)
        self._add_within(last, last * _BLOCK, high, nbytes)
        self._added[first + 1 : last] += nbytes
        self._tops[first + 1 : last] += nbytes

    def _add_within(self, block: int, low: int, high: int, nbytes: int) -> None:
        self._values[low:high] += nbytes
        start = block * _BLOCK
        self._tops[block] = self._values[start : start + _BLOCK].max() + self._added[block]

    def top(self, first: int, length: int) -> int:
        """Most bytes at any op of a range that is not empty."""
        return max(self._top(low, high) for low, high in pieces(first, length, self.n))

    def _top(self, low: int, high: int) -> int:
        first, last = low // _BLOCK, (high - 1) // _BLOCK
        if first == last:
            return int(self._values[low:high].max() + self._added[first])
        edge = (first + 1) * _BLOCK
        best = max(
            int(self._values[low:edge].max() + self._added[first]),
            int(self._values[last * _BLOCK : high].max() + self._added[last]),
        )
        return max(best, int(self._tops[first + 1 : last].max())) if last > first + 1 else best

    def room_ahead(self, first: int, length: int, most: int) -> int:
        """How many ops in a row hold at most ``most`` bytes each, from the start of a range."""
        found = 0
        for low, high in pieces(first, length, self.n):
            stop = self._first_above(low, high, most)
            found += stop - low
            if stop < high:
                break
        return found

    def room_behind(self, first: int, length: int, most: int) -> int:
        """How many ops in a row hold at most ``most`` bytes each, up to the end of a range."""
        found = 0
        for low, high in reversed(list(pieces(first, length, self.n))):
            start = self._last_above(low, high, most) + 1
            found += high - start
            if start > low:
                break
        return found

    def _first_above(self, low: int, high: int, most: int) -> int:
        for block in self._blocks_above(low, high, most):
            start, end = max(low, block * _BLOCK), min(high, (block + 1) * _BLOCK)
            above = self._values[start:end] > most - self._added[block]
            hit = int(above.argmax())
            if above[hit]:
                return start + hit
        return high

    def _last_above(self, low: int, high: int, most: int) -> int:
        for block in reversed(self._blocks_above(low, high, most)):
            start, end = max(low, block * _BLOCK), min(high, (block + 1) * _BLOCK)
            above = self._values[start:end][::-1] > most - self._added[block]
            hit = int(above.argmax())
            if above[hit]:
                return end - 1 - hit
        return low - 1

    def _blocks_above(self, low: int, high: int, most: int) -> list[int]:
        """Blocks of a range in which an op may hold more than ``most`` bytes."""
        first, last = low // _BLOCK, (high - 1) // _BLOCK
        if first == last:
            return [first]
        found: list[int] = ((self._tops[first : last + 1] > most).nonzero()[0] + first).tolist()
        return found
