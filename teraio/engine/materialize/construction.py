"""Fills a model that has no data as the constructors of its classes would.

In: a model and the memory for its tensors. Out: the values that an ordinary construction gives,
from the same random numbers. Must not know: files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from teraio.engine.materialize import pretrained
from teraio.engine.materialize.placement import Placement, own_tensors


def construct(model: torch.nn.Module, placement: Placement) -> None:
    """Does what the constructors of the model and its modules do, in their order.

    The numbers are those of an ordinary construction where constructors draw random numbers in
    ``reset_parameters`` and ``_init_weights`` only, modules are registered as they are made, and
    tied parameters come from the module that is registered first (or that transformers names).
    """
    pretrained.forget_initialised(model)
    for outer in pretrained.outermost(model):
        for tensor in (*outer.parameters(), *outer.buffers()):
            if not tensor.is_meta:
                pretrained.mark_initialised(tensor)
    with _untied(model):
        _construct_module(model, placement, set())


def _construct_module(module: torch.nn.Module, placement: Placement, done: set[int]) -> bool:
    """Gives whether the module or one inside it got new tensors."""
    if id(module) in done:
        return False
    done.add(id(module))
    inside = [_construct_module(child, placement, done) for child in module.children()]
    new = placement.place(module) or any(inside)
    if new:
        reset(module, lambda tensor: not placement.empty(tensor), placement)
    if new and pretrained.is_pretrained(module):
        with placement.written:
            pretrained.initialise(module)
    return new


def reset(
    module: torch.nn.Module, has_values: Callable[[torch.Tensor], bool], placement: Placement
) -> None:
    """Fills the module's tensors, where it can do so, but for those that have values."""
    fill = reset_of(module)
    if fill is None:
        return
    with torch.no_grad():
        tensors = (*module.parameters(), *module.buffers())
        kept = [(tensor, tensor.clone()) for tensor in tensors if has_values(tensor)]
        with placement.written:
            fill()
        for tensor, values in kept:
            tensor.copy_(values)


def reset_of(module: torch.nn.Module) -> Callable[[], None] | None:
    """What the module's constructor calls to fill its tensors."""
    # PyTorch's own modules with tensors in their children use the second name.
    reset = getattr(module, "reset_parameters", None) if own_tensors(module) else None
    reset = reset or getattr(module, "_reset_parameters", None)
    return reset if callable(reset) else None


# [Note: tied parameters]
# In an ordinary construction each module fills a parameter of its own, and then some are replaced
# by others. So each module of a tied parameter but one gets another one for the time being, whose
# values nobody will see: transformers names those, else the first module keeps the parameter.
@contextmanager
def _untied(model: torch.nn.Module) -> Iterator[None]:
    names = pretrained.tied_names(model)
    places = [
        (f"{prefix}.{key}".removeprefix("."), module, key, parameter)
        for prefix, module in model.named_modules()
        for key, parameter in module._parameters.items()
        if parameter is not None
    ]
    kept: set[int] = set()
    replaced = []
    for _name, module, key, parameter in sorted(places, key=lambda place: place[0] in names):
        if parameter.is_meta and id(parameter) in kept:
            own = torch.nn.Parameter(torch.empty_like(parameter), parameter.requires_grad)
            module._parameters[key] = own
            replaced.append((module, key, parameter))
        kept.add(id(parameter))
    try:
        yield
    finally:
        for module, key, parameter in replaced:
            module._parameters[key] = parameter
