"""What if: plans for machines that are not here.

In: names of models and machines. Out: the functions below, each loaded when it is first used, so
that presets answer without torch. Must not know: torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from teraio.whatif.configurations import load_config, model_names
    from teraio.whatif.presets import accelerator, accelerators, drives, hardware
    from teraio.whatif.tracing import trace_iteration
    from teraio.whatif.training import Job, trace_config

_MODULE_OF = {
    "Job": "training",
    "accelerator": "presets",
    "accelerators": "presets",
    "drives": "presets",
    "hardware": "presets",
    "load_config": "configurations",
    "model_names": "configurations",
    "trace_config": "training",
    "trace_iteration": "tracing",
}

__all__ = [
    "Job",
    "accelerator",
    "accelerators",
    "drives",
    "hardware",
    "load_config",
    "model_names",
    "trace_config",
    "trace_iteration",
]


def __getattr__(name: str) -> object:
    module = _MODULE_OF.get(name)
    if module is None:
        raise AttributeError(f"module 'teraio.whatif' has no attribute {name!r}")
    return getattr(import_module(f"teraio.whatif.{module}"), name)
