"""The codecs by name: what each accepts, how many bytes it takes, how far off its values can be.

In: a name, a dtype, a number of values. Out: facts. Must not know: how anything is encoded.
"""

from __future__ import annotations

from dataclasses import dataclass

from teraio.kernels.layout import UNIT, rounded_up

# Values that share one scale in the 8-bit codecs.
GROUP = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Codec:
    """``dtypes`` it encodes; empty means any. ``error`` bounds what comes back, in words.

    ``code_nbytes`` a value and ``scale_nbytes`` a group of ``GROUP`` values are its fixed rate;
    0 and 0 mean that the size is the storage's own, at most.
    """

    name: str
    exact: bool
    dtypes: tuple[str, ...]
    error: str
    code_nbytes: int = 0
    scale_nbytes: int = 0


_FLOATS = ("float32", "bfloat16", "float16")
_BF16_ERROR = (
    "rounded to nearest even: at most 2^-8 of the value for magnitudes from 2^-126 up, 2^-134 "
    "below; beyond 3.39e38 infinite. NaN stays NaN."
)
_FP8_ERROR = (
    "sign, 4 bits of exponent, 3 of mantissa. Let 2^E be the largest power of two that is not "
    "above the largest finite magnitude of the value's group of 128, and E -95 at least: at most "
    "2^-4 of the value for magnitudes from 2^(E-13) up, 2^(E-17) below. Infinities and NaN stay."
)
_UFP8_ERROR = (
    "5 bits of exponent, 3 of mantissa, for values that are never negative, such as exp_avg_sq; "
    "negative ones become NaN. With E as for fp8: at most 2^-4 of the value from 2^(E-29) up, "
    "2^(E-32) below; only 0 becomes 0. Infinities and NaN stay."
)
_INT8_ERROR = (
    "linear: at most 1/253 of the largest finite magnitude of the value's group of 128; a group in "
    "which that is below 2^-100 becomes 0. Infinities become NaN, NaN stays."
)
_ROUNDED = " Values of 16-bit dtypes are then rounded to that dtype."


def _eight_bits(name: str, scale_nbytes: int, error: str) -> Codec:
    return Codec(
        name=name,
        exact=False,
        dtypes=_FLOATS,
        code_nbytes=1,
        scale_nbytes=scale_nbytes,
        error=error + _ROUNDED,
    )


CODECS: dict[str, Codec] = {
    codec.name: codec
    for codec in (
        Codec(name="raw", exact=True, dtypes=(), error="none"),
        # Storages of other dtypes than float32 and bfloat16 stay raw under it.
        Codec(name="lossless", exact=True, dtypes=(), error="none"),
        Codec(name="bf16", exact=False, dtypes=("float32",), code_nbytes=2, error=_BF16_ERROR),
        _eight_bits("fp8", 1, _FP8_ERROR),
        _eight_bits("ufp8", 1, _UFP8_ERROR),
        _eight_bits("int8", 4, _INT8_ERROR),
    )
}


def fixed_nbytes(codec: Codec, count: int) -> int:
    """Bytes that ``count`` values take in a codec of fixed rate: scales first, then codes."""
    scales = -(-count // GROUP) * codec.scale_nbytes
    return rounded_up(scales, UNIT) + count * codec.code_nbytes
