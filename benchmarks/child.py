"""Carries out one Job in this process, a step at a time as it is told: ``benchmarks.child JOB``.

In: a Job as JSON, then on stdin one word per line: ``build``, ``step N``, ``finish``. Out, as one
line of JSON per word: ``{"loaded": ...}`` at first, ``{"built": ...}``, ``{"step": ...}``,
``{"outcome": ...}``, or ``{"unavailable": reason}``. Must not know: other runs, tables.

Between words the process is stopped, so several of them can take turns on one machine.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

import torch

from benchmarks.codec import decode, encode
from benchmarks.energy import energy_meter
from benchmarks.job import Job, Outcome, Step
from benchmarks.meters import (
    drives_traffic,
    peak_meter,
    process_traffic,
    resident_bytes,
    swap_traffic,
)
from benchmarks.models import Batches, warm_up
from benchmarks.shapes import SHAPES
from benchmarks.systems import Unavailable, starter

_PR_SET_PDEATHSIG = 1  # of linux/prctl.h


class Run:
    """The run of one job. What the process held when it was made is not counted as the run's."""

    def __init__(self, job: Job) -> None:
        torch.set_num_threads(job.threads)
        self._job = job
        self._cuda = job.device == "cuda"
        if self._cuda and not torch.cuda.is_available():
            raise Unavailable("torch finds no CUDA device")
        if self._cuda:
            # Kernels that add in any order give other bits each time. What they cost is the same
            # for all; memory that nobody has written needs no filling.
            torch.use_deterministic_algorithms(True)
            torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        self._start = starter(job.system)
        self._batches = Batches(SHAPES[job.shape], job.device)
        warm_up(job.device)
        self._energy = energy_meter(
            str(torch.cuda.get_device_properties(0).uuid) if self._cuda else None
        )
        self._traffic = swap_traffic if job.confined else process_traffic
        self._peak = peak_meter()
        self._peak.take()
        self._base_bytes = resident_bytes()
        self._build_peak_bytes = 0
        self._steps: list[Step] = []

    def build(self) -> None:
        job = self._job
        if self._cuda:
            torch.cuda.empty_cache()
            if job.limit_bytes is not None:
                whole = torch.cuda.get_device_properties(0).total_memory
                torch.cuda.set_per_process_memory_fraction(min(1.0, job.limit_bytes / whole))
        self._training = self._start(job)
        self._build_peak_bytes = self._peak.take() - self._base_bytes

    def step(self, turn: int) -> Step:
        tokens = self._batches[len(self._steps)]
        if self._cuda:
            torch.cuda.reset_peak_memory_stats()
        before, drive = self._traffic(), drives_traffic(self._job.ssd)
        joules = self._energy()
        wall, cpu = time.perf_counter(), time.process_time()
        loss = self._training.step(tokens)
        if self._cuda:
            # Copies beside go on into the next step, as they do in training.
            torch.cuda.current_stream().synchronize()
        wall_s, cpu_s = time.perf_counter() - wall, time.process_time() - cpu
        joules_now = self._energy()
        moved = self._traffic().since(before)
        drive_now = drives_traffic(self._job.ssd)
        drive_moved = drive_now.since(drive) if drive_now and drive else None
        step = Step(
            turn=turn,
            loss=loss,
            wall_s=wall_s,
            cpu_s=cpu_s,
            host_peak_bytes=self._peak.take() - self._base_bytes,
            device_peak_bytes=torch.cuda.max_memory_reserved() if self._cuda else None,
            read_bytes=moved.read_bytes,
            written_bytes=moved.written_bytes,
            drive_read_bytes=drive_moved.read_bytes if drive_moved else None,
            drive_written_bytes=drive_moved.written_bytes if drive_moved else None,
            energy_j=joules_now - joules if joules_now is not None and joules is not None else None,
        )
        self._steps.append(step)
        return step

    def finish(self) -> Outcome:
        training = self._training
        try:
            return Outcome(
                parameters=training.parameters(),
                parameters_sha256=training.digest(),
                base_bytes=self._base_bytes,
                build_peak_bytes=self._build_peak_bytes,
                steps=tuple(self._steps),
                teraio=training.figures(),
            )
        finally:
            training.close()


def serve(job: Job, words: Iterator[str], say: Any) -> None:
    """Answers every word until ``finish``."""
    run = Run(job)
    say({"loaded": resident_bytes()})
    for line in words:
        word, *rest = line.split()
        if word == "build":
            run.build()
            say({"built": resident_bytes()})
        elif word == "step":
            say({"step": encode(run.step(int(rest[0])))})
        elif word == "finish":
            say({"outcome": encode(run.finish())})
            return
        else:
            raise ValueError(f"no such word: {line!r}")


@contextmanager
def _channel() -> Iterator[TextIO]:
    """The standard output, which from here on belongs to the answers: what else prints, and some
    libraries do, goes to the standard error."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as channel:
        os.dup2(2, 1)
        yield channel


def _end_with_parent() -> None:
    """A stopped process would outlive a parent that is killed."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def main() -> None:
    _end_with_parent()
    job = decode(Job, json.loads(sys.argv[1]))
    with _channel() as channel:

        def say(message: dict[str, object]) -> None:
            channel.write(json.dumps(message) + "\n")
            channel.flush()

        try:
            serve(job, iter(sys.stdin.readline, ""), say)
        except Unavailable as reason:
            say({"unavailable": str(reason)})


if __name__ == "__main__":
    main()
