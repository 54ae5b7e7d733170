"""FSDP2 with its CPUOffloadPolicy, in a world of one process.

In: a Job. Out: a Training. Must not know: other systems than the ordinary loop.
"""

from __future__ import annotations

import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard

from benchmarks.job import Job
from benchmarks.models import adamw, build_model
from benchmarks.shapes import SHAPES
from benchmarks.systems.eager import Eager
from benchmarks.systems.training import Training
from benchmarks.systems.world import alone


class Sharded(Eager):
    def digest(self) -> str | None:
        return None

    def close(self) -> None:
        distributed.destroy_process_group()


def fsdp(job: Job) -> Training:
    """Every layer is one group; parameters, gradients and states rest in host memory."""
    alone()
    distributed.init_process_group("cpu:gloo,cuda:nccl")
    mesh = init_device_mesh(job.device, (1,))
    # Its own recipe for bf16: sharded weights and the optimizer in fp32, computing in bf16.
    model = build_model(SHAPES[job.shape], "fp32", "cpu", source=job.device)
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if job.dtype == "bf16" else None, reduce_dtype=torch.float32
    )
    layers = next(part for part in model.modules() if isinstance(part, torch.nn.ModuleList))
    for layer in (*layers, model):
        fully_shard(layer, mesh=mesh, mp_policy=policy, offload_policy=CPUOffloadPolicy())
    for buffer in model.buffers():
        buffer.data = buffer.data.to(job.device)
    return Sharded(model, adamw(model.parameters()))
