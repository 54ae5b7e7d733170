"""What every system gives the process that runs it.

In: a batch. Out: the loss of a whole training step. Must not know: how it is timed.
"""

from __future__ import annotations

import hashlib
from contextlib import nullcontext

import torch

from benchmarks.job import TeraioFigures
from benchmarks.models import Hold


class Training:
    """One model in training. A step is forward, backward, optimizer and clearing of gradients."""

    def step(self, tokens: torch.Tensor) -> float:
        """The loss before the step's update; all its work is done when it returns."""
        raise NotImplementedError

    def parameters(self) -> int:
        """How many the model has."""
        raise NotImplementedError

    def digest(self) -> str | None:
        """SHA-256 of all parameters; None where there is no cheap way to them."""
        return None

    def figures(self) -> TeraioFigures | None:
        return None

    def close(self) -> None:
        """Gives back what the end of the process would not."""


def digest_of(model: torch.nn.Module, hold: Hold | None = None) -> str:
    """SHA-256 of names and bytes; ``hold`` keeps a parameter in memory meanwhile."""
    result = hashlib.sha256()
    for name, parameter in model.named_parameters():
        result.update(name.encode())
        with (hold or nullcontext)(parameter):
            values = parameter.detach().cpu().contiguous().view(-1).view(torch.uint8)
            result.update(values.numpy().tobytes())
    return result.hexdigest()
