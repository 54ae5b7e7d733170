"""Trains one model without teraio and under shrinking memory budgets, and compares the runs.

In: the command line. Out: a table, JSON on request; exit status 1 if a run gave other numbers than
the plain one or held more memory than its budget. Must not know: torch; each run has its own
process.

``python -m benchmarks.demo [--params small|100m] [--dtype fp32|bf16] [--steps N] [--ssd DIR]``
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarks.codec import encode
from benchmarks.job import Job, Outcome
from benchmarks.shapes import SHAPES
from benchmarks.table import megabytes
from benchmarks.worker import Worker

MODELS = {"small": "llama-3m", "100m": "llama-100m"}
SHARES = (70, 50, 35)
# Above any machine's memory, so nothing moves and the counted peak is that of the program itself.
NO_LIMIT = 1 << 46
# The steps that a run with teraio profiles in; a plain run leaves out as many to warm up.
FIRST_STEPS = 2


@dataclass(frozen=True, slots=True)
class Run:
    job: Job
    outcome: Outcome


def job_of(
    options: argparse.Namespace,
    name: str,
    system: str,
    budget_bytes: int | None,
    *,
    in_backward: bool = False,
) -> Job:
    """What the options of ``add_options`` say is to be trained."""
    return Job(
        name=name,
        system=system,
        shape=MODELS[options.params],
        dtype=options.dtype,
        threads=options.threads,
        budget_bytes=budget_bytes,
        ssd=tuple(options.ssd),
        in_backward=in_backward,
    )


def run_job(job: Job, steps: int, on_step: Callable[[], None]) -> Run:
    """Runs ``job`` in a process of its own. Raises RunFailed with its output if that fails."""
    return run_in_turns((job,), steps, on_step)[0]


def run_in_turns(jobs: Sequence[Job], steps: int, on_step: Callable[[], None]) -> list[Run]:
    """Each job in a process of its own, a step at a time. Raises RunFailed with its output if one
    fails."""
    workers: list[Worker] = []
    try:
        for job in jobs:
            workers.append(Worker(job))
            workers[-1].build()
        for step in range(steps):
            for worker in workers if step % 2 else reversed(workers):
                worker.step(step)
                on_step()
        return [Run(worker.job, worker.finish()) for worker in workers]
    finally:
        for worker in workers:
            worker.close()


class Demo:
    """The runs in the order in which they are made: plain first and last, as machines drift."""

    def __init__(self, options: argparse.Namespace, progress: Progress) -> None:
        self._options = options
        self._progress = progress
        total = options.steps * (len(SHARES) + 2) + min(options.steps, 4)
        self._bar = progress.add_task("starting", total=total)

    def _run(self, name: str, budget_bytes: int | None, steps: int) -> Run:
        options = self._options
        self._progress.update(self._bar, description=name)
        system = "ideal" if budget_bytes is None else "teraio"
        job = job_of(options, name, system, budget_bytes)
        return run_job(job, steps, lambda: self._progress.advance(self._bar))

    def runs(self) -> tuple[list[Run], Run, list[Run]]:
        """Plain runs, the run without a limit, and those under the budgets."""
        steps = self._options.steps
        before = self._run("plain", None, steps)
        unlimited = self._run("no limit", NO_LIMIT, min(steps, 4))
        peak = unlimited_peak(unlimited)
        limited = [self._run(f"{share} %", peak * share // 100, steps) for share in SHARES]
        after = self._run("plain", None, steps)
        return [before, after], unlimited, limited


def unlimited_peak(run: Run) -> int:
    """The largest peak that teraio counted; 0 without it."""
    return max(run.outcome.teraio.peak_bytes) if run.outcome.teraio else 0


def counted(outcome: Outcome) -> list[int]:
    """The steps that ran under a plan, or after warming up; all if there is none."""
    steps = range(len(outcome.steps))
    if outcome.teraio:
        kept = [step for step in steps if outcome.teraio.planned[step]]
    else:
        kept = [step for step in steps if step >= FIRST_STEPS]
    return kept or list(steps)


def step_seconds(outcome: Outcome) -> float:
    return statistics.median(outcome.steps[step].wall_s for step in counted(outcome))


def run_median(outcome: Outcome, figure: str) -> float | None:
    """The median of one of teraio's own figures; None without teraio."""
    if outcome.teraio is None:
        return None
    values: tuple[float, ...] = getattr(outcome.teraio, figure)
    return statistics.median(values[step] for step in counted(outcome))


def equal(run: Run, plain: Run) -> bool:
    """Losses bit for bit over the steps that both made; the parameters where they made as many."""
    ours, theirs = run.outcome, plain.outcome
    if same_length(run, plain) and ours.parameters_sha256 != theirs.parameters_sha256:
        return False
    return all(a.hex() == b.hex() for a, b in zip(ours.losses, theirs.losses, strict=False))


def within_budget(run: Run) -> bool:
    budget = run.job.budget_bytes
    return budget is None or unlimited_peak(run) <= budget


def wrong_runs(runs: Sequence[Run]) -> list[str]:
    """What is wrong with runs that should all have the numbers of the first."""
    return [
        *(f"{run.job.name}: other numbers" for run in runs if not equal(run, runs[0])),
        *(f"{run.job.name}: over its budget" for run in runs if not within_budget(run)),
    ]


def seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def column(run: Run, plain: Run, step_s: float, ideal_s: float) -> dict[str, str]:
    """One run as lines of the table."""
    job, outcome = run.job, run.outcome
    limited = job.budget_bytes is not None and job.budget_bytes < NO_LIMIT
    drift = run_median(outcome, "drift_ops")
    figures = outcome.teraio
    return {
        "budget, MB": megabytes(job.budget_bytes) if limited else "none",
        "first loss": f"{outcome.losses[0]:.6f}",
        f"loss at step {len(plain.outcome.losses)}": (
            f"{outcome.losses[-1]:.6f}" if same_length(run, plain) else ""
        ),
        "equal to plain": "" if run is plain else "yes" if equal(run, plain) else "NO",
        "peak counted, MB": megabytes(unlimited_peak(run) if figures else None),
        "RSS growth, MB": megabytes(outcome.host_peak_bytes),
        "s per step": seconds(step_s),
        "of ideal speed": f"{ideal_s / step_s:.0%}",
        "predicted, s": seconds(figures.predicted_s) if figures and limited else "",
        "least possible, s": seconds(figures.bound_s) if figures and limited else "",
        "stall, s": seconds(run_median(outcome, "stall_s")),
        "read, MB": megabytes(run_median(outcome, "read_bytes")),
        "written, MB": megabytes(run_median(outcome, "written_bytes")),
        "drift ops": "" if drift is None else f"{drift:.0f}",
    }


def table(plains: list[Run], unlimited: Run, limited: list[Run]) -> Table:
    plain = plains[0]
    ideal_s = ideal_seconds(plains)
    others = [unlimited, *limited]
    columns = [
        column(plain, plain, ideal_s, ideal_s),
        *(column(run, plain, step_seconds(run.outcome), ideal_s) for run in others),
    ]
    result = Table(title="One training run without teraio and under memory budgets")
    result.add_column("per step", no_wrap=True)
    for run in (plain, *others):
        result.add_column(run.job.name, justify="right", no_wrap=True)
    for line in columns[0]:
        result.add_row(line, *(lines[line] for lines in columns))
    return result


def same_length(run: Run, other: Run) -> bool:
    return len(run.outcome.losses) == len(other.outcome.losses)


def ideal_seconds(plains: list[Run]) -> float:
    return statistics.median(step_seconds(run.outcome) for run in plains)


def failures(plains: list[Run], unlimited: Run, limited: list[Run]) -> list[str]:
    others = [*plains[1:], unlimited, *limited]
    wrong = [f"{run.job.name}: other numbers" for run in others if not equal(run, plains[0])]
    over = [
        f"{run.job.name}: peak of {unlimited_peak(run):,} bytes, budget {run.job.budget_bytes:,}"
        for run in limited
        if not within_budget(run)
    ]
    return wrong + over


def add_options(
    parser: argparse.ArgumentParser, dtypes: Sequence[str] = ("fp32", "bf16"), params: str = "100m"
) -> None:
    """What to train, for how long and where to."""
    parser.add_argument("--params", choices=sorted(MODELS), default=params)
    parser.add_argument("--dtype", choices=dtypes, default="fp32")
    parser.add_argument(
        "--steps", type=_steps, default=12, help="per run; the first 2 are profiled"
    )
    parser.add_argument("--threads", type=int, default=min(os.cpu_count() or 1, 8))
    parser.add_argument("--ssd", action="append", default=[], metavar="DIR", help="repeatable")


def _steps(text: str) -> int:
    if int(text) < 4:
        raise argparse.ArgumentTypeError("at least 4, as the first 2 are profiled")
    return int(text)


def records(runs: list[Run]) -> list[dict[str, Any]]:
    """All that came of the runs, as plain values."""
    return [{"job": encode(run.job), "outcome": encode(run.outcome)} for run in runs]


def about(run: Run, options: argparse.Namespace) -> str:
    """What was trained, in words."""
    shape = SHAPES[MODELS[options.params]]
    return (
        f"Llama-like model, {run.outcome.parameters / 1e6:.1f} million parameters, "
        f"{options.dtype}, AdamW, {shape.batch} x {shape.sequence} bytes of text per step, "
        f"{options.threads} threads"
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo", description=__doc__)
    add_options(parser)
    parser.add_argument("--json", type=Path, metavar="OUT", help="write all figures to this file")
    options = parser.parse_args(arguments)
    console = Console()
    if not console.is_terminal:
        console = Console(width=100)
    columns = (
        TextColumn("{task.description:>8}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("steps"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        plains, unlimited, limited = Demo(options, progress).runs()
    runs = [*plains, unlimited, *limited]
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(records(runs), indent=1) + "\n", encoding="utf-8")
    console.print(about(plains[0], options))
    console.print(table(plains, unlimited, limited))
    console.print(
        f"Ideal speed: {ideal_seconds(plains):.3f} s per step, the median of both plain runs. "
        "Times are medians over the steps that ran under the plan."
    )
    wrong = failures(plains, unlimited, limited)
    for line in wrong:
        console.print(f"FAILED  {line}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
