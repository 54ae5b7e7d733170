"""Sizes as people write them.

In: ``24``, ``"24GiB"``, ``"60%"``. Out: bytes, and text for people. Must not know: torch.
"""

from __future__ import annotations

import math
import operator
import re
from typing import SupportsIndex

from teraio.errors import ConfigurationError

_UNITS = {"": 1, "b": 1}
for _power, _letter in enumerate("kmgt", start=1):
    _UNITS[_letter] = _UNITS[f"{_letter}ib"] = 1024**_power
    _UNITS[f"{_letter}b"] = 1000**_power

# A number without a unit that is less lacks its unit.
_FEWEST_BYTES = 1024
# Above any machine's memory, and still a number for the native core.
_MOST_BYTES = 1 << 62


def parse_size(size: SupportsIndex | str, *, whole: int | None, what: str) -> int:
    """Bytes of a size such as ``24 * 2**30``, ``"24GiB"``, ``"24GB"`` or ``"60%"`` (of ``whole``).

    Without a ``whole`` a share is refused. So is a text such as ``"50"``, which is hardly meant as
    50 bytes. ``what`` names the setting in the ConfigurationError that anything else raises.
    """
    pass_one = 'pass bytes or "24GiB".' if whole is None else 'pass bytes, "24GiB" or "60%".'
    nbytes = _parsed(size, whole, what, pass_one) if isinstance(size, str) else _counted(size)
    if nbytes is None:
        raise ConfigurationError(f"{what}={size!r} is no size; {pass_one}")
    if nbytes < 0:
        raise ConfigurationError(f"{what}={size!r} is negative; pass a size above 0.")
    if nbytes > _MOST_BYTES:
        raise ConfigurationError(f"{what}={size!r} is more than any machine has; {pass_one}")
    return int(nbytes)


def _counted(size: SupportsIndex) -> int | None:
    """The integer that ``size`` is, such as one of numpy; None if it is none."""
    try:
        return None if isinstance(size, bool) else operator.index(size)
    except TypeError:
        return None


def _parsed(text: str, whole: int | None, what: str, pass_one: str) -> float:
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([a-zA-Z]*|%)\s*", text)
    if match is None or (match[2] != "%" and match[2].lower() not in _UNITS):
        raise ConfigurationError(f"{what}={text!r} is no size; {pass_one}")
    digits, unit = match[1], match[2].lower()
    number = float(digits)
    if unit == "%":
        if whole is None:
            raise ConfigurationError(
                f"{what}={text!r} is a share, which has no meaning here; {pass_one}"
            )
        return number * whole / 100
    if not unit and 0 < number < _FEWEST_BYTES:
        share = f'"{digits}%" or ' if whole is not None and number <= 100 else ""
        raise ConfigurationError(
            f'{what}={text!r} is {digits} bytes; did you mean {share}"{digits}GiB"?'
        )
    return number * _UNITS[unit]


def format_size(nbytes: float) -> str:
    """Text such as ``1.50 GiB``."""
    value, unit, digits = _in_its_unit(nbytes)
    return f"{value:.{digits}f} {unit}"


def format_least(nbytes: int) -> str:
    """Text such as ``1.50 GiB`` for what is needed at least: rounded up, so that it is enough."""
    value, unit, digits = _in_its_unit(nbytes)
    return f"{math.ceil(value * 10**digits) / 10**digits:.{digits}f} {unit}"


def _in_its_unit(nbytes: float) -> tuple[float, str, int]:
    """The number, its unit, and how many digits are shown after the point."""
    for unit, digits in (("B", 0), ("KiB", 1), ("MiB", 1)):
        if abs(nbytes) < 1024:
            return nbytes, unit, digits
        nbytes /= 1024
    return nbytes, "GiB", 2
