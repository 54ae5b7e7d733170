"""Thousands of steps under a budget, beside as many of plain PyTorch: bits, memory and speed.

In: options. Out: figures of fifths of the runs; a failure if the numbers differ, if the budget was
exceeded, or if memory grew. Must not know: torch; each run has its own process.

Both take turns, a step each, so that a noisy machine is the same for both; a part of ideal is the
median over turns.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import asdict, dataclass
from itertools import pairwise

from rich.console import Console
from rich.progress import Progress

from benchmarks import demo
from benchmarks.demo import (
    NO_LIMIT,
    Run,
    about,
    equal,
    job_of,
    run_in_turns,
    run_job,
    unlimited_peak,
    within_budget,
)
from benchmarks.job import Job
from benchmarks.micro.findings import Findings
from benchmarks.table import Table, megabytes, table

_FIFTHS = 5
_TO_SEE_THE_PEAK = 4
# Memory of a process varies by a little from step to step; what leaks adds up to more.
_MAY_VARY = 0.03


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Some consecutive steps of both runs: median seconds, the last loss, the processes' peaks."""

    first: int
    last: int
    plain_s: float
    teraio_s: float
    of_ideal: float
    loss: float
    plain_peak_bytes: int
    teraio_peak_bytes: int


def add_options(parser: argparse.ArgumentParser) -> None:
    demo.add_options(parser, params="small")
    parser.set_defaults(steps=2000)
    parser.add_argument(
        "--share",
        type=int,
        default=60,
        metavar="PERCENT",
        help="budget, of the peak that the run takes without one",
    )


def run(options: argparse.Namespace) -> Findings:
    with Progress(console=Console(stderr=True)) as progress:
        bar = progress.add_task("steps", total=2 * options.steps + _TO_SEE_THE_PEAK)

        def on_step() -> None:
            progress.advance(bar)

        def job(system: str, budget_bytes: int | None) -> Job:
            return job_of(options, system, system, budget_bytes)

        peak = unlimited_peak(run_job(job("teraio", NO_LIMIT), _TO_SEE_THE_PEAK, on_step))
        jobs = (job("ideal", None), job("teraio", peak * options.share // 100))
        plain, limited = run_in_turns(jobs, options.steps, on_step)
    made, same = parts(plain, limited), equal(limited, plain)
    wrong = [] if same else ["other numbers than plain PyTorch's"]
    wrong += ["over its budget"] if not within_budget(limited) else []
    wrong += ["memory grew from the second fifth to the last"] if grew(made) else []
    return Findings(
        tables=(_shown(made),),
        figures={
            "equal": same,
            "unlimited_peak_bytes": peak,
            "budget_bytes": limited.job.budget_bytes,
            "peak_bytes": unlimited_peak(limited),
            "parts": [asdict(part) for part in made],
        },
        notes=(about(plain, options),),
        failures=tuple(wrong),
    )


def parts(plain: Run, limited: Run) -> list[Part]:
    """The runs in fifths."""
    theirs, ours = plain.outcome.steps, limited.outcome.steps
    edges = [len(ours) * edge // _FIFTHS for edge in range(_FIFTHS + 1)]
    return [
        Part(
            first=first,
            last=end - 1,
            plain_s=statistics.median(step.wall_s for step in theirs[first:end]),
            teraio_s=statistics.median(step.wall_s for step in ours[first:end]),
            of_ideal=statistics.median(
                a.wall_s / b.wall_s for a, b in zip(theirs[first:end], ours[first:end], strict=True)
            ),
            loss=ours[end - 1].loss,
            plain_peak_bytes=max(step.host_peak_bytes for step in theirs[first:end]),
            teraio_peak_bytes=max(step.host_peak_bytes for step in ours[first:end]),
        )
        for first, end in pairwise(edges)
    ]


def grew(made: list[Part]) -> bool:
    """The first fifth has the first plans, so the second is what the last is compared with."""
    return made[-1].teraio_peak_bytes > made[1].teraio_peak_bytes * (1 + _MAY_VARY)


def _shown(made: list[Part]) -> Table:
    return table(
        "A long run, plain and under a budget",
        (
            "steps", "last loss", "ms per step, plain", "teraio", "of ideal",
            "RSS growth, plain, MB", "teraio",
        ),
        [
            (
                f"{part.first} to {part.last}",
                f"{part.loss:.6f}",
                f"{part.plain_s * 1e3:.1f}",
                f"{part.teraio_s * 1e3:.1f}",
                f"{part.of_ideal:.0%}",
                megabytes(part.plain_peak_bytes),
                megabytes(part.teraio_peak_bytes),
            )
            for part in made
        ],
    )  # fmt: skip
