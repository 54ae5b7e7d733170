"""Two plans, or a plan and a measured run: where they differ.

In: two Subjects. Out: a Comparison. Must not know: rendering.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Literal

from teraio.planner import live_by_op
from teraio.records import StepReport
from teraio.reports.subject import Subject

Unit = Literal["bytes", "seconds", "count"]

_SHOWN = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One figure of both sides; None where a side has none."""

    name: str
    unit: Unit
    a: float | None
    b: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """Bytes that the moves of one storage carry per iteration, on each side."""

    storage: str
    kind: str
    a_bytes: int
    b_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """``moved`` are the storages whose moves differ most; ``differing`` is how many there are.

    ``same_trace``: both sides are about the same ops and storages; ``both_planned``: both have a
    plan, so their moves are compared.
    """

    a: str
    b: str
    same_trace: bool
    both_planned: bool
    figures: tuple[Figure, ...]
    moved: tuple[Moved, ...]
    differing: int


def compare(a: Subject, b: Subject) -> Comparison:
    """The differences between ``a`` and ``b``, by name of storage."""
    moved = _moved(a, b)
    return Comparison(
        a=a.name,
        b=b.name,
        same_trace=a.unlimited == b.unlimited,
        both_planned=a.plan is not None and b.plan is not None,
        figures=tuple(
            figure for figure in _figures(a, b) if figure.a is not None or figure.b is not None
        ),
        moved=moved[:_SHOWN],
        differing=len(moved),
    )


def _figures(a: Subject, b: Subject) -> list[Figure]:
    def figure(name: str, unit: Unit, of: Callable[[Subject], float | None]) -> Figure:
        return Figure(name=name, unit=unit, a=of(a), b=of(b))

    def planned(name: str, unit: Unit, field: str) -> Figure:
        return figure(name, unit, lambda s: getattr(s.plan, field) if s.plan else None)

    def measured(name: str, unit: Unit, field: str) -> Figure:
        return figure(name, unit, lambda s: _median(s, field))

    return [
        figure("ops", "count", lambda s: len(s.unlimited.ops)),
        figure("storages", "count", lambda s: len(s.unlimited.storages)),
        figure("peak without a limit", "bytes", lambda s: int(live_by_op(s.unlimited).max())),
        figure("budget", "bytes", _budget),
        *([planned("budget, planned for", "bytes", "budget_bytes")] if a.steps or b.steps else []),
        planned("peak, planned", "bytes", "peak_bytes"),
        figure("peak, measured", "bytes", _peak),
        planned("ideal", "seconds", "ideal_s"),
        planned("bound", "seconds", "bound_s"),
        planned("iteration, predicted", "seconds", "predicted_s"),
        measured("iteration, measured", "seconds", "duration_s"),
        figure(
            "stall, predicted",
            "seconds",
            lambda s: s.plan.predicted_s - s.plan.ideal_s if s.plan else None,
        ),
        measured("stall, measured", "seconds", "stall_s"),
        planned("written, planned", "bytes", "written_bytes"),
        measured("written, measured", "bytes", "written_bytes"),
        planned("read, planned", "bytes", "read_bytes"),
        measured("read, measured", "bytes", "read_bytes"),
        planned("spill space", "bytes", "spill_bytes"),
        figure("moves", "count", lambda s: len(s.moves) if s.plan else None),
        figure("results made again", "count", _made_again),
        measured("drift, ops", "count", "drift_ops"),
    ]


def _budget(subject: Subject) -> int | None:
    """That of a run is what it was given; its plan is made for a little less."""
    if subject.budget_bytes is not None:
        return subject.budget_bytes
    return subject.plan.budget_bytes if subject.plan else None


def _made_again(subject: Subject) -> int | None:
    return len(subject.plan.recomputations) or None if subject.plan else None


def _ran(subject: Subject) -> list[StepReport]:
    return [step for step in subject.steps if step.phase == "run"]


def _median(subject: Subject, field: str) -> float | None:
    values = [float(getattr(step, field)) for step in _ran(subject)]
    return median(values) if values else None


def _peak(subject: Subject) -> int | None:
    return max((step.peak_bytes for step in _ran(subject)), default=None)


def _moved(a: Subject, b: Subject) -> tuple[Moved, ...]:
    """The storages whose moved bytes differ, the largest difference first."""
    if a.plan is None or b.plan is None:
        return ()
    mine, theirs = _moved_bytes(a), _moved_bytes(b)
    differing = [
        Moved(storage=name, kind=kind, a_bytes=mine.get(key, 0), b_bytes=theirs.get(key, 0))
        for key in mine.keys() | theirs.keys()
        for name, kind in (key,)
        if mine.get(key) != theirs.get(key)
    ]
    return tuple(sorted(differing, key=lambda m: (-abs(m.a_bytes - m.b_bytes), m.storage)))


def _moved_bytes(subject: Subject) -> dict[tuple[str, str], int]:
    found: dict[tuple[str, str], int] = {}
    for move, nbytes in zip(subject.moves, subject.copy_bytes, strict=True):
        storage = subject.trace.storages[move.storage]
        ways = int(move.write) + int(move.needed_by is not None)
        key = (storage.name, storage.kind)
        found[key] = found.get(key, 0) + ways * nbytes
    return found
