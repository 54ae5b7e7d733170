"""Who takes part in the training: models, their optimizers, and what their storages are called.

In: models as they are offloaded, optimizers as they step. Out: names of parameters, and kinds and
names of blocks. Must not know: iterations, plans.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Mapping

import torch

import teraio._C as _C
from teraio.engine.backward_step import UsedGradient
from teraio.engine.master_weights import copies
from teraio.engine.wrappers import unwrapped
from teraio.records import Kind

Optimizer = torch.optim.Optimizer
_Named = tuple[Kind, str, torch.Tensor]
_Blocks = dict[int, tuple[Kind, str]]

# So many gradients of an iteration are known as such: one may never end.
_GRADIENTS_NOTED = 100_000


class Participants:
    """Models and optimizers of one run; neither is kept alive."""

    def __init__(self) -> None:
        self._models: dict[int, weakref.ref[torch.nn.Module]] = {}
        self._added = 0  # models in all
        self._prefixes: dict[int, str] = {}  # id(model) -> what names of its parameters begin with
        self._parameters: dict[int, str] = {}  # id(parameter) -> name
        self._masters: dict[int, str] = {}  # id(copy of a parameter) -> its name
        self._optimizers: weakref.WeakSet[Optimizer] = weakref.WeakSet()
        self._forgot = False  # a model, since it was last looked which optimizers train any
        # Of this iteration and the one before.
        self._gradients: _Blocks = {}
        self._gradients_before: _Blocks = {}

    # ------------------------------------------------------------ models

    def __len__(self) -> int:
        return len(self._models)

    def __contains__(self, model: torch.nn.Module) -> bool:
        return id(model) in self._models

    def new_prefix(self) -> str:
        """What names of the next model begin with; those of the first are its own."""
        return f"model{self._added + 1}." if self._added else ""

    def add_model(self, model: torch.nn.Module, prefix: str) -> None:
        """It takes part until it is forgotten."""
        self._added += 1
        self._models[id(model)] = weakref.ref(model)
        self._prefixes[id(model)] = prefix
        self._name_parameters()

    def forget_model(self, key: int) -> None:
        """``key`` is the ``id`` of a model, which may be gone. So are optimizers that train no
        other, with the next step of one. (Python's collector may call this at any time.)"""
        self._models.pop(key, None)
        self._prefixes.pop(key, None)
        self._forgot = True

    def _name_parameters(self) -> None:
        """As the models are now: they may get and lose parameters in mid-training."""
        self._parameters = {
            id(parameter): self._prefixes[id(model)] + name
            for model in self._living()
            for name, parameter in model.named_parameters()
        }

    def _living(self) -> Iterator[torch.nn.Module]:
        for reference in self._models.values():
            model = reference()
            if model is not None:
                yield model

    # ------------------------------------------------------------ optimizers

    def trains(self, optimizer: Optimizer) -> bool:
        """Whether it steps parameters of the models, or copies of them."""
        if self._forgot:
            self._forgot = False
            self._name_parameters()
            known = [
                one for one in self._optimizers if self._steps(one) or self._steps_masters(one)
            ]
            self._optimizers = weakref.WeakSet(known)
        if optimizer in self._optimizers:
            return True
        self._name_parameters()
        if self._steps(optimizer):
            return True
        named = {self._parameters[id(p)]: p for m in self._living() for p in m.parameters()}
        masters = copies(named, [parameter for parameter, _ in _parameters(optimizer)])
        self._masters.update(masters)
        return bool(masters)

    def _steps(self, optimizer: Optimizer) -> bool:
        """Whether it steps parameters, or views of them such as the pieces of a flat buffer."""
        optimized = [parameter for parameter, _ in _parameters(optimizer)]
        if any(id(parameter) in self._parameters for parameter in optimized):
            return True
        storages = {_C.block_id(p) for model in self._living() for p in model.parameters()} - {0}
        return any(_C.block_id(parameter) in storages for parameter in optimized)

    def _steps_masters(self, optimizer: Optimizer) -> bool:
        """Whether a known one steps copies of parameters."""
        masters = {f"{name}:master" for name in self._parameters.values()}
        return any(self._masters.get(id(copy)) in masters for copy, _ in _parameters(optimizer))

    def knows(self, optimizer: Optimizer) -> bool:
        """Whether it was added."""
        return optimizer in self._optimizers

    def add_optimizer(self, optimizer: Optimizer) -> bool:
        """False if it is known."""
        if optimizer in self._optimizers:
            return False
        self._optimizers.add(optimizer)
        return True

    def named(self, optimizer: Optimizer) -> list[tuple[str, torch.Tensor]]:
        """Its parameters, by the names that the models have for them."""
        names = self._masters | self._parameters
        return [
            (names.get(id(parameter), position), parameter)
            for parameter, position in _parameters(optimizer)
        ]

    def tensors_of(self, optimizer: Optimizer) -> dict[str, torch.Tensor]:
        """Its parameters and states by name, or what they are made of."""
        return {name: tensor for _, name, tensor in self._of_optimizer(optimizer)}

    def tensors(self) -> dict[str, torch.Tensor]:
        """Those of all models and all known optimizers."""
        return {name: tensor for _, name, tensor in self._everything()}

    def _of_optimizer(self, optimizer: Optimizer) -> Iterator[_Named]:
        names: dict[int, str] = {}
        for name, parameter in self.named(optimizer):
            names[id(parameter)] = name
            kind: Kind = "optimizer_state" if id(parameter) in self._masters else "parameter"
            yield from _parts(kind, name, parameter)
        for owner, key, value in _states(optimizer):
            whose = names.get(id(owner), owner if isinstance(owner, str) else "")
            yield from _parts("optimizer_state", f"{whose}:{key}", value)

    def _everything(self) -> Iterator[_Named]:
        for optimizer in self._optimizers:
            yield from self._of_optimizer(optimizer)
        for model in self._living():  # last: an optimizer may step pieces of its parameters
            yield from _of_model(model, self._prefixes[id(model)])

    def note_gradients(self, optimizer: Optimizer, used: Mapping[int, str]) -> None:
        """``used`` are blocks of gradients that are gone already, with their parameters."""
        gradients: _Blocks = {block: ("gradient", f"{name}:grad") for block, name in used.items()}
        for name, parameter in self.named(optimizer):
            gradients.update(_blocks(_gradient(name, parameter)))
        if len(self._gradients) < _GRADIENTS_NOTED:
            self._gradients.update(gradients)

    def iteration_ended(self) -> None:
        """Gradients of this iteration may still be there when the next one begins."""
        self._gradients_before = self._gradients
        self._gradients = {}

    # ------------------------------------------------------------ blocks

    def blocks(self) -> dict[int, tuple[Kind, str]]:
        """Kind and name of each block that is known by name."""
        self._name_parameters()
        found: _Blocks = {}
        found |= self._gradients_before | self._gradients
        found.update(_blocks(self._everything()))
        found.pop(0, None)
        return found


def tensors_of(model: torch.nn.Module, prefix: str) -> dict[str, torch.Tensor]:
    """The model's parameters, gradients and buffers by name, or what they are made of."""
    return {name: tensor for _, name, tensor in _of_model(model, prefix)}


def _of_model(model: torch.nn.Module, prefix: str) -> Iterator[_Named]:
    for name, buffer in model.named_buffers():
        yield from _parts("buffer", prefix + name, buffer)
    for name, parameter in model.named_parameters():
        yield from _gradient(prefix + name, parameter)
        yield from _parts("parameter", prefix + name, parameter)


def _gradient(name: str, parameter: torch.Tensor) -> Iterator[_Named]:
    if parameter.grad is not None and not isinstance(parameter.grad, UsedGradient):
        yield from _parts("gradient", f"{name}:grad", parameter.grad)


def _parts(kind: Kind, name: str, tensor: torch.Tensor) -> Iterator[_Named]:
    for part_name, part in unwrapped(tensor, name):
        yield kind, part_name, part


def _blocks(tensors: Iterable[_Named]) -> _Blocks:
    return {_C.block_id(tensor): (kind, name) for kind, name, tensor in tensors}


def _parameters(optimizer: Optimizer) -> Iterator[tuple[torch.Tensor, str]]:
    """The parameters of an optimizer, and what to call those that no offloaded model has."""
    for g, group in enumerate(optimizer.param_groups):
        for i, parameter in enumerate(group["params"]):
            yield parameter, f"group{g}.{i}"


def _states(optimizer: Optimizer) -> Iterator[tuple[object, str, torch.Tensor]]:
    """Whose state it is, name and tensor of each. Parameters have dictionaries of tensors, as a
    rule, but optimizers may keep what they like under any key."""
    for owner, states in optimizer.state.items():
        for name, tensor in _nested(states):
            yield owner, name, tensor


def _nested(value: object, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors in dictionaries and lists that may hold each other, named by the way to them."""
    if isinstance(value, torch.Tensor):
        yield name, value
        return
    inner: Iterable[tuple[object, object]] = ()
    if isinstance(value, Mapping):
        inner = value.items()
    elif isinstance(value, list | tuple | deque):
        inner = enumerate(value)
    for key, part in inner:
        yield from _nested(part, f"{name}.{key}" if name else str(key))
