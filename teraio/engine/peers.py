"""Where PyTorch's data parallelism reads tensors of its own without an op, in C++.

What it makes there must stay readable (see [Note: threads of process groups] in csrc/engine.cpp).
In: PyTorch's functions. Out: the same functions, safe. Must not know: plans, budgets.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch._compile import _disable_dynamo

import teraio._C as _C

_originals: list[tuple[Any, str, Callable[..., Any]]] = []


def install() -> None:
    """Puts the wrappers in place, where PyTorch has several processes at all."""
    if _originals or not torch.distributed.is_available():
        return
    # The shapes of all parameters, and which of them share a bucket, as numbers.
    for owner, name in (
        (torch.distributed, "_verify_params_across_processes"),
        (vars(torch.distributed)["Reducer"], "_rebuild_buckets"),
    ):
        original = getattr(owner, name)
        _originals.append((owner, name, original))
        # Dynamo must not compile the wrapper.
        setattr(owner, name, _disable_dynamo(_births_unguarded(original)))


def uninstall() -> None:
    """Puts the original functions back."""
    for owner, name, original in _originals:
        setattr(owner, name, original)
    _originals.clear()


def _births_unguarded(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def function(*args: Any, **kwargs: Any) -> Any:
        _C.guard_births(False)
        try:
            return original(*args, **kwargs)
        finally:
            _C.guard_births(True)

    return function
