"""Traces and plans published models on a machine that has neither their GPU nor their memory.

In: options. Out: times, memory and how near each plan is to its bound; a failure where a model took
longer or more memory than it may. Must not know: how traces and plans are made; each model has its
own process.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from dataclasses import asdict, dataclass

from rich.console import Console

from benchmarks.machine import machine_name
from benchmarks.micro.findings import Findings
from benchmarks.table import Table, table
from benchmarks.worker import ROOT
from teraio.whatif import model_names

SHARES = (70, 50, 35)
MOST_SECONDS, MOST_BYTES = 30.0, 4 << 30
BATCH, SEQUENCE = 8, 2048
SSDS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """One plan; ``share`` is the budget in % of the unlimited peak, None: the GPU's memory.

    Times are of the processor, which other programs on the machine don't disturb. ``moving_s`` and
    ``moving_bound_s`` are predicted and bound where no result is made again.
    """

    share: int | None
    budget_bytes: int
    cpu_s: float
    ideal_s: float
    bound_s: float
    predicted_s: float
    read_bytes: int
    written_bytes: int
    moving_s: float = 0.0
    moving_bound_s: float = 0.0
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """``trace_cpu_s`` includes the imports; ``peak_rss_bytes`` is the most of the process."""

    model: str
    gpu: str
    ops: int
    storages: int
    peak_bytes: int
    trace_cpu_s: float
    peak_rss_bytes: int
    plans: tuple[Planned, ...]


def measure(model: str, gpu: str) -> Result:
    """Trace ``model`` and plan it for four budgets, in this process."""
    from teraio.planner import live_by_op
    from teraio.whatif import Job, trace_config

    trace = trace_config(model, Job(batch=BATCH, sequence=SEQUENCE), accelerator=gpu)
    traced = time.process_time()  # since the process began
    peak = int(live_by_op(trace).max())
    plans = tuple(_plan(trace, gpu, share, peak) for share in (None, *SHARES))
    used = resource.getrusage(resource.RUSAGE_SELF)
    return Result(
        model=model,
        gpu=gpu,
        ops=len(trace.ops),
        storages=len(trace.storages),
        peak_bytes=peak,
        trace_cpu_s=traced,
        peak_rss_bytes=used.ru_maxrss * 1024,
        plans=plans,
    )


def _plan(trace: object, gpu: str, share: int | None, peak: int) -> Planned:
    from teraio.errors import BudgetError
    from teraio.planner import plan
    from teraio.records import PlanOptions
    from teraio.whatif import hardware

    budget = None if share is None else peak * share // 100
    machine = hardware(gpu, ssds=SSDS, memory_budget_bytes=budget)
    start = time.process_time()
    try:
        made = plan(trace, machine)  # type: ignore[arg-type]
    except BudgetError as error:
        return Planned(
            share=share,
            budget_bytes=machine.budget_bytes,
            cpu_s=time.process_time() - start,
            ideal_s=0.0,
            bound_s=0.0,
            predicted_s=0.0,
            read_bytes=0,
            written_bytes=0,
            error=str(error),
        )
    cpu_s = time.process_time() - start
    moving = plan(trace, machine, PlanOptions(recompute=False))  # type: ignore[arg-type]
    return Planned(
        share=share,
        budget_bytes=machine.budget_bytes,
        cpu_s=cpu_s,
        ideal_s=made.ideal_s,
        bound_s=made.bound_s,
        predicted_s=made.predicted_s,
        read_bytes=made.read_bytes,
        written_bytes=made.written_bytes,
        moving_s=moving.predicted_s,
        moving_bound_s=moving.bound_s,
    )


def measured_apart(model: str, gpu: str) -> Result:
    """``measure`` in a process of its own. Raises RuntimeError with its output if that fails."""
    command = [sys.executable, "-m", "benchmarks.micro.whatif_models", model, gpu]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{model} failed:\n{done.stderr[-4000:]}")
    fields = json.loads(done.stdout.splitlines()[-1])
    plans = tuple(Planned(**fields_of_plan) for fields_of_plan in fields.pop("plans"))
    return Result(**fields, plans=plans)


def _shown(results: list[Result]) -> Table:
    return table(
        f"Batch {BATCH} x {SEQUENCE}, BF16 with FP32 master weights, AdamW, "
        f"{SSDS} drives: predicted over bound, and what it took here",
        (
            "model",
            *("ops", "GB needed", "trace, CPU s", "slowest plan, CPU s", "RSS, MB"),
            *("GPU's memory", *(f"{share} %" for share in SHARES)),
        ),
        [_row(result) for result in results],
    )


def _row(result: Result) -> tuple[str, ...]:
    return (
        result.model,
        f"{result.ops:,}",
        f"{result.peak_bytes / 1e9:,.0f}",
        f"{result.trace_cpu_s:.1f}",
        f"{max(plan.cpu_s for plan in result.plans):.1f}",
        f"{result.peak_rss_bytes / 1e6:,.0f}",
        *(_nearness(plan) for plan in result.plans),
    )


def _nearness(plan: Planned) -> str:
    if plan.error:
        return "too little"
    return "\n".join(
        f"{seconds / bound_s:.3f} ({plan.ideal_s / seconds:.0%})"
        for seconds, bound_s in (
            (plan.moving_s, plan.moving_bound_s),
            (plan.predicted_s, plan.bound_s),
        )
    )


def failures(results: list[Result]) -> list[str]:
    wrong = []
    for result in results:
        slowest = max(plan.cpu_s for plan in result.plans)
        if result.trace_cpu_s + slowest > MOST_SECONDS:
            wrong.append(
                f"{result.model}: {result.trace_cpu_s:.1f} s to trace, {slowest:.1f} to plan"
            )
        if result.peak_rss_bytes > MOST_BYTES:
            wrong.append(f"{result.model}: {result.peak_rss_bytes / 2**30:.1f} GiB of memory")
    return wrong


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", action="append", choices=model_names(), help="repeatable")
    parser.add_argument("--gpu", default="h100-sxm")


def run(options: argparse.Namespace) -> Findings:
    results = []
    for model in options.model or model_names():
        with Console(stderr=True).status(model):
            results.append(measured_apart(model, options.gpu))
    return Findings(
        tables=(_shown(results),),
        figures=[asdict(result) for result in results],
        notes=(
            "First line: results are only moved; second: they may be made again. In brackets: "
            "part of the speed without a memory limit. "
            f"This machine: {machine_name()}.",
        ),
        failures=tuple(failures(results)),
    )


if __name__ == "__main__":  # the process of one model
    print(json.dumps(asdict(measure(*sys.argv[1:]))))
