"""What the optimizer's step in the backward pass gains: the same training with and without it.

In: options. Out: figures of each run; a failure if one gave other numbers than the first or held
more memory than its budget. Must not know: torch; each run has its own process. The two runs under
one budget make a step each in turns, so that a machine that gets slower does so for both.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

from rich.console import Console
from rich.progress import Progress

from benchmarks import demo
from benchmarks.demo import (
    FIRST_STEPS,
    NO_LIMIT,
    Run,
    about,
    counted,
    equal,
    job_of,
    records,
    run_in_turns,
    run_median,
    seconds,
    step_seconds,
    wrong_runs,
)
from benchmarks.micro.findings import Findings
from benchmarks.table import Table, megabytes, table

SHARES = (50, 35)
WAYS = {"ordinary": False, "in backward": True}


def all_runs(options: argparse.Namespace, on_step: Callable[[], None]) -> list[Run]:
    """Without a limit, then under shares of the peak that the ordinary run took."""

    def pair(limit: str, budget_bytes: int) -> list[Run]:
        jobs = [
            job_of(options, f"{limit}, {name}", "teraio", budget_bytes, in_backward=in_backward)
            for name, in_backward in WAYS.items()
        ]
        return run_in_turns(jobs, options.steps, on_step)

    unlimited = pair("no limit", NO_LIMIT)
    peak = steady_peak(unlimited[0])
    limited = [run for share in SHARES for run in pair(f"{share} %", peak * share // 100)]
    return [*unlimited, *limited]


def steady_peak(run: Run) -> int:
    """The largest peak after the first steps, which are ordinary ones in every run."""
    figures = run.outcome.teraio
    return max(figures.peak_bytes[FIRST_STEPS:]) if figures else 0


def _shown(runs: list[Run]) -> Table:
    columns = [column(run, runs[0]) for run in runs]
    return table(
        "The optimizer's step after and in the backward pass",
        ("per step", *(run.job.name for run in runs)),
        [(line, *(lines[line] for lines in columns)) for line in columns[0]],
    )


def column(run: Run, first: Run) -> dict[str, str]:
    limited = run.job.budget_bytes != NO_LIMIT
    figures, outcome = run.outcome.teraio, run.outcome
    walls = [outcome.steps[step].wall_s for step in counted(outcome)]
    return {
        "budget, MB": megabytes(run.job.budget_bytes) if limited else "none",
        "equal to the first": "yes" if equal(run, first) else "NO",
        "peak counted, MB": megabytes(steady_peak(run)),
        "s per step": seconds(step_seconds(outcome)),
        "least, s": seconds(min(walls)),
        "CPU s per step": seconds(min(outcome.steps[step].cpu_s for step in counted(outcome))),
        "predicted, s": seconds(figures.predicted_s) if figures else "",
        "ideal, s": seconds(figures.ideal_s) if figures else "",
        "stall, s": seconds(run_median(outcome, "stall_s")),
        "read, MB": megabytes(run_median(outcome, "read_bytes")),
        "written, MB": megabytes(run_median(outcome, "written_bytes")),
    }


def add_options(parser: argparse.ArgumentParser) -> None:
    demo.add_options(parser, dtypes=("fp32",))


def run(options: argparse.Namespace) -> Findings:
    with Progress(console=Console(stderr=True)) as progress:
        bar = progress.add_task("steps", total=2 * options.steps * (1 + len(SHARES)))
        runs = all_runs(options, lambda: progress.advance(bar))
    return Findings(
        tables=(_shown(runs),),
        figures=records(runs),
        notes=(f"{about(runs[0], options)}; budgets are shares of the ordinary run's peak",),
        failures=tuple(wrong_runs(runs)),
    )
