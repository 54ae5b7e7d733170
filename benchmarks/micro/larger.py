"""Training of a model that is larger than the machine's memory.

In: a size, a budget. Out: figures of each step; a failure if a step exceeded its budget. Must not
know: other systems; none can make this run, so there is nothing to compare its losses with.

The model comes from the meta device and is filled within the budget. Parameters are stepped in the
backward pass, so gradients never add up.
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
import torch
from rich.console import Console
from rich.progress import Progress

import teraio
from benchmarks.demo import FIRST_STEPS
from benchmarks.meters import resident_bytes
from benchmarks.micro.findings import Findings
from benchmarks.models import Batches, fill, new_model
from benchmarks.shapes import SHAPES
from benchmarks.systems.eager import new_optimizer
from benchmarks.systems.offloaded import Offloaded
from benchmarks.table import Table, megabytes, table
from teraio.records import RunReport

# Weights, gradients, and AdamW's two states, in fp32.
_BYTES_PER_PARAMETER = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Seconds as the program sees them; memory of the process beyond what it held at first."""

    loss: float
    wall_s: float
    resident_bytes: int
    stall_s: float
    counted_peak_bytes: int
    read_bytes: int
    written_bytes: int


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shape", choices=sorted(SHAPES), default="llama-2b")
    parser.add_argument("--budget", default="6GiB", help="as memory_budget of teraio.offload")
    parser.add_argument("--steps", type=int, default=7, help="the first 2 are profiled")
    parser.add_argument("--threads", type=int, default=min(os.cpu_count() or 1, 8))
    parser.add_argument("--ssd", action="append", default=[], metavar="DIR", help="repeatable")


def run(options: argparse.Namespace) -> Findings:
    torch.set_num_threads(options.threads)
    for folder in options.ssd:
        Path(folder).mkdir(parents=True, exist_ok=True)
    shape = SHAPES[options.shape]
    base = resident_bytes()
    with torch.device("meta"):
        model = new_model(shape)
    begin = time.perf_counter()
    teraio.offload(
        model,
        memory_budget=options.budget,
        ssd=options.ssd or None,
        device="cpu",
        optimizer_in_backward=True,
    )
    fill(model, "cpu", teraio.resident)
    filled_s = time.perf_counter() - begin
    training = Offloaded(model, new_optimizer(model, "fp32"))
    batches = Batches(shape, "cpu")
    steps: list[Step] = []
    with Progress(console=Console(stderr=True)) as progress:
        for number in progress.track(range(options.steps), description="steps"):
            begin = time.perf_counter()
            loss = training.step(batches[number])
            wall_s = time.perf_counter() - begin
            done = teraio.report(model).steps[-1]  # only the latest are kept
            steps.append(
                Step(
                    loss=loss,
                    wall_s=wall_s,
                    resident_bytes=resident_bytes() - base,
                    stall_s=done.stall_s,
                    counted_peak_bytes=done.peak_bytes,
                    read_bytes=done.read_bytes,
                    written_bytes=done.written_bytes,
                )
            )
    report = teraio.report(model)
    limit, memory = report.budget_bytes, psutil.virtual_memory().total
    over = [number for number, step in enumerate(steps) if step.counted_peak_bytes > limit]
    parameters = training.parameters()
    needed = parameters * _BYTES_PER_PARAMETER
    return Findings(
        tables=(_shown(steps, report),),
        figures={
            "parameters": parameters,
            "weights_gradients_states_bytes": needed,
            "memory_bytes": memory,
            "budget_bytes": limit,
            "filled_s": filled_s,
            "unlimited_peak_bytes": report.plan.unlimited_peak_bytes if report.plan else None,
            "ideal_s": report.ideal_s,
            "bound_s": report.bound_s,
            "predicted_s": report.predicted_s,
            "steps": [asdict(step) for step in steps],
        },
        notes=(
            f"{parameters / 1e9:.2f} billion parameters, {shape.batch} x {shape.sequence} tokens, "
            f"fp32: weights, gradients and AdamW's states are {megabytes(needed)} MB; the machine "
            f"has {megabytes(memory)} MB, the budget is "
            f"{megabytes(limit)} MB. Filling the model took {filled_s:.0f} s",
            report.where_time_goes(),
        ),
        failures=tuple(f"step {number} exceeded the budget" for number in over),
    )


def _shown(steps: list[Step], report: RunReport) -> Table:
    def part(number: int, step: Step) -> str:
        if report.ideal_s is None or number < FIRST_STEPS:
            return ""
        return f"{report.ideal_s / step.wall_s:.0%}"

    return table(
        "A model larger than memory",
        (
            "step", "loss", "seconds", "of ideal", "stall, s", "peak counted, MB", "RSS growth, MB",
            "read, MB", "written, MB",
        ),
        [
            (
                str(number),
                f"{step.loss:.6f}",
                f"{step.wall_s:.1f}",
                part(number, step),
                f"{step.stall_s:.2f}",
                megabytes(step.counted_peak_bytes),
                megabytes(step.resident_bytes),
                megabytes(step.read_bytes),
                megabytes(step.written_bytes),
            )
            for number, step in enumerate(steps)
        ],
    )  # fmt: skip
