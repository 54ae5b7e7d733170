"""Where PyTorch's data parallelism reads tensors of its own without an op, in C++.

What it makes there must stay readable (see [Note: threads of process groups] in csrc/engine.cpp).
In: PyTorch's functions. Out: the same functions, safe. Must not know: plans, budgets.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import teraio._C as _C
from teraio.engine.patches import Patches

_patches = Patches()


def install() -> None:
    """Puts the wrappers in place, where PyTorch has several processes at all."""
    if _patches or not torch.distributed.is_available():
        return
    # The shapes of all parameters, and which of them share a bucket, as numbers.
    _patches.replace(torch.distributed, "_verify_params_across_processes", _births_unguarded)
    _patches.replace(vars(torch.distributed)["Reducer"], "_rebuild_buckets", _births_unguarded)


def uninstall() -> None:
    """Puts the original functions back."""
    _patches.undo()


def _births_unguarded(original: Callable[..., Any]) -> Callable[..., Any]:
    def function(*args: Any, **kwargs: Any) -> Any:
        _C.guard_births(False)
        try:
            return original(*args, **kwargs)
        finally:
            _C.guard_births(True)

    return function
