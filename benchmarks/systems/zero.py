"""DeepSpeed: ZeRO-Offload with ZeRO-2 and ZeRO-3, and ZeRO-Infinity.

In: a Job. Out: a Training. Must not know: other systems.

What differs from DeepSpeed's defaults, and why: its default ``sub_group_size`` of 1e9 keeps all
states in memory at once, and with its default ``max_live_parameters`` ZeRO-Infinity runs out of
buffers in the first step. So both are set from the model's size. Pinned memory is on with a GPU
only: without one there is no transfer that it would speed up.
"""

from __future__ import annotations

import os
from typing import Any

import torch

from benchmarks.job import Job
from benchmarks.models import (
    BETAS,
    EPSILON,
    LEARNING_RATE,
    WEIGHT_DECAY,
    build_model,
    fill,
    loss_of,
    new_model,
)
from benchmarks.shapes import SHAPES, Shape
from benchmarks.systems import Unavailable
from benchmarks.systems.training import Training
from benchmarks.systems.world import alone

# A launcher's part; DeepSpeed reads all of it when it is imported.
alone()
if torch.cuda.is_available():
    # It can't read some names that an image may list, such as 10.0a; this one is all it needs.
    os.environ["TORCH_CUDA_ARCH_LIST"] = "{}.{}".format(*torch.cuda.get_device_capability())
else:
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

import deepspeed  # noqa: E402
from deepspeed.accelerator import get_accelerator  # noqa: E402
from torch import distributed  # noqa: E402

_NEVER = 10**9
_MANY_BUFFERS = 50
_FEW_BUFFERS = 12
_LIVE_PART_ON_NVME = 12
_AIO = {
    "block_size": 1 << 20,
    "queue_depth": 16,
    "intra_op_parallelism": 2,
    "single_submit": False,
    "overlap_events": True,
}


class Zero(Training):
    def __init__(self, engine: Any, parameters: int) -> None:
        self._engine = engine
        self._parameters = parameters

    def step(self, tokens: torch.Tensor) -> float:
        loss = loss_of(self._engine, tokens)
        self._engine.backward(loss)
        self._engine.step()
        return loss.item()

    def parameters(self) -> int:
        return self._parameters

    def close(self) -> None:
        self._engine.destroy()
        distributed.destroy_process_group()


def zero2(job: Job) -> Training:
    """Optimizer states and gradients on the CPU."""
    return _start(job, {"stage": 2, "offload_optimizer": _cpu(job)})


def zero3(job: Job) -> Training:
    """The same with parameters gathered layer by layer, resting on the CPU."""
    zero = _stage3(SHAPES[job.shape])
    return _start(job, {**zero, "offload_optimizer": _cpu(job), "offload_param": _cpu(job)})


def infinity_optimizer(job: Job) -> Training:
    """Optimizer states on NVMe."""
    return _start(job, {**_stage3(SHAPES[job.shape]), "offload_optimizer": _nvme(job)})


def infinity(job: Job) -> Training:
    """Optimizer states and parameters on NVMe."""
    return _infinity(job, _MANY_BUFFERS)


def infinity_small(job: Job) -> Training:
    """The same with as few and small buffers as it runs with, for the least memory."""
    return _infinity(job, _FEW_BUFFERS)


def _infinity(job: Job, buffers: int) -> Training:
    shape = SHAPES[job.shape]
    parameters = _nvme(job) | {
        "buffer_count": buffers,
        "buffer_size": shape.largest_parameter,
        "max_in_cpu": 0,
    }
    # Parameters fetched ahead failed with "already assigned swap buffer" (0.19.8).
    zero = _stage3(shape, _LIVE_PART_ON_NVME) | {"stage3_prefetch_bucket_size": 0}
    return _start(job, {**zero, "offload_optimizer": _nvme(job), "offload_param": parameters})


def _stage3(shape: Shape, part: int = 3) -> dict[str, Any]:
    """``part``: which part of the parameters may be gathered at once, and lie in one group."""
    live = max(shape.matrix_parameters // part, 2 * shape.largest_parameter)
    return {
        "stage": 3,
        "sub_group_size": max(shape.matrix_parameters // 5, shape.largest_parameter),
        "stage3_max_live_parameters": live,
        "stage3_max_reuse_distance": live,
        "stage3_prefetch_bucket_size": shape.largest_parameter,
        "stage3_param_persistence_threshold": 4 * shape.hidden,
    }


def _cpu(job: Job) -> dict[str, Any]:
    return {"device": "cpu", "pin_memory": job.device == "cuda"}


def _nvme(job: Job) -> dict[str, Any]:
    if len(job.ssd) != 1:
        raise Unavailable(f"swaps to one folder; {len(job.ssd)} were given")
    return {
        "device": "nvme",
        "nvme_path": job.ssd[0],
        "pin_memory": job.device == "cuda",
    }


def _start(job: Job, zero: dict[str, Any]) -> Training:
    shape = SHAPES[job.shape]
    config = {
        "train_micro_batch_size_per_gpu": shape.batch,
        "zero_optimization": {
            "contiguous_gradients": True,
            "overlap_comm": job.device == "cuda",
            "reduce_bucket_size": max(shape.matrix_parameters // 10, shape.largest_parameter),
            **zero,
        },
        "optimizer": {
            "type": "AdamW",
            "params": {
                "lr": LEARNING_RATE,
                "betas": list(BETAS),
                "eps": EPSILON,
                "weight_decay": WEIGHT_DECAY,
            },
        },
        "gradient_clipping": 0.0,
        "steps_per_print": _NEVER,
        "aio": _AIO,
        **({"bf16": {"enabled": True}} if job.dtype == "bf16" else {}),
    }
    deepspeed.init_distributed(dist_backend=get_accelerator().communication_backend_name())
    if zero["stage"] == 3:
        model = _partitioned(shape, config, job.device)
        parameters = sum(one.ds_numel for one in model.parameters())  # type: ignore[attr-defined]
    else:
        model = build_model(shape, job.dtype, job.device)
        parameters = sum(parameter.numel() for parameter in model.parameters())
    engine, *_ = deepspeed.initialize(
        model=model, model_parameters=model.parameters(), config=config
    )
    return Zero(engine, parameters)


def _partitioned(shape: Shape, config: dict[str, Any], device: str) -> torch.nn.Module:
    """Made parameter by parameter where it belongs, so that the whole model is never in memory."""
    # No dtype here: given one, DeepSpeed takes bf16 on the CPU whatever it says.
    with deepspeed.zero.Init(config_dict_or_path=config):
        model = new_model(shape)
    fill(model, device, lambda one: deepspeed.zero.GatheredParameters([one], modifier_rank=0))
    return model


def compile_native_parts() -> None:
    """What DeepSpeed would compile when a run first needs it."""
    for name in ("CPUAdamBuilder", "AsyncIOBuilder"):
        builder = get_accelerator().create_op_builder(name)
        if builder is not None and builder.is_compatible(verbose=False):
            builder.load(verbose=False)


if __name__ == "__main__":
    compile_native_parts()
