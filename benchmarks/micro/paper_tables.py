"""The tables of the TERAIO paper (arXiv 2506.06472) in simulation, beside its figures.

In: options. Out: tables and their figures. Must not know: how traces and plans are made.

Two H100 NVL with 16 GB/s of SSDs each, AdamW: what one of them does, as a shard
of tensor parallelism or as a stage of a pipeline. First in FP32, as in the paper; then in BF16 with
FP32 master weights. No recomputation, as in the paper, but for columns that say so.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cache, lru_cache
from itertools import pairwise

from rich.console import Console

from benchmarks.micro.findings import Findings
from benchmarks.micro.trace_anatomy import PERIODS_S, SIZES, Anatomy, anatomy
from benchmarks.table import Table, table
from teraio.errors import BudgetError
from teraio.planner import plan
from teraio.records import PlanOptions, Trace
from teraio.whatif import Job, hardware, trace_config
from teraio.whatif.training import Precision

GPU = "h100-nvl"
GPUS = 2
# Four drives each, which reach 16 GB/s each way together.
SSDS, SSD_BYTES_PER_S = 4, 16e9
# Bytes/s of a GPU's SSDs each way, and its host memory: of 1.5 TB for both, or what the paper says
# is enough for Llama3-8B, with all drives or with two.
SETTINGS = {
    "SSDs": (SSD_BYTES_PER_S, 0),
    "+ 64 GB": (SSD_BYTES_PER_S, 64 * 10**9),
    "+ 750 GB": (SSD_BYTES_PER_S, 750 * 10**9),
    "half the SSDs + 64 GB": (SSD_BYTES_PER_S / 2, 64 * 10**9),
}
# Where results of cheap ops may be made again as well.
RECOMPUTING = ("SSDs", "+ 64 GB")
SWEEP_BYTES_PER_S = (4e9, 8e9, 16e9, 32e9, 64e9)
# The link of an H100 NVL carries about 50 GB/s, so 64 GB/s are more than one can use.

PAPER_SHARES = {"llama3-70b": 0.597}
PAPER_MEAN_SHARE = 0.807
PAPER_ACTIVE_SHARE = 0.017


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One model on the two GPUs. ``split``: "tensor" or "pipeline"."""

    model: str
    batch: int
    sequence: int
    precision: Precision = "fp32"
    split: str = "tensor"

    def jobs(self) -> tuple[Job, ...]:
        """What each kind of GPU does; tensor parallelism has one kind."""
        common = {"batch": self.batch, "sequence": self.sequence, "precision": self.precision}
        if self.split == "tensor":
            return (Job(**common, shards=GPUS),)  # type: ignore[arg-type]
        return tuple(Job(**common, stage=(i, GPUS)) for i in range(GPUS))  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Seconds per iteration of the slowest GPU; predicted 0 where no plan was found."""

    ideal_s: float
    bound_s: float
    predicted_s: float
    peak_bytes: int
    written_bytes: int
    plan_wall_s: float
    error: str = ""

    @property
    def share(self) -> float:
        """Part of the speed without a memory limit."""
        return self.ideal_s / self.predicted_s if self.predicted_s else 0.0


FP32 = (
    Case(model="llama3-8b", batch=16, sequence=1024),
    Case(model="llama3-8b", batch=16, sequence=2048),
    Case(model="llama3-8b", batch=16, sequence=2048, split="pipeline"),
    Case(model="granite-8b", batch=16, sequence=2048),
    Case(model="llama3-70b", batch=8, sequence=1024),
    Case(model="llama3-70b", batch=16, sequence=1024),
    Case(model="llama3-70b", batch=16, sequence=2048),
    Case(model="llama3-70b", batch=16, sequence=2048, split="pipeline"),
)
TF32 = (
    Case(model="llama3-8b", batch=16, sequence=2048, precision="tf32"),
    Case(model="llama3-70b", batch=16, sequence=2048, precision="tf32"),
)
BF16 = (
    Case(model="llama3-8b", batch=16, sequence=2048, precision="bf16-mixed"),
    Case(model="granite-8b", batch=16, sequence=2048, precision="bf16-mixed"),
    Case(model="llama3-70b", batch=16, sequence=2048, precision="bf16-mixed"),
)
ANATOMY = (FP32[1], FP32[3], FP32[6])
SWEEP = (FP32[1], FP32[6], BF16[0], BF16[2])


@lru_cache(maxsize=2)
def traces(case: Case) -> tuple[Trace, ...]:
    """One trace per kind of GPU."""
    return tuple(trace_config(case.model, job, accelerator=GPU) for job in case.jobs())


@cache
def outcome(
    case: Case, ssd_bytes_per_s: float, host_bytes: int, recompute: bool = False
) -> Outcome:
    """The plan of the slowest GPU."""
    found = [_planned(trace, ssd_bytes_per_s, host_bytes, recompute) for trace in traces(case)]
    return max(found, key=lambda one: (bool(one.error), one.predicted_s))


def _planned(trace: Trace, ssd_bytes_per_s: float, host_bytes: int, recompute: bool) -> Outcome:
    machine = hardware(
        GPU,
        ssds=round(ssd_bytes_per_s / SSD_BYTES_PER_S * SSDS),
        drive="samsung-990-pro-2tb",
        host_bytes=host_bytes,
        ssd_bytes_per_s=ssd_bytes_per_s,
    )
    start = time.perf_counter()
    try:
        made = plan(trace, machine, PlanOptions(recompute=recompute))
    except BudgetError as error:
        return Outcome(
            ideal_s=sum(op.duration_ns for op in trace.ops) * 1e-9,
            bound_s=0.0,
            predicted_s=0.0,
            peak_bytes=0,
            written_bytes=0,
            plan_wall_s=time.perf_counter() - start,
            error=str(error),
        )
    return Outcome(
        ideal_s=made.ideal_s,
        bound_s=made.bound_s,
        predicted_s=made.predicted_s,
        peak_bytes=made.unlimited_peak_bytes,
        written_bytes=made.written_bytes,
        plan_wall_s=time.perf_counter() - start,
    )


# ---------------------------------------------------------------- tables

Rows = list[dict[str, object]]
Say = Callable[[str], None]


def shares(cases: tuple[Case, ...], title: str, say: Say) -> tuple[Table, Rows]:
    """Part of the ideal speed with SSDs alone and with host memory."""
    again = tuple(f"{name}, recomputing" for name in RECOMPUTING)
    heads = (
        *("model", "batch", "split", "arithmetic"),
        *("GB per GPU", "ideal, s", *SETTINGS, "most with SSDs", *again, "paper"),
    )
    lines: list[tuple[str, ...]] = []
    rows: Rows = []
    for case in cases:
        found = {}
        for name, (rate, host_bytes) in SETTINGS.items():
            say(f"{case.model} {case.split} {case.precision} {name}")
            found[name] = outcome(case, rate, host_bytes)
            rows.append(_row(case, rate, host_bytes, found[name]))
        recomputed = []
        for name in RECOMPUTING:
            say(f"{case.model} {case.split} {case.precision} {name}, recomputing")
            recomputed.append(outcome(case, *SETTINGS[name], recompute=True))
            rows.append({**_row(case, *SETTINGS[name], recomputed[-1]), "recompute": True})
        ssd = found["SSDs"]
        lines.append(
            (
                case.model,
                f"{case.batch} x {case.sequence}",
                case.split,
                case.precision,
                f"{ssd.peak_bytes / 1e9:,.0f}",
                f"{ssd.ideal_s:.1f}",
                *(_percent(one) for one in found.values()),
                f"{ssd.ideal_s / ssd.bound_s:.0%}" if ssd.bound_s else "",
                *(_percent(one) for one in recomputed),
                f"{PAPER_SHARES[case.model]:.1%}" if case.model in PAPER_SHARES else "",
            )
        )
    return table(title, heads, lines, words=4), rows


def sweep(say: Say) -> tuple[Table, Rows]:
    """Part of the ideal speed as the SSDs get faster."""
    rates = (f"{rate / 1e9:.0f} GB/s" for rate in SWEEP_BYTES_PER_S)
    lines: list[tuple[str, ...]] = []
    rows: Rows = []
    for case in SWEEP:
        found = []
        for rate in SWEEP_BYTES_PER_S:
            say(f"{case.model} {case.precision} {rate / 1e9:.0f} GB/s")
            found.append(outcome(case, rate, 0))
            rows.append(_row(case, rate, 0, found[-1]))
        lines.append(
            (
                case.model,
                f"{case.batch} x {case.sequence}",
                case.precision,
                *(_percent(one) for one in found),
            )
        )
    title = "Part of the ideal speed by SSD bandwidth per GPU, no host memory"
    return table(title, ("model", "batch", "arithmetic", *rates), lines, words=3), rows


def anatomies(say: Say) -> tuple[Table, Rows]:
    """Active fraction, inactive periods and sizes."""
    columns: list[tuple[Case, Anatomy]] = []
    for case in ANATOMY:
        say(f"{case.model} anatomy")
        columns.append((case, anatomy(traces(case)[0])))
    names = (f"{case.model}, {case.batch} x {case.sequence}" for case, _ in columns)
    lines = [
        (label, *(f"{value:.1%}" for value in values), paper)
        for label, values, paper in _anatomy_lines([found for _, found in columns])
    ]
    shown = table("Storages of one GPU, FP32, tensor parallel", ("", *names, "paper"), lines)
    return shown, [{"case": asdict(case), **asdict(found)} for case, found in columns]


def _anatomy_lines(found: list[Anatomy]) -> Iterator[tuple[str, list[float], str]]:
    paper = f"{PAPER_ACTIVE_SHARE:.1%}"
    yield "active bytes, mean over ops", [one.active_share for one in found], paper
    yield "active bytes, mean over time", [one.active_share_of_time for one in found], ""
    for i, least_s in enumerate(PERIODS_S):
        yield f"inactive for {least_s:g} s or more", [one.longer[i] for one in found], ""
    names = [f"in storages below {SIZES[0] >> 20} MiB"]
    names += [f"... of {a >> 20} to {b >> 20} MiB" for a, b in pairwise(SIZES)]
    names += [f"... of {SIZES[-1] >> 20} MiB or more"]
    for i, name in enumerate(names):
        yield name, [one.by_size[i] for one in found], ""
    for kind in ("parameter", "gradient", "optimizer_state", "activation"):
        yield f"at the peak: {kind}", [one.by_kind.get(kind, 0.0) for one in found], ""


def _row(case: Case, rate: float, host_bytes: int, found: Outcome) -> dict[str, object]:
    return {
        "case": asdict(case),
        "ssd_bytes_per_s": rate,
        "host_bytes": host_bytes,
        "share": found.share,
        **asdict(found),
    }


def _percent(found: Outcome) -> str:
    return "impossible" if found.error else f"{found.share:.1%}"


PARTS: dict[str, Callable[[Say], tuple[Table, Rows]]] = {
    "fp32": lambda say: shares(FP32, "Part of the ideal speed, FP32 as in the paper", say),
    "tf32": lambda say: shares(TF32, "The same with TF32 matrix products", say),
    "bf16": lambda say: shares(BF16, "BF16 mixed precision, FP32 master weights", say),
    "anatomy": anatomies,
    "sweep": sweep,
}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", action="append", choices=list(PARTS), help="repeatable")


def run(options: argparse.Namespace) -> Findings:
    tables, figures = [], {}
    for name in options.only or PARTS:
        with Console(stderr=True).status(name) as status:
            shown, figures[name] = PARTS[name](status.update)
        tables.append(shown)
    return Findings(
        tables=tuple(tables),
        figures={"gpu": GPU, **figures},
        notes=(
            f"The paper's mean over its models is {PAPER_MEAN_SHARE:.1%} of the ideal speed. "
            "Most with SSDs: what the lower bound allows without host memory.",
        ),
    )
