"""One look at one figure of the machine.

In: nothing. Out: Measure; Unmeasured where there is no figure. Must not know: where figures are
from, what becomes of them.
"""

from __future__ import annotations

from typing import NamedTuple

from teraio.records import Unit


class Measure(NamedTuple):
    """``value`` of a ``counter`` grows; its growth per second is what ``unit`` is the unit of."""

    of: str
    what: str
    unit: Unit
    value: float
    counter: bool = False


class Unmeasured(Exception):
    """There is no such figure here; the text says of what and why, in one line."""
