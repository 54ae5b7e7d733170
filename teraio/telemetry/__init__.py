"""What the machine does while a run trains: its GPU, the process, the drives of the spill folders.

In: folders, the GPU's UUID. Out: a Sampler that looks once a second. Must not know: torch, plans.
"""

from __future__ import annotations

from collections.abc import Iterable

from teraio.telemetry.gpu import Gpu
from teraio.telemetry.host import Drives, Machine
from teraio.telemetry.measure import Unmeasured
from teraio.telemetry.sampler import Probe, Sampler

__all__ = ["Gpu", "Sampler", "Unmeasured", "sampler_for"]


def sampler_for(device: str, gpu_uuid: str | None, folders: Iterable[str]) -> Sampler:
    """A sampler, not started yet, for a run on ``device`` that spills to ``folders``.

    ``gpu_uuid`` is that of an NVIDIA GPU, None for any other device.
    """
    probes: list[Probe] = [Machine().measures, Drives(folders).measures]
    missing: tuple[str, ...] = ()
    try:
        if gpu_uuid is None:
            raise Unmeasured(f"GPU: none is used, the run is on {device}")
        probes.insert(0, Gpu(gpu_uuid).measures)
    except Unmeasured as reason:
        missing = (str(reason),)
    return Sampler(probes, missing)
