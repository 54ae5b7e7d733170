"""Where each storage lies in a staging buffer.

In: sizes and an alignment. Out: frozen records with offsets. Must not know: torch, codecs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

# Vector accesses of 16 bytes, and the unit in which encoded blocks are placed.
UNIT = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """One storage in a staging buffer: ``nbytes`` bytes from ``offset`` on.

    ``codec`` is the one that was used: a storage that ``"lossless"`` does not make smaller is
    ``"raw"``. ``dtype`` (such as ``"bfloat16"``) and ``raw_nbytes`` are those of the storage.
    """

    offset: int
    nbytes: int
    codec: str
    dtype: str
    raw_nbytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """What ``pack`` put into a staging buffer; ``nbytes`` are in use, counted from its begin."""

    pieces: tuple[Piece, ...]
    nbytes: int


def rounded_up(nbytes: int, unit: int) -> int:
    return -(-nbytes // unit) * unit


def offsets(sizes: Sequence[int], alignment: int) -> list[int]:
    """One after another, each at a multiple of ``alignment`` bytes."""
    found, end = [], 0
    for nbytes in sizes:
        begin = rounded_up(end, alignment)
        found.append(begin)
        end = begin + nbytes
    return found
