"""What a run takes of the machine: memory under a budget, spill files, host memory as a tier.

In: a device, a budget, folders. Out: the native core at work with them, and the Hardware that they
make; at the end everything is in memory again, and files are gone. Must not know: models,
iterations, plans.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path

import torch

import teraio._C as _C
from teraio.engine.accelerator import Accelerator, accelerator_for
from teraio.engine.adoption import MIN_STORAGE_BYTES
from teraio.engine.compression import Compression
from teraio.engine.encoded_path import EncodedPath
from teraio.profiler.hardware import (
    FolderSpeed,
    HostSpeed,
    free_memory_bytes,
    hardware,
    stripe_weights,
)
from teraio.profiler.spill import open_spill
from teraio.records import Hardware
from teraio.sizes import format_size
from teraio.telemetry import Sampler, sampler_for
from teraio.telemetry.host import by_drive

log = logging.getLogger("teraio")

_HOST_MEASURED_BYTES = 128 << 20
_HOST_MEASURED_AT_LEAST_BYTES = 4 << 20
# What a device's allocator can't use of the memory it holds, because it is in pieces too small.
_FRAGMENTATION_SHARE = 1 / 16
# Of the memory that is free beside the budget, this part may be used to find out what an iteration
# needs, before an error says so.
_SPARE_SHARE = 0.5


class Resources:
    """Taken from construction on; given back by ``stop`` and then ``close``.

    ``counted_bytes`` is the part of the budget that storages may take, ``hardware`` what a plan may
    use, ``encoded`` the codec for what goes to the SSDs, if there is one. ``telemetry`` looks at
    the machine, from when it is started.
    """

    def __init__(
        self,
        *,
        budget_bytes: int,
        folders: Sequence[Path],
        spill_bytes: int,
        device: str,
        host_bytes: int,
        require_gds: bool,
        compress: Compression | None,
    ) -> None:
        """All are those of the run."""
        self.budget_bytes = budget_bytes
        self.device = device
        self._accelerator = accelerator = accelerator_for(torch.device(device))
        self._spill = open_spill(
            folders, device=device, require_gds=require_gds, budget_bytes=budget_bytes
        )
        self.encoded: EncodedPath | None = None
        self._started = False
        self._limit_bytes = budget_bytes  # for a device's allocator
        self.counted_bytes = budget_bytes
        try:
            if accelerator is not None:
                self._limit_bytes = accelerator.limit_for(budget_bytes)
                accelerator.limit_memory(self._limit_bytes)
                self.counted_bytes = int(self._limit_bytes * (1 - _FRAGMENTATION_SHARE))
            self.hardware: Hardware = self._start(spill_bytes, host_bytes, compress)
            gpu_uuid = accelerator.gpu_uuid if accelerator else None
            self.telemetry: Sampler = sampler_for(device, gpu_uuid, map(str, folders))
        except BaseException:
            try:
                self.stop()
            finally:
                self.close()
            raise
        _tell_shared_drives(folders)
        _tell_speeds(self._spill.speeds)

    def _start(self, spill_bytes: int, host_bytes: int, compress: Compression | None) -> Hardware:
        accelerator, speeds = self._accelerator, self._spill.speeds
        weights = stripe_weights(speeds)
        if compress is not None:
            self.encoded = EncodedPath(
                compress,
                self._spill.space,
                device=self.device,
                budget_bytes=self.budget_bytes,
                kvikio=self._spill.kvikio,
            )
            self.counted_bytes -= self.encoded.reserved_bytes
        _C.start(
            self._spill.space,
            weights,
            spill_bytes,
            "" if accelerator is None else self.device,
            host_bytes,
            self.counted_bytes,
            self._limit_bytes,
            MIN_STORAGE_BYTES,
        )
        self._started = True
        _C.encode_by_default(self.encoded.default if self.encoded else 0)
        host: HostSpeed | None = None
        if accelerator is not None:
            accelerator.lock_pages(_C.staging_memory())
            if host_bytes:
                host = self._measure_host(accelerator, host_bytes)
        return hardware(
            self.budget_bytes,
            speeds,
            weights,
            host,
            self._spill.file_bytes(),
            encodes=self.encoded is not None,
        )

    def _measure_host(self, accelerator: Accelerator, host_bytes: int) -> HostSpeed:
        # All of it, as what is profiled moves far more than a plan will.
        begin = time.perf_counter()
        accelerator.lock_pages(_C.reserve_host(host_bytes))
        log.info(
            "host memory: %s taken and page-locked in %.1f s",
            format_size(host_bytes),
            time.perf_counter() - begin,
        )
        # Through memory of the device that the model leaves, or a little where it leaves none.
        room = self.counted_bytes - _C.allocated(self.device)
        nbytes = max(_HOST_MEASURED_AT_LEAST_BYTES, min(_HOST_MEASURED_BYTES, room // 2))
        accelerator.limit_memory(None)
        read, write, mixed = _C.host_speeds(nbytes)
        accelerator.limit_memory(self._limit_bytes)
        log.info("host memory: read %.2f GB/s, write %.2f GB/s", read / 1e9, write / 1e9)
        return HostSpeed(
            capacity_bytes=host_bytes,
            read_bytes_per_s=read,
            write_bytes_per_s=write,
            mixed_bytes_per_s=mixed,
        )

    @property
    def on_host(self) -> bool:
        """Whether the budget is one of the host's memory."""
        return self._accelerator is None

    def free_bytes(self) -> int:
        """What is free of the memory that the budget is a part of."""
        if self._accelerator is None:
            return free_memory_bytes()
        return self._accelerator.free_and_total_bytes()[0]

    def spare_bytes(self) -> int:
        """Of the machine's memory, what may be used to find out what an iteration needs."""
        if not self.on_host:
            return 0
        to_come = max(0, self.budget_bytes - _C.totals()["used"])
        return max(0, int((free_memory_bytes() - to_come) * _SPARE_SHARE))

    def stop(self) -> None:
        """Brings everything back into memory, without a limit; nothing moves from then on."""
        if self._accelerator is not None:
            self._accelerator.limit_memory(None)
        if self._started:
            self._started = False
            _C.stop(self._accelerator.unlock_pages if self._accelerator else None)

    def close(self) -> None:
        """Gives back the spill files, and the memory to encode in."""
        self._spill.close()
        if self.encoded is not None:
            self.encoded.close()


def _tell_shared_drives(folders: Sequence[Path]) -> None:
    for some in by_drive(folders):
        if len(some) > 1:
            log.warning(
                "the spill folders %s are on one drive, so they share its speed and room. One "
                "folder per drive is enough.",
                ", ".join(some),
            )


def _tell_speeds(speeds: Sequence[FolderSpeed]) -> None:
    for speed in speeds:
        log.info(
            "spill folder %s: read %.2f GB/s, write %.2f GB/s, both at once %.2f GB/s, latency "
            "%.0f us by %s (%s)",
            speed.folder,
            speed.read_bytes_per_s / 1e9,
            speed.write_bytes_per_s / 1e9,
            speed.mixed_bytes_per_s / 1e9,
            speed.latency_s * 1e6,
            speed.path,
            speed.reason,
        )
