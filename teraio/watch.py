"""Profiles a program that knows nothing of teraio: finds the models that it trains by itself.

In: a budget, folders, how many iterations. Out: the Trace of one iteration. Must not know: plans,
files, how the program is started.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn.modules.module import (
    register_module_forward_pre_hook,
    register_module_module_registration_hook,
)

from teraio.engine.devices import device_of
from teraio.engine.materialize import without_shape
from teraio.errors import ConfigurationError
from teraio.records import RunReport, Trace
from teraio.runtime import Runtime

Modules = weakref.WeakKeyDictionary[torch.nn.Module, "weakref.ref[torch.nn.Module]"]


class Stopped(BaseException):
    """Ends the program once its trace is recorded. No error, so ``except Exception`` lets it by."""


class Watch:
    """Counts all memory from its creation on, and profiles each model from its first call on."""

    def __init__(
        self,
        *,
        budget_bytes: int,
        folders: Sequence[Path],
        iterations: int,
        stop: bool,
    ) -> None:
        self._stop = stop
        self._parents: Modules = weakref.WeakKeyDictionary()
        self.runtime = Runtime(
            budget_bytes=budget_bytes,
            folders=folders,
            spill_bytes=0,
            profile_iterations=iterations,
            device="cpu",
            on_trace=self._trace_is_there,
            ends_with_models=False,  # one may be tried and dropped before another is trained
        )
        self._hooks = [
            register_module_module_registration_hook(self._note_parent),
            register_module_forward_pre_hook(self._before_forward),
        ]

    @property
    def trace(self) -> Trace | None:
        """What one iteration does with memory; None until it is recorded."""
        return self.runtime.trace

    def report(self) -> RunReport:
        """The iterations so far."""
        return self.runtime.report()

    def close(self) -> None:
        """Everything is back in memory and as if nothing had been watched."""
        self._remove_hooks()
        self.runtime.close()

    def _remove_hooks(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _trace_is_there(self) -> None:
        self._remove_hooks()
        if self._stop:
            raise Stopped

    def _note_parent(
        self, parent: torch.nn.Module, _name: str, child: torch.nn.Module | None
    ) -> None:
        if child is not None:
            self._parents[child] = weakref.ref(parent)

    def _before_forward(self, module: torch.nn.Module, _args: Any) -> None:
        if self.runtime.knows_module(module):
            return
        root = self._root(module)
        if not any(True for _ in root.parameters()) or self.runtime.has_model(root):
            return
        if without_shape(root):
            return  # its first call is to give them one
        if device_of(root).type != "cpu":
            raise ConfigurationError(
                f"the model is on {device_of(root)}; profiling a program watches the CPU's memory. "
                "Call teraio.offload(model) in it, and save the trace of teraio.report(model)."
            )
        self.runtime.add_model(root)

    def _root(self, module: torch.nn.Module) -> torch.nn.Module:
        """The outermost module that holds ``module``: a program may call parts of its model."""
        seen = {id(module)}
        while reference := self._parents.get(module):
            parent = reference()
            if parent is None or id(parent) in seen:
                break
            seen.add(id(parent))
            module = parent
        return module
