"""Storages as they are, one copy each.

In: checked storages, offsets, a staging buffer. Out: the filled side. Must not know: codecs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def pack(storages: Sequence[Tensor], offsets: Sequence[int], staging: Tensor) -> None:
    for storage, part in _pairs(storages, offsets, staging):
        part.copy_(storage)


def unpack(storages: Sequence[Tensor], offsets: Sequence[int], staging: Tensor) -> None:
    for storage, part in _pairs(storages, offsets, staging):
        storage.copy_(part)


def _pairs(
    storages: Sequence[Tensor], offsets: Sequence[int], staging: Tensor
) -> list[tuple[Tensor, Tensor]]:
    """The bytes of each storage, and its part of the buffer."""
    raw = [storage.view(torch.uint8) for storage in storages]
    return [
        (part, staging[offset : offset + part.numel()])
        for part, offset in zip(raw, offsets, strict=True)
    ]
