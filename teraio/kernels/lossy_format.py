"""Numbers of the lossy formats, shared by both implementations.

In: nothing. Out: constants. Must not know: torch, Triton.

Minifloats: the values of a group are scaled by a power of two so that the largest finite magnitude
lies in [128, 256). Its biased exponent as a float32 is the group's scale (a byte). Codes are the
bits of a small float with 3 bits of mantissa: rounded to nearest even, saturating below 256, with
denormals, an infinity and a NaN. The NaN has no sign: GPUs lose it when they convert from float16.

int8: the scale is a float32, the group's largest finite magnitude / 127; the code is the value over
it, rounded to nearest even.
"""

from __future__ import annotations

from dataclasses import dataclass

# Below it neither the scaled values nor the scale would be normal numbers.
LOWEST_TOP = 32
INT8_SMALLEST = 2.0**-100
INT8_NAN = -128


@dataclass(frozen=True, slots=True, kw_only=True)
class Minifloat:
    """``rebias`` is what codes lack to the upper 12 bits of a float32, without its sign.

    ``normal`` is the smallest value that is no denormal, ``step`` and ``1 / steps`` the distance of
    denormals; ``largest`` is the code of 240.
    """

    signed: bool
    rebias: int
    normal: float
    step: float
    steps: float
    largest: int
    nan: int
    infinity: int


def _minifloat(*, signed: bool, exponent_bits: int) -> Minifloat:
    bias = (1 << exponent_bits) - 2 - 7
    infinity = (8 << exponent_bits) - 1
    return Minifloat(
        signed=signed,
        rebias=(127 - bias) << 3,
        normal=2.0 ** (1 - bias),
        step=2.0 ** (-2 - bias),
        steps=2.0 ** (2 + bias),
        largest=infinity - 8,
        nan=infinity - 1,
        infinity=infinity,
    )


MINIFLOATS = {
    "fp8": _minifloat(signed=True, exponent_bits=4),
    "ufp8": _minifloat(signed=False, exponent_bits=5),
}
