"""How long planning takes, and how close plans come to the bound.

In: the command line. Out: a table, JSON on request. Must not know: torch; each case has its own
process, so that its memory is its own.

``python -m benchmarks.planning [--ops N ...] [--share S ...] [--trace FILE --hardware FILE]``
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
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
OPS = (10_000, 30_000, 100_000, 250_000, 1_000_000)
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


def run(case: Case) -> Result:
    from teraio import files
    from teraio.planner import live_by_op, plan
    from teraio.records import Hardware, Trace
    from tests.unit import traces

    if case.trace:
        trace, hardware = files.load(case.trace, Trace), files.load(case.hardware, Hardware)
    else:
        layers = max(1, round(case.ops / OPS_PER_LAYER))
        # So much time that budgets of a third make the SSD the limit in parts of the iteration.
        trace = traces.transformer_trace(
            layers=layers, hidden=256, ffn=512, tokens=4096, ideal_s=0.045 * layers
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
    command = [sys.executable, "-m", "benchmarks.planning", "--case", json.dumps(asdict(case))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"planning {case} failed:\n{done.stderr[-4000:]}")
    fields = json.loads(done.stdout)
    return Result(**{**fields, "case": Case(**fields["case"])})


def table(results: list[Result]) -> Table:
    found = Table(title="Planning")
    for name in (
        "ops", "storages", "budget", "moves", "CPU s", "us / (n log2 n)", "memory, MB",
        "ideal, s", "bound, s", "predicted, s", "of bound",
    ):  # fmt: skip
        found.add_column(name, justify="right")
    for result in results:
        per_op = result.cpu_s * 1e6 / (result.ops * math.log2(max(2, result.ops)))
        found.add_row(
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
    return found


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.planning", description=__doc__)
    parser.add_argument("--ops", type=int, nargs="*", default=list(OPS))
    parser.add_argument("--share", type=float, nargs="*", default=[0.5, 0.35])
    parser.add_argument("--trace", default="", help="a trace file, in place of made-up traces")
    parser.add_argument("--hardware", default="", help="the hardware file that goes with it")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write all figures to this file")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if bool(options.trace) != bool(options.hardware):
        parser.error("--trace and --hardware go together")
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    if options.case:
        print(json.dumps(asdict(run(Case(**json.loads(options.case))))))
        return 0
    sizes = [0] if options.trace else options.ops
    results = [
        run_apart(Case(ops=ops, share=share, trace=options.trace, hardware=options.hardware))
        for ops in sizes
        for share in options.share
    ]
    console = Console()
    console = console if console.is_terminal else Console(width=120)
    console.print(table(results))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps([asdict(r) for r in results], indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
