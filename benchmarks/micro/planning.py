"""How long planning takes, and how close plans come to the bound.

In: options. Out: times and memory. Must not know: torch; each case has its own process, so that its
memory is its own.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace

from benchmarks.micro.findings import Findings
from benchmarks.table import Table, table
from benchmarks.worker import ROOT

OPS = (10_000, 30_000, 95_000, 250_000, 1_000_000)
OPS_PER_LAYER = 122


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A made-up transformer of about ``ops`` ops, or a trace and a hardware from files.

    ``share`` is the budget as a part of the peak without one.
    """

    ops: int
    share: float
    trace: str = ""
    hardware: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """``cpu_s`` is processor time; memory is that of the whole process, the trace included."""

    case: Case
    ops: int
    storages: int
    moves: int
    cpu_s: float
    memory_bytes: int
    ideal_s: float
    bound_s: float
    predicted_s: float


def plan_case(case: Case) -> Result:
    from teraio import files
    from teraio.planner import live_by_op, plan
    from teraio.records import Hardware, Trace
    from tests.unit import traces

    if case.trace:
        trace, hardware = files.load(case.trace, Trace), files.load(case.hardware, Hardware)
    else:
        layers = max(1, round(case.ops / OPS_PER_LAYER))
        # So little time that the SSD is the limit at a half of the memory and less.
        trace = traces.transformer_trace(
            layers=layers, hidden=256, ffn=512, tokens=4096, ideal_s=0.02 * layers
        )
        hardware = traces.hardware(0, replace(traces.SSD, capacity_bytes=1 << 45))
    budget = int(int(live_by_op(trace).max()) * case.share)
    begin = time.process_time()
    made = plan(trace, replace(hardware, budget_bytes=budget))
    cpu_s = time.process_time() - begin
    return Result(
        case=case,
        ops=len(trace.ops),
        storages=len(trace.storages),
        moves=len(made.moves),
        cpu_s=cpu_s,
        memory_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        ideal_s=made.ideal_s,
        bound_s=made.bound_s,
        predicted_s=made.predicted_s,
    )


def run_apart(case: Case) -> Result:
    """The result of ``case``, run in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.micro.planning", json.dumps(asdict(case))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"planning {case} failed:\n{done.stderr[-4000:]}")
    fields = json.loads(done.stdout)
    return Result(**{**fields, "case": Case(**fields["case"])})


def _shown(results: list[Result]) -> Table:
    heads = (
        "ops", "storages", "budget", "moves", "CPU s", "us / (n log2 n)", "memory, MB",
        "ideal, s", "bound, s", "predicted, s", "of bound",
    )  # fmt: skip
    return table("Planning", heads, [_row(result) for result in results], words=0)


def _row(result: Result) -> tuple[str, ...]:
    per_op = result.cpu_s * 1e6 / (result.ops * math.log2(max(2, result.ops)))
    return (
        f"{result.ops:,}",
        f"{result.storages:,}",
        f"{result.case.share:.0%}",
        f"{result.moves:,}",
        f"{result.cpu_s:.2f}",
        f"{per_op:.2f}",
        f"{result.memory_bytes / 1e6:,.0f}",
        f"{result.ideal_s:.3f}",
        f"{result.bound_s:.3f}",
        f"{result.predicted_s:.3f}",
        f"{result.predicted_s / result.bound_s:.3f}",
    )


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--ops", type=int, nargs="+", default=list(OPS))
    parser.add_argument("--share", type=float, nargs="+", default=[0.5, 0.35])
    parser.add_argument(
        "--files",
        nargs=2,
        metavar=("TRACE", "HARDWARE"),
        help="the files of a trace and of its hardware, in place of made-up ones",
    )


def run(options: argparse.Namespace) -> Findings:
    trace, hardware = options.files or ("", "")
    sizes = [0] if options.files else options.ops
    results = [
        run_apart(Case(ops=ops, share=share, trace=trace, hardware=hardware))
        for ops in sizes
        for share in options.share
    ]
    return Findings(tables=(_shown(results),), figures=[asdict(result) for result in results])


if __name__ == "__main__":  # the process of one case
    print(json.dumps(asdict(plan_case(Case(**json.loads(sys.argv[1]))))))
