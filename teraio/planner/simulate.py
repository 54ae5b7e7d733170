"""What a plan would do: the steady state of ops, memory and channels, played through in time.

In: a Trace, a Hardware, moves. Out: a Simulation. Must not know: how moves are chosen.

The engine's rules, in the order in which they apply between op ``k`` and the next:
1. moves with ``offload_after == k`` queue their write; clean ones are gone at once;
2. the next op's gate: the writes of all moves that must be gone before it are complete;
3. moves with ``fetch_after == k`` queue their read (2 has made their memory free);
4. the reads that the next op needs are complete; until then they go before all other reads.
Each tier has one write and one read channel, first come, first served.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from teraio.planner.memory import memory_by_op
from teraio.records import Hardware, Move, Stall, Tier, Trace

_ITERATIONS = 3
_SHORTEST_STALL_S = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulation:
    """One iteration of the steady state; the longest of ``stalls`` comes first."""

    iteration_s: float
    stall_s: float
    stalls: tuple[Stall, ...]
    peak_bytes: int
    read_bytes: int
    written_bytes: int


def simulate(trace: Trace, hardware: Hardware, moves: Sequence[Move]) -> Simulation:
    """Play some iterations of ``moves`` and tell what the last one did (seconds, bytes)."""
    machine = _Machine(trace, hardware, moves)
    stalls: list[Stall] = []
    for _ in range(_ITERATIONS):
        stalls = machine.iteration()
    stall_s = sum(stall.seconds for stall in stalls)
    sizes = [trace.storages[move.storage].nbytes for move in moves]
    reads = (n for n, move in zip(sizes, moves, strict=True) if move.needed_by is not None)
    writes = (n for n, move in zip(sizes, moves, strict=True) if move.write)
    return Simulation(
        iteration_s=sum(op.duration_ns for op in trace.ops) * 1e-9 + stall_s,
        stall_s=stall_s,
        stalls=tuple(sorted(stalls, key=lambda stall: (-stall.seconds, stall.op))),
        peak_bytes=int(memory_by_op(trace, moves).max(initial=0)),
        read_bytes=sum(reads),
        written_bytes=sum(writes),
    )


class _Channel:
    """Transfers of one direction of one tier; the first of the queue is under way."""

    def __init__(self, bytes_per_s: float, latency_s: float) -> None:
        self._bytes_per_s, self._latency_s = bytes_per_s, latency_s
        self.queue: deque[int] = deque()
        self.left_s = 0.0
        self.waiting: set[int] = set()
        self._alone_s: dict[int, float] = {}

    def put(self, move: int, nbytes: int) -> None:
        self._alone_s[move] = nbytes / self._bytes_per_s + self._latency_s
        self.waiting.add(move)
        self.queue.append(move)
        if len(self.queue) == 1:
            self.left_s = self._alone_s[move]

    def hurry(self, move: int) -> None:
        """Put a waiting transfer next after the one under way."""
        if move in self.waiting and self.queue[0] != move:
            self.queue.remove(move)
            self.queue.insert(1, move)

    def finish_first(self) -> None:
        self.waiting.discard(self.queue.popleft())
        self.left_s = self._alone_s[self.queue[0]] if self.queue else 0.0


class _Link:
    """The two channels of a tier, which slow each other down when both are busy."""

    def __init__(self, tier: Tier) -> None:
        self.write = _Channel(tier.write_bytes_per_s, tier.latency_s)
        self.read = _Channel(tier.read_bytes_per_s, tier.latency_s)
        both = tier.write_bytes_per_s + tier.read_bytes_per_s
        self._shared_speed = min(1.0, tier.mixed_bytes_per_s / both)
        self._now = 0.0

    def run_until(self, time_s: float) -> None:
        while self._now < time_s and (self.write.queue or self.read.queue):
            self._advance(time_s - self._now)
        self._now = max(self._now, time_s)

    def run_until_done(self, channel: _Channel, move: int) -> float:
        """Run until a transfer is complete; returns the time."""
        while move in channel.waiting:
            self._advance(float("inf"))
        return self._now

    def _advance(self, most_s: float) -> None:
        busy = [channel for channel in (self.write, self.read) if channel.queue]
        speed = self._shared_speed if len(busy) == 2 else 1.0
        step_s = min(most_s, *(channel.left_s / speed for channel in busy))
        self._now += step_s
        for channel in busy:
            if channel.left_s <= step_s * speed * (1 + 1e-12):
                channel.finish_first()
            else:
                channel.left_s -= step_s * speed


class _Machine:
    """The device and the links, iteration after iteration."""

    def __init__(self, trace: Trace, hardware: Hardware, moves: Sequence[Move]) -> None:
        self._n = len(trace.ops)
        self._moves = moves
        self._nbytes = [trace.storages[move.storage].nbytes for move in moves]
        links = {tier.name: _Link(tier) for tier in hardware.tiers}
        self._links = tuple(links.values())
        self._link = [links[move.tier] for move in moves]
        self._leaving = _by_op((m.offload_after, i) for i, m in enumerate(moves) if m.write)
        self._gates = _by_op((m.gone_before, i) for i, m in enumerate(moves) if m.write)
        self._coming = _by_op((m.fetch_after, i) for i, m in enumerate(moves))
        self._needed = _by_op((m.needed_by, i) for i, m in enumerate(moves))
        for same_op in self._coming.values():
            same_op.sort(key=self._time_to_need)
        self._spans = self._uninterrupted(trace)
        self.now = 0.0

    def _time_to_need(self, index: int) -> int:
        move = self._moves[index]
        if move.needed_by is None or move.fetch_after is None:
            return self._n
        return (move.needed_by - move.fetch_after) % self._n

    def _uninterrupted(self, trace: Trace) -> list[tuple[int, int, float]]:
        """Ops in runs between which nothing happens: first op, last op, seconds."""
        if not self._n:
            return []
        starts = {0, *self._gates, *self._needed}
        starts.update((op + 1) % self._n for op in (*self._leaving, *self._coming))
        firsts = sorted(starts)
        done_ns = list(accumulate((op.duration_ns for op in trace.ops), initial=0))
        return [
            (first, end - 1, (done_ns[end] - done_ns[first]) * 1e-9)
            for first, end in zip(firsts, [*firsts[1:], self._n], strict=True)
        ]

    def iteration(self) -> list[Stall]:
        """Run the ops once; returns the stalls."""
        stalls: list[Stall] = []
        for first, last, duration_s in self._spans:
            for move in self._gates.get(first, ()):
                self._wait(first, move, self._link[move].write, stalls)
            for move in self._coming.get((first - 1) % self._n, ()):
                self._link[move].read.put(move, self._nbytes[move])
            for move in self._needed.get(first, ()):
                self._link[move].read.hurry(move)
                self._wait(first, move, self._link[move].read, stalls)
            self._let_pass(duration_s)
            for move in self._leaving.get(last, ()):
                self._link[move].write.put(move, self._nbytes[move])
        return stalls

    def _wait(self, op: int, move: int, channel: _Channel, stalls: list[Stall]) -> None:
        if move not in channel.waiting:
            return
        waited_s = self._link[move].run_until_done(channel, move) - self.now
        self._let_pass(waited_s)
        if waited_s > _SHORTEST_STALL_S:
            link = self._link[move]
            stalls.append(
                Stall(
                    op=op,
                    storage=self._moves[move].storage,
                    waits_for="memory" if channel is link.write else "data",
                    seconds=waited_s,
                )
            )

    def _let_pass(self, seconds: float) -> None:
        self.now += seconds
        for link in self._links:
            link.run_until(self.now)


def _by_op(pairs: Iterable[tuple[int | None, int]]) -> dict[int, list[int]]:
    grouped: dict[int, list[int]] = {}
    for op, move in pairs:
        if op is not None:
            grouped.setdefault(op, []).append(move)
    return grouped
