"""Plans made in different ways, judged by simulation.

In: a Trace, its Columns, a Hardware, what may be used. Out: the best plan found. Must not know:
bounds other than as a number to stop at.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from teraio.errors import BudgetError
from teraio.planner.arrays import Flags, Floats, Ints
from teraio.planner.columns import Columns
from teraio.planner.extents import moves_with_extents
from teraio.planner.feasibility import held_by_op
from teraio.planner.relaxation import Relaxation
from teraio.planner.rounding import NOWHERE, rounded
from teraio.planner.selection import Selection
from teraio.planner.simulate import Simulation, simulate
from teraio.planner.timing import Timing, Tuning, timed
from teraio.planner.wear import DAY_S
from teraio.records import Hardware, Move, PlanOptions, Trace
from teraio.sizes import format_least, format_size

# A plan this close to the bound is not worth another try.
GOOD_ENOUGH = 1.002
# Tries of a long trace are fewer: all of them together look at about so many ops. But they are
# three at least: where the drive is the limit, one alone may be some percent slower. Very many ops
# get one.
_OPS_TRIED = 60_000
_LEAST_TRIES = 3
VERY_MANY_OPS = 100_000
_SMALL_BYTES = 64 << 10
# Parts of a tier that copies may fill taking turns; None: storages keep their places.
_SHARED_ROOMS: tuple[float | None, ...] = (0.99, 0.95, 0.85, None)
# What writing costs beside reading, when too much is written in a day.
_WRITE_PRICES = (4.0, 16.0, 64.0)
_TUNINGS = (
    Tuning(pace=0.2, queue=30.0, headroom=0.03),
    Tuning(pace=0.2, queue=30.0),
    Tuning(pace=0.2, queue=30.0, headroom=0.06),
    Tuning(),
    Tuning(pace=0.4, queue=10.0, headroom=0.03),
    Tuning(pace=0.4, queue=30.0),
    Tuning(pace=0.4, headroom=0.03),
)
# So many tries are made from each relaxation's solution, the others from the best one's.
_FROM_EACH_START = 2
# So many of the best tries are made again with the stalls that they have shown.
_AGAIN = 3


@dataclass(frozen=True, slots=True)
class Found:
    """A plan and what it does."""

    moves: tuple[Move, ...]
    spill_bytes: int
    simulation: Simulation


@dataclass(frozen=True, slots=True, eq=False)
class _Start:
    """What a relaxation's solution says: which periods to begin with and to prefer, and the seconds
    that pass during each op with the waits that it has.
    """

    tier_of: Ints
    rings: tuple[Flags, ...]
    op_s: Floats


@dataclass(frozen=True, slots=True, eq=False)
class _Terms:
    """What tries count on: where they start, seconds that pass during each op, what writing costs
    beside reading.

    ``timings`` keeps what has been made on these terms, by all that it depends on: tries that
    differ only in pace choose the same periods and share out the same room. ``tries`` are those
    made so far.
    """

    start: _Start
    op_s: Floats
    write_price: float
    timings: dict[tuple[object, ...], Timing] = field(default_factory=dict)
    tries: dict[Tuning, Found] = field(default_factory=dict)


def allowed(trace: Trace, on: Columns, options: PlanOptions) -> Flags:
    """The periods that a plan may use: all but those of optimizer states that are to stay.

    The states that are used first stay: what the optimizer's step begins with need not be read.
    """
    stays = np.zeros(len(on.nbytes), np.bool_)
    states = [
        (storage.uses[0], index)
        for index, storage in enumerate(trace.storages)
        if storage.kind == "optimizer_state" and storage.uses
    ]
    left = options.resident_state_share * sum(int(on.nbytes[index]) for _, index in states)
    for _, index in sorted(states):
        left -= int(on.nbytes[index])
        stays[index] = left >= 0
    return ~stays[on.periods.storage]


class Search:
    """Looks for the fastest plan; a thorough look goes on from where a quick one has been."""

    def __init__(
        self,
        trace: Trace,
        on: Columns,
        hardware: Hardware,
        options: PlanOptions,
        solutions: Sequence[Relaxation],
    ) -> None:
        self._trace, self._on, self._hardware, self._options = trace, on, hardware, options
        self._allowed = allowed(trace, on, options)
        self._least_bytes = int(held_by_op(on, self._allowed).max(initial=0))
        self._starts = [self._start(solution) for solution in solutions or (None,)]
        self._terms: dict[tuple[int, float], _Terms] = {}  # by start and price of writing
        self._shared_rooms = _SHARED_ROOMS if options.capacity_by_time else (None,)

    def add_start(self, solution: Relaxation) -> None:
        """Plans are looked for from this one as well."""
        self._starts.append(self._start(solution))

    def best(self, bound_s: float, *, thorough: bool) -> Found:
        """The best plan found. Raises BudgetError where tiers or writing limit allow none."""
        best, least_written = None, math.inf
        limit = self._hardware.max_write_bytes_per_day or math.inf
        for write_price in (1.0, *_WRITE_PRICES):
            for found in self._variants(write_price, thorough):
                written = self._written_per_day(found)
                least_written = min(least_written, written)
                if written > limit:
                    continue
                if best is None or found.simulation.iteration_s < best.simulation.iteration_s:
                    best = found
                if best.simulation.iteration_s <= bound_s * GOOD_ENOUGH:
                    return best
            if best is not None:
                return best
        raise self._too_much_writing(least_written)

    def _variants(self, write_price: float, thorough: bool) -> Iterator[Found]:
        tunings = self._tunings(thorough)
        tried: list[tuple[Found, _Terms, Tuning]] = []

        def attempt(terms: _Terms, tuning: Tuning) -> Found:
            if tuning not in terms.tries:
                terms.tries[tuning] = self._attempt(terms, tuning)
            found = terms.tries[tuning]
            tried.append((found, terms, tuning))
            return found

        for at, start in enumerate(self._starts):
            new = _Terms(start, start.op_s, write_price)
            terms = self._terms.setdefault((at, write_price), new)
            for tuning in tunings[:_FROM_EACH_START]:
                yield attempt(terms, tuning)
        _, terms, _ = min(tried, key=_seconds)
        for tuning in tunings[_FROM_EACH_START:]:
            yield attempt(terms, tuning)
        if not thorough:
            return
        # While the device stalls the channels work on: plan with the time they really have.
        for found, terms, tuning in sorted(tried, key=_seconds)[:_AGAIN]:
            op_s = self._on.duration_s + _stalled_s(found.simulation, self._on.n)
            yield self._attempt(_Terms(terms.start, op_s, write_price), tuning)

    def _tunings(self, thorough: bool) -> Sequence[Tuning]:
        if self._on.n > VERY_MANY_OPS:
            return [Tuning()]
        if not thorough:
            return _TUNINGS[:_FROM_EACH_START]
        return _TUNINGS[: max(_LEAST_TRIES, _OPS_TRIED // self._on.n)]

    def _start(self, solution: Relaxation | None) -> _Start:
        """What the relaxation moves, less what is not worth a transfer."""
        on, nowhere = self._on, np.full(len(self._on.periods), NOWHERE, np.int64)
        if solution is None:
            return _Start(nowhere, self._rings_around(nowhere), on.duration_s)
        large = on.periods.nbytes >= _SMALL_BYTES
        tier_of = np.where(large, rounded(on, solution), NOWHERE)
        return _Start(tier_of, self._rings_around(tier_of), self._with_waits(solution))

    def _with_waits(self, solution: Relaxation) -> Floats:
        """Seconds that pass during each op, where the relaxation has to wait with its waits."""
        on, count = self._on, len(solution.checkpoints)
        place = np.searchsorted(solution.checkpoints, np.arange(on.n), side="right") - 1
        ideal = np.bincount(place % count, weights=on.duration_s, minlength=count)
        ops = np.bincount(place % count, minlength=count)
        waits = np.maximum(solution.stretch_s - ideal, 0.0) / ops
        return np.add(on.duration_s, waits[place % count])

    def _rings_around(self, tier_of: Ints) -> tuple[Flags, ...]:
        """Periods to take from: what shares copies with the first ones, what is large, all."""
        periods = self._on.periods
        large = self._allowed & (periods.nbytes >= _SMALL_BYTES)
        copies = np.zeros(int(periods.copy.max(initial=-1)) + 1, np.bool_)
        copies[periods.copy[tier_of != NOWHERE]] = True
        return large & copies[periods.copy], large, self._allowed

    def _attempt(self, terms: _Terms, tuning: Tuning) -> Found:
        """A plan whose copies can be packed into the tiers."""
        for shared_room in self._shared_rooms[:-1]:
            found = self._made(terms, tuning, shared_room)
            uses = zip(found.simulation.tiers, self._hardware.tiers, strict=True)
            if all(use.space_bytes <= tier.capacity_bytes for use, tier in uses):
                return found
            self._shared_rooms = self._shared_rooms[1:]
        return self._made(terms, tuning, self._shared_rooms[-1])

    def _made(self, terms: _Terms, tuning: Tuning, shared_room: float | None) -> Found:
        target = int(self._hardware.budget_bytes * (1.0 - tuning.headroom))
        target = max(target, self._least_bytes)
        known = target, replace(tuning, pace=None, headroom=0.0), shared_room
        if known not in terms.timings:
            terms.timings[known] = self._timing(terms, *known)
        choices = terms.timings[known].choices(tuning.pace)
        moves, spill_bytes = moves_with_extents(self._trace, self._hardware, choices)
        return Found(moves, spill_bytes, simulate(self._trace, self._hardware, moves))

    def _timing(
        self, terms: _Terms, target: int, tuning: Tuning, shared_room: float | None
    ) -> Timing:
        on, hardware, reuse_copies = self._on, self._hardware, self._options.reuse_copies
        selection = Selection(
            on,
            hardware,
            terms.start.rings,
            terms.op_s,
            reuse_copies=reuse_copies,
            shared_room=shared_room,
            write_price=terms.write_price,
        )
        if terms.write_price == 1.0:
            selection.seed(terms.start.tier_of)
        selection.cover(target)
        return timed(on, hardware, selection.tier_of, terms.op_s, tuning, target, reuse_copies)

    def _written_per_day(self, found: Found) -> float:
        """Bytes to the tiers that wear by it, with the training running all day."""
        written = sum(
            use.written_bytes
            for use, tier in zip(found.simulation.tiers, self._hardware.tiers, strict=True)
            if tier.rated_write_bytes is not None
        )
        return written * DAY_S / found.simulation.iteration_s if written else 0.0

    def _too_much_writing(self, least: float) -> BudgetError:
        limit = self._hardware.max_write_bytes_per_day or 0
        return BudgetError(
            f"every plan found writes more than {format_size(limit)} per day to drives of limited "
            f"endurance, {format_least(math.ceil(least))} at least: raise the limit, or the budget "
            f"of {format_size(self._hardware.budget_bytes)}, or give host memory as a tier"
        )


def _seconds(tried: tuple[Found, _Terms, Tuning]) -> float:
    found, _, _ = tried
    return found.simulation.iteration_s


def _stalled_s(simulation: Simulation, n: int) -> Floats:
    """Seconds of stalls, each counted to the op before the one that waited."""
    stalled = np.zeros(n)
    for stall in simulation.stalls:
        stalled[stall.op - 1] += stall.seconds
    return stalled
