"""When things happen in an iteration: ops, stalls, transfers, and where each storage is.

In: a Subject. Out: a Timeline, in seconds from the iteration's start. Must not know: rendering.

With a plan these are the times that its simulation predicts; without one, those of the trace.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from teraio.planner import Moved, Simulation, simulate
from teraio.records import Move, Storage, Trace
from teraio.reports.memory import Seconds, op_seconds, op_starts
from teraio.reports.subject import Subject

Span = tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedStall:
    """Before op ``op`` the device waits for ``storage`` (None: one that the trace lacks)."""

    op: int
    storage: int | None
    waits_for: str
    start_s: float
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Busy:
    """One transfer on a channel, or the part of it on one side of the iteration's end."""

    tier: str
    write: bool
    storage: int
    nbytes: float
    span: Span


@dataclass(frozen=True, slots=True, kw_only=True)
class Whereabouts:
    """Where a storage is: its life, and within it when it leaves, is away, and comes back."""

    life: Span
    writing: tuple[Span, ...]
    away: tuple[Span, ...]
    reading: tuple[Span, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """One iteration in time: op ``k`` runs from ``start_s[k]`` to ``end_s[k]``."""

    iteration_s: float
    start_s: Seconds
    end_s: Seconds
    stalls: tuple[PlannedStall, ...]
    transfers: tuple[Busy, ...]
    whereabouts: tuple[Whereabouts, ...]


def timeline(subject: Subject) -> Timeline:
    """The times of the subject's iteration."""
    trace, moves = subject.trace, subject.moves
    start_s = op_starts(trace)[:-1]
    simulation = None
    if subject.hardware is not None and moves:
        simulation = simulate(trace, subject.hardware, moves)
        start_s = simulation.start_s
    end_s = start_s + op_seconds(trace)
    iteration_s = float(end_s[-1])
    found = simulation.transfers if simulation else ()
    return Timeline(
        iteration_s=iteration_s,
        start_s=start_s,
        end_s=end_s,
        stalls=_stalls(simulation) if simulation else (),
        transfers=tuple(_busy(subject, found, iteration_s)),
        whereabouts=_whereabouts(trace, moves, found, start_s, end_s),
    )


def _stalls(simulation: Simulation) -> tuple[PlannedStall, ...]:
    """The stalls in order of time; those of one op follow each other, up to its start."""
    at = simulation.start_s.copy()
    for stall in simulation.stalls:
        at[stall.op] -= stall.seconds
    placed = []
    for stall in sorted(simulation.stalls, key=lambda stall: stall.op):
        placed.append(
            PlannedStall(
                op=stall.op,
                storage=stall.storage,
                waits_for=stall.waits_for,
                start_s=float(at[stall.op]),
                seconds=stall.seconds,
            )
        )
        at[stall.op] += stall.seconds
    return tuple(placed)


def within(span: Span, iteration_s: float) -> Iterator[Span]:
    """A cyclic span, cut at the iteration's end into spans from 0 to ``iteration_s``."""
    start, end = span
    if start < 0 or end > iteration_s:
        shift = iteration_s if start < 0 else 0.0
        start, end = start + shift, end + shift
        if start < iteration_s:
            yield max(0.0, start), iteration_s
        yield 0.0, min(iteration_s, end - iteration_s)
    elif end > start:
        yield start, end


def _busy(subject: Subject, transfers: tuple[Moved, ...], iteration_s: float) -> Iterator[Busy]:
    moves, nbytes = subject.moves, subject.copy_bytes
    for transfer in transfers:
        move = moves[transfer.move]
        lasting = transfer.end_s - transfer.begin_s
        for span in within((transfer.begin_s, transfer.end_s), iteration_s):
            yield Busy(
                tier=move.tier,
                write=transfer.direction == "write",
                storage=move.storage,
                nbytes=nbytes[transfer.move] * (span[1] - span[0]) / lasting,
                span=span,
            )


def _whereabouts(
    trace: Trace,
    moves: tuple[Move, ...],
    transfers: tuple[Moved, ...],
    start_s: Seconds,
    end_s: Seconds,
) -> tuple[Whereabouts, ...]:
    writes = {found.move: found for found in transfers if found.direction == "write"}
    reads = {found.move: found for found in transfers if found.direction == "read"}
    iteration_s = float(end_s[-1])
    spans: list[tuple[list[Span], list[Span], list[Span]]] = [([], [], []) for _ in trace.storages]
    for index, move in enumerate(moves):
        writing, away, reading = spans[move.storage]
        leave = end_s[move.leaves_after(trace.storages[move.storage], len(trace.ops))]
        if index in writes:
            write = writes[index]
            writing += within((write.begin_s, write.end_s), iteration_s)
            latest_s = float(start_s[move.gone_before] - leave) % iteration_s
            if float(write.end_s - leave) % iteration_s <= latest_s:
                leave = write.end_s  # else it was written before
        if index in reads:
            read = reads[index]
            reading += within((read.begin_s, read.end_s), iteration_s)
            back = read.begin_s
        else:
            back = _life(trace.storages[move.storage], start_s, end_s)[1]
        away += within(_forward(float(leave), float(back), iteration_s), iteration_s)
    return tuple(
        Whereabouts(
            life=_life(storage, start_s, end_s),
            writing=tuple(writing),
            away=tuple(away),
            reading=tuple(reading),
        )
        for storage, (writing, away, reading) in zip(trace.storages, spans, strict=True)
    )


def _forward(start: float, end: float, iteration_s: float) -> Span:
    """The cyclic span from ``start`` on to the next ``end``, beginning within the iteration."""
    start %= iteration_s
    end %= iteration_s
    return (start, end) if end >= start else (start, end + iteration_s)


def _life(storage: Storage, start_s: Seconds, end_s: Seconds) -> Span:
    if storage.death == -1:
        return 0.0, 0.0
    return (
        0.0 if storage.birth is None else float(start_s[storage.birth]),
        float(end_s[-1] if storage.death is None else end_s[storage.death]),
    )
