"""Graphs that ``torch.compile`` compiled: each call of one is one op of the program.

Inductor's code runs fused kernels on raw memory, which the observer can't see. All that a call
gets must be in memory, so the call is announced as a whole: see [Note: compiled graphs] in
``csrc/observer.h``. In: inductor's modules, once a program has loaded them. Out: their calls,
announced. Must not know: plans, budgets.
"""

from __future__ import annotations

import functools
import itertools
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch

import teraio._C as _C
from teraio.engine.places import NO_MODULE
from teraio.engine.when_loaded import WhenLoaded
from teraio.errors import BudgetError, ConfigurationError

# The native enum GraphKind.
_FORWARD, _BACKWARD, _INFERENCE = range(3)
_KINDS = ("forward", "backward", "inference")
_REMEDY = (
    "All that a compiled graph uses must be in memory at once: compile smaller parts, each layer "
    "by itself (`for layer in model.layers: layer.compile()`)."
)
_NO_CUDA_GRAPHS = (
    'torch.compile(mode="reduce-overhead") and mode="max-autotune" run CUDA graphs, which go on '
    "using the memory that tensors had as they were captured, but teraio moves tensors. Compile "
    'with mode="default" or mode="max-autotune-no-cudagraphs".'
)


class CompiledGraphs:
    """Announces compiled graphs from ``install`` to ``uninstall``, whenever they were compiled.

    Nothing of the compiler is loaded by it: a program that never compiles pays nothing.
    """

    def __init__(self, modules: Mapping[str, int]) -> None:
        """``modules`` are their numbers by what names of their parameters begin with."""
        self.any_called = False
        self._modules = modules
        self._names: dict[int, str] = {}  # by id()
        self._numbers = itertools.count()
        self._originals: list[tuple[type, str, Any]] = []
        self._awaited: list[WhenLoaded] = []

    def install(self) -> None:
        """Every call from now on counts, of graphs compiled before as well."""
        # Forward, backward and inference graphs, compiled just now or found in a cache, all are
        # objects of this class, and callers look its method up at each call.
        self._when_loaded("torch._inductor.output_code", "CompiledFxGraph", "__call__", self._call)
        self._when_loaded(
            "torch._inductor.cudagraph_trees", "CUDAGraphTreeManager", "_run", self._refuse
        )

    def uninstall(self) -> None:
        """Puts the original methods back."""
        for finder in self._awaited:
            finder.give_up()
        self._awaited.clear()
        for owner, method, original in self._originals:
            setattr(owner, method, original)
        self._originals.clear()

    def _when_loaded(
        self, module: str, owner: str, method: str, wrapper: Callable[[Any], Any]
    ) -> None:
        def replace(loaded: ModuleType) -> None:
            cls = getattr(loaded, owner)
            original = getattr(cls, method)
            self._originals.append((cls, method, original))
            setattr(cls, method, functools.wraps(original)(wrapper(original)))

        @contextmanager
        def replace_after(loaded: ModuleType) -> Iterator[None]:
            yield
            replace(loaded)

        if module in sys.modules:
            replace(sys.modules[module])
        else:
            self._awaited.append(WhenLoaded(module, replace_after))

    def _call(self, original: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        def call(graph: Any, inputs: Sequence[Any]) -> Any:
            self.any_called = True
            kind = _kind(graph)
            with explained():
                return _C.run_graph(
                    functools.partial(original, graph),
                    inputs,
                    list((getattr(graph, "constants", None) or {}).values()),
                    self._name(graph, kind),
                    kind,
                    self._module(inputs),  # layers of one kind may share their graph
                    list(getattr(graph, "mutated_input_idxs", range(len(inputs)))),
                    # A backward graph may take over the memory of activations that nobody needs
                    # any more; inductor doesn't count these among the inputs that it mutates.
                    kind == _BACKWARD,
                )

        return call

    def _refuse(self, _original: Any) -> Callable[..., Any]:
        def refuse(*_args: Any, **_kwargs: Any) -> Any:
            raise ConfigurationError(_NO_CUDA_GRAPHS)

        return refuse

    def _name(self, graph: Any, kind: int) -> str:
        key = id(graph)
        name = self._names.get(key)
        if name is None:
            name = self._names[key] = f"compiled::{_KINDS[kind]}_{next(self._numbers)}"
            weakref.finalize(graph, self._names.pop, key, None).atexit = False
        return name

    def _module(self, inputs: Sequence[Any]) -> int:
        """The number of the innermost module that has all parameters among the inputs."""
        names = (_C.name(value) for value in inputs if isinstance(value, torch.Tensor))
        paths = [name.partition(":")[0].split(".")[:-1] for name in names if name]
        if not paths:
            return NO_MODULE
        # What the first and the last in order have in common, those between have as well.
        pairs = zip(min(paths), max(paths), strict=False)
        shared = itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)
        return self._modules.get(".".join(part for part, _ in shared), NO_MODULE)


@contextmanager
def explained() -> Iterator[None]:
    """A BudgetError of a compiled graph says what can be done about it."""
    try:
        yield
    except BudgetError as error:
        if "compiled::" not in str(error):
            raise
        raise BudgetError(f"{str(error).rstrip('.')}. {_REMEDY}") from error


def _kind(graph: Any) -> int:
    kinds = getattr(graph, "fx_kwargs", {})
    if kinds.get("is_backward", True):  # what may be one is treated as one
        return _BACKWARD
    return _INFERENCE if kinds.get("is_inference") else _FORWARD
