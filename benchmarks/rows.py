"""What a result says, as the figures of one row: the one place where figures are derived.

In: Compared. Out: Row records; a result that does not count has no speed. Must not know: how rows
are shown.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import compress
from statistics import median

from benchmarks.comparison import Compared, Result
from benchmarks.job import Outcome, Step
from benchmarks.shapes import SHAPES, Shape
from benchmarks.systems import system_of
from benchmarks.verdict import judge


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Median, least and largest."""

    middle: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """Figures of timed steps. ``of_ideal`` compares each step with the ideal's of the same turn."""

    seconds: Spread
    of_ideal: Spread
    tokens_per_s: float
    tflops: float
    cpu_s: float
    read_bytes: float
    written_bytes: float
    drive_read_bytes: float | None
    drive_written_bytes: float | None
    energy_j: float | None
    predicted_s: float | None
    bound_s: float | None
    stall_s: float | None

    @property
    def of_bound(self) -> float | None:
        """The least possible time, by the plan, as a part of the measured one."""
        return None if self.bound_s is None else self.bound_s / self.seconds.middle


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """``speed`` is None for a result that does not count; ``faults`` says why."""

    name: str
    system: str
    share: float | None
    host_share: float
    drives: int | None
    in_backward: bool
    limit_bytes: int | None
    peak_bytes: int | None
    host_peak_bytes: int | None
    loss_difference: float | None
    faults: tuple[str, ...]
    ran: bool
    speed: Speed | None


def rows(compared: Compared) -> tuple[Row, ...]:
    ideal = compared.results[0].outcome
    shape = SHAPES[compared.comparison.shape]
    return tuple(_row(result, ideal, shape) for result in compared.results)


def _row(result: Result, ideal: Outcome | None, shape: Shape) -> Row:
    verdict = judge(result, ideal)
    outcome = result.outcome
    entry = result.entry
    counts = verdict.valid and outcome is not None and ideal is not None
    return Row(
        name=_title(result),
        system=entry.system,
        share=entry.share,
        host_share=entry.host_share,
        drives=entry.drives,
        in_backward=entry.in_backward,
        limit_bytes=result.job.limit_bytes,
        peak_bytes=outcome.peak_bytes if outcome else None,
        host_peak_bytes=outcome.host_peak_bytes if outcome else None,
        loss_difference=verdict.loss_difference,
        faults=verdict.faults,
        ran=outcome is not None,
        speed=_speed(outcome, ideal, shape) if counts and outcome and ideal else None,
    )


def _title(result: Result) -> str:
    entry = result.entry
    return entry.name.replace(entry.system, system_of(entry.system).title, 1)


def _speed(outcome: Outcome, ideal: Outcome, shape: Shape) -> Speed:
    timed = [step.timed for step in outcome.steps]
    steps = list(compress(outcome.steps, timed))
    ideal_s = {step.turn: step.wall_s for step in ideal.steps}
    seconds = spread([step.wall_s for step in steps])
    tokens_per_s = shape.tokens / seconds.middle
    figures = outcome.teraio
    return Speed(
        seconds=seconds,
        of_ideal=spread([ideal_s[step.turn] / step.wall_s for step in steps]),
        tokens_per_s=tokens_per_s,
        tflops=tokens_per_s * shape.flops_per_token / 1e12,
        cpu_s=median(step.cpu_s for step in steps),
        read_bytes=median(step.read_bytes for step in steps),
        written_bytes=median(step.written_bytes for step in steps),
        drive_read_bytes=_known(steps, lambda step: step.drive_read_bytes),
        drive_written_bytes=_known(steps, lambda step: step.drive_written_bytes),
        energy_j=_known(steps, lambda step: step.energy_j),
        predicted_s=figures.predicted_s if figures else None,
        bound_s=figures.bound_s if figures else None,
        stall_s=median(compress(figures.stall_s, timed)) if figures else None,
    )


def _known(steps: Sequence[Step], figure: Callable[[Step], float | None]) -> float | None:
    values = [value for step in steps if (value := figure(step)) is not None]
    return median(values) if values else None


def spread(values: Sequence[float]) -> Spread:
    return Spread(middle=median(values), low=min(values), high=max(values))


@dataclass(frozen=True, slots=True, kw_only=True)
class Contest:
    """A peer and teraio's fastest run that took no more memory; None if all took more."""

    peer: Row
    ours: Row | None

    @property
    def times_faster(self) -> float | None:
        if self.ours is None:
            return None
        return _of_ideal(self.ours) / _of_ideal(self.peer)


def contests(found: Sequence[Row]) -> tuple[Contest, ...]:
    """One for each peer that counts."""
    ours = [row for row in found if row.system == "teraio" and row.speed]
    peers = [row for row in found if row.system not in ("teraio", "ideal") and row.speed]
    return tuple(Contest(peer=peer, ours=_fastest(_within(ours, peer))) for peer in peers if ours)


def _within(ours: Sequence[Row], peer: Row) -> list[Row]:
    """Those that take no more memory, and host memory only beside one that does."""
    host = system_of(peer.system).in_host
    return [
        row
        for row in ours
        if (row.peak_bytes or 0) <= (peer.peak_bytes or 0) and (host or not row.host_share)
    ]


def _fastest(some: Sequence[Row]) -> Row | None:
    return max(some, key=_of_ideal, default=None)


def _of_ideal(row: Row) -> float:
    return row.speed.of_ideal.middle if row.speed else 0.0
