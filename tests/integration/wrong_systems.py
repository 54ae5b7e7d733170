"""Systems that do what no system should: other numbers, and more memory than allowed.

In: a Job. Out: a Training. Must not know: how they are found out.
"""

from __future__ import annotations

import torch

from benchmarks.job import Job
from benchmarks.models import LEARNING_RATE, build_model
from benchmarks.shapes import SHAPES
from benchmarks.systems.eager import Eager, plain
from benchmarks.systems.training import Training

_HOARD_BYTES = 64 << 20


def altered(job: Job) -> Training:
    """Trains with another learning rate."""
    model = build_model(SHAPES[job.shape], job.dtype, job.device)
    return Eager(model, torch.optim.AdamW(model.parameters(), lr=1.1 * LEARNING_RATE))


def greedy(job: Job) -> Training:
    """Trains as it should and holds memory that it does not need."""
    training = plain(job)
    training.hoard = torch.ones(_HOARD_BYTES, dtype=torch.uint8)  # type: ignore[attr-defined]
    return training


def crashing(job: Job) -> Training:
    raise RuntimeError("out of luck")
