"""Energy that a GPU took since its driver was loaded, where NVML tells it.

In: a GPU's UUID. Out: joules. Must not know: what runs meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable

from teraio.telemetry import Gpu, Unmeasured

Meter = Callable[[], float | None]


def energy_meter(uuid: str | None) -> Meter:
    """What gives joules when it is called; None without a GPU, NVML or a counter of energy."""
    try:
        if uuid is None:
            raise Unmeasured("no GPU")
        gpu = Gpu(uuid)
        gpu.energy_joules()
    except Unmeasured:
        return lambda: None
    return gpu.energy_joules
