"""Whether storages and a staging buffer can be used as they are given.

In: tensors and settings from callers. Out: nothing, or a ConfigurationError that names what is
wrong and the remedy. Must not know: how anything is packed.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from teraio.errors import ConfigurationError
from teraio.kernels.codecs import CODECS
from teraio.kernels.layout import UNIT, Packed, Piece


def dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def nbytes_of(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def check_staging(staging: Tensor) -> None:
    if staging.dtype != torch.uint8 or staging.dim() != 1 or not staging.is_contiguous():
        raise ConfigurationError(
            f"staging must be a contiguous 1-D tensor of torch.uint8; this one is "
            f"{dtype_name(staging)} of shape {tuple(staging.shape)}."
        )
    if staging.device.type != "meta" and staging.data_ptr() % UNIT:
        raise ConfigurationError(
            f"staging begins at address {staging.data_ptr():#x}, which is no multiple of {UNIT}; "
            f"slice the buffer at a multiple of {UNIT} bytes."
        )


def check_storages(storages: Sequence[Tensor], staging: Tensor) -> None:
    for index, storage in enumerate(storages):
        if storage.device != staging.device or storage.device.type == "meta":
            raise ConfigurationError(
                f"storages[{index}] is on {storage.device} and staging on {staging.device}; both "
                f"must be on the same device, and have data."
            )
        plain = storage.layout == torch.strided and not (storage.is_conj() or storage.is_neg())
        if not plain or storage.dim() != 1 or not storage.is_contiguous():
            raise ConfigurationError(
                f"storages[{index}] of shape {tuple(storage.shape)} is no contiguous 1-D tensor; "
                f"pass a view of its whole storage."
            )
        if storage.data_ptr() % storage.element_size():
            raise ConfigurationError(
                f"storages[{index}] begins in the middle of an element ({storage.data_ptr():#x}, "
                f"{dtype_name(storage)}); view its bytes as torch.uint8."
            )


def check_alignment(alignment: int) -> None:
    if alignment < UNIT or alignment & (alignment - 1):
        raise ConfigurationError(
            f"alignment={alignment!r} is no power of two from {UNIT} up; pass {UNIT}, or 4096 for "
            f"direct I/O."
        )


def check_codecs(names: Sequence[str], storages: Sequence[Tensor]) -> None:
    if len(names) != len(storages):
        raise ConfigurationError(
            f"{len(names)} codecs for {len(storages)} storages; pass one name for each, or "
            f"a single one."
        )
    for index, (name, storage) in enumerate(zip(names, storages, strict=True)):
        codec = CODECS.get(name)
        if codec is None:
            raise ConfigurationError(f"codec {name!r} is unknown; there are {', '.join(CODECS)}.")
        if codec.dtypes and dtype_name(storage) not in codec.dtypes:
            raise ConfigurationError(
                f"codec {name!r} encodes {', '.join(codec.dtypes)}, but storages[{index}] is "
                f"{dtype_name(storage)}; pass 'raw' or 'lossless' for it."
            )


def check_room(needed: int, staging: Tensor) -> None:
    if needed > staging.numel():
        raise ConfigurationError(
            f"staging has {staging.numel():,} bytes, but these storages can take {needed:,}; pass "
            f"a buffer of staging_nbytes(...) bytes, or fewer storages."
        )


def check_apart(storages: Sequence[Tensor]) -> None:
    """No two of ``storages`` share a byte."""
    ranges = sorted(
        (storage.data_ptr(), storage.data_ptr() + nbytes_of(storage), index)
        for index, storage in enumerate(storages)
        if storage.numel()
    )
    for (_, end, first), (begin, _, second) in itertools.pairwise(ranges):
        if begin < end:
            raise ConfigurationError(
                f"storages[{min(first, second)}] and storages[{max(first, second)}] share memory "
                f"from {begin:#x} on; pass each storage once."
            )


def check_apart_from_staging(storages: Sequence[Tensor], staging: Tensor) -> None:
    begin, end = staging.data_ptr(), staging.data_ptr() + staging.numel()
    for index, storage in enumerate(storages):
        first = storage.data_ptr()
        if storage.numel() and first < end and begin < first + nbytes_of(storage):
            raise ConfigurationError(
                f"storages[{index}] lies within the staging buffer; pass a buffer of its own."
            )


def check_fits(packed: Packed, staging: Tensor, storages: Sequence[Tensor]) -> None:
    """Each piece lies in ``staging`` and is what its storage can hold."""
    if len(packed.pieces) != len(storages):
        raise ConfigurationError(
            f"{len(packed.pieces)} pieces were packed, but {len(storages)} storages are given; "
            f"pass them all, in the same order."
        )
    for index, (piece, storage) in enumerate(zip(packed.pieces, storages, strict=True)):
        _check_piece(piece, staging, index)
        same = piece.codec == "raw" or piece.dtype == dtype_name(storage)
        if piece.raw_nbytes != nbytes_of(storage) or not same:
            raise ConfigurationError(
                f"storages[{index}] has {nbytes_of(storage):,} bytes of {dtype_name(storage)}, but "
                f"{piece.raw_nbytes:,} bytes of {piece.dtype} were packed; pass a storage like it."
            )


def _check_piece(piece: Piece, staging: Tensor, index: int) -> None:
    inside = 0 <= piece.offset <= piece.offset + piece.nbytes <= staging.numel()
    if not inside or piece.offset % UNIT or piece.codec not in CODECS:
        raise ConfigurationError(
            f"piece {index} ({piece.codec}, {piece.nbytes:,} bytes at {piece.offset:,}) does not "
            f"lie in a staging buffer of {staging.numel():,} bytes; pass the buffer and the record "
            f"of one pack()."
        )
