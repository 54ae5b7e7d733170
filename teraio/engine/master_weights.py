"""Optimizers that don't have the model's parameters but copies of them in another precision.

Mixed-precision loops keep fp32 copies of bf16 weights, step those, and copy the result back.
In: parameters of models and of an optimizer. Out: which copies which. Must not know: iterations.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch


def copies(
    parameters: Mapping[str, torch.Tensor], optimized: Sequence[torch.Tensor]
) -> dict[int, str]:
    """``id(copy) -> "NAME:master"`` if ``optimized`` are copies of the trainable ``parameters``.

    They are when there are as many of each shape, in another floating-point type. Of several with
    one shape, the first is taken to copy the first. Empty if ``optimized`` is anything else.
    """
    names: dict[torch.Size, list[str]] = defaultdict(list)
    for name, parameter in parameters.items():
        if parameter.requires_grad:
            names[parameter.shape].append(name)
    found: dict[int, str] = {}
    dtypes = {parameter.dtype for parameter in parameters.values()}
    for copy in optimized:
        if not names[copy.shape] or copy.dtype in dtypes or not copy.is_floating_point():
            return {}
        found[id(copy)] = f"{names[copy.shape].pop(0)}:master"
    return {} if any(names.values()) else found
