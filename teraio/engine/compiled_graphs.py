"""Graphs that ``torch.compile`` compiled: each call of one is one op of the program.

Inductor's code runs fused kernels on raw memory, which the observer can't see. All that a call
gets must be in memory, so the call is announced as a whole: see [Note: compiled graphs] in
``csrc/observer.h``. In: inductor's modules, once a program has loaded them. Out: their calls,
announced. Must not know: plans, budgets.
"""

from __future__ import annotations

import functools
import importlib.util
import itertools
import sys
import weakref
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import teraio._C as _C
from teraio.errors import BudgetError, ConfigurationError

_REMEDY = (
    "All that a compiled graph uses must be in memory at once: compile smaller parts, each layer by "
    "itself (`for layer in model.layers: layer.compile()`)."
)
_NO_CUDA_GRAPHS = (
    'torch.compile(mode="reduce-overhead") and "max-autotune" run CUDA graphs, which use the memory '
    "that tensors had as they were captured, and teraio moves tensors. Compile with mode="
    '"default" or "max-autotune-no-cudagraphs".'
)


class CompiledGraphs:
    """Announces compiled graphs from ``install`` to ``uninstall``, whenever they were compiled.

    Nothing of the compiler is loaded by it: a program that never compiles pays nothing.
    """

    def __init__(self) -> None:
        self.any_called = False
        self._names: dict[int, str] = {}  # by id()
        self._numbers = itertools.count()
        self._originals: list[tuple[type, str, Any]] = []
        self._awaited: list[_WhenLoaded] = []

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

        if module in sys.modules:
            replace(sys.modules[module])
        else:
            self._awaited.append(_WhenLoaded(module, replace))

    def _call(self, original: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        def call(graph: Any, inputs: Sequence[Any]) -> Any:
            self.any_called = True
            results: Sequence[Any] = ()
            try:
                _C.begin_graph(self._name(graph), inputs, list(graph.mutated_input_idxs))
                try:
                    results = original(graph, inputs)
                finally:
                    # A backward graph may take over the memory of activations that nobody needs
                    # any more, which inductor does not count among the inputs that it mutates.
                    _C.end_graph(results, _is_backward(graph))
            except BudgetError as error:
                raise BudgetError(f"{error} {_REMEDY}") from error
            return results

        return call

    def _refuse(self, _original: Any) -> Callable[..., Any]:
        def refuse(*_args: Any, **_kwargs: Any) -> Any:
            raise ConfigurationError(_NO_CUDA_GRAPHS)

        return refuse

    def _name(self, graph: Any) -> str:
        key = id(graph)
        name = self._names.get(key)
        if name is None:
            name = f"compiled::{_kind(graph)}_{next(self._numbers)}"
            self._names[key] = name
            weakref.finalize(graph, self._names.pop, key, None).atexit = False
        return name


def _is_backward(graph: Any) -> bool:
    return bool(graph.fx_kwargs.get("is_backward", True))


def _kind(graph: Any) -> str:
    if _is_backward(graph):
        return "backward"
    return "inference" if graph.fx_kwargs.get("is_inference") else "forward"


class _WhenLoaded(MetaPathFinder):
    """Calls ``action`` with a module once the program has loaded it."""

    def __init__(self, module: str, action: Callable[[ModuleType], None]) -> None:
        self._module = module
        self._action = action
        sys.meta_path.insert(0, self)

    def give_up(self) -> None:
        """Forget about it; does nothing once the module is loaded."""
        if self in sys.meta_path:
            sys.meta_path.remove(self)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Python's question where a module is: others know, and this one comes after them."""
        if fullname != self._module:
            return None
        self.give_up()
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            return spec
        load = spec.loader.exec_module

        def load_and_tell(module: ModuleType) -> None:
            load(module)
            self._action(module)

        spec.loader.exec_module = load_and_tell  # type: ignore[method-assign]
        return spec
