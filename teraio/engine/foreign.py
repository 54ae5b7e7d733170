"""Memory that PyTorch's allocator did not give: what of it can be copied into memory of its own.

Weights that a checkpoint maps into memory (``torch.load(mmap=True)``, safetensors) belong to nobody
else and may be copied. Memory shared with other processes or with numpy may not: somebody might
write to it from the other side. In: tensors. Out: the same tensors. Must not know: plans, budgets.
"""

from __future__ import annotations

from bisect import bisect_right
from pathlib import Path

import torch

_MAPS = Path("/proc/self/maps")


class PrivateMappings:
    """The ranges of this process's memory that are private mappings of files, as they are now."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        for line in _MAPS.read_text(encoding="utf-8", errors="replace").splitlines():
            span, permissions, _offset, _device, inode = line.split(maxsplit=5)[:5]
            if permissions[3] == "p" and inode != "0":
                start, end = span.split("-")
                self._starts.append(int(start, 16))
                self._ends.append(int(end, 16))

    def hold(self, address: int) -> bool:
        """Whether ``address`` is in one of them."""
        at = bisect_right(self._starts, address) - 1
        return at >= 0 and address < self._ends[at]


def own_memory(tensors: list[torch.Tensor]) -> None:
    """Gives those of ``tensors`` that lie in a privately mapped file memory of their own.

    Tensors that share a storage share the new one too.
    """
    mappings = PrivateMappings()
    copies: dict[int, torch.UntypedStorage] = {}
    for tensor in tensors:
        storage = tensor.untyped_storage()
        address = storage.data_ptr()
        if storage.is_shared() or not mappings.hold(address):
            continue
        if address not in copies:
            own = torch.empty(storage.nbytes(), dtype=torch.uint8).untyped_storage()
            copies[address] = own.copy_(storage)
        data = torch.empty(0, dtype=tensor.dtype)
        tensor.data = data.set_(
            copies[address], tensor.storage_offset(), tensor.size(), tensor.stride()
        )
