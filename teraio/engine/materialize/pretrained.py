"""What models of the transformers library know of their weights, and plain modules do not.

Their files may have other names and shapes than the model (experts one by one, say), and modules
are initialised from outside. In: models, names in files. Out: what to read for which tensors;
initialised modules. Must not know: where tensors live, budgets. Loads transformers only for a model
that comes from it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Iterator, Mapping
from copy import deepcopy
from typing import Any, cast

import torch

from teraio.engine.materialize.weight_files import Part, StoredTensor, whole

# transformers' mark on tensors and modules that its initialisation shall leave alone.
_DONE = "_is_hf_initialized"


def is_pretrained(module: torch.nn.Module) -> bool:
    """Whether the module is a model of transformers."""
    transformers = sys.modules.get("transformers")
    return transformers is not None and isinstance(module, transformers.PreTrainedModel)


def outermost(model: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """The models of transformers in ``model`` that are not inside another one."""
    if is_pretrained(model):
        yield model
        return
    for child in model.children():
        yield from outermost(child)


def tied_names(model: torch.nn.Module) -> set[str]:
    """Names of parameters that get their values from another one when all is initialised."""
    return {
        f"{prefix}.{name}".removeprefix(".")
        for prefix, module in model.named_modules()
        if is_pretrained(module)
        for name in getattr(module, "all_tied_weights_keys", None) or ()
    }


def forget_initialised(model: torch.nn.Module) -> None:
    """Takes away the marks that an initialisation without data may have left."""
    for marked in (*model.modules(), *model.parameters(), *model.buffers()):
        marked.__dict__.pop(_DONE, None)


def mark_initialised(tensor: torch.Tensor) -> None:
    """Lets transformers leave this tensor alone."""
    setattr(tensor, _DONE, True)


def initialise(model: torch.nn.Module) -> None:
    """Fills what is not marked yet, as the end of a model's constructor does; ties what is tied."""
    cast(Any, model).init_weights()


def may_miss(model: torch.nn.Module, name: str) -> bool:
    """Whether the model says that files need not have this tensor."""
    return _matches(getattr(model, "_keys_to_ignore_on_load_missing", None), name)


def may_ignore(model: torch.nn.Module, name: str) -> bool:
    """Whether the model says that files may have this tensor, though it has none."""
    old = (r"rotary_emb\.inv_freq", r"(^|\.)position_ids$")  # older files have these buffers
    return _matches(getattr(model, "_keys_to_ignore_on_load_unexpected", None), name) or (
        is_pretrained(model) and _matches(old, name)
    )


def _matches(patterns: Collection[str] | None, name: str) -> bool:
    return any(re.search(pattern, name) for pattern in patterns or ())


def parts(
    model: Any,
    stored: Mapping[str, StoredTensor],
    expected: Mapping[str, torch.Tensor],
) -> tuple[list[Part], list[str]]:
    """What to read for which of the tensors ``expected``; and the names that mean none of them."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import (
        WeightConverter,
        WeightRenaming,
        dot_natural_key,
        rename_source_key,
    )

    mapping = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    by_pattern = {pattern: entry for entry in converters for pattern in entry.source_patterns}
    prefix, known = model.base_model_prefix, dict(expected)
    single: list[Part] = []
    joint: dict[str, _Conversion] = {}
    unknown: list[str] = []
    for name in sorted(stored, key=dot_natural_key):
        target, pattern = rename_source_key(name, renamings, converters, prefix, known)
        if target not in expected and name in expected:
            target, pattern = name, None
        if target not in expected:
            unknown.append(name)
        elif pattern is None:
            single.append(whole(target, stored[name]))
        else:
            if target not in joint:
                joint[target] = _Conversion(model, target, by_pattern[pattern])
            joint[target].sources.append((name, pattern, stored[name]))
    return [*single, *(conversion.part() for conversion in joint.values())], unknown


class _Conversion:
    """Several tensors of files that make one or several of the model."""

    def __init__(self, model: torch.nn.Module, target: str, converter: Any) -> None:
        self.sources: list[tuple[str, str, StoredTensor]] = []
        self._model = model
        self._target = target
        self._converter = converter

    def part(self) -> Part:
        """Finds out what comes of it without reading anything."""
        made = self._converted(on_meta=True)
        return Part(
            kinds={name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in made.items()},
            fill=self._fill,
        )

    def _fill(self, tensors: Mapping[str, torch.Tensor]) -> None:
        made = self._converted(on_meta=False)
        for name, tensor in tensors.items():
            tensor.detach().copy_(made.pop(name))

    def _converted(self, *, on_meta: bool) -> dict[str, torch.Tensor]:
        converter = deepcopy(self._converter)
        for name, pattern, stored in self.sources:
            read = stored.like if on_meta else stored.read
            converter.add_tensor(self._target, name, pattern, read)
        config = getattr(self._model, "config", None)
        made = converter.convert(self._target, model=self._model, config=config)
        return {name: value[0] if type(value) is list else value for name, value in made.items()}
