"""Tells the native observer which module runs.

In: modules and their numbers. Out: two global hooks, while they are on; each call of a model.
Must not know: plans, traces.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, MutableMapping
from typing import Any

import torch
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils.weak import WeakIdKeyDictionary

import teraio._C as _C


class _Identity(weakref.ref[torch.nn.Module]):
    """Equal where the module is the same one; modules may define ``==``, and then have no hash."""

    __slots__ = ("_id",)

    def __init__(
        self,
        module: torch.nn.Module,
        callback: Callable[[weakref.ref[torch.nn.Module]], Any] | None = None,
    ) -> None:
        super().__init__(module, callback)  # type: ignore[call-arg]
        self._id = id(module)

    def __hash__(self) -> int:
        return self._id

    def __eq__(self, other: object) -> bool:
        mine = self()
        return self is other if mine is None else isinstance(other, _Identity) and mine is other()


def numbers_of_modules() -> MutableMapping[torch.nn.Module, int]:
    """Numbers by module, while it lives: a later one may get the id() of one that is no more."""
    return WeakIdKeyDictionary(ref_type=_Identity)


class ModuleHooks:
    """``numbers`` gives modules their numbers; more may be added at any time."""

    def __init__(
        self,
        numbers: MutableMapping[torch.nn.Module, int],
        called: Callable[[], None] = lambda: None,
    ) -> None:
        """``called()`` tells of each call of a module that no other one with a number made."""
        self._numbers, self._called = numbers, called
        self._depth = 0
        self._hooks: list[Any] = []

    def add(self) -> None:
        """From now on the observer knows; nothing changes if it does already."""
        if not self._hooks:
            # Dynamo's warning; what torch.compile wraps around a module has no number here.
            warnings.filterwarnings(
                "ignore", r"Using `torch\.compile\(module\)` when there are global"
            )
            self._depth = 0
            self._hooks = [
                register_module_forward_pre_hook(self._enter_hook()),
                register_module_forward_hook(self._exit_hook(), always_call=True),
            ]

    def remove(self) -> None:
        """Takes the hooks away, if they are there."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    # In what is compiled, the compiler would call them as it compiles: the graph itself tells then
    # where it belongs (see compiled_graphs.py).

    def _enter_hook(self) -> Callable[[torch.nn.Module, Any], None]:
        numbers, enter = self._numbers, _C.enter_module

        def hook(module: torch.nn.Module, _args: Any) -> None:
            if torch.compiler.is_compiling():
                return
            number = numbers.get(module)
            if number is not None:
                if self._depth == 0:
                    self._called()
                self._depth += 1
                enter(number)

        return hook

    def _exit_hook(self) -> Callable[[torch.nn.Module, Any, Any], None]:
        numbers, leave = self._numbers, _C.exit_module

        def hook(module: torch.nn.Module, _args: Any, _result: Any) -> None:
            if torch.compiler.is_compiling():
                return
            number = numbers.get(module)
            if number is not None:
                self._depth = max(0, self._depth - 1)
                leave(number)

        return hook
