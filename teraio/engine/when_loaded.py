"""Does something when a program loads a module, which may never be: nothing is loaded for it.

In: the module's name. Out: a call around its loading. Must not know: what it is for.
"""

from __future__ import annotations

import importlib.util
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


class WhenLoaded(MetaPathFinder):
    """The module, with all that it loads itself, is loaded within ``around(module)``."""

    def __init__(
        self, module: str, around: Callable[[ModuleType], AbstractContextManager[None]]
    ) -> None:
        self._module = module
        self._around = around
        self._asking = threading.local()
        self._given_up = False
        sys.meta_path.insert(0, self)

    def give_up(self) -> None:
        """Does nothing from now on."""
        self._given_up = True
        if self in sys.meta_path:
            sys.meta_path.remove(self)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Python asks where a module is; for ours the finders that come after this one know."""
        if fullname != self._module or getattr(self._asking, "now", False):
            return None
        self._asking.now = True
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self._asking.now = False
        if spec is None or spec.loader is None:
            return spec
        load = spec.loader.exec_module

        def load_within(module: ModuleType) -> None:
            if self._given_up:
                load(module)
                return
            with self._around(module):
                load(module)
            self.give_up()

        # Some only want to know where it is, so this goes on until it is loaded.
        spec.loader.exec_module = load_within  # type: ignore[method-assign]
        return spec
