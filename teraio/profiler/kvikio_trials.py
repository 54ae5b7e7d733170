"""Tries kvikio's paths and sets up the one that is best for each folder.

In: an open spill space, the device whose memory will move. Out: its path and speeds. Must not know:
models, plans.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from contextlib import closing
from dataclasses import replace

import torch

from teraio.engine import gds, kvikio_path
from teraio.engine.gds import Obstacle
from teraio.engine.kvikio_path import KvikioPath, Settings
from teraio.profiler.hardware import FolderSpeed
from teraio.profiler.spill import ENVIRONMENT, MEASURED_BYTES, Spill, no_gds

HOST = "kvikio, host memory"
POSIX = "kvikio, POSIX with bounce buffers"
GPUDIRECT = "GPUDirect Storage"

_THREADS = (2, 4, 8)
_TASK_BYTES = (4 << 20, 8 << 20, 16 << 20)
# More threads and larger tasks cost CPU time and memory: the least that come so near the best.
_NEAR_THE_BEST = 0.95

# What was found once in this process, by device and by the drives of the folders.
_settings: dict[tuple[object, ...], Settings] = {}


class KvikioTrials:
    """One use: create it, and let it choose."""

    def __init__(self, spill: Spill, device: str, require_gds: bool) -> None:
        self._spill = spill
        self._device = torch.device(device)
        self._on_host = self._device.type == "cpu"
        self._require_gds = require_gds
        self._all = range(len(spill.folders))
        self._where: dict[str, int] = {}  # the memory that is moved to and fro; host: of its own

    def choose(self) -> None:
        """Fills in the speeds, and sets the path of the spill space.

        Raises ConfigurationError where kvikio can't be used, or not as required.
        """
        kvikio_path.try_out(self._spill.fds[0])
        if not self._on_host:
            memory = torch.empty(MEASURED_BYTES, dtype=torch.uint8, device=self._device)
            index = memory.device.index or 0
            self._where = {"address": memory.data_ptr(), "span": memory.nbytes, "device": index}
        with closing(self._path(())) as path:
            self._set(path)
            self._spill.owned.enter_context(kvikio_path.configure(self._tuned()))
            speeds = [self._measure(folder) for folder in self._all]
        if not self._on_host:
            speeds = [choice(speeds[i], self._gds(i), self._require_gds) for i in self._all]
        self._spill.speeds = speeds
        chosen = self._path([i for i in self._all if speeds[i].path == GPUDIRECT])
        self._spill.owned.enter_context(closing(chosen))
        self._set(chosen)

    def _path(self, by_gds: Collection[int]) -> KvikioPath:
        return KvikioPath(self._spill.fds, [folder in by_gds for folder in self._all])

    def _set(self, path: KvikioPath) -> None:
        space = self._spill.space
        if self._on_host:
            space.set_host_path(path)
        else:
            space.set_device_path(path)

    def _measure(self, folder: int) -> FolderSpeed:
        return FolderSpeed(
            folder=self._spill.folders[folder],
            path=HOST if self._on_host else POSIX,
            reason=f"{ENVIRONMENT}=kvikio" if self._on_host else "",
            direct=self._spill.direct[folder],
            **self._spill.space.measure(folder, MEASURED_BYTES, **self._where),
        )

    # ------------------------------------------------------------ settings

    def _tuned(self) -> Settings:
        """Threads and tasks that are fast on the first folder, with threads for all of them."""
        drives = tuple(os.stat(folder).st_dev for folder in self._spill.folders)
        key = (self._device, *drives)
        if key not in _settings:
            _settings[key] = self._tune()
        return _settings[key]

    def _tune(self) -> Settings:
        rates: dict[Settings, float] = {}

        def rate(settings: Settings) -> float:
            if settings not in rates:
                with kvikio_path.configure(settings):
                    rates[settings] = self._measure(0).mixed_bytes_per_s
            return rates[settings]

        task_bytes = kvikio_path.DEFAULT.task_bytes
        threads = least_near_the_best(_THREADS, lambda n: rate(Settings(n, task_bytes)))
        task_bytes = least_near_the_best(_TASK_BYTES, lambda b: rate(Settings(threads, b)))
        return Settings(threads * len(self._all), task_bytes)

    # ------------------------------------------------------------ GPUDirect Storage

    def _gds(self, folder: int) -> FolderSpeed | Obstacle:
        """What GPUDirect Storage does with the folder, or why it can't be tried or failed."""
        found = gds.obstacle(self._spill.folders[folder])
        if found is None and not self._spill.direct[folder]:
            found = Obstacle("the file system has no direct I/O", "Use a folder on ext4 or xfs.")
        if found is not None:
            return found
        try:
            with closing(self._path((folder,))) as path:
                self._set(path)
                return replace(self._measure(folder), path=GPUDIRECT)
        except RuntimeError as error:  # of kvikio, or a SpillError
            return Obstacle(f"a trial failed: {error}", "See cufile.log, and run gdscheck -p.")


def least_near_the_best(choices: Sequence[int], rate: Callable[[int], float]) -> int:
    """The first of ``choices`` whose rate is near the best of all their rates."""
    rates = [rate(choice) for choice in choices]
    enough = _NEAR_THE_BEST * max(rates)
    return next(choice for choice, found in zip(choices, rates, strict=True) if found >= enough)


def choice(posix: FolderSpeed, direct: FolderSpeed | Obstacle, required: bool) -> FolderSpeed:
    """The faster of kvikio's POSIX path and GPUDirect Storage, with the reason.

    Raises ConfigurationError where GPUDirect Storage is required and ``direct`` is an obstacle.
    """
    if isinstance(direct, Obstacle):
        if required:
            raise no_gds(posix.folder, direct)
        return replace(posix, reason=direct.cause)
    both = f"{GPUDIRECT} has {_rates(direct)}, kvikio's POSIX path {_rates(posix)}"
    if required:
        return replace(direct, reason=f"required; {both}")
    if direct.mixed_bytes_per_s >= posix.mixed_bytes_per_s:
        return replace(direct, reason=f"the faster one; {both}")
    return replace(posix, reason=f"the faster one; {both}")


def _rates(speed: FolderSpeed) -> str:
    return f"{speed.mixed_bytes_per_s / 1e9:.2f} GB/s"
