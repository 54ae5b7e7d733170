"""Which backward passes run, and which ended by an exception.

In: calls of autograd's engine. Out: the outermost passes that run now, on any thread; a pass that a
hook or a reentrant checkpoint begins is a part of the one around it. Must not know: who asks.
"""

from __future__ import annotations

import threading
from typing import Any

import torch

_autograd: Any = torch.autograd


class BackwardPass:
    """One call of ``backward()`` or ``autograd.grad()``."""

    def __init__(self) -> None:
        self.interrupted = False
        self.told = False  # that it was


class BackwardPasses:
    """Looks at all passes from its creation to ``close``."""

    def __init__(self) -> None:
        self.running: set[BackwardPass] = set()
        self._here = _Depth()
        self._original = run = _autograd._engine_run_backward

        def noted(*args: Any, **kwargs: Any) -> Any:
            if self._here.depth:
                return run(*args, **kwargs)
            one = BackwardPass()
            self.running.add(one)
            self._here.depth += 1
            try:
                return run(*args, **kwargs)
            except BaseException:
                one.interrupted = True
                raise
            finally:
                self._here.depth -= 1
                self.running.discard(one)

        self._noted = _autograd._engine_run_backward = noted

    def close(self) -> None:
        """Passes are as they were before."""
        if _autograd._engine_run_backward is self._noted:
            _autograd._engine_run_backward = self._original


class _Depth(threading.local):
    depth = 0
