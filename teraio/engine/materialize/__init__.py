"""Brings a model to its device tensor by tensor, so that it never is in memory there as a whole.

In: a model that is elsewhere, or on the meta device and without data; a device; and how each new
tensor is handed over (from then on it may leave memory). Out: the same model there, initialised or
read from files where it had no data. Must not know: plans, budgets, where tensors go.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch.nn.parameter import is_lazy

from teraio.engine.materialize import pretrained
from teraio.engine.materialize.construction import construct, reset_of
from teraio.engine.materialize.placement import (
    HandOver,
    Placement,
    kept_parameters,
    own_tensors,
    place_of,
)
from teraio.engine.materialize.reading import Reading, listed
from teraio.engine.materialize.weight_files import StoredTensor, stored_tensors
from teraio.errors import ConfigurationError

__all__ = [
    "StoredTensor",
    "check_shapes",
    "is_elsewhere",
    "lacks_data",
    "materialize",
    "stored_tensors",
    "without_shape",
]


def without_shape(model: torch.nn.Module) -> list[str]:
    """The parameters and buffers of lazy modules that were never called."""
    tensors = (*model.named_parameters(), *model.named_buffers())
    return [name for name, tensor in tensors if is_lazy(tensor)]


def check_shapes(model: torch.nn.Module) -> None:
    """Raises ConfigurationError for tensors that have no shape yet."""
    lazy = without_shape(model)
    if lazy:
        raise ConfigurationError(
            f"parameters that have no shape yet ({listed(lazy)}) can't be offloaded; call the "
            "model once before."
        )


def lacks_data(model: torch.nn.Module) -> bool:
    """Whether some parameter or buffer of the model is on the meta device."""
    return any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))


def is_elsewhere(model: torch.nn.Module, device: torch.device) -> bool:
    """Whether some parameter or buffer of the model is not on ``device``."""
    return any(tensor.device != device for tensor in (*model.parameters(), *model.buffers()))


def materialize(
    model: torch.nn.Module,
    device: torch.device,
    stored: Mapping[str, StoredTensor] | None,
    hand_over: HandOver,
) -> None:
    """Moves all tensors of the model to the device, and fills those that have no data.

    ``stored`` tensors are read by their names, also over data that is there. Without them, each
    module that lacks data is filled by its ``reset_parameters`` in the order in which constructors
    run (children first), and models of transformers by ``_init_weights``. Parameters stay the same
    objects, and what shares memory goes on to do so.

    Raises ConfigurationError, naming names, where tensors have no origin or don't fit; the model is
    then as it was.
    """
    device = torch.empty(0, device=device).device  # with its number
    placement = Placement(model, device, hand_over)
    reading = None if stored is None else Reading(model, placement, stored)
    _check_origins(model, reading.loaded if reading else set())
    try:
        with kept_parameters(), torch.device(device):
            if reading:
                reading.run()
            else:
                construct(model, placement)
            _check_filled(model, placement)
    except BaseException:
        placement.take_back()
        raise


def _check_origins(model: torch.nn.Module, loaded: set[object]) -> None:
    """Before anything is filled: raises for tensors that nothing could fill."""
    initialised = {
        id(module) for outer in pretrained.outermost(model) for module in outer.modules()
    }
    fillable = {
        tensor.untyped_storage()._cdata
        for module in model.modules()
        for tensor in own_tensors(module).values()
        if place_of(tensor) in loaded or id(module) in initialised or reset_of(module)
    }

    def lost(tensor: torch.Tensor, own: bool) -> bool:
        return tensor.is_meta and not (own and tensor.untyped_storage()._cdata in fillable)

    _raise_for_lost(model, lost)


def _check_filled(model: torch.nn.Module, placement: Placement) -> None:
    """After all is filled: raises for tensors that nothing wrote to."""

    def lost(tensor: torch.Tensor, _own: bool) -> bool:
        return tensor.is_meta or (placement.empty(tensor) and tensor not in placement.written)

    _raise_for_lost(model, lost)


def _raise_for_lost(model: torch.nn.Module, lost: Callable[[torch.Tensor, bool], bool]) -> None:
    """``lost(tensor, own)`` is asked for parameters and buffers, and for plain attributes."""
    found: list[str] = []
    for prefix, module in model.named_modules():
        own = own_tensors(module)
        attributes = {
            key: value for key, value in vars(module).items() if isinstance(value, torch.Tensor)
        }
        keys = [key for key, tensor in own.items() if lost(tensor, True)]
        keys += [key for key, tensor in attributes.items() if lost(tensor, False)]
        if keys:
            found.append(f"{prefix or 'the model'} ({type(module).__name__}: {', '.join(keys)})")
    if found:
        raise ConfigurationError(
            "the model is on the meta device and has tensors that nothing gives values: "
            + listed(found)
            + ". Give these modules a reset_parameters() that fills them (buffers too), pass "
            "weights= that have them, or build these modules on the CPU."
        )
