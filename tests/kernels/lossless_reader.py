"""The lossless format read once more, in plain Python, from its description alone.

In: the bytes of an encoded storage, its number of values. Out: their bits as float32. Must not
know: either implementation.
"""

from __future__ import annotations

BLOCK = 1024


def read(encoded: bytes, count: int) -> list[int]:
    found: list[int] = []
    for block in range(-(-count // BLOCK)):
        descriptor = int.from_bytes(encoded[8 * block : 8 * block + 8], "little")
        found += _block(descriptor, encoded)
    return found[:count]


def _block(descriptor: int, encoded: bytes) -> list[int]:
    top, width = descriptor & 0xFF, descriptor >> 8 & 0xF
    zero, extras = descriptor >> 12 & 1, descriptor >> 16 & 0xFFFF
    at = 16 * (descriptor >> 32)
    rests = [0] * BLOCK
    for plane in (2, 1, 0):
        if descriptor >> (13 + plane) & 1:
            for value in range(BLOCK):
                rests[value] |= encoded[at + value] << (8 * plane)
            at += BLOCK
    if width == 8:
        exponents = list(encoded[at : at + BLOCK])
    else:
        exponents = _exponents(encoded, at, top, width, zero, extras)
    return [
        (rest >> 23) << 31 | exponent << 23 | rest & 0x7FFFFF
        for exponent, rest in zip(exponents, rests, strict=True)
    ]


def _exponents(encoded: bytes, at: int, top: int, width: int, zero: int, extras: int) -> list[int]:
    if width == 0:
        return [top] * BLOCK
    codes, done = [0] * BLOCK, 0
    for bits in (1, 2, 4):
        if width & bits:
            words = BLOCK * bits // 32
            for value in range(BLOCK):
                begin = at + 4 * (value % words)
                word = int.from_bytes(encoded[begin : begin + 4], "little")
                codes[value] |= (word >> bits * (value // words) & (1 << bits) - 1) << done
            at, done = at + 4 * words, done + bits
    extra = iter(encoded[at : at + extras])
    none = (1 << width) - 1
    return [
        next(extra) if code == none else 0 if zero and code == 0 else top + zero - code
        for code in codes
    ]
