"""Energy that the GPUs took since their driver was loaded, where NVML tells it.

In: nothing. Out: joules. Must not know: what runs meanwhile.
"""

from __future__ import annotations

from functools import cache
from typing import Any


def energy_joules() -> float | None:
    """The first GPU; None without NVML or on GPUs that don't count energy."""
    library, handle = _gpu()
    if library is None:
        return None
    try:
        return float(library.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1e3
    except library.NVMLError:
        return None


@cache
def _gpu() -> tuple[Any, Any]:
    try:
        import pynvml
    except ImportError:
        return None, None
    try:
        pynvml.nvmlInit()
        return pynvml, pynvml.nvmlDeviceGetHandleByIndex(0)
    except pynvml.NVMLError:
        return None, None
