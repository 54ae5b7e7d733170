"""Graphs that a program captures itself (``torch.cuda.graph``, ``make_graphed_callables``).

A replay uses the memory that tensors had at the capture, and a run on a device moves tensors. So
during a run no graph is captured or replayed, and after it none that was captured before. In:
PyTorch's classes of graphs. Out: the same, refusing. Must not know: plans, budgets.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch

from teraio.engine.patches import Patches
from teraio.errors import ConfigurationError

_DURING_A_RUN = (
    "CUDA graphs go on using the memory that tensors had as they were captured, but teraio moves "
    "tensors. During a run, call what would be captured; after teraio.restore(model) graphs can be "
    "captured and replayed."
)
_ACROSS_A_RUN = (
    "This graph was captured before a run of teraio's that has moved tensors: it would read and "
    "write where they were. Capture it again; torch.compiler.reset() drops those of torch.compile."
)


class CapturedGraphs:
    """Those of classes with the methods ``capture_begin`` and ``replay``.

    What a run has moved stays elsewhere, so from the first run on they are watched for good.
    """

    def __init__(self, *kinds: type) -> None:
        self._kinds = kinds
        self._patches = Patches()
        self._running = False
        self._usable: weakref.WeakSet[Any] = weakref.WeakSet()  # captured since the last run

    def run_begins(self) -> None:
        """From now on nothing is captured or replayed."""
        self._running = True
        self._usable.clear()
        if not self._patches:
            for kind in self._kinds:
                self._patches.replace(kind, "capture_begin", self._capture)
                self._patches.replace(kind, "replay", self._replay)

    def run_ends(self) -> None:
        """What is captured from now on can be replayed."""
        self._running = False

    def _capture(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def capture_begin(graph: Any, *args: Any, **kwargs: Any) -> Any:
            if self._running:
                raise ConfigurationError(_DURING_A_RUN)
            result = original(graph, *args, **kwargs)
            self._usable.add(graph)
            return result

        return capture_begin

    def _replay(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def replay(graph: Any) -> Any:
            if self._running:
                raise ConfigurationError(_DURING_A_RUN)
            if graph not in self._usable:
                raise ConfigurationError(_ACROSS_A_RUN)
            return original(graph)

        return replay


def _kinds_of_pytorch() -> list[type]:
    places = ((torch.cuda, "CUDAGraph"), (torch.xpu, "XPUGraph"), (torch.accelerator, "Graph"))
    return [vars(module)[name] for module, name in places if name in vars(module)]


captured_graphs = CapturedGraphs(*_kinds_of_pytorch())
