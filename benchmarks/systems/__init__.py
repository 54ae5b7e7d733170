"""The systems that are compared: what they are called and where they are.

In: nothing. Out: SYSTEMS, and the function that starts one. Must not know: torch; a system's module
is loaded in the process that runs it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.job import Job
    from benchmarks.systems.training import Training


class Unavailable(Exception):
    """A system can't run here; the message says why."""


@dataclass(frozen=True, slots=True)
class System:
    """``start`` is ``module:function``. ``exact``: it claims the very bits of the ideal run.

    ``from_gpu``: it moves from a GPU to host memory, so without a GPU there is nothing it could do.
    ``in_host``: what it moves rests in host memory, so teraio may use host memory beside it.
    ``environment``: variables that its process has besides those of all.
    """

    title: str
    start: str
    exact: bool = False
    from_gpu: bool = False
    in_host: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)


# glibc by itself gives freed memory back to the system, which fills it with zeros when it is taken
# again: in some models a quarter of a step. Kept, it breaks up, and more of it is needed.
_KEEP_FREED = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(1 << 40)}

SYSTEMS = {
    "ideal": System("plain PyTorch, no limit", "benchmarks.systems.eager:plain", exact=True),
    "keeping": System(
        "plain PyTorch, freed memory kept",
        "benchmarks.systems.eager:plain",
        exact=True,
        environment=_KEEP_FREED,
    ),
    "teraio": System("teraio", "benchmarks.systems.offloaded:teraio", exact=True),
    "swap": System("kernel swap", "benchmarks.systems.eager:plain", exact=True),
    "checkpointing": System(
        "full activation checkpointing", "benchmarks.systems.eager:checkpointing"
    ),
    "save-on-cpu": System(
        "torch save_on_cpu", "benchmarks.systems.eager:save_on_cpu", from_gpu=True, in_host=True
    ),
    "torchao": System(
        "torchao CPUOffloadOptimizer",
        "benchmarks.systems.eager:torchao",
        from_gpu=True,
        in_host=True,
    ),
    "fsdp": System(
        "FSDP2 CPUOffloadPolicy", "benchmarks.systems.sharded:fsdp", from_gpu=True, in_host=True
    ),
    "zero2": System("ZeRO-Offload, ZeRO-2", "benchmarks.systems.zero:zero2", in_host=True),
    "zero3": System("ZeRO-Offload, ZeRO-3", "benchmarks.systems.zero:zero3", in_host=True),
    "infinity-optimizer": System(
        "ZeRO-Infinity, optimizer on NVMe", "benchmarks.systems.zero:infinity_optimizer"
    ),
    "infinity": System(
        "ZeRO-Infinity, optimizer and parameters on NVMe", "benchmarks.systems.zero:infinity"
    ),
    "infinity-small": System(
        "ZeRO-Infinity, its smallest buffers", "benchmarks.systems.zero:infinity_small"
    ),
}


def system_of(name: str) -> System:
    """A system of the table, or one that is named by ``module:function``, which claims nothing."""
    return SYSTEMS[name] if ":" not in name else System(name, name)


def starter(name: str) -> Callable[[Job], Training]:
    """Imports the system's module. Raises Unavailable when something it needs is missing."""
    module, _, function = system_of(name).start.partition(":")
    try:
        return getattr(importlib.import_module(module), function)  # type: ignore[no-any-return]
    except ModuleNotFoundError as error:
        raise Unavailable(f"the package {error.name} is not installed") from error
