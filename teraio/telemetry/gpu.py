"""An NVIDIA GPU as its driver sees it, through NVML (the package nvidia-ml-py).

In: a UUID. Out: Measures, joules. Must not know: torch, who looks and when.

NVML counts what all programs do with the GPU. Its PCIe rates are those of the 20 ms in which it is
asked, so they are samples; for the bytes that a run moves, see its reports.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from teraio.records import Unit
from teraio.telemetry.measure import Measure, Unmeasured

_NAME = "GPU"
# CUDA names a GPU, or a part of one, without saying which of both it is.
_UUID_KINDS = ("GPU", "MIG")


class Gpu:
    """One GPU. Raises Unmeasured where its driver, NVML or the GPU itself is missing."""

    def __init__(self, uuid: str | None = None) -> None:
        """The GPU with that UUID (``1b2c...``, as CUDA tells it); without one, the first."""
        try:
            import pynvml
        except ImportError:
            raise Unmeasured(
                f"{_NAME}: nvidia-ml-py is not installed; pip install nvidia-ml-py"
            ) from None
        self._nvml: Any = pynvml
        try:
            pynvml.nvmlInit()
            self._handle = self._find(uuid)
        except pynvml.NVMLError as error:
            raise Unmeasured(f"{_NAME}: no figures from NVIDIA's driver ({error})") from None
        self._figures: dict[str, tuple[Unit, Callable[[], float], bool]] = {
            "memory in use": ("bytes", self._memory_bytes, False),
            "busy": ("share", self._busy_share, False),
            "PCIe in": ("bytes/s", lambda: self._pcie(pynvml.NVML_PCIE_UTIL_RX_BYTES), False),
            "PCIe out": ("bytes/s", lambda: self._pcie(pynvml.NVML_PCIE_UTIL_TX_BYTES), False),
            "power": ("W", self._energy_joules, True),
        }

    def measures(self) -> Iterator[Measure | Unmeasured]:
        """All figures now. Takes some 50 ms, as PCIe rates are measured meanwhile."""
        for what, (unit, read, counter) in self._figures.items():
            try:
                yield Measure(_NAME, what, unit, read(), counter)
            except self._nvml.NVMLError as error:
                yield Unmeasured(f"{_NAME}: no figure for {what} ({error})")

    def energy_joules(self) -> float:
        """Taken since the driver was loaded. Raises Unmeasured for a GPU that doesn't count it."""
        try:
            return self._energy_joules()
        except self._nvml.NVMLError as error:
            raise Unmeasured(f"{_NAME}: no figure for energy ({error})") from None

    def _find(self, uuid: str | None) -> Any:
        if uuid is None:
            return self._nvml.nvmlDeviceGetHandleByIndex(0)
        whole, part = (f"{kind}-{uuid}" for kind in _UUID_KINDS)
        try:
            return self._nvml.nvmlDeviceGetHandleByUUID(whole)
        except self._nvml.NVMLError:
            return self._nvml.nvmlDeviceGetHandleByUUID(part)

    def _energy_joules(self) -> float:
        return float(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)) / 1e3

    def _memory_bytes(self) -> float:
        return float(self._nvml.nvmlDeviceGetMemoryInfo(self._handle).used)

    def _busy_share(self) -> float:
        return float(self._nvml.nvmlDeviceGetUtilizationRates(self._handle).gpu) / 100

    def _pcie(self, direction: int) -> float:
        return 1e3 * float(self._nvml.nvmlDeviceGetPcieThroughput(self._handle, direction))
