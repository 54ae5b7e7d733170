"""A lower bound from a linear program, and how much of what its solution moves.

In: Columns, a Hardware. Out: a Relaxation: seconds that no plan can beat, and the bytes that the
program's solution moves. Must not know: plans, how periods are chosen.

[Note: why this is a bound]
Take the state of any plan, repeated iteration after iteration, at the starts of some ops only, the
*checkpoints*. They cut the iteration into stretches. For each stretch, count how long it lasts, and
the bytes of each period that are written and read in it; for each checkpoint, the bytes of each
period that are *out*: written (or, where a valid copy exists, given up) and not yet read back.
These numbers satisfy every row of the program:
- a stretch lasts at least as long as its ops, and as the channels need for its bytes, or the device
  to encode and decode those of one channel;
- memory is freed only for bytes that are out, so at a checkpoint at least what is live beyond the
  budget is out, and at most what fits on the tiers;
- from checkpoint to checkpoint, what is out of a period grows by what is written, and falls by what
  is read. Outside of the period nothing of it is out; what was written before it, since the data
  was last changed, is out as it begins;
- what is given up without a write was written in an earlier period that shares the copy. It may be
  counted as given up at once: that makes more bytes out, never less.
Periods that no checkpoint lies in are left out unless others use their copy; periods that begin and
end in the same stretches are added up. Averages over many iterations satisfy the rows too, because
they are linear. Whatever the program leaves out (latency, whole storages, the order of transfers)
can only make plans slower. So its least iteration time bounds all plans.

[Note: no trust in the solver]
For any multipliers of the rows, the least value that the objective and the priced violations can
have over the variables' ranges bounds the program from below. The bound is computed this way, from
the solver's multipliers, so it holds even if the solver stops early or is inexact.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from teraio.planner.arrays import Flags, Floats, Ints
from teraio.planner.bound import tier_cuts
from teraio.planner.columns import LONG_PHASE, NONE, Columns
from teraio.planner.wear import DAY_S
from teraio.records import Hardware, Tier

# The finest of these numbers of checkpoints is used whose program is not too large.
_CHECKPOINTS = (240, 160, 120, 90, 70, 50, 40, 30, 20, 12, 6)
_MOST_SIMPLEX_STEPS = 60_000
# What moves cost beside time, so that of equal solutions one that moves little and few is found:
# this part of the time that their bytes take, and of this much for each storage.
_TIDINESS = 1e-5
_STORAGE_S = 2e-4
_INF = float("inf")


@dataclass(frozen=True, slots=True, eq=False)
class Groups:
    """Periods that the program can't tell apart, and their bytes together.

    They begin in the stretch ``first`` and end in the stretch ``last``, which is in the next lap
    for periods around the end. From the stretch ``ready`` on, which may be in the lap before, their
    data is what it is when they begin. Their storages have one encoding, and ``example`` is one of
    these. ``position`` counts the groups before it that share its
    copies; those have the numbers right before it. ``count`` is how many periods a group has,
    ``of_period`` the group of each period of the Columns, -1 for those that no checkpoint sees.
    """

    ready: Ints
    first: Ints
    last: Ints
    returns: Flags
    written: Flags
    position: Ints
    example: Ints
    nbytes: Floats
    count: Floats
    of_period: Ints


@dataclass(frozen=True, slots=True, eq=False)
class Relaxation:
    """``bound_s`` bounds the iteration of every plan.

    ``leaving_bytes`` are the bytes of each group (rows) that the solution moves to each tier
    (columns). ``checkpoints`` are ops; ``stretch_s`` is how long the solution takes from each to
    the next.
    """

    bound_s: float
    groups: Groups
    leaving_bytes: Floats
    checkpoints: Ints
    stretch_s: Floats


@dataclass(frozen=True, slots=True)
class Detail:
    """How fine a relaxation is: at most so many ``variables``; whether checkpoints are where
    phases of few ops begin.
    """

    variables: int
    short_phases: bool


FINE = Detail(variables=40_000, short_phases=True)
# From so many ops on, so many variables of the program that quick plans start from: the more ops
# there are, the more a try costs beside the program that may save it.
_COARSE = ((100_000, 40_000), (5_000, 16_000), (0, 6_000))


def coarse(ops: int) -> Detail:
    """What quick plans for so many ops start from."""
    variables = next(variables for least, variables in _COARSE if ops >= least)
    return Detail(variables=variables, short_phases=False)


def relaxation(on: Columns, hardware: Hardware, detail: Detail = FINE) -> Relaxation:
    """Solve the relaxation of ``on``, which has ops, for ``hardware``, which has tiers."""
    lengths = np.diff(np.append(on.phases, on.n))
    phases = on.phases if detail.short_phases else on.phases[lengths >= LONG_PHASE * on.n]
    for most in _CHECKPOINTS:
        points = checkpoints(on, hardware.budget_bytes, most, phases)
        groups = grouped(on, points)
        variables = 3 * (groups.last - groups.first + 1) + groups.first - groups.ready
        if int(variables.sum()) * len(hardware.tiers) <= detail.variables:
            break
    return _Program(on, hardware, points, groups).solved()


def checkpoints(on: Columns, budget_bytes: int, most: int, phases: Ints) -> Ints:
    """Ops at which memory is looked at: in each of at most ``most`` stretches one that needs most,
    and those at which ``phases`` begin.

    Stretches are short where much time passes, and where much data is used while memory is short.
    """
    periods = on.periods
    traffic = _sums(periods.after, periods.nbytes, on.n)
    traffic *= on.live > budget_bytes
    weight = np.full(on.n, 1e-3 / on.n)
    weight += on.duration_s / max(float(on.duration_s.sum()), 1e-12)
    weight += traffic / max(float(traffic.sum()), 1.0)
    clock = np.cumsum(weight)
    cell = np.minimum((clock / clock[-1] * most).astype(np.int64), most - 1)
    starts = np.flatnonzero(np.append(True, cell[1:] != cell[:-1]))
    tops = np.maximum.reduceat(on.live, starts)
    is_top = np.flatnonzero(on.live == np.repeat(tops, np.diff(np.append(starts, on.n))))
    # Where phases begin and end as well, or what one makes might be written while the one before it
    # runs, and what one needs be read into memory that it frees only at its end.
    points = np.union1d(is_top[np.unique(cell[is_top], return_index=True)[1]], phases)
    return np.union1d(points, (phases - 1) % on.n)


def grouped(on: Columns, points: Ints) -> Groups:
    """Periods by the stretches where they begin and end, and by what shares their copies."""
    periods, count = on.periods, len(points)

    def stretch_of(op: Ints) -> Ints:
        found = np.searchsorted(points, op % on.n, side="right") - 1
        return np.asarray(found + op // on.n * count, dtype=np.int64)

    first = stretch_of(periods.after)
    last = stretch_of(periods.after + periods.length)
    written = periods.written_at != NONE
    ready = np.where(written, stretch_of(periods.after - periods.age), first)
    alone = ~written | (np.bincount(periods.copy)[periods.copy] == 1)
    kept = np.flatnonzero((last > first) | ~alone)
    kept = kept[np.lexsort((periods.age[kept], periods.copy[kept]))]
    code = ((first + 1) * (2 * count + 2) + last + 1) * 4 + periods.returns * 2 + written
    code = code * (count + 1) + first - ready
    encoding = on.copies.encoding[periods.storage] + 1
    code = code * (int(encoding.max(initial=0)) + 1) + encoding
    chain = _chains(periods.copy[kept], alone[kept], code[kept])
    numbers, example, group = np.unique(chain, return_index=True, return_inverse=True)
    of_period = np.full(len(periods), -1, np.int64)
    of_period[kept] = group
    at = kept[example]
    return Groups(
        ready=ready[at],
        first=first[at],
        last=last[at],
        returns=periods.returns[at],
        written=written[at],
        position=np.arange(len(numbers)) - np.searchsorted(numbers // _MOST_IN_CHAIN,
                                                           numbers // _MOST_IN_CHAIN),
        example=periods.storage[at],
        nbytes=_sums(group, periods.nbytes[kept], len(numbers)),
        count=_sums(group, np.ones(len(kept)), len(numbers)),
        of_period=of_period,
    )  # fmt: skip


_MOST_IN_CHAIN = 1 << 20


def _sums(place: Ints, values: Ints | Floats, count: int) -> Floats:
    """The sum of the values at each of ``count`` places."""
    return np.asarray(np.bincount(place, weights=values, minlength=count), dtype=np.float64)


def _chains(copy: Ints, alone: Flags, code: Ints) -> Ints:
    """For periods sorted by copy and age, equal numbers for equal places in equal chains.

    A chain is the codes of all periods of a copy; a period that is alone is a chain of its own. The
    numbers of a chain are consecutive.
    """
    if not len(copy):
        return np.zeros(0, np.int64)
    begins = np.append(True, (copy[1:] != copy[:-1]) | alone[1:] | alone[:-1])
    starts = np.flatnonzero(begins)
    lengths = np.diff(np.append(starts, len(copy)))
    chain_of_start = np.zeros(len(starts), np.int64)
    known: dict[tuple[int, ...], int] = {}
    single = lengths == 1
    codes = code.tolist()
    # Chains of one are many: they are numbered by their code alone.
    chain_of_start[single] = np.unique(code[starts[single]], return_inverse=True)[1]
    most = int(single.sum())
    for index in np.flatnonzero(~single).tolist():
        start = int(starts[index])
        key = tuple(codes[start : start + int(lengths[index])])
        chain_of_start[index] = most + known.setdefault(key, len(known))
    which = np.repeat(np.arange(len(starts)), lengths)
    place = np.arange(len(copy)) - starts[which]
    return chain_of_start[which] * _MOST_IN_CHAIN + place


class _Rows:
    """Sparse rows ``low <= sum <= high`` under construction."""

    def __init__(self) -> None:
        self.count = 0
        self._parts: list[tuple[Ints, Ints, Floats]] = []
        self._low: list[Floats] = []
        self._high: list[Floats] = []

    def new(self, count: int, low: float | Floats, high: float | Floats) -> Ints:
        """Numbers of ``count`` new rows."""
        rows = np.arange(self.count, self.count + count)
        self.count += count
        self._low.append(np.broadcast_to(low, count))
        self._high.append(np.broadcast_to(high, count))
        return rows

    def add(self, rows: Ints, variables: Ints, factor: float | Floats) -> None:
        """Add ``factor`` times each variable to the row at the same place."""
        self._parts.append((rows, variables, np.broadcast_to(factor, len(rows)).astype(float)))

    def low(self) -> Floats:
        return np.concatenate(self._low)

    def high(self) -> Floats:
        return np.concatenate(self._high)

    def entries(self) -> tuple[Ints, Ints, Floats]:
        """Rows, variables and factors, sorted by row, each pair of row and variable once."""
        rows, variables, factors = (np.concatenate(part) for part in zip(*self._parts, strict=True))
        width = int(variables.max(initial=0)) + 1
        pairs, place = np.unique(rows * width + variables, return_inverse=True)
        return pairs // width, pairs % width, _sums(place, factors, len(pairs))


def _expanded(starts: Ints, lengths: Ints) -> tuple[Ints, Ints]:
    """For each range its index, and the numbers in it, range after range."""
    which = np.repeat(np.arange(len(starts)), lengths)
    ends = np.cumsum(lengths)
    return which, np.arange(len(which)) - (ends - lengths)[which] + starts[which]


class _Program:
    """Time is counted in mean stretches, bytes in what is read meanwhile, so numbers are near 1."""

    def __init__(self, on: Columns, hardware: Hardware, points: Ints, groups: Groups) -> None:
        self._on, self._hardware, self._points, self._groups = on, hardware, points, groups
        self._stretches = len(points)
        clock = np.concatenate(([0.0], np.cumsum(np.tile(on.duration_s, 2))))
        following = np.append(points[1:], points[0] + on.n)
        stretch_s = clock[following] - clock[points]
        self._total = max(float(groups.nbytes.sum()), 1.0)
        slowest = min(min(t.read_bytes_per_s, t.write_bytes_per_s) for t in hardware.tiers)
        fastest = max(max(t.read_bytes_per_s, t.write_bytes_per_s) for t in hardware.tiers)
        # What all of it costs on a channel, once, where that is most.
        self._total_cost = max(self._total, *map(self._dearest, hardware.tiers))
        self._unit_s = (float(stretch_s.sum()) + self._total / fastest) / self._stretches
        self._unit_bytes = self._unit_s * fastest
        self._stretch_s = stretch_s / self._unit_s
        # Any plan that a planner makes is faster than this; a bound need not be greater.
        most_s = float(stretch_s.sum()) + 8 * self._total_cost / slowest
        if hardware.max_write_bytes_per_day:
            most_s += 8 * self._total * DAY_S / hardware.max_write_bytes_per_day
        self._most_s = most_s / self._unit_s
        need = on.live[points] - hardware.budget_bytes
        self._need = np.maximum(need, 0) / self._unit_bytes
        self._size = 0
        self._low: list[Floats] = []
        self._high: list[Floats] = []
        self._rows = _Rows()
        # Variables, the groups whose bytes they are, and to which tier: all that leaves, and of
        # that what is written.
        self._leaving: list[tuple[Ints, Ints, int]] = []
        self._written: list[tuple[Ints, Ints, int]] = []
        self._build()

    def _new(self, count: int, low: float | Floats, high: float | Floats) -> Ints:
        variables = np.arange(self._size, self._size + count)
        self._size += count
        self._low.append(np.broadcast_to(low, count).astype(float))
        self._high.append(np.broadcast_to(high, count).astype(float))
        return variables

    def _build(self) -> None:
        count, hardware = self._stretches, self._hardware
        self._seconds = self._new(count, self._stretch_s, self._most_s)
        memory = self._rows.new(count, self._need, _INF)
        whole = self._rows.new(len(self._groups.nbytes), -_INF, self._amount())
        self._moved: list[tuple[Ints, Ints]] = []
        for at, tier in enumerate(hardware.tiers):
            most = 8 * self._total_cost / self._unit_bytes
            written, read = self._new(count, 0.0, most), self._new(count, 0.0, most)
            self._moved.append((written, read))
            for write_s, read_s in tier_cuts((tier,)):
                rows = self._rows.new(count, 0.0, _INF)
                scale = self._unit_bytes / self._unit_s
                self._rows.add(rows, self._seconds, 1.0)
                self._rows.add(rows, written, -write_s * scale)
                self._rows.add(rows, read, -read_s * scale)
            self._add_tier(at, written, read, memory, whole)
        self._add_wear()

    def _dearest(self, tier: Tier) -> float:
        copies, groups = self._on.copies, self._groups
        costs = copies.write_costs(tier)[groups.example], copies.read_costs(tier)[groups.example]
        return max(float((groups.nbytes * cost).sum()) for cost in costs)

    def _amount(self) -> Floats:
        return self._groups.nbytes / self._unit_bytes

    def _add_tier(self, at: int, written: Ints, read: Ints, memory: Ints, whole: Ints) -> None:
        """The flows of all groups to one tier and back."""
        g, rows, amount = self._groups, self._rows, self._amount()
        count = self._stretches
        spans = g.last - g.first + 1
        which, stretch = _expanded(g.first, spans)
        balance = rows.new(len(which), 0.0, 0.0)
        # What was not read back by its last stretch dies there.
        dies = self._new(len(which), 0.0, np.where(
            (stretch == g.last[which]) & ~g.returns[which], amount[which], 0.0))  # fmt: skip
        rows.add(balance, dies, -1.0)
        inner = stretch > g.first[which]
        out = self._new(int(inner.sum()), 0.0, amount[which[inner]])
        rows.add(balance[inner], out, 1.0)
        rows.add(balance[np.flatnonzero(inner) - 1], out, -1.0)
        rows.add(memory[stretch[inner] % count], out, 1.0)
        room = self._hardware.tiers[at].capacity_bytes / self._unit_bytes
        if room < self._total / self._unit_bytes:
            filled = rows.new(count, -_INF, room)
            rows.add(filled[stretch[inner] % count], out, 1.0)
        begin = np.cumsum(spans) - spans
        # What is written before the period begins is out as it begins.
        writer, when = _expanded(g.ready, g.last - g.ready + 1)
        writer, when = writer[g.written[writer]], when[g.written[writer]]
        place = begin[writer] + np.maximum(when - g.first[writer], 0)
        copies, tier = self._on.copies, self._hardware.tiers[at]
        cost = copies.write_costs(tier)[g.example]
        flow = self._add_flow(written, amount[writer], when, cost[writer])
        rows.add(balance[place], flow, 1.0)
        rows.add(whole[writer], flow, 1.0)
        self._leaving.append((flow, writer, at))
        self._written.append((flow, writer, at))
        self._add_given_up(at, balance, begin, flow, writer, whole)
        back = g.returns[which]
        cost = copies.read_costs(tier)[g.example]
        flow_back = self._add_flow(read, amount[which[back]], stretch[back], cost[which[back]])
        rows.add(balance[back], flow_back, -1.0)

    def _add_flow(self, channel: Ints, most: Floats, stretch: Ints, cost: Floats) -> Ints:
        """Bytes that move in each stretch, by group, and what they cost on a channel."""
        flow = self._new(len(most), 0.0, most)
        sums = self._rows.new(self._stretches, 0.0, 0.0)
        self._rows.add(sums, channel, -1.0)
        self._rows.add(sums[stretch % self._stretches], flow, cost)
        return flow

    def _add_given_up(
        self, at: int, balance: Ints, begin: Ints, written: Ints, writer: Ints, whole: Ints
    ) -> None:
        """Bytes that need no write: of what is never written, or whose copy is there already."""
        g, rows = self._groups, self._rows
        chosen = np.flatnonzero(~g.written | (g.position > 0))
        given_up = self._new(len(chosen), 0.0, self._amount()[chosen])
        rows.add(balance[begin[chosen]], given_up, 1.0)
        rows.add(whole[chosen], given_up, 1.0)
        self._leaving.append((given_up, chosen, at))
        shares = g.position[chosen] > 0
        later = rows.new(int(shares.sum()), 0.0, _INF)
        rows.add(later, given_up[shares], -1.0)
        # The groups before it in its chain, and for each of them all that it writes.
        chain, before = _expanded((chosen - g.position[chosen])[shares], g.position[chosen][shares])
        first = np.searchsorted(writer, before, side="left")
        last = np.searchsorted(writer, before, side="right")
        place, flow = _expanded(first, last - first)
        rows.add(later[chain[place]], written[flow], 1.0)

    def _add_wear(self) -> None:
        limit = self._hardware.max_write_bytes_per_day
        if limit is None:
            return
        row = self._rows.new(1, 0.0, _INF)
        per_day = limit / DAY_S * self._unit_s / self._unit_bytes
        self._rows.add(np.repeat(row, self._stretches), self._seconds, per_day)
        for flow, group, at in self._written:
            tier, storage = self._hardware.tiers[at], self._groups.example[group]
            if tier.rated_write_bytes is not None:
                share = self._on.copies.share[storage] if tier.encodes else 1.0
                self._rows.add(np.repeat(row, len(flow)), flow, -share)

    def _costs(self) -> Floats:
        costs = np.zeros(self._size)
        costs[self._seconds] = 1.0
        scale = _TIDINESS * self._unit_bytes / self._unit_s
        for tier, (written, read) in zip(self._hardware.tiers, self._moved, strict=True):
            costs[written] = scale / tier.write_bytes_per_s
            costs[read] = scale / tier.read_bytes_per_s
        per_byte_s = _STORAGE_S * self._groups.count / np.maximum(self._groups.nbytes, 1.0)
        for flow, group, _ in self._leaving:
            costs[flow] = _TIDINESS * (per_byte_s * self._unit_bytes / self._unit_s)[group]
        return costs

    def solved(self) -> Relaxation:
        """The solution, and the bound that its multipliers prove."""
        import highspy

        rows, variables, factors = self._rows.entries()
        low, high = np.concatenate(self._low), np.concatenate(self._high)
        lp = highspy.HighsLp()
        lp.num_col_, lp.num_row_ = self._size, self._rows.count
        lp.col_cost_ = self._costs()
        lp.col_lower_, lp.col_upper_ = low, high
        lp.row_lower_, lp.row_upper_ = self._rows.low(), self._rows.high()
        lp.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
        lp.a_matrix_.start_ = np.searchsorted(rows, np.arange(self._rows.count + 1))
        lp.a_matrix_.index_, lp.a_matrix_.value_ = variables, factors
        solver = highspy.Highs()
        for option, value in _SOLVER.items():
            solver.setOptionValue(option, value)
        solver.passModel(lp)
        solver.run()
        solution = solver.getSolution()
        values = np.clip(np.array(solution.col_value), low, high)
        multipliers = np.array(solution.row_dual)
        leaving = np.zeros((len(self._groups.nbytes), len(self._hardware.tiers)))
        for flow, group, at in self._leaving:
            np.add.at(leaving[:, at], group, values[flow] * self._unit_bytes)
        return Relaxation(
            bound_s=self._proven(rows, variables, factors, multipliers, low, high),
            groups=self._groups,
            leaving_bytes=leaving,
            checkpoints=self._points,
            stretch_s=values[self._seconds] * self._unit_s,
        )

    def _proven(
        self,
        rows: Ints,
        variables: Ints,
        factors: Floats,
        multipliers: Floats,
        low: Floats,
        high: Floats,
    ) -> float:
        """Seconds that the multipliers prove; see the note. Zero at least."""
        row_low, row_high = self._rows.low(), self._rows.high()
        side = np.where(multipliers > 0, row_low, row_high)
        multipliers = np.where(np.isfinite(side) & np.isfinite(multipliers), multipliers, 0.0)
        side = np.where(np.isfinite(side), side, 0.0)
        priced = _sums(variables, factors * multipliers[rows], self._size)
        rest = self._costs() - priced
        least = float((multipliers * side).sum() + np.minimum(rest * low, rest * high).sum())
        # The objective counts moved bytes too; all of them together at most so much.
        slowest = min(min(t.read_bytes_per_s, t.write_bytes_per_s) for t in self._hardware.tiers)
        most_s = 2 * self._total_cost / slowest + _STORAGE_S * float(self._groups.count.sum())
        least -= _TIDINESS * most_s / self._unit_s
        return max(0.0, min(least, self._most_s)) * self._unit_s


_SOLVER = {
    "output_flag": False,
    "threads": 1,
    "random_seed": 0,
    "simplex_iteration_limit": _MOST_SIMPLEX_STEPS,
}
