"""Plain PyTorch in its common forms: as it is, with checkpointing, with parts kept on the host.

In: a Job. Out: a Training. Must not know: other systems.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch

from benchmarks.job import Job
from benchmarks.models import (
    BETAS,
    EPSILON,
    LEARNING_RATE,
    WEIGHT_DECAY,
    adamw,
    build_model,
    loss_of,
)
from benchmarks.shapes import SHAPES
from benchmarks.systems import Unavailable
from benchmarks.systems.training import Training, digest_of


class MasterAdamW:
    """AdamW on fp32 copies of bf16 weights, as mixed-precision training needs it."""

    def __init__(self, parameters: list[torch.nn.Parameter]) -> None:
        self._weights = parameters
        self._masters = [parameter.detach().float().requires_grad_() for parameter in parameters]
        self._inner = adamw(self._masters)

    def step(self) -> None:
        for weight, master in zip(self._weights, self._masters, strict=True):
            if weight.grad is not None:
                master.grad = weight.grad.float()
                weight.grad = None
        self._inner.step()
        self._inner.zero_grad()
        with torch.no_grad():
            for weight, master in zip(self._weights, self._masters, strict=True):
                weight.copy_(master)

    def zero_grad(self) -> None:
        for weight in self._weights:
            weight.grad = None


Optimizer = torch.optim.Optimizer | MasterAdamW


class Eager(Training):
    """The ordinary loop, with a context around forward and backward."""

    def __init__(
        self,
        model: torch.nn.Module,
        optimizer: Optimizer,
        around: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self.model = model
        self._optimizer = optimizer
        self._around = around

    def step(self, tokens: torch.Tensor) -> float:
        with self._around():
            loss = loss_of(self.model, tokens)
            torch.autograd.backward(loss)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return loss.item()

    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.model.parameters())

    def digest(self) -> str | None:
        return digest_of(self.model)


def new_optimizer(model: torch.nn.Module, dtype: str) -> Optimizer:
    parameters = list(model.parameters())
    return MasterAdamW(parameters) if dtype == "bf16" else adamw(parameters)


def plain(job: Job) -> Training:
    model = build_model(SHAPES[job.shape], job.dtype, job.device)
    return Eager(model, new_optimizer(model, job.dtype))


def checkpointing(job: Job) -> Training:
    """Keeps the input of every layer and computes the layer again in the backward pass."""
    model = build_model(SHAPES[job.shape], job.dtype, job.device)
    model.gradient_checkpointing_enable(  # type: ignore[operator]
        gradient_checkpointing_kwargs={"use_reentrant": False}
    )
    return Eager(model, new_optimizer(model, job.dtype))


def save_on_cpu(job: Job) -> Training:
    """Keeps what the backward pass needs in host memory."""
    model = build_model(SHAPES[job.shape], job.dtype, job.device)
    around = torch.autograd.graph.save_on_cpu
    return Eager(model, new_optimizer(model, job.dtype), lambda: around(pin_memory=True))


def torchao(job: Job) -> Training:
    """Optimizer states and gradients in host memory, the optimizer's step on the CPU."""
    if job.dtype != "fp32":
        raise Unavailable("keeps no fp32 master weights")
    from torchao.optim import CPUOffloadOptimizer

    model = build_model(SHAPES[job.shape], job.dtype, job.device)
    optimizer = CPUOffloadOptimizer(
        model.parameters(),
        torch.optim.AdamW,
        offload_gradients=True,
        lr=LEARNING_RATE,
        betas=BETAS,
        eps=EPSILON,
        weight_decay=WEIGHT_DECAY,
    )
    return Eager(model, optimizer)
