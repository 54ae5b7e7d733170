"""The lossless codec as kernels; the format is that of ``lossless_format``.

In: checked storages of float32 or bfloat16, offsets, a staging buffer. Out: block tables, encoded
bytes, and values again. Must not know: the twin in plain torch.

A program works on one block. Its descriptor says where each part of it lies, so no program waits
for another one; within a block, the only scan counts the exponents without a code.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from teraio.kernels import lossless_format as form
from teraio.kernels.layout import UNIT
from teraio.kernels.with_triton.tables import Table, table

# One warp: a thread has 32 values at once, which hides latency as well as more warps would, and
# reductions need no barriers. Compiled for sm_90, all of it stays within 160 registers.
WARPS = 1

BLOCK = tl.constexpr(form.BLOCK)
RAW_WIDTH = tl.constexpr(form.RAW_WIDTH)
BIT_UNITS = tl.constexpr(form.BIT_UNITS)
MIN_WIDTH = tl.constexpr(form.MIN_WIDTH)
MAX_WIDTH = tl.constexpr(form.MAX_WIDTH)
WIDTH_AT = tl.constexpr(form.WIDTH_AT)
ZERO_AT = tl.constexpr(form.ZERO_AT)
PLANES_AT = tl.constexpr(form.PLANES_AT)
EXTRA_AT = tl.constexpr(form.EXTRA_AT)
PLACE_AT = tl.constexpr(form.PLACE_AT)
VECTOR = tl.constexpr(UNIT)


def describe(storages: Sequence[Tensor]) -> Tensor:
    """Descriptors (int64) of all blocks of all storages, without places."""
    made = _table(storages, [0] * len(storages))
    found = torch.empty(made.programs, dtype=torch.int64, device=storages[0].device)
    size = storages[0].element_size()
    describe_blocks[(made.programs,)](made.rows, made.owners, found, SIZE=size, num_warps=WARPS)
    return found


def encode(
    storages: Sequence[Tensor], tables: Sequence[Tensor], offsets: Sequence[int], staging: Tensor
) -> None:
    made = _table(storages, [staging.data_ptr() + offset for offset in offsets])
    size = storages[0].element_size()
    described = torch.cat(list(tables))
    encode_blocks[(made.programs,)](made.rows, made.owners, described, SIZE=size, num_warps=WARPS)


def decode(storages: Sequence[Tensor], offsets: Sequence[int], staging: Tensor) -> None:
    made = _table(storages, [staging.data_ptr() + offset for offset in offsets])
    size = storages[0].element_size()
    decode_blocks[(made.programs,)](made.rows, made.owners, SIZE=size, num_warps=WARPS)


def _table(storages: Sequence[Tensor], encoded: Sequence[int]) -> Table:
    """Rows: address of the values, their number, address of the encoded storage."""
    rows = [(s.data_ptr(), s.numel(), at) for s, at in zip(storages, encoded, strict=True)]
    blocks = [form.blocks_of(storage.numel()) for storage in storages]
    return table(rows, blocks, storages[0].device)


@triton.jit
def describe_blocks(rows, owners, descriptors, SIZE: tl.constexpr):
    values, count, _, block = _row(rows, owners)
    at = block * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    exponents, rest = _load_values(values, at, inside, count, block, SIZE)
    top = tl.max(exponents, 0)
    lowest = tl.min(tl.where(inside, exponents, 255), 0)
    zero = ((lowest == 0) & (top > 0)).to(tl.int32)
    below = tl.where(inside, top - exponents, 0)
    coded_zero = (exponents == 0) & (zero == 1)
    width = RAW_WIDTH
    extra = 0
    cost = RAW_WIDTH * BIT_UNITS
    for tried in tl.static_range(MIN_WIDTH, MAX_WIDTH + 1):
        escaped = (below >= (1 << tried) - 1 - zero) & ~coded_zero & inside
        without = tl.sum(escaped.to(tl.int32), 0)
        units = tried * BIT_UNITS + (without + VECTOR - 1) // VECTOR
        better = units < cost
        width = tl.where(better, tried, width)
        extra = tl.where(better, without, extra)
        cost = tl.where(better, units, cost)
    width = tl.where(lowest == top, 0, width)
    extra = tl.where(lowest == top, 0, extra)
    found = top | (width << WIDTH_AT) | (zero << ZERO_AT)
    for plane in tl.static_range(0, 3):
        stored = tl.max((rest >> (8 * plane)) & 0xFF, 0) > 0
        found |= stored.to(tl.int32) << (PLANES_AT + plane)
    described = found.to(tl.int64) | (extra.to(tl.int64) << EXTRA_AT)
    tl.store(descriptors + tl.program_id(0), described)


@triton.jit
def encode_blocks(rows, owners, descriptors, SIZE: tl.constexpr):
    values, count, encoded, block = _row(rows, owners)
    at = block * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    exponents, rest = _load_values(values, at, inside, count, block, SIZE)
    descriptor = tl.load(descriptors + tl.program_id(0))
    tl.store(encoded.to(tl.pointer_type(tl.int64)) + block, descriptor)
    top, width, zero, payload = _unpacked(descriptor, encoded)
    for plane in tl.static_range(2, -1, -1):
        if (descriptor >> (PLANES_AT + plane)) & 1 == 1:
            _store_bytes(payload, rest >> (8 * plane))
            payload += BLOCK
    if width == RAW_WIDTH:
        _store_bytes(payload, exponents)
    elif width > 0:
        none = (1 << width) - 1
        codes = tl.minimum(top - tl.where(inside, exponents, top) + zero, none)
        codes = tl.where((exponents == 0) & (zero == 1) & inside, 0, codes)
        escaped = codes == none
        if width & 1 != 0:
            _store_fields(payload, codes, 1)
            payload += BLOCK // 8
        if width & 2 != 0:
            _store_fields(payload, codes >> (width & 1), 2)
            payload += BLOCK // 8 * 2
        if width & 4 != 0:
            _store_fields(payload, codes >> (width & 3), 4)
            payload += BLOCK // 8 * 4
        rank = tl.cumsum(escaped.to(tl.int32), 0) - 1
        target = payload.to(tl.pointer_type(tl.uint8))
        tl.store(target + rank, exponents.to(tl.uint8), mask=escaped)


@triton.jit
def decode_blocks(rows, owners, SIZE: tl.constexpr):
    values, count, encoded, block = _row(rows, owners)
    descriptor = tl.load(encoded.to(tl.pointer_type(tl.int64)) + block)
    top, width, zero, payload = _unpacked(descriptor, encoded)
    rest = tl.zeros([BLOCK], dtype=tl.int32)
    for plane in tl.static_range(2, -1, -1):
        if (descriptor >> (PLANES_AT + plane)) & 1 == 1:
            rest |= _load_bytes(payload) << (8 * plane)
            payload += BLOCK
    exponents = tl.zeros([BLOCK], dtype=tl.int32) + top
    if width == RAW_WIDTH:
        exponents = _load_bytes(payload)
    elif width > 0:
        codes = tl.zeros([BLOCK], dtype=tl.int32)
        if width & 1 != 0:
            codes = _load_fields(payload, 1)
            payload += BLOCK // 8
        if width & 2 != 0:
            codes |= _load_fields(payload, 2) << (width & 1)
            payload += BLOCK // 8 * 2
        if width & 4 != 0:
            codes |= _load_fields(payload, 4) << (width & 3)
            payload += BLOCK // 8 * 4
        escaped = codes == (1 << width) - 1
        rank = tl.cumsum(escaped.to(tl.int32), 0) - 1
        source = payload.to(tl.pointer_type(tl.uint8))
        extra = tl.load(source + rank, mask=escaped, other=0).to(tl.int32)
        exponents = tl.where((codes == 0) & (zero == 1), 0, top + zero - codes)
        exponents = tl.where(escaped, extra, exponents)
    _store_values(values, exponents, rest, count, block, SIZE)


@triton.jit
def _row(rows, owners):
    """Address of the values, their number, address of the encoded storage, number of the block."""
    program = tl.program_id(0)
    row = rows + tl.load(owners + program).to(tl.int64) * 4
    return tl.load(row), tl.load(row + 1), tl.load(row + 2), program - tl.load(row + 3)


@triton.jit
def _unpacked(descriptor, encoded):
    """Top exponent, width, zero flag, address of the block."""
    low = descriptor.to(tl.int32)
    place = encoded + (descriptor >> PLACE_AT) * VECTOR
    return low & 0xFF, (low >> WIDTH_AT) & 0xF, (low >> ZERO_AT) & 1, place


@triton.jit
def _load_values(values, at, inside, count, block, SIZE: tl.constexpr):
    """Exponents, and signs with mantissas in 24 bits; 0 behind the end of the storage."""
    if SIZE == 2:
        words = values.to(tl.pointer_type(tl.int16))
    else:
        words = values.to(tl.pointer_type(tl.int32))
    if (values % VECTOR == 0) & ((block + 1) * BLOCK <= count):
        found = tl.load(tl.multiple_of(words, VECTOR) + at, eviction_policy="evict_first")
    else:
        found = tl.load(words + at, mask=inside, other=0, eviction_policy="evict_first")
    bits = found.to(tl.int32)
    if SIZE == 2:
        bits = bits << 16
    return (bits >> 23) & 0xFF, (bits & 0x7FFFFF) | ((bits >> 8) & 0x800000)


@triton.jit
def _store_values(values, exponents, rest, count, block, SIZE: tl.constexpr):
    at = block * BLOCK + tl.arange(0, BLOCK)
    bits = (exponents << 23) | (rest & 0x7FFFFF) | ((rest & 0x800000) << 8)
    if SIZE == 2:
        words = values.to(tl.pointer_type(tl.int16))
        found = (bits >> 16).to(tl.int16)
    else:
        words = values.to(tl.pointer_type(tl.int32))
        found = bits
    if (values % VECTOR == 0) & ((block + 1) * BLOCK <= count):
        tl.store(tl.multiple_of(words, VECTOR) + at, found, cache_modifier=".cs")
    else:
        tl.store(words + at, found, mask=at < count, cache_modifier=".cs")


@triton.jit
def _store_bytes(address, values):
    target = tl.multiple_of(address.to(tl.pointer_type(tl.uint8)), VECTOR)
    stored = (values & 0xFF).to(tl.uint8)
    tl.store(target + tl.arange(0, BLOCK), stored, cache_modifier=".cs")


@triton.jit
def _load_bytes(address):
    source = tl.multiple_of(address.to(tl.pointer_type(tl.uint8)), VECTOR)
    found = tl.load(source + tl.arange(0, BLOCK), eviction_policy="evict_first")
    return found.to(tl.int32)


@triton.jit
def _store_fields(address, codes, BITS: tl.constexpr):
    """The lowest ``BITS`` bits of each code, as words of 32 bits."""
    SLOTS: tl.constexpr = 32 // BITS
    WORDS: tl.constexpr = BLOCK // SLOTS
    fields = tl.reshape(codes & ((1 << BITS) - 1), [SLOTS, WORDS])
    shifted = fields << (tl.arange(0, SLOTS) * BITS)[:, None]
    target = tl.multiple_of(address.to(tl.pointer_type(tl.int32)), VECTOR)
    tl.store(target + tl.arange(0, WORDS), tl.sum(shifted, 0), cache_modifier=".cs")


@triton.jit
def _load_fields(address, BITS: tl.constexpr):
    WORDS: tl.constexpr = BLOCK * BITS // 32
    at = tl.arange(0, BLOCK)
    source = tl.multiple_of(address.to(tl.pointer_type(tl.int32)), VECTOR)
    words = tl.load(source + at % WORDS)
    return (words >> (at // WORDS * BITS)) & ((1 << BITS) - 1)
