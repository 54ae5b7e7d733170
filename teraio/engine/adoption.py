"""Which tensors of a run may leave memory, and a word to users about those that can't.

In: tensors by name. Out: the native core may move them from now on; a BudgetError for one that is
larger than the budget. Must not know: models, iterations, plans.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Set

import torch

import teraio._C as _C
from teraio.engine.foreign import own_memory, storages_with_hidden_owners
from teraio.errors import BudgetError
from teraio.sizes import format_least, format_size

log = logging.getLogger("teraio")

# Smaller storages stay in memory: too many, and too little to gain.
MIN_STORAGE_BYTES = 16 << 10


class Adoption:
    """Of tensors on ``device``, which may take ``counted_bytes`` of the run's budget."""

    def __init__(self, device: str, budget_bytes: int, counted_bytes: int) -> None:
        self._device = torch.device(device)
        self._budget_bytes = budget_bytes
        self._counted_bytes = counted_bytes
        self._immovable: set[str] = set()  # names of what the user was told of

    def check_size(self, name: str, tensor: torch.Tensor) -> None:
        """Raises BudgetError if the tensor alone is more than the budget."""
        if tensor.layout != torch.strided:
            return
        nbytes, most = tensor.untyped_storage().nbytes(), self._counted_bytes
        if nbytes > most:
            raise BudgetError(
                f"{name} takes {format_least(nbytes)}, more than the memory that "
                f"memory_budget={self._budget_bytes} leaves for tensors, {format_size(most)}. Pass "
                f"more than memory_budget={math.ceil(nbytes * self._budget_bytes / most)}: an op "
                "needs all its operands and results at once, and the first iterations will tell "
                "how much that is."
            )

    def adopt(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Lets tensors move from now on, under names for messages; says which can't.

        Raises BudgetError for one that alone is more than the budget.
        """
        shared: set[int] = set()
        if self._device.type == "cpu":
            new = [
                tensor
                for tensor in tensors.values()
                if _C.block_id(tensor) == 0 and _is_large(tensor)
            ]
            shared = storages_with_hidden_owners(new)
        self._adopt(tensors, shared)

    def adopt_own(self, name: str, tensor: torch.Tensor) -> None:
        """As ``adopt``, for a tensor that was made just now, so that nobody shares its memory."""
        self._adopt({name: tensor}, set())

    def _adopt(self, tensors: Mapping[str, torch.Tensor], shared: Set[int]) -> None:
        """``shared`` are storages (``_cdata``) that must stay where they are."""
        tensors = {n: t for n, t in tensors.items() if t.layout == torch.strided}
        left = {
            name: tensor
            for name, tensor in tensors.items()
            if shared and tensor.untyped_storage()._cdata in shared
        }
        foreign = {
            name: tensor
            for name, tensor in tensors.items()
            if name not in left
            and not self._adopted(name, tensor)
            and tensor.device == self._device
            and _is_large(tensor)
        }
        if self._device.type == "cpu" and foreign:
            own_memory(list(foreign.values()))
        left |= {name: tensor for name, tensor in foreign.items() if not _C.adopt(tensor, name)}
        self._tell(left)

    def _adopted(self, name: str, tensor: torch.Tensor) -> bool:
        try:
            return _C.adopt(tensor, name)
        except BudgetError:
            self.check_size(name, tensor)
            raise

    def _tell(self, left: Mapping[str, torch.Tensor]) -> None:
        left = {name: tensor for name, tensor in left.items() if name not in self._immovable}
        self._immovable.update(left)
        if left:
            log.warning(
                "%s of the training can't move and are not counted, because other code shares "
                "their memory (numpy, DLPack, shared memory, another allocator): %s%s. Replace "
                "them by clones to let them move.",
                format_size(sum(tensor.untyped_storage().nbytes() for tensor in left.values())),
                ", ".join(list(left)[:3]),
                ", ..." if len(left) > 3 else "",
            )


def _is_large(tensor: torch.Tensor) -> bool:
    return tensor.layout == torch.strided and tensor.untyped_storage().nbytes() >= MIN_STORAGE_BYTES
