"""Tensors that wrap others and have no memory of their own, such as DTensor and quantised weights.

In: a tensor. Out: those with memory. Must not know: what the wrappers mean.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass


def unwrapped(tensor: torch.Tensor, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Name and tensor of each that ``tensor`` is made of; itself, under its name, if it has memory.

    Where it wraps several, ``name`` is followed by those of the wrapper's attributes.
    """
    if not _wraps(tensor):
        yield name, tensor
        return
    values = [(key, getattr(tensor, key)) for key in tensor.__tensor_flatten__()[0]]  # type: ignore[attr-defined]
    inner = [(key, value) for key, value in values if isinstance(value, torch.Tensor)]
    for key, value in inner:
        yield from unwrapped(value, name if len(inner) == 1 else f"{name}.{key}")


# Mypy takes the two classes for exclusive.
def _wraps(tensor: object) -> bool:
    return is_traceable_wrapper_subclass(tensor)
