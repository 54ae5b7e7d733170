"""Safetensors files, read tensor by tensor into memory that is there already.

In: a file or a folder. Out: what each of its tensors is, and its bytes where they are wanted. Must
not know: models, plans, budgets. The format is that of
https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from teraio.errors import ConfigurationError, FileFormatError

_SUFFIX = ".safetensors"
_INDEX_SUFFIX = ".safetensors.index.json"
_SINGLE = "model.safetensors"
_MOST_HEADER_BYTES = 100_000_000  # of the format
# What goes to another device at once; also the memory of the host that it takes meanwhile.
_PIECE_BYTES = 64 << 20
_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "U16": torch.uint16,
    "I16": torch.int16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "F32": torch.float32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F64": torch.float64,
    "C64": torch.complex64,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """Where a tensor lies in a file, in C order, and what it is."""

    path: Path
    offset: int
    nbytes: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    def read_into(self, tensor: torch.Tensor) -> None:
        """Fills ``tensor``, which has the same shape and dtype, on any device."""
        if not tensor.is_contiguous():
            tensor.detach().copy_(self.read())
            return
        flat = tensor.detach().view(-1).view(torch.uint8)
        with open(self.path, "rb", buffering=0) as file:
            if tensor.device.type == "cpu":
                self._read_exactly(file, 0, flat)
                return
            for begin in range(0, self.nbytes, _PIECE_BYTES):
                there = flat[begin : begin + _PIECE_BYTES]
                here = torch.empty(len(there), dtype=torch.uint8, device="cpu")
                self._read_exactly(file, begin, here)
                there.copy_(here)

    def read(self) -> torch.Tensor:
        """The tensor, new on the CPU."""
        tensor = torch.empty(self.shape, dtype=self.dtype, device="cpu")
        self.read_into(tensor)
        return tensor

    def like(self) -> torch.Tensor:
        """A tensor of the same kind without data."""
        return torch.empty(self.shape, dtype=self.dtype, device="meta")

    def _read_exactly(self, file: BinaryIO, begin: int, flat: torch.Tensor) -> None:
        """Bytes of this tensor from ``begin`` on, as many as ``flat`` has."""
        window = memoryview(flat.numpy())  # type: ignore[arg-type]
        done = 0
        while done < len(window):
            count = os.preadv(file.fileno(), [window[done:]], self.offset + begin + done)
            if count == 0:
                raise FileFormatError(f"{self.path} ends early; it was changed while it was read.")
            done += count


def stored_tensors(weights: str | os.PathLike[str]) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file, or of the files of a folder, by name.

    Of a folder: ``model.safetensors`` if it is there, else the files that an index
    (``*.safetensors.index.json``) names, else all ``*.safetensors``.

    Raises ConfigurationError where there are none, FileFormatError for damaged files.
    """
    if not isinstance(weights, str | os.PathLike) or not os.fspath(weights):
        raise ConfigurationError(
            f"weights={weights!r} is no path; pass a safetensors file, or a folder of them."
        )
    path = Path(weights)
    # These are false for names that no file can have.
    if os.path.isfile(path):
        return _tensors_of(path)
    if not os.path.isdir(path):
        raise ConfigurationError(f"weights={str(path)!r} is neither a file nor a folder.")
    if (path / _SINGLE).is_file():
        return _tensors_of(path / _SINGLE)
    indexes = sorted(path.glob(f"*{_INDEX_SUFFIX}"))
    if len(indexes) > 1:
        names = ", ".join(index.name for index in indexes)
        raise ConfigurationError(f"{path} has several indexes ({names}); pass a folder with one.")
    files = _files_of_index(indexes[0]) if indexes else sorted(path.glob(f"*{_SUFFIX}"))
    if not files:
        raise ConfigurationError(
            f"no *{_SUFFIX} in {path}; save the weights in that format, for transformers with "
            "save_pretrained()."
        )
    return _merged(files)


def _merged(files: list[Path]) -> dict[str, StoredTensor]:
    merged: dict[str, StoredTensor] = {}
    for file in files:
        for name, stored in _tensors_of(file).items():
            if name in merged:
                raise ConfigurationError(
                    f"both {merged[name].path} and {file} have a tensor {name}; pass one file, "
                    "or a folder with the files of one model."
                )
            merged[name] = stored
    return merged


def _files_of_index(index: Path) -> list[Path]:
    content = _parsed(index.read_bytes(), index)
    weight_map = content.get("weight_map")
    if not isinstance(weight_map, dict):
        raise FileFormatError(f"{index} has no weight_map.")
    names = {name if isinstance(name, str) else "" for name in weight_map.values()}
    files = [index.parent / name for name in sorted(names)]
    for file in files:
        if file.parent != index.parent or not file.is_file():
            raise FileFormatError(f"{index} names {file.name!r}, which is no file of its folder.")
    return files


def _tensors_of(path: Path) -> dict[str, StoredTensor]:
    size = path.stat().st_size
    with open(path, "rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        if header_bytes > min(_MOST_HEADER_BYTES, size - 8):
            raise FileFormatError(f"{path} is no safetensors file, or it is cut short.")
        header = _parsed(file.read(header_bytes), path)
    begin = 8 + header_bytes
    return {
        name: _stored(path, name, entry, begin, size)
        for name, entry in header.items()
        if name != "__metadata__"
    }


def _parsed(text: bytes, path: Path) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise FileFormatError(f"{path} is damaged: its header is no JSON object.")
    return content


def _stored(path: Path, name: str, entry: Any, begin: int, size: int) -> StoredTensor:
    try:
        dtype = _DTYPES[entry["dtype"]]
        shape = tuple(entry["shape"])
        first, last = entry["data_offsets"]
        numbers = (*shape, first, last)
        sound = all(type(number) is int and number >= 0 for number in numbers)
    except (KeyError, TypeError, ValueError):
        raise FileFormatError(
            f"{path}: the tensor {name} is described in a way that can't be read: {entry!r:.200}."
        ) from None
    nbytes = last - first if sound else -1
    if not sound or nbytes != math.prod(shape) * dtype.itemsize or begin + last > size:
        raise FileFormatError(
            f"{path} is damaged: shape, dtype and place of the tensor {name} don't fit together."
        )
    return StoredTensor(path=path, offset=begin + first, nbytes=nbytes, dtype=dtype, shape=shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Tensors of a model that are read together.

    ``kinds`` tells the dtype and shape of each as the files have it; ``fill(tensors)`` writes them.
    """

    kinds: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]
    fill: Callable[[Mapping[str, torch.Tensor]], None]


def whole(name: str, stored: StoredTensor) -> Part:
    """One tensor of a model, as it lies in a file."""
    return Part(
        kinds={name: (stored.dtype, stored.shape)},
        fill=lambda tensors: stored.read_into(tensors[name]),
    )
