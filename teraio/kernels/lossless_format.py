"""The lossless format: how blocks of floating-point values are described and placed.

In: descriptors of blocks. Out: their sizes and places. Must not know: how values are encoded.

An encoded storage is a table of one descriptor (8 bytes) for each block of ``BLOCK`` values, then
the blocks, each at a multiple of ``UNIT`` bytes. A value is taken as a float32; bfloat16 as its
upper half. Its exponent goes to the exponent part; its sign and mantissa make three bytes, and byte
2 (sign and the upper 7 bits of the mantissa), byte 1 and byte 0 of all values of a block make three
planes. A block is:

- those planes that are not all zero, 2 before 1 before 0, ``BLOCK`` bytes each;
- if the width is 8, the exponents, a byte each; else codes of ``width`` bits, as bit fields of 1, 2
  and 4 bits for the binary digits of the width, lowest bits of the code first. A field of p bits of
  value i lies in 32-bit word i % W (W = BLOCK * p / 32), p * (i // W) bits up;
- the exponents that have no code, a byte each, in the order of their values, and up to 15 unused
  bytes.

Codes count down from the block's top exponent. Width 0: all exponents are the top one. Else the
highest code says "no code"; and if the descriptor has ``ZERO``, code 0 means exponent 0 (zeros and
denormals), and the top exponent has code 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from teraio.kernels.layout import UNIT, rounded_up

BLOCK = 1024
DTYPES = (torch.float32, torch.bfloat16)
DESCRIPTOR_NBYTES = 8
# A descriptor, from its lowest bit on: top exponent, width, zero flag, flags of planes 0 to 2,
# number of exponents without a code, place of the block in units from the begin of the storage.
TOP_BITS = 8
WIDTH_AT, WIDTH_BITS = 8, 4
ZERO_AT = 12
PLANES_AT = 13
EXTRA_AT, EXTRA_BITS = 16, 16
PLACE_AT = 32

RAW_WIDTH = 8
# Widths that are tried, besides 0 and RAW_WIDTH. Wider ones hardly ever pay. With a narrower one,
# the top exponent, which also fills blocks up, would have no code beside that of zeros.
MIN_WIDTH, MAX_WIDTH = 2, 5
FIELDS = (1, 2, 4)
PLANE_UNITS = BLOCK // UNIT
BIT_UNITS = BLOCK // 8 // UNIT
# Places have 31 bits, so that a descriptor is a positive int64.
MAX_NBYTES = UNIT << 31
# An encoded storage has to be smaller than the raw one by 1 / MIN_GAIN at least.
MIN_GAIN = 32


def blocks_of(count: int) -> int:
    return -(-count // BLOCK)


def table_nbytes(blocks: int) -> int:
    return rounded_up(blocks * DESCRIPTOR_NBYTES, UNIT)


def field(descriptors: Tensor, at: int, bits: int) -> Tensor:
    return (descriptors >> at) & ((1 << bits) - 1)


def plane_flags(descriptors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Whether planes 2, 1 and 0 are stored, as integers."""
    two, one, zero = (field(descriptors, PLANES_AT + plane, 1) for plane in (2, 1, 0))
    return two, one, zero


def payload_units(descriptors: Tensor) -> Tensor:
    """Size of each block."""
    planes = sum(plane_flags(descriptors))
    extra = field(descriptors, EXTRA_AT, EXTRA_BITS)
    width = field(descriptors, WIDTH_AT, WIDTH_BITS)
    return planes * PLANE_UNITS + width * BIT_UNITS + (extra + UNIT - 1) // UNIT


def placed(descriptors: Tensor, blocks: Sequence[int]) -> tuple[Tensor, list[int]]:
    """The descriptors with places, and the size of each encoded storage in bytes.

    ``descriptors`` (int64, 1-D) are those of all storages one after another, ``blocks`` the number
    of each. Waits for the device once.
    """
    units = payload_units(descriptors)
    before = torch.cumsum(units, 0) - units
    counts = torch.tensor(blocks, dtype=torch.int64)
    first = (torch.cumsum(counts, 0) - counts).to(descriptors.device)
    tables = torch.tensor([table_nbytes(number) // UNIT for number in blocks])
    shift = tables.to(descriptors.device) - before[first]
    repeats = counts.to(descriptors.device)
    places = before + torch.repeat_interleave(shift, repeats, output_size=descriptors.numel())
    last = first + repeats - 1
    ends = places[last] + units[last]
    return descriptors | (places << PLACE_AT), [UNIT * end for end in ends.tolist()]
