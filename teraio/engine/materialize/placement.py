"""Memory on a device for the tensors of a model that are elsewhere, module by module.

In: modules with tensors on another device, or on the meta device. Out: the same modules, with
copies or with uninitialised tensors, and which tensors ops wrote to. Must not know: where values
come from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

HandOver = Callable[[torch.Tensor, str], None]


def own_tensors(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The parameters and buffers that the module has itself."""
    found = {**module._parameters, **module._buffers}
    return {name: tensor for name, tensor in found.items() if tensor is not None}


def place_of(tensor: torch.Tensor) -> object:
    """What tells a tensor from all that don't share its memory."""
    return tensor.untyped_storage()._cdata, tensor.storage_offset(), tensor.size()


@dataclass(slots=True)
class _Moved:
    """A new storage, where the old one was, and the old one itself where it had no data."""

    new: torch.UntypedStorage
    origin: torch.device
    old: torch.UntypedStorage | None


class Placement:
    """The storages made so far: those of each module when it is placed, and which were written."""

    def __init__(self, model: torch.nn.Module, device: torch.device, hand_over: HandOver) -> None:
        self._device = device
        self._hand_over = hand_over
        self._names = {
            id(tensor): name for name, tensor in (*model.named_parameters(), *model.named_buffers())
        }
        # Storages are known by their addresses. Old ones with data are not kept, as they take
        # memory; none of the model's comes later, so none of its can have the address of another.
        self._by_old: dict[int, _Moved] = {}
        self._by_new: dict[int, _Moved] = {}
        self._placed: list[torch.nn.Module] = []
        self.written = Writes()

    def place(self, module: torch.nn.Module) -> bool:
        """Brings the module's own tensors to the device; whether some of them had no data."""
        own = own_tensors(module).values()
        empty = any(tensor.is_meta for tensor in own)
        if any(tensor.device != self._device for tensor in own):
            self._placed.append(module)
            _replace(module, self._to_device)
        return empty

    def empty(self, tensor: torch.Tensor) -> bool:
        """Whether its storage had no data when it was made."""
        moved = self._by_new.get(tensor.untyped_storage()._cdata)
        return moved is not None and moved.origin.type == "meta"

    def take_back(self) -> None:
        """All tensors are again where they were."""
        with kept_parameters():
            for module in self._placed:
                _replace(module, self._back)

    def _to_device(self, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.device == self._device:
            return tensor
        old = tensor.untyped_storage()
        moved = self._by_old.get(old._cdata)
        if moved is None:
            new = _moved(old, self._device)
            self.written.discard(new)
            moved = _Moved(new, old.device, old if old.device.type == "meta" else None)
            self._by_old[old._cdata] = self._by_new[new._cdata] = moved
        there = _view(tensor, moved.new)
        self._hand_over(there, self._names.get(id(tensor), ""))
        return there

    def _back(self, tensor: torch.Tensor) -> torch.Tensor:
        moved = self._by_new.get(tensor.untyped_storage()._cdata)
        if moved is None:
            return tensor
        if moved.old is None:
            moved.old = _moved(moved.new, moved.origin)
        return _view(tensor, moved.old)


class Writes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While it is entered: notes the storages that ops write to."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._storages: set[int] = set()

    def __contains__(self, tensor: torch.Tensor) -> bool:
        return tensor.untyped_storage()._cdata in self._storages

    def add(self, tensor: torch.Tensor) -> None:
        """Notes a write that was no op."""
        self._storages.add(tensor.untyped_storage()._cdata)

    def discard(self, storage: torch.UntypedStorage) -> None:
        """Forgets writes to one that was where this one is now."""
        self._storages.discard(storage._cdata)

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        named = kwargs or {}
        for position, argument in enumerate(func._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                value = args[position] if position < len(args) else named.get(argument.name)
                for tensor in value if isinstance(value, list | tuple) else (value,):
                    if isinstance(tensor, torch.Tensor):
                        self.add(tensor)
        return func(*args, **named)


@contextmanager
def kept_parameters() -> Iterator[None]:
    """Modules keep their Parameter objects when these get other data."""
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        yield
    finally:
        torch.__future__.set_swap_module_params_on_conversion(before)


def _replace(module: torch.nn.Module, other: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Puts ``other(tensor)`` in the place of each of the module's own tensors."""
    attributes = {name: dict(tensor.__dict__) for name, tensor in own_tensors(module).items()}
    module._apply(other, recurse=False)  # type: ignore[no-untyped-call]
    for name, tensor in own_tensors(module).items():
        tensor.__dict__.update(attributes[name])


def _moved(storage: torch.UntypedStorage, device: torch.device) -> torch.UntypedStorage:
    """A copy on another device; uninitialised if there is no data."""
    data = torch.empty(storage.nbytes(), dtype=torch.uint8, device=device)
    if storage.device.type != "meta":
        data.copy_(torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage))
    return data.untyped_storage()


def _view(tensor: torch.Tensor, storage: torch.UntypedStorage) -> torch.Tensor:
    """``tensor`` in another storage."""
    empty = torch.empty(0, dtype=tensor.dtype, device=storage.device)
    return empty.set_(storage, tensor.storage_offset(), tensor.size(), tensor.stride())
