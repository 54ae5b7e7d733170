"""Numbers as people read them.

In: bytes, seconds, shares. Out: short texts. Must not know: what they
are of.
"""

from __future__ import annotations

from teraio.records import Unit
from teraio.sizes import format_least, format_size

__all__ = [
    "NOTHING_S",
    "amount",
    "count",
    "format_least",
    "format_size",
    "rate",
    "seconds",
    "share",
]
# Less is rounding.
NOTHING_S = 5e-9


def seconds(value: float) -> str:
    """Text such as ``1.50 s``, ``12.3 ms`` or ``45 us``."""
    if abs(value) < NOTHING_S:
        return "0 s"
    for factor, unit in ((1.0, "s"), (1e3, "ms"), (1e6, "us")):
        scaled = value * factor
        if abs(scaled) >= 0.9995 or unit == "us":
            break
    digits = 0 if abs(scaled) >= 99.95 else 1 if abs(scaled) >= 9.995 else 2
    return f"{scaled:,.{digits}f} {unit}"


def share(part: float, whole: float) -> str:
    """Text such as ``12.5 %``; empty where the whole is nothing."""
    if not whole:
        return ""
    percent = 100 * part / whole
    return f"{percent:.0f} %" if abs(percent) >= 99.95 else f"{percent:.1f} %"


def rate(bytes_per_s: float) -> str:
    """Text such as ``2.50 GB/s``."""
    return f"{bytes_per_s / 1e9:.2f} GB/s"


def count(number: int) -> str:
    """Text such as ``12,345``."""
    return f"{number:,}"


def amount(value: float, unit: Unit) -> str:
    """Text such as ``2.50 GB/s``, ``1.85 cores`` or ``320 W``."""
    if unit == "bytes":
        return format_size(round(value))
    if unit == "bytes/s":
        return rate(value)
    if unit == "share":
        return share(value, 1)
    return f"{value:.2f} cores" if unit == "cores" else f"{value:,.0f} {unit}"
