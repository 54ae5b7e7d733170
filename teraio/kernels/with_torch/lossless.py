"""The lossless codec in plain torch; the format is that of ``lossless_format``.

In: checked storages of float32 or bfloat16, offsets, a staging buffer. Out: block tables, encoded
bytes, and values again. Must not know: Triton, layouts of several storages.

Works on a run of blocks at a time, as a matrix of one row per block, so that its temporary memory
does not grow with the storage.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from teraio.kernels import lossless_format as form
from teraio.kernels.layout import UNIT

BLOCKS_AT_ONCE = 64


class _Rows(NamedTuple):
    """Blocks as rows of ``BLOCK`` values, int32; ``inside`` is false behind the storage's end."""

    exponents: Tensor
    rest: Tensor
    inside: Tensor


def describe(storages: Sequence[Tensor]) -> Tensor:
    """Descriptors (int64) of all blocks of all storages, without places."""
    return torch.cat(
        [
            _descriptors(_rows(storage, begin, end))
            for storage in storages
            for begin, end in _runs(storage.numel())
        ]
    )


def encode(
    storages: Sequence[Tensor], tables: Sequence[Tensor], offsets: Sequence[int], staging: Tensor
) -> None:
    for storage, table, offset in zip(storages, tables, offsets, strict=True):
        stored = table.contiguous().view(torch.uint8)
        staging[offset : offset + stored.numel()].copy_(stored)
        for begin, end in _runs(storage.numel()):
            _Blocks(table[begin:end], staging[offset:]).write(_rows(storage, begin, end))


def decode(storages: Sequence[Tensor], offsets: Sequence[int], staging: Tensor) -> None:
    for storage, offset in zip(storages, offsets, strict=True):
        blocks = form.blocks_of(storage.numel())
        table = staging[offset : offset + blocks * form.DESCRIPTOR_NBYTES].view(torch.int64)
        for begin, end in _runs(storage.numel()):
            values = _values(*_Blocks(table[begin:end], staging[offset:]).read(), storage.dtype)
            part = storage[begin * form.BLOCK : end * form.BLOCK]
            part.view(values.dtype).copy_(values.flatten()[: part.numel()])


class _Blocks:
    """A run of blocks in a buffer: which part of each lies where.

    ``encoded`` (uint8) begins at the encoded storage that the blocks belong to.
    """

    def __init__(self, descriptors: Tensor, encoded: Tensor) -> None:
        self._bytes = encoded
        self._units = encoded[: encoded.numel() // UNIT * UNIT].view(-1, UNIT)
        self._place = descriptors >> form.PLACE_AT
        self._extra = form.field(descriptors, form.EXTRA_AT, form.EXTRA_BITS)
        self._flags = form.plane_flags(descriptors)
        self.top = form.field(descriptors, 0, form.TOP_BITS)[:, None]
        self.width = form.field(descriptors, form.WIDTH_AT, form.WIDTH_BITS)[:, None]
        self.zero = form.field(descriptors, form.ZERO_AT, 1)[:, None]

    def write(self, rows: _Rows) -> None:
        unit = self._place.clone()
        for flag, shift in zip(self._flags, (16, 8, 0), strict=True):
            plane = (rows.rest >> shift).to(torch.uint8)
            self._put(unit, flag == 1, plane)
            unit += flag * form.PLANE_UNITS
        raw = self.width[:, 0] == form.RAW_WIDTH
        self._put(unit, raw, rows.exponents.to(torch.uint8))
        unit += raw * form.PLANE_UNITS
        codes, escaped = _codes(rows, self.top, self.width, self.zero)
        done = torch.zeros_like(self.width)
        for bits in form.FIELDS:
            present = (self.width & bits) != 0
            field = (codes >> done) & ((1 << bits) - 1)
            self._put(unit, present[:, 0], _packed_fields(field, bits))
            unit += present[:, 0] * bits * form.BIT_UNITS
            done += present * bits
        self._bytes[self._extra_bytes(unit, escaped)] = rows.exponents[escaped].to(torch.uint8)

    def read(self) -> tuple[Tensor, Tensor]:
        """Exponents, and signs with mantissas, as for ``_Rows``."""
        unit = self._place.clone()
        rest = torch.zeros(len(unit), form.BLOCK, dtype=torch.int32, device=unit.device)
        for flag, shift in zip(self._flags, (16, 8, 0), strict=True):
            rest |= self._get(unit, flag == 1, form.BLOCK).to(torch.int32) << shift
            unit += flag * form.PLANE_UNITS
        raw = self.width[:, 0] == form.RAW_WIDTH
        whole = self._get(unit, raw, form.BLOCK).to(torch.int64)
        unit += raw * form.PLANE_UNITS
        codes = torch.zeros_like(whole)
        done = torch.zeros_like(self.width)
        for bits in form.FIELDS:
            present = (self.width & bits) != 0
            words = self._get(unit, present[:, 0], form.BLOCK * bits // 8)
            codes |= _unpacked_fields(words, bits) << done
            unit += present[:, 0] * bits * form.BIT_UNITS
            done += present * bits
        exponents = _exponents(codes, self.top, self.zero)
        exponents[raw] = whole[raw]
        escaped = _escapes(codes, self.width)
        exponents[escaped] = self._bytes[self._extra_bytes(unit, escaped)].to(torch.int64)
        return exponents, rest

    def _put(self, unit: Tensor, present: Tensor, rows: Tensor) -> None:
        chosen = rows[present]
        nbytes = chosen.shape[1]
        units = chosen.view(len(chosen), nbytes // UNIT, UNIT)
        self._units[self._rows_of(unit[present], nbytes)] = units

    def _get(self, unit: Tensor, present: Tensor, nbytes: int) -> Tensor:
        """Rows of ``nbytes``; zero where not ``present``."""
        found = torch.zeros(len(unit), nbytes, dtype=torch.uint8, device=unit.device)
        found[present] = self._units[self._rows_of(unit[present], nbytes)].flatten(1)
        return found

    @staticmethod
    def _rows_of(unit: Tensor, nbytes: int) -> Tensor:
        return unit[:, None] + torch.arange(nbytes // UNIT, device=unit.device)

    @staticmethod
    def _extra_bytes(unit: Tensor, escaped: Tensor) -> Tensor:
        """Where the exponent of each escaped value lies, in the values' order."""
        rank = torch.cumsum(escaped, 1) - 1
        return (unit[:, None] * UNIT + rank)[escaped]


def _runs(count: int) -> Iterator[tuple[int, int]]:
    blocks = form.blocks_of(count)
    for begin in range(0, blocks, BLOCKS_AT_ONCE):
        yield begin, min(begin + BLOCKS_AT_ONCE, blocks)


def _rows(storage: Tensor, begin: int, end: int) -> _Rows:
    part = storage[begin * form.BLOCK : end * form.BLOCK]
    if part.dtype == torch.bfloat16:
        bits = part.view(torch.int16).to(torch.int32) << 16
    else:
        bits = part.view(torch.int32)
    padded = torch.nn.functional.pad(bits, (0, (end - begin) * form.BLOCK - bits.numel()))
    inside = torch.arange(padded.numel(), device=padded.device) < bits.numel()
    rows = padded.view(-1, form.BLOCK)
    rest = (rows & 0x7FFFFF) | ((rows >> 8) & 0x800000)
    return _Rows((rows >> 23) & 0xFF, rest, inside.view_as(rows))


def _values(exponents: Tensor, rest: Tensor, dtype: torch.dtype) -> Tensor:
    """Bit patterns, as int16 or int32."""
    bits = (exponents << 23) | (rest & 0x7FFFFF) | ((rest & 0x800000).to(torch.int64) << 8)
    return (bits >> 16).to(torch.int16) if dtype == torch.bfloat16 else bits.to(torch.int32)


def _descriptors(rows: _Rows) -> Tensor:
    exponents = rows.exponents.to(torch.int64)
    top = exponents.amax(1, keepdim=True)
    lowest = exponents.masked_fill(~rows.inside, 0xFF).amin(1, keepdim=True)
    zero = ((lowest == 0) & (top > 0)).to(torch.int64)
    width = torch.full_like(top, form.RAW_WIDTH)
    extra = torch.zeros_like(top)
    cost = width * form.BIT_UNITS
    for tried in range(form.MIN_WIDTH, form.MAX_WIDTH + 1):
        _, escaped = _codes(rows, top, torch.full_like(top, tried), zero)
        without = escaped.sum(1, keepdim=True)
        units = tried * form.BIT_UNITS + (without + UNIT - 1) // UNIT
        better = units < cost
        width, extra, cost = (
            torch.where(better, new, old)
            for new, old in ((torch.full_like(top, tried), width), (without, extra), (units, cost))
        )
    constant = lowest == top
    width, extra = width.masked_fill(constant, 0), extra.masked_fill(constant, 0)
    found = top | (width << form.WIDTH_AT) | (zero << form.ZERO_AT) | (extra << form.EXTRA_AT)
    for plane in range(3):
        stored = ((rows.rest >> (8 * plane)) & 0xFF).amax(1, keepdim=True) > 0
        found |= stored.to(torch.int64) << (form.PLANES_AT + plane)
    return found[:, 0]


def _codes(rows: _Rows, top: Tensor, width: Tensor, zero: Tensor) -> tuple[Tensor, Tensor]:
    """Codes (int64), and which values have none. Those behind the end have the top exponent's
    code."""
    exponents = torch.where(rows.inside, rows.exponents.to(torch.int64), top)
    none = (1 << width) - 1
    codes = torch.minimum(top - exponents + zero, none)
    codes = torch.where((exponents == 0) & (zero == 1), torch.zeros_like(codes), codes)
    return codes, _escapes(codes, width)


def _escapes(codes: Tensor, width: Tensor) -> Tensor:
    """Which values have no code."""
    coded = (width > 0) & (width < form.RAW_WIDTH)
    return coded & (codes == (1 << width) - 1)


def _exponents(codes: Tensor, top: Tensor, zero: Tensor) -> Tensor:
    return torch.where((codes == 0) & (zero == 1), torch.zeros_like(codes), top + zero - codes)


def _packed_fields(field: Tensor, bits: int) -> Tensor:
    """Bytes of the 32-bit words that hold ``bits`` bits of each value."""
    slots = 32 // bits
    shifts = bits * torch.arange(slots, device=field.device)[:, None]
    words = (field.view(len(field), slots, -1) << shifts).sum(1)
    return words.to(torch.int32).view(torch.uint8)


def _unpacked_fields(packed: Tensor, bits: int) -> Tensor:
    slots = 32 // bits
    words = packed.view(torch.int32).to(torch.int64)[:, None, :]
    shifts = bits * torch.arange(slots, device=packed.device)[:, None]
    return ((words >> shifts) & ((1 << bits) - 1)).flatten(1)
