"""Memory that others may use as well, and memory that PyTorch's allocator did not give: what of the
latter can be copied into memory of its own.

Weights that a checkpoint maps into memory (``torch.load(mmap=True)``, safetensors) belong to nobody
else and may be copied. Memory shared with other processes or with numpy may not: somebody might
write to it from the other side. In: tensors. Out: the same tensors. Must not know: plans, budgets.
"""

from __future__ import annotations

import gc
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable
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


def storages_with_hidden_owners(tensors: Iterable[torch.Tensor]) -> set[int]:
    """The storages (``_cdata``) of ``tensors`` that somebody keeps beside the tensors of Python.

    An array made by numpy or DLPack keeps one, and reads the memory that it saw when it was made.
    """
    own = {id(tensor): tensor for tensor in tensors if _has_plain_storage(tensor)}
    suspects = _with_more_owners(own.values())
    if not suspects:
        return suspects
    # Looking at all objects takes a tenth of a second, so only where owners are missing. A tensor
    # that has another owner than Python may be what an array of DLPack's keeps.
    others: list[torch.Tensor] = []
    graphs = False
    for value in gc.get_objects():
        if not issubclass(type(value), torch.Tensor) or not _has_plain_storage(value):
            continue
        graphs = graphs or value.grad_fn is not None
        if value._use_count() == 1 and id(value) not in own:
            others.append(value)
    in_arrays = suspects & _storages_in_arrays(others)
    if graphs:
        return in_arrays  # graphs keep views of weights, unseen as well, and read them by ops
    bases = [tensor._base for tensor in (*own.values(), *others) if tensor._base is not None]
    known = own | {id(tensor): tensor for tensor in (*others, *bases)}  # views keep their bases
    return in_arrays | suspects & _with_more_owners(known.values())


def _storages_in_arrays(others: list[torch.Tensor]) -> set[int]:
    """The storages of those of ``others`` that only arrays of numpy have.

    An array keeps a tensor of its own, and Python's collector, which sees all owners but local
    variables, does not see arrays. Storages are no longer resizable once there was one.
    """
    kept = [tensor for tensor in others if not tensor.untyped_storage().resizable()]
    if not kept:
        return set()
    owners = [o for o in gc.get_referrers(*kept) if o is not kept and o is not others]
    seen = {id(value) for value in gc.get_referents(*owners)}
    return {tensor.untyped_storage()._cdata for tensor in kept if id(tensor) not in seen}


def _with_more_owners(tensors: Iterable[torch.Tensor]) -> set[int]:
    """Those of their storages that have more owners than these tensors."""
    storages = [tensor.untyped_storage() for tensor in tensors]
    seen = Counter(storage._cdata for storage in storages)
    # One owner more is Python's object of the storage.
    return {key for key, count in seen.items() if torch._C._storage_Use_Count(key) > count + 1}


def _has_plain_storage(tensor: torch.Tensor) -> bool:
    try:
        return tensor.device.type == "cpu" and tensor.untyped_storage().nbytes() > 0
    except (RuntimeError, NotImplementedError):  # sparse ones, wrappers
        return False
