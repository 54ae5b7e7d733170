"""Means for tests: force storages away, and see where they are.

In: tensors. Out: the same tensors, their data on SSD. Must not know: plans.
"""

from __future__ import annotations

import torch

import teraio._C as _C


def send_away(*tensors: torch.Tensor) -> int:
    """Sends the tensors' storages to the SSD tier now, whatever their size; gives how many went.

    Storages that teraio doesn't own are taken over first where that is possible. Raises SpillError.
    """
    sent = 0
    for tensor in tensors:
        if _C.block_id(tensor) == 0 and not _C.adopt(tensor, ""):
            continue
        sent += _C.send_away(tensor)
    return sent


def state(tensor: torch.Tensor) -> str:
    """``resident``, ``leaving``, ``away``, ``coming``; ``foreign`` for memory that isn't
    teraio's."""
    return str(_C.state(tensor))


def stress(max_delay_us: int) -> None:
    """Seeks races: delays each transfer at random by up to ``max_delay_us``, fills freed memory
    with NaN."""
    _C.stress(max_delay_us)
