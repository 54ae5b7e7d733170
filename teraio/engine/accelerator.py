"""What PyTorch has no interface for that all devices share: limits of memory, page-locked memory.

In: a device. Out: calls of its module (``torch.cuda``, or that of another backend). Must not know:
storages, budgets, plans.
"""

from __future__ import annotations

import logging
import os
from typing import Any

import torch

import teraio._C as _C
from teraio.engine import allocator_history
from teraio.errors import ConfigurationError

log = logging.getLogger("teraio")

_NEEDED = (
    "set_memory_limit",
    "set_free_memory_callback",
    "host_register",
    "host_unregister",
    "get_memory_info",
    "empty_cache",
)


# By so much segments of CUDA's allocator grow at once; of small budgets no more than this part is
# left for it.
_MAPPED_AT_ONCE = 20 << 20
_MAPPED_SHARE = 32


class Accelerator:
    """One device other than CUDA's, by the functions of its module ``torch.NAME``.

    ``set_memory_limit(bytes | None)``: what its allocator may reserve. ``set_free_memory_callback(
    address | None)``: a function without arguments that it calls when it finds no memory, and that
    returns whether it freed some. ``host_register(address, bytes)``, ``host_unregister(address)``:
    make host memory page-locked. ``get_memory_info()``: free and total bytes. ``empty_cache()``:
    gives back what the allocator holds and nobody uses.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._module: Any = torch.get_device_module(device)
        self._registered: list[int] = []

    @property
    def gpu_uuid(self) -> str | None:
        """The UUID by which NVIDIA's driver knows the device; None for one that is not NVIDIA's."""
        return None

    def free_and_total_bytes(self) -> tuple[int, int]:
        """Bytes of the device's memory that nobody uses, and of all of it."""
        free, total = self._module.get_memory_info()
        return int(free), int(total)

    def limit_for(self, budget_bytes: int) -> int:
        """The limit with which the allocator stays within a budget."""
        return budget_bytes

    def limit_memory(self, nbytes: int | None) -> None:
        """What PyTorch's allocator may reserve on the device; None: all."""
        if nbytes is not None:
            self._module.empty_cache()
        self._module.set_memory_limit(nbytes)
        self._module.set_free_memory_callback(None if nbytes is None else _C.free_memory_address())

    def lock_pages(self, chunks: list[tuple[int, int]]) -> None:
        """Makes host memory page-locked, so that copies run beside the device's work."""
        for number, (address, nbytes) in enumerate(chunks):
            problem = self._register(address, nbytes)
            if problem:
                log.warning(
                    "%.2f GB of host memory can't be page-locked (%s); copies between it and %s "
                    "will be slow. Raise the limit of locked memory (ulimit -l), or lower "
                    "host_memory.",
                    sum(size for _, size in chunks[number:]) / 1e9,
                    problem,
                    self.device,
                )
                return
            self._registered.append(address)

    def unlock_pages(self) -> None:
        """Undoes ``lock_pages``, before the memory goes."""
        for address in self._registered:
            self._unregister(address)
        self._registered.clear()

    def _register(self, address: int, nbytes: int) -> str:
        self._module.host_register(address, nbytes)
        return ""

    def _unregister(self, address: int) -> None:
        self._module.host_unregister(address)


class CudaAccelerator(Accelerator):
    """A CUDA device. How its allocator calls us is in csrc/device.cpp."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self._before = 1.0  # the program's own part of the device's memory

    @property
    def gpu_uuid(self) -> str | None:
        return str(torch.cuda.get_device_properties(self.device).uuid)

    def free_and_total_bytes(self) -> tuple[int, int]:
        free, total = torch.cuda.mem_get_info(self.device)
        return int(free), int(total)

    def limit_for(self, budget_bytes: int) -> int:
        # Where a segment grows, the allocator holds against its limit what was asked for, and then
        # maps whole pieces.
        return budget_bytes - min(_MAPPED_AT_ONCE, budget_bytes // _MAPPED_SHARE)

    def limit_memory(self, nbytes: int | None) -> None:
        if nbytes is None:
            allocator_history.run_ends()
        else:
            self._before = torch.cuda.get_per_process_memory_fraction(self.device)
            allocator_history.run_begins()
            if not _C.install_free_memory_callback():
                raise ConfigurationError(
                    f"teraio can't hook the CUDA allocator of PyTorch {torch.__version__}. Use one "
                    "of the versions that the README names."
                )
            torch.cuda.empty_cache()
        self._expand_segments(nbytes is not None)
        if nbytes is None:
            share = self._before
        else:
            share = min(1.0, nbytes / torch.cuda.get_device_properties(self.device).total_memory)
        torch.cuda.set_per_process_memory_fraction(share, self.device)

    def _expand_segments(self, expand: bool) -> None:
        """Memory in pieces of fixed size is what most of a small budget can be lost to.

        What the program's environment says of it is kept.
        """
        given = _allocator_settings()
        change = getattr(torch._C, "_accelerator_setAllocatorSettings", None)
        if "expandable_segments" in given or change is None:
            return
        try:
            change(",".join(filter(None, (given, f"expandable_segments:{expand}"))))
        except (RuntimeError, ValueError) as error:
            log.warning(
                "PyTorch's allocator can't use expandable segments (%s); it may lose a part of "
                "the budget to memory in pieces of the wrong size",
                error,
            )

    def _register(self, address: int, nbytes: int) -> str:
        cudart: Any = torch.cuda.cudart
        result = cudart().cudaHostRegister(address, nbytes, 0)
        if int(result) == 0:
            return ""
        try:  # CUDA remembers the error, for whoever launches a kernel next
            torch.zeros(1, device=self.device)
        except RuntimeError as error:
            log.debug("as was said already: %s", error)
        return f"cudaHostRegister: error {int(result)}"

    def _unregister(self, address: int) -> None:
        cudart: Any = torch.cuda.cudart
        cudart().cudaHostUnregister(address)


def _allocator_settings() -> str:
    """Of the two names, PyTorch takes the newer one if both are set."""
    names = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
    return next((os.environ[name] for name in names if os.environ.get(name)), "")


def accelerator_for(device: torch.device) -> Accelerator | None:
    """None for the CPU. Raises ConfigurationError for a device that lacks what is needed."""
    if device.type == "cpu":
        return None
    if device.type == "cuda":
        return CudaAccelerator(device)
    module = getattr(torch, device.type, None)
    lacking = [name for name in _NEEDED if not hasattr(module, name)]
    if lacking:
        raise ConfigurationError(
            f"teraio can't limit memory on {device}: torch.{device.type} lacks "
            f"{', '.join(lacking)}. Train on the CPU or on CUDA."
        )
    return Accelerator(device)
