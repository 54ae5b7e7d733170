"""Fills a model that has no data from files.

In: a model, the memory for its tensors, and the tensors of files. Out: the model as the files have
it, or one error that names all that doesn't fit. Must not know: the format of files.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from teraio.engine.materialize import pretrained
from teraio.engine.materialize.construction import reset
from teraio.engine.materialize.placement import Placement, own_tensors, place_of
from teraio.engine.materialize.weight_files import Part, StoredTensor, whole
from teraio.errors import ConfigurationError

# So many are named in a message; of the others it tells how many there are.
_NAMED = 8


class Reading:
    """Fills a model from files."""

    def __init__(
        self,
        model: torch.nn.Module,
        placement: Placement,
        stored: Mapping[str, StoredTensor],
    ) -> None:
        self._model = model
        self._placement = placement
        self._owner: dict[str, tuple[torch.nn.Module, str]] = {}
        for prefix, module in model.named_modules(remove_duplicate=False):
            for key in own_tensors(module):
                if key not in module._non_persistent_buffers_set:
                    self._owner[f"{prefix}.{key}".removeprefix(".")] = module, key
        expected = {name: self._tensor(name) for name in self._owner}
        if pretrained.is_pretrained(model):
            self._parts, unknown = pretrained.parts(model, stored, expected)
        else:
            self._parts = [whole(name, stored[name]) for name in stored if name in expected]
            unknown = [name for name in stored if name not in expected]
        self._check(expected, unknown)
        self._marks = any(True for _ in pretrained.outermost(model))
        # The places of what the files have, while it has no data yet.
        self.loaded = {place_of(expected[name]) for part in self._parts for name in part.kinds}

    def _tensor(self, name: str) -> torch.Tensor:
        module, key = self._owner[name]
        return own_tensors(module)[key]

    def _check(self, expected: Mapping[str, torch.Tensor], unknown: list[str]) -> None:
        given = {name: kind for part in self._parts for name, kind in part.kinds.items()}
        there = {place_of(expected[name]) for name in given if name in expected}
        missing = [
            name
            for name, tensor in expected.items()
            if place_of(tensor) not in there and not pretrained.may_miss(self._model, name)
        ]
        unexpected = [name for name in unknown if not pretrained.may_ignore(self._model, name)]
        unexpected += [name for name in given if name not in expected]
        different = [
            f"{name} ({_kind(*kind)} in the file, {_kind(tensor.dtype, tensor.shape)} in the model)"
            for name, kind in given.items()
            if (tensor := expected.get(name)) is not None
            and kind != (tensor.dtype, tuple(tensor.shape))
        ]
        problems = [
            f"{what}: {listed(names)}"
            for what, names in (
                ("not in the files", missing),
                ("not in the model", unexpected),
                ("of another shape or dtype", different),
            )
            if names
        ]
        if problems:
            raise ConfigurationError(
                "weights don't fit the model. " + "; ".join(problems) + ". Pass the files of this "
                "very model; its dtype can be changed before offload with model.to(dtype)."
            )

    def run(self) -> None:
        """Reads all parts, and initialises what no file has."""
        pretrained.forget_initialised(self._model)
        filled: dict[object, str] = {}
        for part in self._parts:
            for name in part.kinds:
                self._place(self._owner[name][0])
            self._fill(part, filled)
        for module in self._model.modules():
            self._place(module)
        for model in pretrained.outermost(self._model):
            with self._placement.written:
                pretrained.initialise(model)

    def _place(self, module: torch.nn.Module) -> None:
        """Also initialises a module of which the files don't have everything."""
        partly = any(
            tensor.is_meta and place_of(tensor) not in self.loaded
            for tensor in own_tensors(module).values()
        )
        self._placement.place(module)
        if partly:
            reset(module, self._has_values, self._placement)

    def _has_values(self, tensor: torch.Tensor) -> bool:
        return not self._placement.empty(tensor) or tensor in self._placement.written

    def _fill(self, part: Part, filled: dict[object, str]) -> None:
        tensors = {name: self._tensor(name) for name in part.kinds}
        again = [name for name, tensor in tensors.items() if place_of(tensor) in filled]
        for name in again:
            self._check_same(part, name, tensors[name], filled[place_of(tensors[name])])
        if again:
            return
        with torch.no_grad():
            part.fill(tensors)
        for name, tensor in tensors.items():
            filled[place_of(tensor)] = name
            self._placement.written.add(tensor)
            if self._marks:
                pretrained.mark_initialised(tensor)

    def _check_same(self, part: Part, name: str, tensor: torch.Tensor, first: str) -> None:
        """A tensor that is tied to one read before must be the same in the files."""
        other = {key: torch.empty_like(self._tensor(key)) for key in part.kinds}
        part.fill(other)
        if not torch.equal(_bytes(other[name]), _bytes(tensor)):
            raise ConfigurationError(
                f"{name} and {first} are one tensor in the model, but differ in the files; make a "
                "model that does not tie them."
            )


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().flatten().view(torch.uint8)


def _kind(dtype: torch.dtype, shape: tuple[int, ...]) -> str:
    return f"{str(dtype).removeprefix('torch.')}{list(shape)}"


def listed(names: list[str]) -> str:
    """The first few of ``names``, and how many more there are."""
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
