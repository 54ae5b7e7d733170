"""Makes the runs of one comparison, turn by turn, so that a noisy machine is so for all of them.

In: a Comparison and what the machine offers. Out: Compared. Must not know: systems, tables.

As many runs as fit into memory are alive at once. In every turn each of them makes one step while
the others are stopped; every turn begins with another one. On a GPU a step that isn't timed comes
right before, so that the timed one finds what the one before it has left to be copied, as in
training. The ideal run takes part in all turns, so each step of any system has a step of the ideal
run next to it.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil

from benchmarks.comparison import IDEAL, Compared, Comparison, Entry, Result, Status
from benchmarks.job import UNTIMED, Job
from benchmarks.machine import free_gpu_bytes
from benchmarks.systems import Unavailable
from benchmarks.worker import ANSWER_S, RunFailed, Worker

# What a process of teraio holds beside tensors: threads, I/O buffers, freed blocks not yet reused.
RESERVE_BYTES = 72 << 20
RESERVE_PART = 0.015  # of the ideal run's peak, on top
# Memory that has to be free before one more run is started, in peaks of the ideal run: of host
# memory, for a run on the CPU and for one on a GPU, and of the GPU's.
_ROOM = 2.5
_ROOM_BESIDE_GPU = 1.0
_ROOM_ON_GPU = 1.25
_PROCESS_BYTES = 1 << 30
_GRACE_S = 60.0
_NO_TIME = "no time was left"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where runs are made, and until when (by ``time.monotonic``); ``load_before``: by others.

    ``reports`` is the folder for what teraio tells of its runs; None: it isn't kept.
    """

    device: str
    threads: int
    ssd: tuple[str, ...]
    deadline: float = math.inf
    reports: Path | None = None
    load_before: float = field(default_factory=lambda: os.getloadavg()[0])

    @property
    def late(self) -> bool:
        return time.monotonic() >= self.deadline

    @property
    def answer_s(self) -> float:
        """How long a run may be silent: one that hangs must not take much more than the time."""
        return min(ANSWER_S, max(0.0, self.deadline - time.monotonic()) + _GRACE_S)


Tell = Callable[[str], None]


class Rotation:
    """One comparison in the making."""

    def __init__(self, comparison: Comparison, place: Place, tell: Tell) -> None:
        self._comparison = comparison
        self._place = place
        self._tell = tell
        self._turn = 0
        self._results: dict[str, Result] = {}
        self._ideal_peak = 0

    def run(self) -> Compared:
        pending = list(self._comparison.entries)
        if self._place.late:
            pending.insert(0, Entry(system=IDEAL))
            return self._compared(pending, _NO_TIME)
        ideal = self._started(Entry(system=IDEAL))
        if ideal is not None:
            try:
                while pending and not self._place.late and IDEAL not in self._results:
                    group = self._group(pending)
                    if group:
                        self._rotate(ideal, group)
                if self._turn == 0:
                    self._rotate(ideal, [])
            finally:
                self._finished(ideal)
        worked = self._results[IDEAL].status == "ran"
        return self._compared(pending, _NO_TIME if worked else "the ideal run did not work")

    def _compared(self, left_out: list[Entry], reason: str) -> Compared:
        for entry in left_out:
            self._note(self._job(entry), entry, "left out", reason)
        order = (Entry(system=IDEAL), *self._comparison.entries)
        return Compared(
            comparison=self._comparison,
            results=tuple(self._results[entry.name] for entry in order),
        )

    def _group(self, pending: list[Entry]) -> list[_Runner]:
        """Takes entries off ``pending`` and starts them until memory or time runs short."""
        group: list[_Runner] = []
        while pending and not self._place.late and (not group or self._has_room()):
            runner = self._started(pending.pop(0))
            if runner is not None:
                group.append(runner)
        return group

    def _has_room(self) -> bool:
        free = int(psutil.virtual_memory().available) - _PROCESS_BYTES
        if self._place.device == "cpu":
            return free > _ROOM * self._ideal_peak
        free_on_gpu = free_gpu_bytes() - _PROCESS_BYTES
        return (
            free > _ROOM_BESIDE_GPU * self._ideal_peak
            and free_on_gpu > _ROOM_ON_GPU * self._ideal_peak
        )

    def _started(self, entry: Entry) -> _Runner | None:
        """A run that has made its warm-up steps; None, with a note, if it can't."""
        self._tell(f"{self._comparison.name}: {entry.name}")
        job = self._job(entry)
        try:
            worker = Worker(job, self._place.answer_s)
            worker.build()
            steps = [worker.step(UNTIMED) for _ in range(self._comparison.warm_up)]
        except (Unavailable, RunFailed) as error:
            self._fail(job, entry, error)
            return None
        if entry.system == IDEAL:
            peaks = [step.device_peak_bytes or step.host_peak_bytes for step in steps]
            self._ideal_peak = max(peaks)
        return _Runner(entry, worker)

    def _rotate(self, ideal: _Runner, group: list[_Runner]) -> None:
        self._tell(f"{self._comparison.name}: {len(group) + 1} systems in turns")
        runners = [ideal, *group]
        for _ in range(self._comparison.timed):
            runners.append(runners.pop(0))
            for runner in list(runners):
                try:
                    if self._place.device == "cuda":
                        runner.worker.step(UNTIMED)
                    runner.worker.step(self._turn)
                except RunFailed as error:
                    runners.remove(runner)
                    self._fail(runner.worker.job, runner.entry, error)
            self._turn += 1
        for runner in runners:
            if runner is not ideal:
                self._finished(runner)

    def _finished(self, runner: _Runner) -> None:
        if runner.entry.name in self._results:
            return
        try:
            outcome = runner.worker.finish()
        except RunFailed as error:
            self._fail(runner.worker.job, runner.entry, error)
            return
        self._results[runner.entry.name] = Result(
            entry=runner.entry, job=runner.worker.job, status="ran", reason="", outcome=outcome
        )

    def _fail(self, job: Job, entry: Entry, error: Exception) -> None:
        status: Status = "unavailable" if isinstance(error, Unavailable) else "failed"
        self._note(job, entry, status, str(error))

    def _note(self, job: Job, entry: Entry, status: Status, reason: str) -> None:
        self._results[entry.name] = Result(
            entry=entry, job=job, status=status, reason=reason, outcome=None
        )

    def _job(self, entry: Entry) -> Job:
        place, comparison = self._place, self._comparison
        job = Job(
            name=entry.name,
            system=entry.system,
            shape=comparison.shape,
            dtype=comparison.dtype,
            threads=place.threads,
            device=place.device,
            host_bytes=int(entry.host_share * self._ideal_peak),
            in_backward=entry.in_backward,
            confined=entry.system == "swap",
            ssd=place.ssd[: entry.drives],
            report=self._report_of(entry),
        )
        if entry.share is None or not self._ideal_peak:
            return job
        limit = int(entry.share * self._ideal_peak)
        reserve = RESERVE_BYTES + int(RESERVE_PART * self._ideal_peak)
        budget = max(1, limit - (reserve if place.device == "cpu" else 0))
        return replace(job, limit_bytes=limit, budget_bytes=budget)

    def _report_of(self, entry: Entry) -> str | None:
        folder = self._place.reports
        if folder is None or entry.system != "teraio":
            return None
        name = f"{self._comparison.name} {entry.name}".replace("%", "").replace(" ", "-")
        return str(folder / f"{name}.run")


@dataclass(frozen=True, slots=True)
class _Runner:
    entry: Entry
    worker: Worker


def run_each(comparisons: Sequence[Comparison], place: Place, tell: Tell) -> Iterator[Compared]:
    """Each as soon as it has been made."""
    return (Rotation(comparison, place, tell).run() for comparison in comparisons)
