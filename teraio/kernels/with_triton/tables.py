"""The table from which a kernel learns what its programs work on.

In: rows of integers, one for each storage, and how many programs each needs. Out: tensors on the
device. Must not know: what the integers mean to a kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Table(NamedTuple):
    """``rows`` (int64): those of all storages, one after another; the number of a storage's first
    program is put behind each. ``owners`` (int32): which row a program belongs to."""

    rows: Tensor
    owners: Tensor
    programs: int


def table(rows: Sequence[Sequence[int]], programs: Sequence[int], device: torch.device) -> Table:
    """In one upload. It is enqueued: the source is pinned, and PyTorch keeps it until it was
    read."""
    counts = np.asarray(programs, dtype=np.int64)
    ends = np.cumsum(counts)
    whole = np.column_stack([np.asarray(rows, dtype=np.int64), ends - counts])
    owners = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    size = whole.size + -(-owners.size // 2)
    host = torch.empty(size, dtype=torch.int64, pin_memory=device.type == "cuda")
    host[: whole.size] = torch.from_numpy(whole.ravel())
    host[whole.size :].view(torch.int32)[: owners.size] = torch.from_numpy(owners)
    there = host.to(device, non_blocking=True)
    return Table(there[: whole.size], there[whole.size :].view(torch.int32), owners.size)
