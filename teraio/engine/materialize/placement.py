"""Memory for the tensors of a model that has none yet, module by module.

In: modules with tensors on the meta device. Out: the same modules with uninitialised tensors, and
which of these ops wrote to. Must not know: where values come from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
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


class Placement:
    """The storages made so far: those of each module when it is placed, and which were written."""

    def __init__(self, model: torch.nn.Module, device: torch.device, hand_over: HandOver) -> None:
        self._model = model
        self._device = device
        self._hand_over = hand_over
        self._names = {
            id(tensor): name for name, tensor in (*model.named_parameters(), *model.named_buffers())
        }
        # By the identity of one: itself and the other. Both are kept, as identities are addresses.
        self._real: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}
        self._meta: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}
        self._placed: list[torch.nn.Module] = []
        self.written = Writes()

    def place(self, module: torch.nn.Module) -> bool:
        """Gives those of the module's own tensors memory that have none; whether there were any."""
        if not any(tensor.is_meta for tensor in own_tensors(module).values()):
            return False
        self._placed.append(module)
        _replace(module, self._to_device)
        return True

    def made(self, tensor: torch.Tensor) -> bool:
        """Whether its storage is one of these."""
        return tensor.untyped_storage()._cdata in self._meta

    def take_back(self) -> None:
        """All modules are on the meta device again."""
        with kept_parameters():
            for module in self._placed:
                _replace(module, self._to_meta)

    def _to_device(self, tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.is_meta:
            return tensor
        meta = tensor.untyped_storage()
        if meta._cdata not in self._real:
            data = torch.empty(meta.nbytes(), dtype=torch.uint8, device=self._device)
            real = data.untyped_storage()
            self.written.discard(data)
            self._real[meta._cdata] = meta, real
            self._meta[real._cdata] = real, meta
        made = _view(tensor, self._real[meta._cdata][1], self._device)
        self._hand_over(made, self._names.get(id(tensor), ""))
        return made

    def _to_meta(self, tensor: torch.Tensor) -> torch.Tensor:
        if not self.made(tensor):
            return tensor
        meta = self._meta[tensor.untyped_storage()._cdata][1]
        return _view(tensor, meta, torch.device("meta"))


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

    def discard(self, tensor: torch.Tensor) -> None:
        """Forgets writes to a storage that was where this one is now."""
        self._storages.discard(tensor.untyped_storage()._cdata)

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


def _view(
    tensor: torch.Tensor, storage: torch.UntypedStorage, device: torch.device
) -> torch.Tensor:
    """``tensor`` in another storage."""
    empty = torch.empty(0, dtype=tensor.dtype, device=device)
    return empty.set_(storage, tensor.storage_offset(), tensor.size(), tensor.stride())
