"""Files of safetensors that a program writes, one tensor after the other.

In: the library's module. Out: its ``save_file`` replaced, wherever it was imported. Must not know:
budgets.

The library reads all tensors of a file from memory at once, which may be more than the budget. Its
format is a header of JSON and then the data: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import torch

from teraio.engine.patches import Patches

_ALIGNMENT = 8
_METADATA = "__metadata__"


def write_by_tensor(safetensors: ModuleType, patches: Patches) -> None:
    """From now on ``save_file`` needs one tensor in memory at a time."""
    if not all(hasattr(safetensors, name) for name in ("save_file", "_TYPES")):
        return
    names = {dtype: name for name, dtype in safetensors._TYPES.items()}

    def wrapper(original: Callable[..., None]) -> Callable[..., None]:
        def save_file(tensors: Any, filename: str | os.PathLike[str], metadata: Any = None) -> None:
            if _plain(tensors, names) and _texts(metadata):
                _write(tensors, names, filename, metadata)
            else:  # what the library refuses, it refuses itself
                original(tensors, filename, metadata=metadata)

        return save_file

    patches.replace_everywhere(safetensors.save_file, wrapper)


def _plain(tensors: object, names: Mapping[Any, str]) -> bool:
    """Whether these are contiguous tensors by name, each with a storage of its own."""
    if not isinstance(tensors, dict) or _METADATA in tensors:
        return False
    if not all(isinstance(name, str) for name in tensors):
        return False
    values = list(tensors.values())
    if not all(
        type(value) in (torch.Tensor, torch.nn.Parameter)
        and value.layout == torch.strided
        and value.device.type != "meta"
        and value.dtype in names
        and value.is_contiguous()
        and not (value.is_conj() or value.is_neg())
        for value in values
    ):
        return False
    return len({value.untyped_storage()._cdata for value in values}) == len(values)


def _texts(metadata: object) -> bool:
    return metadata is None or (
        isinstance(metadata, dict)
        and all(isinstance(text, str) for pair in metadata.items() for text in pair)
    )


def _write(
    tensors: dict[str, torch.Tensor],
    names: Mapping[Any, str],
    filename: str | os.PathLike[str],
    metadata: dict[str, str] | None,
) -> None:
    # As the library orders them, so that the data of each is aligned.
    ordered = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, object] = {} if metadata is None else {_METADATA: metadata}
    end = 0
    for name in ordered:
        tensor, begin = tensors[name], end
        end += tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": names[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    with open(filename, "wb", buffering=0) as file:  # storages are written to its descriptor
        file.write(len(text).to_bytes(8, "little") + text)
        for name in ordered:
            storage = _storage_of(tensors[name])
            storage._write_file(file, True, False, 1)  # type: ignore[no-untyped-call]


def _storage_of(tensor: torch.Tensor) -> torch.UntypedStorage:
    """With these data and no others."""
    storage = tensor.untyped_storage()
    if storage.nbytes() != tensor.numel() * tensor.element_size():
        storage = tensor.detach().clone().untyped_storage()
    return storage
