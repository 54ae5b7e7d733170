"""Storages as they are, all in one launch.

In: checked storages, offsets, a staging buffer. Out: the filled side. Must not know: codecs.

A program copies one tile of one storage. Where both sides are aligned to 16 bytes, as memory of
PyTorch's allocators is, it does so with vectors of 16 bytes, eight in flight in each thread; else
with the widest words that both sides are aligned to. Neither side is used again soon, so both pass
the caches with the hint to be evicted first.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from teraio.kernels.with_triton.tables import Table, table

TILE_NBYTES = 16 * 1024
WARPS = 4


def copy_table(rows: Sequence[tuple[int, int, int]], device: torch.device) -> Table:
    """``rows``: source address, target address, bytes."""
    return table(rows, [-(-nbytes // TILE_NBYTES) for _, _, nbytes in rows], device)


def launch(made: Table) -> None:
    copy_tiles[(made.programs,)](made.rows, made.owners, TILE=TILE_NBYTES, num_warps=WARPS)


def pack(storages: Sequence[Tensor], offsets: Sequence[int], staging: Tensor) -> None:
    base = staging.data_ptr()
    rows = [(s.data_ptr(), base + at, _nbytes(s)) for s, at in _zip(storages, offsets)]
    launch(copy_table(rows, staging.device))


def unpack(storages: Sequence[Tensor], offsets: Sequence[int], staging: Tensor) -> None:
    base = staging.data_ptr()
    rows = [(base + at, s.data_ptr(), _nbytes(s)) for s, at in _zip(storages, offsets)]
    launch(copy_table(rows, staging.device))


def _zip(storages: Sequence[Tensor], offsets: Sequence[int]) -> list[tuple[Tensor, int]]:
    return list(zip(storages, offsets, strict=True))


def _nbytes(storage: Tensor) -> int:
    return storage.numel() * storage.element_size()


@triton.jit
def copy_tiles(rows, owners, TILE: tl.constexpr):
    program = tl.program_id(0)
    row = rows + tl.load(owners + program).to(tl.int64) * 4
    source = tl.load(row)
    target = tl.load(row + 1)
    nbytes = tl.load(row + 2)
    begin = (program - tl.load(row + 3)) * TILE
    either = source | target
    if either % 16 == 0:
        _copy_vectors(source, target, nbytes, begin, TILE)
        if begin == 0:
            _copy_tail(source, target, nbytes)
    elif either % 4 == 0:
        _copy_words(source, target, nbytes, begin, TILE, 4, tl.int32)
    elif either % 2 == 0:
        _copy_words(source, target, nbytes, begin, TILE, 2, tl.int16)
    else:
        _copy_words(source, target, nbytes, begin, TILE, 1, tl.int8)


@triton.jit
def _copy_vectors(source, target, nbytes, begin, TILE: tl.constexpr):
    """All whole vectors of a tile. The compiler pairs words of 8 bytes, since it knows that
    addresses are multiples of 16 bytes and the number of words is even."""
    source = tl.multiple_of(source.to(tl.pointer_type(tl.int64)), 16)
    target = tl.multiple_of(target.to(tl.pointer_type(tl.int64)), 16)
    words = nbytes // 16 * 2
    at = begin // TILE * (TILE // 8) + tl.arange(0, TILE // 8)
    inside = at < words
    values = tl.load(source + at, mask=inside, eviction_policy="evict_first")
    tl.store(target + at, values, mask=inside, cache_modifier=".cs")


@triton.jit
def _copy_tail(source, target, nbytes):
    """The last bytes, less than a vector."""
    at = nbytes // 16 * 16 + tl.arange(0, 16)
    source = source.to(tl.pointer_type(tl.int8))
    target = target.to(tl.pointer_type(tl.int8))
    values = tl.load(source + at, mask=at < nbytes, eviction_policy="evict_first")
    tl.store(target + at, values, mask=at < nbytes, cache_modifier=".cs")


@triton.jit
def _copy_words(
    source, target, nbytes, begin, TILE: tl.constexpr, SIZE: tl.constexpr, WORD: tl.constexpr
):
    """A tile in words of ``SIZE`` bytes, and the bytes behind the last word of the storage."""
    CHUNK: tl.constexpr = 1024
    words = nbytes // SIZE
    from_words = tl.multiple_of(source.to(tl.pointer_type(WORD)), SIZE)
    to_words = tl.multiple_of(target.to(tl.pointer_type(WORD)), SIZE)
    for step in range(0, TILE // SIZE, CHUNK):
        at = begin // SIZE + step + tl.arange(0, CHUNK)
        inside = at < words
        values = tl.load(from_words + at, mask=inside, eviction_policy="evict_first")
        tl.store(to_words + at, values, mask=inside, cache_modifier=".cs")
    if begin == 0:
        _copy_tail(source, target, nbytes)
