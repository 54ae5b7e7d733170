"""What plans predict beside what is measured: time, stall and peak memory under shrinking budgets.

In: options. Out: figures of each run; a failure if one gave other numbers than the first or held
more memory than its budget. Must not know: torch; each run has its own process.

Predicted times come from the plan that a run ended with, measured ones are medians of the steps
that ran under one. Of what is left between them, stall says how much was waiting for data; the rest
are ops that ran slower or faster than when they were profiled.
"""

from __future__ import annotations

import argparse

from rich.console import Console
from rich.progress import Progress

from benchmarks import demo
from benchmarks.demo import (
    NO_LIMIT,
    Run,
    about,
    job_of,
    records,
    run_job,
    run_median,
    seconds,
    step_seconds,
    unlimited_peak,
    wrong_runs,
)
from benchmarks.micro.findings import Findings
from benchmarks.table import Table, megabytes, table

_SHARES = (80, 65, 50, 35)


def add_options(parser: argparse.ArgumentParser) -> None:
    demo.add_options(parser)
    parser.add_argument(
        "--share",
        type=int,
        nargs="+",
        default=list(_SHARES),
        metavar="PERCENT",
        help="budgets, of the peak that the run takes without one",
    )


def run(options: argparse.Namespace) -> Findings:
    with Progress(console=Console(stderr=True)) as progress:
        bar = progress.add_task("steps", total=options.steps * (1 + len(options.share)))

        def ran(name: str, budget_bytes: int) -> Run:
            job = job_of(options, name, "teraio", budget_bytes)
            return run_job(job, options.steps, lambda: progress.advance(bar))

        runs = [ran("no limit", NO_LIMIT)]
        peak = unlimited_peak(runs[0])
        runs += [ran(f"{share} %", peak * share // 100) for share in options.share]
    return Findings(
        tables=(_shown(runs),),
        figures=records(runs),
        notes=(about(runs[0], options),),
        failures=tuple(wrong_runs(runs)),
    )


def _shown(runs: list[Run]) -> Table:
    return table(
        "Predicted against measured",
        (
            "budget", "budget, MB", "peak, MB", "ideal, s", "bound, s", "predicted, s",
            "measured, s", "predicted/measured", "of bound", "stall, s", "drift ops",
        ),
        [_row(run) for run in runs],
    )  # fmt: skip


def _row(run: Run) -> tuple[str, ...]:
    figures, limited = run.outcome.teraio, run.job.budget_bytes != NO_LIMIT
    measured_s = step_seconds(run.outcome)
    predicted_s = figures.predicted_s if figures else None
    bound_s = figures.bound_s if figures else None
    return (
        run.job.name,
        megabytes(run.job.budget_bytes) if limited else "",
        megabytes(unlimited_peak(run)),
        seconds(figures.ideal_s if figures else None),
        seconds(bound_s),
        seconds(predicted_s),
        seconds(measured_s),
        "" if predicted_s is None else f"{predicted_s / measured_s:.0%}",
        "" if bound_s is None else f"{bound_s / measured_s:.0%}",
        seconds(run_median(run.outcome, "stall_s")),
        f"{run_median(run.outcome, 'drift_ops') or 0:.0f}",
    )
