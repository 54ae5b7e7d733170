"""Sizes as people write them.

In: ``24``, ``"24GiB"``, ``"60%"``. Out: bytes, and text for people. Must not know: torch.
"""

from __future__ import annotations

import re

from teraio.errors import ConfigurationError

_UNITS = {"": 1, "b": 1}
for _power, _letter in enumerate("kmgt", start=1):
    _UNITS[_letter] = _UNITS[f"{_letter}ib"] = 1024**_power
    _UNITS[f"{_letter}b"] = 1000**_power


def parse_size(size: int | str, *, whole: int, what: str) -> int:
    """Bytes of a size such as ``24 * 2**30``, ``"24GiB"``, ``"24GB"`` or ``"60%"`` (of ``whole``).

    ``what`` names the setting in the ConfigurationError that anything else raises.
    """
    if isinstance(size, bool) or not isinstance(size, int | str):
        raise ConfigurationError(f'{what}={size!r} is no size; pass bytes, "24GiB" or "60%".')
    if isinstance(size, str):
        match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([a-zA-Z]*|%)\s*", size)
        if match is None or (match[2] != "%" and match[2].lower() not in _UNITS):
            raise ConfigurationError(f'{what}={size!r} is no size; pass bytes, "24GiB" or "60%".')
        number = float(match[1])
        nbytes = number * whole / 100 if match[2] == "%" else number * _UNITS[match[2].lower()]
    else:
        nbytes = size
    if nbytes < 0:
        raise ConfigurationError(f"{what}={size!r} is negative; pass a size above 0.")
    return int(nbytes)


def format_size(nbytes: float) -> str:
    """Text such as ``1.50 GiB``."""
    for unit in ("B", "KiB", "MiB"):
        if abs(nbytes) < 1024:
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1024
    return f"{nbytes:.2f} GiB"
