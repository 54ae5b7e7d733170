"""What a plan would do: the steady state of ops, memory and channels, played through in time.

In: a Trace, a Hardware, moves. Out: a Simulation. Must not know: how moves are chosen.

The engine's rules, in the order in which they apply between op ``k`` and the next:
1. moves with ``offload_after == k`` queue their write; clean ones are gone at once. Ops may read
   what is being written;
2. the next op's gate: the writes of all moves that must be gone before it are complete;
3. moves with ``fetch_after == k`` queue their read (2 has made their memory free);
4. the reads that the next op needs are complete; until then they go before all other reads.

The host runs ahead of the device, in no time. Memory is used again in the device's order: transfers
begin when the device gets there. A gate holds up the host, and so the device.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from teraio.planner.copies import Copies, copies
from teraio.planner.links import Channel, Link, Transfer
from teraio.planner.memory import memory_by_op
from teraio.records import Hardware, Move, Stall, TierUse, Trace, WaitsFor

_LEAST_ITERATIONS = 3
_MOST_ITERATIONS = 4
_STEADY = 1e-6
_SHORTEST_STALL_S = 1e-12

Direction = Literal["write", "read"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """One transfer of the iteration: of which move, and when, from the iteration's begin on.

    ``begin_s`` may be negative: then it began in the iteration before.
    """

    move: int
    direction: Direction
    begin_s: float
    end_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulation:
    """One iteration of the steady state; the longest of ``stalls`` comes first.

    ``start_s`` is when the device starts each op, ``memory_bytes`` what is held during it, both by
    op; ``transfers`` are those that end in the iteration, in the order of their ends.
    """

    iteration_s: float
    stall_s: float
    stalls: tuple[Stall, ...]
    peak_bytes: int
    read_bytes: int
    written_bytes: int
    tiers: tuple[TierUse, ...]
    transfers: tuple[Moved, ...] = field(repr=False)
    start_s: npt.NDArray[np.float64] = field(repr=False, compare=False)
    memory_bytes: npt.NDArray[np.int64] = field(repr=False, compare=False)


def simulate(trace: Trace, hardware: Hardware, moves: Sequence[Move]) -> Simulation:
    """Play iterations of ``moves`` until they repeat, and tell what the last one did."""
    machine = _Machine(trace, hardware, moves)
    before_s = float("inf")
    for iteration in range(_MOST_ITERATIONS):
        machine.iteration()
        steady = abs(machine.iteration_s - before_s) <= _STEADY * machine.iteration_s
        if iteration + 1 >= _LEAST_ITERATIONS and steady:
            break
        before_s = machine.iteration_s
    memory = memory_by_op(trace, moves)
    tiers = _tier_uses(hardware, moves, machine)
    return Simulation(
        iteration_s=machine.iteration_s,
        stall_s=sum(stall.seconds for stall in machine.stalls),
        stalls=tuple(sorted(machine.stalls, key=lambda stall: (-stall.seconds, stall.op))),
        peak_bytes=int(memory.max(initial=0)),
        read_bytes=sum(tier.read_bytes for tier in tiers),
        written_bytes=sum(tier.written_bytes for tier in tiers),
        tiers=tiers,
        transfers=machine.moved(),
        start_s=machine.start_s(),
        memory_bytes=memory,
    )


def _tier_uses(hardware: Hardware, moves: Sequence[Move], machine: _Machine) -> tuple[TierUse, ...]:
    read, written, space = ({tier.name: 0 for tier in hardware.tiers} for _ in range(3))
    for move, nbytes in zip(moves, _bytes(machine.copies, hardware, moves), strict=True):
        read[move.tier] += nbytes if move.needed_by is not None else 0
        written[move.tier] += nbytes if move.write else 0
        space[move.tier] = max(space[move.tier], move.extent.offset + move.extent.nbytes)
    return tuple(
        TierUse(
            tier=tier.name,
            space_bytes=space[tier.name],
            read_bytes=read[tier.name],
            written_bytes=written[tier.name],
            read_s=link.read.busy_s,
            write_s=link.write.busy_s,
        )
        for tier, link in zip(hardware.tiers, machine.links, strict=True)
    )


def moved_bytes(trace: Trace, hardware: Hardware, moves: Sequence[Move]) -> list[int]:
    """Bytes of the copy of each move."""
    return _bytes(_copies(trace, moves), hardware, moves)


def _copies(trace: Trace, moves: Sequence[Move]) -> Copies:
    return copies(trace, [trace.storages[move.storage] for move in moves])


def _bytes(on: Copies, hardware: Hardware, moves: Sequence[Move]) -> list[int]:
    by_tier = {tier.name: on.bytes_on(tier).tolist() for tier in hardware.tiers}
    return [by_tier[move.tier][i] for i, move in enumerate(moves)]


class _Machine:
    """The device and the links, iteration after iteration."""

    def __init__(self, trace: Trace, hardware: Hardware, moves: Sequence[Move]) -> None:
        self._n = len(trace.ops)
        self._moves = moves
        self.copies = on = _copies(trace, moves)
        self._seconds: dict[tuple[Direction, str], list[tuple[float, float]]] = {}
        for tier in hardware.tiers:
            self._seconds["write", tier.name] = on.writes(tier).pairs()
            self._seconds["read", tier.name] = on.reads(tier).pairs()
        by_name = {tier.name: Link(tier) for tier in hardware.tiers}
        self.links = tuple(by_name.values())
        self._link = [by_name[move.tier] for move in moves]
        self._leaving = _by_op((m.offload_after, i) for i, m in enumerate(moves) if m.write)
        self._gates = _by_op((m.gone_before, i) for i, m in enumerate(moves) if m.write)
        self._coming = _by_op((m.fetch_after, i) for i, m in enumerate(moves))
        self._needed = _by_op((m.needed_by, i) for i, m in enumerate(moves))
        for same_op in self._coming.values():
            same_op.sort(key=self._time_to_need)
        self._duration_s = np.fromiter((op.duration_ns for op in trace.ops), np.float64) * 1e-9
        self._spans = self._uninterrupted()
        self._open: dict[tuple[Direction, int], Transfer] = {}
        self._finished: list[tuple[Direction, Transfer]] = []
        self._span_start_s: list[float] = []
        self._now_s = self._begin_s = 0.0
        self.iteration_s = 0.0
        self.stalls: list[Stall] = []

    def _time_to_need(self, index: int) -> int:
        move = self._moves[index]
        if move.needed_by is None or move.fetch_after is None:
            return self._n
        return (move.needed_by - move.fetch_after) % self._n

    def _uninterrupted(self) -> list[tuple[int, int, float]]:
        """Ops in runs between which nothing happens: first op, last op, seconds."""
        if not self._n:
            return []
        starts = {0, *self._gates, *self._needed}
        starts.update((op + 1) % self._n for op in (*self._leaving, *self._coming))
        firsts = sorted(starts)
        done_s = np.concatenate(([0.0], np.cumsum(self._duration_s)))
        return [
            (first, end - 1, float(done_s[end] - done_s[first]))
            for first, end in zip(firsts, [*firsts[1:], self._n], strict=True)
        ]

    def iteration(self) -> None:
        """Run the ops once."""
        self.stalls, self._finished, self._span_start_s = [], [], []
        self._begin_s = self._now_s
        for link in self.links:
            link.read.busy_s = link.write.busy_s = 0.0
        for first, last, duration_s in self._spans:
            for move in self._gates.get(first, ()):
                self._wait(first, move, "write")
            for move in self._coming.get((first - 1) % self._n, ()):
                self._start("read", move)
            for move in self._needed.get(first, ()):
                transfer = self._open.get(("read", move))
                if transfer is not None:
                    self._channel("read", move).hurry(transfer)
                self._wait(first, move, "read")
            self._span_start_s.append(self._now_s)
            self._now_s += duration_s
            self._play()
            for move in self._leaving.get(last, ()):
                self._start("write", move)
        self.iteration_s = self._now_s - self._begin_s

    def _channel(self, direction: Direction, move: int) -> Channel:
        link = self._link[move]
        return link.write if direction == "write" else link.read

    def _start(self, direction: Direction, move: int) -> None:
        key = move if direction == "read" else ~move
        seconds, coding_s = self._seconds[direction, self._moves[move].tier][move]
        transfer = self._channel(direction, move).put(key, seconds, coding_s)
        self._open[direction, move] = transfer

    def _wait(self, op: int, move: int, direction: Direction) -> None:
        since_s, link = self._now_s, self._link[move]
        while (direction, move) in self._open:
            self._now_s = max(self._now_s, link.next_s())
            self._play()
        waited_s = self._now_s - since_s
        if waited_s > _SHORTEST_STALL_S:
            storage = self._moves[move].storage
            waits_for: WaitsFor = "memory" if direction == "write" else "data"
            self.stalls.append(Stall(op=op, storage=storage, waits_for=waits_for, seconds=waited_s))

    def _play(self) -> None:
        for link in self.links:
            for transfer in link.run_until(self._now_s):
                direction: Direction = "read" if transfer.key >= 0 else "write"
                move = transfer.key if transfer.key >= 0 else ~transfer.key
                del self._open[direction, move]
                self._finished.append((direction, transfer))

    def moved(self) -> tuple[Moved, ...]:
        """The transfers that ended in the last iteration."""
        return tuple(
            Moved(
                move=transfer.key if transfer.key >= 0 else ~transfer.key,
                direction=direction,
                begin_s=transfer.begun_s - self._begin_s,
                end_s=transfer.done_s - self._begin_s,
            )
            for direction, transfer in self._finished
            if transfer.begun_s is not None and transfer.done_s is not None
        )

    def start_s(self) -> npt.NDArray[np.float64]:
        """When the device started each op of the last iteration, counted from its begin."""
        first = np.array([first for first, *_ in self._spans], np.int64)
        which = np.repeat(np.arange(len(first)), np.diff(np.append(first, self._n)))
        before_s = np.concatenate(([0.0], np.cumsum(self._duration_s)))[: self._n]
        begin_s = np.array(self._span_start_s) - self._begin_s
        return np.asarray(begin_s[which] + (before_s - before_s[first[which]]), dtype=np.float64)


def _by_op(pairs: Iterable[tuple[int | None, int]]) -> dict[int, list[int]]:
    grouped: dict[int, list[int]] = {}
    for op, move in pairs:
        if op is not None:
            grouped.setdefault(op, []).append(move)
    return grouped
