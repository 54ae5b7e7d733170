"""The reports of a run's iterations.

In: what the native core counted in each. Out: StepReports, the latest of them kept. Must not know:
plans, when iterations end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from teraio.records import MeasuredStall, StepReport

# A long run keeps the reports of so many iterations at least, and the stalls of fewer.
_KEPT = 10_000
_WITH_STALLS = 100


class Steps:
    """``latest`` are those that are kept, the oldest first."""

    def __init__(self) -> None:
        self.latest: list[StepReport] = []
        self._ended = 0  # iterations

    def add(self, stats: Mapping[str, Any], phase: Literal["profile", "run"]) -> StepReport:
        """Reports the iteration that has ended; ``stats`` are of ``_C.end_iteration()``."""
        step = _step_report(stats, self._ended, phase)
        self._ended += 1
        self.latest.append(step)
        if len(self.latest) > _WITH_STALLS:
            old = -1 - _WITH_STALLS
            self.latest[old] = replace(self.latest[old], stalls=())
        if len(self.latest) == 2 * _KEPT:
            del self.latest[:_KEPT]
        return step


def _step_report(
    stats: Mapping[str, Any], iteration: int, phase: Literal["profile", "run"]
) -> StepReport:
    return StepReport(
        iteration=iteration,
        phase=phase,
        duration_s=stats["duration_ns"] / 1e9,
        stall_s=stats["stall_ns"] / 1e9,
        peak_bytes=stats["peak_bytes"],
        read_bytes=stats["read_bytes"],
        written_bytes=stats["written_bytes"],
        ops=stats["ops"],
        drift_ops=stats["drift_ops"],
        recomputed_bytes=stats["recomputed_bytes"],
        stalls=tuple(
            MeasuredStall(
                op=op,
                storage=storage if storage >= 0 else None,
                waits_for="memory" if memory else "data",
                seconds=ns / 1e9,
            )
            for op, storage, memory, ns in stats["stalls"]
        ),
    )
