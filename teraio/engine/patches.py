"""Functions of other modules and classes, replaced for a while.

In: an owner, a name, a wrapper. Out: the owner with the wrapped function, and back. Must not know:
what is wrapped and why.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

from torch._compile import _disable_dynamo


class Patches:
    """What was replaced, to be put back all at once; false if nothing is."""

    def __init__(self) -> None:
        self._originals: list[tuple[Any, str, Callable[..., Any] | None]] = []

    def __bool__(self) -> bool:
        return bool(self._originals)

    def replace(self, owner: Any, name: str, wrapper: Callable[..., Callable[..., Any]]) -> None:
        """Puts ``wrapper(original)`` in the place of ``owner.name``."""
        original = getattr(owner, name)
        self._originals.append((owner, name, owner.__dict__.get(name)))
        # Dynamo must not compile the wrapper. (What keeps it off, optimizers have loaded already.)
        method = _disable_dynamo(wrapper(original))
        setattr(owner, name, functools.wraps(original)(method))

    def replace_everywhere(
        self, function: Callable[..., Any], wrapper: Callable[..., Callable[..., Any]]
    ) -> None:
        """Puts ``wrapper(function)`` in its place in all modules that have it by any name."""
        loaded: list[object] = list(sys.modules.values())  # some put other objects there
        for module in loaded:
            if not isinstance(module, ModuleType):
                continue
            # Not by getattr(), at which modules that are loaded lazily would load.
            for name, value in list(object.__getattribute__(module, "__dict__").items()):
                if value is function:
                    self.replace(module, name, wrapper)

    def undo(self) -> None:
        """Puts the originals back."""
        for owner, name, original in reversed(self._originals):
            if original is None:
                delattr(owner, name)
            else:
                setattr(owner, name, original)
        self._originals.clear()
