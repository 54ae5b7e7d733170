"""Compares simulated speeds of training with published, measured ones.

In: nothing. Out: tokens per second of both. Must not know: how the times are simulated.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass, replace

from benchmarks.micro.findings import Findings
from benchmarks.table import table
from teraio.whatif import Job, accelerator, trace_config
from teraio.whatif.presets import Accelerator

TORCHTITAN = "https://github.com/pytorch/torchtitan/blob/main/docs/performance.md"
# The H100s of torchtitan's figures: 96 GB of HBM2e at 2.4 TB/s, at 500 W instead of 700.
SLOW_MEMORY_H100 = replace(
    accelerator("h100-sxm"), name="NVIDIA H100 96GB HBM2e", memory_bytes_per_s=2.4e12
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """Measured tokens per second of one GPU. ``recomputed``: all layers, or a choice of ops."""

    model: str
    device: Accelerator
    batch: int
    sequence: int
    recomputed: str
    tokens_per_s: float
    setting: str
    source: str


CASES = (
    Published(
        model="llama3-8b",
        device=accelerator("a100-80gb"),
        batch=1,
        sequence=8192,
        recomputed="a choice",
        tokens_per_s=2973,
        setting="64 GPUs, FSDP2",
        source=TORCHTITAN,
    ),
    Published(
        model="llama3-70b",
        device=accelerator("a100-80gb"),
        batch=1,
        sequence=8192,
        recomputed="all",
        tokens_per_s=331,
        setting="64 GPUs, FSDP2",
        source=TORCHTITAN,
    ),
    Published(
        model="llama3-8b",
        device=SLOW_MEMORY_H100,
        batch=2,
        sequence=8192,
        recomputed="a choice",
        tokens_per_s=5762,
        setting="8 GPUs, FSDP2, 500 W",
        source=TORCHTITAN,
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulated:
    """Tokens per second of forward and backward, with nothing and with all layers recomputed."""

    kept_tokens_per_s: float
    recomputed_tokens_per_s: float


def simulate(case: Published) -> Simulated:
    """The optimizer is left out: FSDP spreads it over all GPUs."""

    def tokens_per_s(checkpointing: bool) -> float:
        job = Job(batch=case.batch, sequence=case.sequence, checkpointing=checkpointing)
        trace = trace_config(case.model, job, accelerator=case.device)
        took_ns = sum(op.duration_ns for op in trace.ops if op.phase != "optimizer")
        return 1e9 * case.batch * case.sequence / took_ns

    return Simulated(
        kept_tokens_per_s=tokens_per_s(False), recomputed_tokens_per_s=tokens_per_s(True)
    )


def add_options(parser: argparse.ArgumentParser) -> None:
    """There are none."""


def run(options: argparse.Namespace) -> Findings:
    results = [(case, simulate(case)) for case in CASES]
    shown = table(
        "Tokens per second and GPU: simulated, and measured by others",
        (
            *("model, GPU", "tokens", "setting", "recomputed"),
            *("measured", "simulated: all recomputed", "nothing"),
        ),
        [_row(case, ours) for case, ours in results],
        words=4,
    )
    figures = [{"published": asdict(case), "simulated": asdict(ours)} for case, ours in results]
    return Findings(tables=(shown,), figures=figures)


def _row(case: Published, ours: Simulated) -> tuple[str, ...]:
    return (
        f"{case.model}, {case.device.name}",
        f"{case.batch} x {case.sequence}",
        case.setting,
        case.recomputed,
        f"{case.tokens_per_s:,.0f}",
        f"{ours.recomputed_tokens_per_s:,.0f}",
        f"{ours.kept_tokens_per_s:,.0f}",
    )
