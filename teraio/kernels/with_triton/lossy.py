"""The lossy codecs as kernels: scales of groups first, then a code for each value.

In: checked storages of floating-point values, offsets, a staging buffer. Out: codes, and values
again. Must not know: the twin in plain torch.

A program works on ``BLOCK`` values, as a matrix of one row per group. Multiplications and additions
are kept apart (no fused multiply-add), so that the codes are the twin's.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from teraio.kernels.codecs import CODECS, GROUP, fixed_nbytes
from teraio.kernels.lossy_format import INT8_NAN, INT8_SMALLEST, LOWEST_TOP, MINIFLOATS
from teraio.kernels.with_triton.tables import table

BLOCK = 1024
WARPS = 4

_GROUP = tl.constexpr(GROUP)
_ROWS = tl.constexpr(BLOCK // GROUP)
_BLOCK = tl.constexpr(BLOCK)
_LOWEST_TOP = tl.constexpr(LOWEST_TOP)
_INT8_SMALLEST = tl.constexpr(INT8_SMALLEST)
_INT8_NAN = tl.constexpr(INT8_NAN)
# Added to and taken from a float32 below 2**22, it rounds to the nearest even integer.
_ROUNDER = tl.constexpr(1.5 * 2**23)

_DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


def encode(codec: str, storages: Sequence[Tensor], offsets: Sequence[int], staging: Tensor) -> None:
    _launch(True, codec, storages, offsets, staging)


def decode(codec: str, storages: Sequence[Tensor], offsets: Sequence[int], staging: Tensor) -> None:
    _launch(False, codec, storages, offsets, staging)


def _launch(
    encoding: bool, codec: str, storages: Sequence[Tensor], offsets: Sequence[int], staging: Tensor
) -> None:
    """Rows: address of the values, their number, address of the scales, address of the codes."""
    kind, base = CODECS[codec], staging.data_ptr()
    counts = [storage.numel() for storage in storages]
    rows = [
        (storage.data_ptr(), count, base + at, base + at + _scales_nbytes(codec, count))
        for storage, count, at in zip(storages, counts, offsets, strict=True)
    ]
    made = table(rows, [-(-count // BLOCK) for count in counts], staging.device)
    grid, options = (made.programs,), {"num_warps": WARPS, "enable_fp_fusion": False}
    value = _DTYPES[storages[0].dtype]
    if codec in MINIFLOATS:
        form = MINIFLOATS[codec]
        numbers = (
            form.signed, form.rebias, form.normal, form.steps if encoding else form.step,
            form.largest, form.nan, form.infinity,
        )  # fmt: skip
        kernel = encode_minifloats if encoding else decode_minifloats
        kernel[grid](made.rows, made.owners, value, *numbers, **options)
    elif kind.scale_nbytes:
        kernel = encode_int8 if encoding else decode_int8
        kernel[grid](made.rows, made.owners, value, **options)
    else:
        kernel = encode_bf16 if encoding else decode_bf16
        kernel[grid](made.rows, made.owners, **options)


def _scales_nbytes(codec: str, count: int) -> int:
    return fixed_nbytes(CODECS[codec], count) - count * CODECS[codec].code_nbytes


@triton.jit
def encode_minifloats(
    rows, owners, VALUE: tl.constexpr, SIGNED: tl.constexpr, REBIAS: tl.constexpr,
    NORMAL: tl.constexpr, STEPS: tl.constexpr, LARGEST: tl.constexpr, NAN: tl.constexpr,
    INFINITY: tl.constexpr,
):  # fmt: skip
    values, count, scales, codes, block = _row(rows, owners)
    at = _places(block)
    bits = _load_values(values, at, count, VALUE).to(tl.int32, bitcast=True)
    magnitude = bits & 0x7FFFFFFF
    finite = magnitude < 0x7F800000
    top = tl.maximum(tl.max(tl.where(finite, magnitude, 0), 1) >> 23, _LOWEST_TOP)
    scaled = magnitude.to(tl.float32, bitcast=True) * _power_of_two(261 - top)[:, None]
    rounded = scaled.to(tl.int32, bitcast=True)
    rounded = (rounded + 0x7FFFF + ((rounded >> 20) & 1)) >> 20
    small = _nearest(tl.minimum(scaled, NORMAL) * STEPS)
    code = tl.minimum(tl.where(scaled < NORMAL, small, rounded - REBIAS), LARGEST)
    lost = magnitude > 0x7F800000
    if not SIGNED:
        code = tl.where((code == 0) & (magnitude > 0), 1, code)
        lost = lost | ((bits < 0) & (magnitude > 0))
    code = tl.where(finite, code, INFINITY)
    code = tl.where(lost, NAN, code)
    if SIGNED:
        code = tl.where(lost, code, code | ((bits >> 24) & 0x80))
    target = codes.to(tl.pointer_type(tl.uint8)) + at
    tl.store(target, code.to(tl.uint8), mask=at < count, cache_modifier=".cs")
    group = block * _ROWS + tl.arange(0, _ROWS)
    target = scales.to(tl.pointer_type(tl.uint8)) + group
    tl.store(target, top.to(tl.uint8), mask=group * _GROUP < count)


@triton.jit
def decode_minifloats(
    rows, owners, VALUE: tl.constexpr, SIGNED: tl.constexpr, REBIAS: tl.constexpr,
    NORMAL: tl.constexpr, STEP: tl.constexpr, LARGEST: tl.constexpr, NAN: tl.constexpr,
    INFINITY: tl.constexpr,
):  # fmt: skip
    values, count, scales, codes, block = _row(rows, owners)
    at = _places(block)
    source = codes.to(tl.pointer_type(tl.uint8)) + at
    loaded = tl.load(source, mask=at < count, other=0, eviction_policy="evict_first").to(tl.int32)
    code = loaded
    if SIGNED:
        code = loaded & 0x7F
    group = block * _ROWS + tl.arange(0, _ROWS)
    source = scales.to(tl.pointer_type(tl.uint8)) + group
    top = tl.load(source, mask=group * _GROUP < count, other=127).to(tl.int32)
    normal = ((code + REBIAS) << 20).to(tl.float32, bitcast=True)
    scaled = tl.where(code < 8, code.to(tl.float32) * STEP, normal)
    found = scaled * _power_of_two(top - 7)[:, None]
    found = tl.where(code == INFINITY, float("inf"), found)
    found = tl.where(code == NAN, float("nan"), found)
    if SIGNED:
        # By its bit: Triton's minus takes from zero, which loses the sign of zeros.
        bits = found.to(tl.int32, bitcast=True) | ((loaded & 0x80) << 24)
        found = bits.to(tl.float32, bitcast=True)
    _store_values(values, at, count, found, VALUE)


@triton.jit
def encode_int8(rows, owners, VALUE: tl.constexpr):
    values, count, scales, codes, block = _row(rows, owners)
    at = _places(block)
    loaded = _load_values(values, at, count, VALUE)
    magnitude = loaded.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    finite = magnitude < 0x7F800000
    largest = tl.max(tl.where(finite, magnitude, 0), 1).to(tl.float32, bitcast=True)
    large = largest >= _INT8_SMALLEST
    divisor = tl.where(large, largest, 1.0)
    scale = tl.where(large, tl.div_rn(largest, tl.full([_ROWS], 127.0, tl.float32)), 0.0)
    inverse = tl.where(large, tl.div_rn(tl.full([_ROWS], 127.0, tl.float32), divisor), 0.0)
    code = _nearest(tl.where(finite, loaded, 0.0) * inverse[:, None])
    code = tl.where(finite, code, _INT8_NAN)
    target = codes.to(tl.pointer_type(tl.int8)) + at
    tl.store(target, code.to(tl.int8), mask=at < count, cache_modifier=".cs")
    group = block * _ROWS + tl.arange(0, _ROWS)
    target = scales.to(tl.pointer_type(tl.float32)) + group
    tl.store(target, scale, mask=group * _GROUP < count)


@triton.jit
def decode_int8(rows, owners, VALUE: tl.constexpr):
    values, count, scales, codes, block = _row(rows, owners)
    at = _places(block)
    source = codes.to(tl.pointer_type(tl.int8)) + at
    code = tl.load(source, mask=at < count, other=0, eviction_policy="evict_first").to(tl.int32)
    group = block * _ROWS + tl.arange(0, _ROWS)
    source = scales.to(tl.pointer_type(tl.float32)) + group
    scale = tl.load(source, mask=group * _GROUP < count, other=0.0)
    found = code.to(tl.float32) * scale[:, None]
    found = tl.where(code == _INT8_NAN, float("nan"), found)
    _store_values(values, at, count, found, VALUE)


@triton.jit
def encode_bf16(rows, owners):
    values, count, _, codes, block = _row(rows, owners)
    at = block * _BLOCK + tl.arange(0, _BLOCK)
    loaded = _load_values(values, at, count, tl.float32)
    _store_values(codes, at, count, loaded, tl.bfloat16)


@triton.jit
def decode_bf16(rows, owners):
    values, count, _, codes, block = _row(rows, owners)
    at = block * _BLOCK + tl.arange(0, _BLOCK)
    loaded = _load_values(codes, at, count, tl.bfloat16)
    _store_values(values, at, count, loaded, tl.float32)


@triton.jit
def _row(rows, owners):
    """Addresses and number of values, scales and codes, and the number of the block."""
    program = tl.program_id(0)
    row = rows + tl.load(owners + program).to(tl.int64) * 5
    block = program - tl.load(row + 4)
    return tl.load(row), tl.load(row + 1), tl.load(row + 2), tl.load(row + 3), block


@triton.jit
def _places(block):
    group = tl.arange(0, _ROWS)[:, None] * _GROUP
    return block * _BLOCK + group + tl.arange(0, _GROUP)[None, :]


@triton.jit
def _load_values(address, at, count, VALUE: tl.constexpr):
    """Values of ``VALUE`` as float32; 0 behind the end."""
    if tl.bfloat16 == VALUE:
        words = address.to(tl.pointer_type(tl.int16)) + at
        loaded = tl.load(words, mask=at < count, other=0, eviction_policy="evict_first")
        return (loaded.to(tl.int32) << 16).to(tl.float32, bitcast=True)
    else:
        words = address.to(tl.pointer_type(VALUE)) + at
        loaded = tl.load(words, mask=at < count, other=0.0, eviction_policy="evict_first")
        return loaded.to(tl.float32)


@triton.jit
def _store_values(address, at, count, values, VALUE: tl.constexpr):
    """Values of float32 as ``VALUE``, rounded to nearest even."""
    if tl.bfloat16 == VALUE:
        # By integers, since not every implementation of the conversion rounds so.
        bits = values.to(tl.int32, bitcast=True)
        upper = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        upper = tl.where((bits & 0x7FFFFFFF) > 0x7F800000, 0x7FC0, upper)
        target = address.to(tl.pointer_type(tl.int16)) + at
        tl.store(target, upper.to(tl.int16), mask=at < count, cache_modifier=".cs")
    else:
        target = address.to(tl.pointer_type(VALUE)) + at
        tl.store(target, values.to(VALUE), mask=at < count, cache_modifier=".cs")


@triton.jit
def _power_of_two(biased):
    """2 ** (biased - 127)."""
    return (biased << 23).to(tl.float32, bitcast=True)


@triton.jit
def _nearest(values):
    """The nearest integer, the even one of two, for magnitudes below 2**22."""
    return ((values + _ROUNDER) - _ROUNDER).to(tl.int32)
