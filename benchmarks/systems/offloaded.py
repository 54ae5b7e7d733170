"""teraio around the ordinary loop.

In: a Job with a budget. Out: a Training. Must not know: other systems than the ordinary loop.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch

import teraio as library
from benchmarks.job import Job, TeraioFigures
from benchmarks.models import build_model
from benchmarks.shapes import SHAPES
from benchmarks.systems import Unavailable
from benchmarks.systems.eager import Eager, MasterAdamW, Optimizer, new_optimizer
from benchmarks.systems.training import Training, digest_of
from teraio.files import save


class Offloaded(Eager):
    def __init__(
        self, model: torch.nn.Module, optimizer: Optimizer, report: str | None = None
    ) -> None:
        super().__init__(model, optimizer)
        self._report = report
        # teraio knows the end of an iteration by an optimizer that has the model's parameters;
        # one with master weights has its own.
        self._marked = isinstance(optimizer, MasterAdamW)

    def step(self, tokens: torch.Tensor) -> float:
        with library.iteration(self.model) if self._marked else nullcontext():
            return super().step(tokens)

    def digest(self) -> str | None:
        return digest_of(self.model, library.resident)

    def figures(self) -> TeraioFigures | None:
        report = library.report(self.model)
        if self._report is not None:
            save(report, self._report)
        steps = report.steps
        return TeraioFigures(
            planned=tuple(step.phase == "run" for step in steps),
            peak_bytes=tuple(step.peak_bytes for step in steps),
            read_bytes=tuple(step.read_bytes for step in steps),
            written_bytes=tuple(step.written_bytes for step in steps),
            stall_s=tuple(step.stall_s for step in steps),
            drift_ops=tuple(step.drift_ops for step in steps),
            ops=tuple(step.ops for step in steps),
            predicted_s=report.predicted_s,
            ideal_s=report.ideal_s,
            bound_s=report.bound_s,
        )


def teraio(job: Job) -> Training:
    # A model larger than the limit never is on the device as a whole.
    model = build_model(SHAPES[job.shape], job.dtype, "cpu", source=job.device)
    settings: dict[str, object] = {
        "device": job.device,
        "memory_budget": job.budget_bytes,
        "ssd": list(job.ssd) or None,
        "optimizer_in_backward": job.in_backward,
    }
    if job.host_bytes:
        settings["host_memory"] = job.host_bytes
    try:
        library.offload(model, **settings)  # type: ignore[arg-type]
    except library.ConfigurationError as error:
        raise Unavailable(str(error)) from error
    return Offloaded(model, new_optimizer(model, job.dtype), job.report)
