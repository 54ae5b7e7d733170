"""Packing and unpacking: checks, the layout, and calls of the implementation that serves the
device.

In: storages, a staging buffer, names of codecs. Out: a filled buffer and its record, or filled
storages. Must not know: how a codec or a copy works.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from teraio.kernels import checks, lossless_format
from teraio.kernels.codecs import CODECS, fixed_nbytes
from teraio.kernels.implementation import implementation as chosen
from teraio.kernels.interface import Implementation
from teraio.kernels.layout import Packed, Piece, offsets, rounded_up


def staging_nbytes(
    storages: Sequence[Tensor], *, codecs: str | Sequence[str] = "raw", alignment: int = 16
) -> int:
    """Bytes of staging that ``pack`` with the same arguments needs, a multiple of ``alignment``.

    They are enough whatever the values are. Raises ConfigurationError as ``pack`` does.
    """
    names = _names(codecs, storages)
    checks.check_alignment(alignment)
    checks.check_codecs(names, storages)
    return _end(_largest_sizes(storages, names), alignment)


def pack(
    storages: Sequence[Tensor],
    staging: Tensor,
    *,
    codecs: str | Sequence[str] = "raw",
    alignment: int = 16,
    implementation: str | None = None,
) -> Packed:
    """Copy ``storages`` into ``staging``, each at a multiple of ``alignment`` bytes from its begin.

    ``storages`` are contiguous 1-D tensors of any dtype and size, ``staging`` is one of torch.uint8
    on the same device with at least ``staging_nbytes(...)`` bytes, whose address is a multiple of
    16. ``codecs`` names one codec of ``CODECS`` for all, or one for each. ``alignment`` is a power
    of two, 16 at least. ``implementation`` is "triton" or "torch"; None chooses by the device.

    On a GPU everything is enqueued on the current stream. Only where a storage is to be "lossless"
    does the call wait for that stream, once for each dtype, because sizes depend on values. Bytes
    of ``staging`` that no piece covers are left as they are.

    Raises ConfigurationError if an argument can't be used; then nothing was written.
    """
    names = _names(codecs, storages)
    checks.check_alignment(alignment)
    checks.check_staging(staging)
    checks.check_storages(storages, staging)
    checks.check_codecs(names, storages)
    checks.check_room(_end(_largest_sizes(storages, names), alignment), staging)
    checks.check_apart_from_staging(storages, staging)
    with torch.no_grad(), _on_device_of(staging):
        return _packed(storages, staging, names, alignment, _parts(staging, implementation))


def unpack(
    packed: Packed,
    staging: Tensor,
    storages: Sequence[Tensor],
    *,
    implementation: str | None = None,
) -> None:
    """Fill ``storages`` from what ``pack`` put into ``staging``.

    ``staging`` may be another buffer that holds the same bytes at the same offsets, such as one
    that was read from a file. ``storages`` are as for ``pack``, of the same sizes and dtypes and in
    the same order, and share no bytes. The bytes must be those that ``pack`` wrote: they are not
    checked here. On a GPU everything is enqueued on the current stream; the call does not wait.
    Autograd's version counters don't change.

    Raises ConfigurationError if an argument can't be used; then nothing was written.
    """
    checks.check_staging(staging)
    checks.check_storages(storages, staging)
    checks.check_fits(packed, staging, storages)
    checks.check_apart_from_staging(storages, staging)
    checks.check_apart(storages)
    parts = _parts(staging, implementation)
    used = [piece.codec for piece in packed.pieces]
    with torch.no_grad(), _on_device_of(staging):
        for (codec, _), members in _groups(storages, used).items():
            group = [storages[index].data for index in members]
            at = [packed.pieces[index].offset for index in members]
            if codec == "raw":
                parts.copying.unpack(group, at, staging)
            elif codec == "lossless":
                parts.lossless.decode(group, at, staging)
            else:
                parts.lossy.decode(codec, group, at, staging)


def _packed(
    storages: Sequence[Tensor],
    staging: Tensor,
    names: list[str],
    alignment: int,
    parts: Implementation,
) -> Packed:
    used = [_usable(name, storage) for name, storage in zip(names, storages, strict=True)]
    sizes = _largest_sizes(storages, used)
    tables = _describe(storages, used, sizes, parts)
    begins = offsets(sizes, alignment)
    for (codec, _), members in _groups(storages, used).items():
        group = [storages[index].data for index in members]
        at = [begins[index] for index in members]
        if codec == "raw":
            parts.copying.pack(group, at, staging)
        elif codec == "lossless":
            parts.lossless.encode(group, [tables[index] for index in members], at, staging)
        else:
            parts.lossy.encode(codec, group, at, staging)
    pieces = tuple(
        Piece(
            offset=begin,
            nbytes=nbytes,
            codec=codec,
            dtype=checks.dtype_name(storage),
            raw_nbytes=checks.nbytes_of(storage),
        )
        for begin, nbytes, codec, storage in zip(begins, sizes, used, storages, strict=True)
    )
    return Packed(pieces=pieces, nbytes=max((p.offset + p.nbytes for p in pieces), default=0))


def _describe(
    storages: Sequence[Tensor], used: list[str], sizes: list[int], parts: Implementation
) -> dict[int, Tensor]:
    """The block table of each lossless storage; ``used`` and ``sizes`` become those that pay."""
    tables: dict[int, Tensor] = {}
    for (codec, _), members in _groups(storages, used).items():
        if codec != "lossless":
            continue
        group = [storages[index].data for index in members]
        blocks = [lossless_format.blocks_of(storage.numel()) for storage in group]
        descriptors, encoded = lossless_format.placed(parts.lossless.describe(group), blocks)
        split = torch.split(descriptors, blocks)
        for index, nbytes, table in zip(members, encoded, split, strict=True):
            if nbytes <= sizes[index] - sizes[index] // lossless_format.MIN_GAIN:
                sizes[index], tables[index] = nbytes, table
            else:
                used[index] = "raw"
    return tables


def _names(codecs: str | Sequence[str], storages: Sequence[Tensor]) -> list[str]:
    return [codecs] * len(storages) if isinstance(codecs, str) else list(codecs)


def _usable(name: str, storage: Tensor) -> str:
    """``name``, or "raw" where there is nothing to encode."""
    if name == "lossless" and not (
        storage.dtype in lossless_format.DTYPES
        and 0 < checks.nbytes_of(storage) < lossless_format.MAX_NBYTES
    ):
        return "raw"
    return name


def _largest_sizes(storages: Sequence[Tensor], names: Sequence[str]) -> list[int]:
    return [
        fixed_nbytes(CODECS[name], storage.numel())
        if CODECS[name].code_nbytes
        else checks.nbytes_of(storage)
        for name, storage in zip(names, storages, strict=True)
    ]


def _end(sizes: Sequence[int], alignment: int) -> int:
    return sum(rounded_up(nbytes, alignment) for nbytes in sizes)


def _groups(
    storages: Sequence[Tensor], names: Sequence[str]
) -> dict[tuple[str, torch.dtype], list[int]]:
    """Numbers of the storages that one launch serves: all raw ones, others by codec and dtype."""
    found: dict[tuple[str, torch.dtype], list[int]] = defaultdict(list)
    for index, (name, storage) in enumerate(zip(names, storages, strict=True)):
        if storage.numel():
            found[name, torch.uint8 if name == "raw" else storage.dtype].append(index)
    return dict(found)


def _on_device_of(staging: Tensor) -> AbstractContextManager[object]:
    return torch.cuda.device(staging.device) if staging.is_cuda else nullcontext()


def _parts(staging: Tensor, wanted: str | None) -> Implementation:
    # Imported when first needed: Triton takes a while to load, and may not be installed.
    if chosen(staging.device, wanted) == "triton":
        from teraio.kernels import with_triton

        return Implementation(with_triton.copying, with_triton.lossless, with_triton.lossy)
    from teraio.kernels import with_torch

    return Implementation(with_torch.copying, with_torch.lossless, with_torch.lossy)
