"""Memory that others may use as well, and memory that PyTorch's allocator did not give: what of the
latter can be copied into memory of its own.

Weights that a checkpoint maps into memory (``torch.load(mmap=True)``, safetensors) belong to this
process and may be copied, for all tensors that share them. Memory shared with other processes or
with numpy may not: somebody might write to it from the other side. In: tensors. Out: the same
tensors. Must not know: plans, budgets.
"""

from __future__ import annotations

import gc
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

_MAPS = Path("/proc/self/maps")
_ById = dict[int, torch.Tensor]  # whose keys are id()


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

    Tensors that share a storage share the new one too, also those that are not among ``tensors``.
    No array may look at it; one that has owners beside tensors of Python stays where it is.
    """
    mappings = PrivateMappings()
    sharing = [tensor for tensor in tensors if _is_mapped(tensor.untyped_storage(), mappings)]
    keys = {tensor.untyped_storage()._cdata for tensor in sharing}
    if _with_more_owners(sharing):
        own = {id(tensor): tensor for tensor in sharing}
        known = _known(own, _other_tensors(own))
        sharing = [tensor for tensor in known.values() if tensor.untyped_storage()._cdata in keys]
    left = _with_more_owners(sharing) | {
        tensor.untyped_storage()._cdata for tensor in sharing if not _is_plain(tensor)
    }
    copies: dict[int, torch.UntypedStorage] = {}
    for tensor in sharing:
        storage = tensor.untyped_storage()
        if storage._cdata in left:
            continue
        address = storage.data_ptr()
        if address not in copies:
            own_storage = torch.empty(storage.nbytes(), dtype=torch.uint8).untyped_storage()
            copies[address] = own_storage.copy_(storage)
        data = torch.empty(0, dtype=tensor.dtype)
        tensor.data = data.set_(
            copies[address], tensor.storage_offset(), tensor.size(), tensor.stride()
        )


def _is_mapped(storage: torch.UntypedStorage, mappings: PrivateMappings) -> bool:
    return not storage.is_shared() and mappings.hold(storage.data_ptr())


def _is_plain(tensor: torch.Tensor) -> bool:
    """Whether it is no more than a place in memory, and so can be given another."""
    special = tensor.is_conj() or tensor.is_neg() or tensor.is_quantized
    return tensor.grad_fn is None and not special


def storages_with_hidden_owners(tensors: Iterable[torch.Tensor]) -> set[int]:
    """The storages (``_cdata``) of ``tensors`` that somebody keeps beside the tensors of Python.

    An array made by numpy or DLPack keeps one, and reads the memory that it saw when it was made.
    """
    own = {id(tensor): tensor for tensor in tensors if _has_plain_storage(tensor)}
    suspects = _with_more_owners(own.values()) | _kept_whole(own.values())
    if not suspects:
        return suspects
    others = _other_tensors(own)
    known = _known(own, others)
    in_arrays = suspects & _storages_in_arrays(known, others)
    tensors = (*own.values(), *others)
    if any(tensor.grad_fn is not None for tensor in tensors):
        return in_arrays  # graphs keep weights and views of them, and read them by ops
    parents = (tensor for tensor in tensors if tensor.requires_grad)
    gradients = Counter(id(tensor.grad) for tensor in parents if tensor.grad is not None)
    kept = _kept_whole(own.values(), gradients)
    return in_arrays | kept | suspects & _with_more_owners(known.values())


def _other_tensors(own: _ById) -> list[torch.Tensor]:
    """All tensors of Python but ``own``. Takes a tenth of a second."""
    return [
        value
        for value in gc.get_objects()
        if issubclass(type(value), torch.Tensor)
        and _has_plain_storage(value)
        and id(value) not in own
    ]


def _known(own: _ById, others: Iterable[torch.Tensor]) -> _ById:
    """Those that nobody keeps unseen: one that has another owner than Python may be what an array
    of DLPack's keeps."""
    known = own | {id(tensor): tensor for tensor in others if _use_count(tensor) == 1}
    return known | _bases(known)  # views keep them


def _bases(tensors: _ById) -> _ById:
    bases = [tensor._base for tensor in tensors.values()]
    return {id(base): base for base in bases if base is not None}


def _storages_in_arrays(known: _ById, others: list[torch.Tensor]) -> set[int]:
    """The storages of those of ``others`` that only arrays of numpy have.

    An array keeps a tensor of its own, and Python's collector, which sees all owners but local
    variables and views, does not see arrays. Storages are no longer resizable once there was one.
    """
    bases = _bases(known)
    kept = [
        tensor
        for tensor in others
        if id(tensor) in known
        and id(tensor) not in bases
        and not tensor.untyped_storage().resizable()
    ]
    if not kept:
        return set()
    ours = (known, others, kept)
    owners = [owner for owner in gc.get_referrers(*kept) if all(owner is not own for own in ours)]
    seen = {id(value) for value in gc.get_referents(*owners)}
    return {tensor.untyped_storage()._cdata for tensor in kept if id(tensor) not in seen}


def _kept_whole(
    tensors: Iterable[torch.Tensor], gradients: Mapping[int, int] = MappingProxyType({})
) -> set[int]:
    """The storages of those that have more owners than Python and, of ``gradients`` (by ``id``),
    their parameters. DLPack gives a tensor away as it is, but none that requires gradients."""
    return {
        tensor.untyped_storage()._cdata
        for tensor in tensors
        if not tensor.requires_grad and _use_count(tensor) > 1 + gradients.get(id(tensor), 0)
    }


def _with_more_owners(tensors: Iterable[torch.Tensor]) -> set[int]:
    """Those of their storages that have more owners than these tensors."""
    storages = [tensor.untyped_storage() for tensor in tensors]
    seen = Counter(storage._cdata for storage in storages)
    # One owner more is Python's object of the storage.
    return {key for key, count in seen.items() if torch._C._storage_Use_Count(key) > count + 1}


def _use_count(tensor: Any) -> int:
    count: int = tensor._use_count()
    return count


def _has_plain_storage(tensor: torch.Tensor) -> bool:
    try:
        return tensor.device.type == "cpu" and tensor.untyped_storage().nbytes() > 0
    except (RuntimeError, NotImplementedError):  # sparse ones, wrappers
        return False
