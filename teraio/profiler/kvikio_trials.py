"""Tries kvikio's ways to the drives and sets up the best one for each folder.

In: an open spill space, memory to try it with. Out: its path and speeds. Must not know: models,
plans.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

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
_FIRST_TASK_BYTES = 8 << 20
# More threads and larger tasks cost CPU time and memory: the least that come so near the best.
_NEAR_THE_BEST = 0.95

# What was found once in this process, by device and by the drives of the folders.
_settings: dict[tuple[object, ...], Settings] = {}


class KvikioTrials:
    """One use: create it, and let it choose.

    ``memory`` is device memory as ``profiler.spill.device_memory`` gives it; without, host memory
    goes to and fro. Raises KvikioMissing where kvikio can't be used.
    """

    def __init__(self, spill: Spill, memory: dict[str, Any] | None = None) -> None:
        self._spill = spill
        self._memory = memory
        self._all = range(len(spill.folders))
        kvikio_path.try_out(spill.fds[0])

    def choose_for_host(self) -> None:
        """Sends all host memory through kvikio."""
        self._spill.speeds = self._without_gds()
        self._take(self._all, by_gds=())

    def choose_for_gpu(self, wanted: str) -> None:
        """Takes the fastest of all ways for each folder.

        The speeds of the spill space are those without kvikio. ``wanted``: "kvikio" leaves these
        out, "gds" all but GPUDirect Storage. Raises ConfigurationError where that can't be.
        """
        posix = self._without_gds()
        direct = [self._gds(folder) for folder in self._all]
        chosen = [
            choice(*each, wanted) for each in zip(self._spill.speeds, posix, direct, strict=True)
        ]
        self._spill.speeds = chosen
        self._spill.space.forget_device_path()
        ways = [speed.path for speed in chosen]
        taken = [folder for folder in self._all if ways[folder] in (POSIX, GPUDIRECT)]
        if taken:
            self._take(taken, by_gds=[i for i in self._all if ways[i] == GPUDIRECT])

    def _without_gds(self) -> list[FolderSpeed]:
        with closing(self._path(())) as path:
            self._set(path, self._all)
            self._spill.owned.enter_context(kvikio_path.configure(self._tuned()))
            return [self._measure(folder) for folder in self._all]

    def _take(self, folders: Collection[int], by_gds: Collection[int]) -> None:
        path = self._path(by_gds)
        self._spill.owned.enter_context(closing(path))
        self._set(path, folders)
        self._spill.kvikio = None if self._memory is None else path

    def _path(self, by_gds: Collection[int]) -> KvikioPath:
        return KvikioPath(self._spill.fds, [folder in by_gds for folder in self._all])

    def _set(self, path: KvikioPath, folders: Collection[int]) -> None:
        if self._memory is None:
            self._spill.space.set_host_path(path)
        else:
            self._spill.space.set_device_path(path, [i in folders for i in self._all])

    def _measure(self, folder: int) -> FolderSpeed:
        return FolderSpeed(
            folder=self._spill.folders[folder],
            path=HOST if self._memory is None else POSIX,
            reason=f"{ENVIRONMENT}=kvikio",
            direct=self._spill.direct[folder],
            **self._spill.space.measure(folder, MEASURED_BYTES, **(self._memory or {})),
        )

    # ------------------------------------------------------------ settings

    def _tuned(self) -> Settings:
        """Threads and tasks that are fast on the first folder, with threads for all of them."""
        drives = tuple(os.stat(folder).st_dev for folder in self._spill.folders)
        key = ((self._memory or {}).get("device"), *drives)
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

        threads = least_near_the_best(_THREADS, lambda n: rate(Settings(n, _FIRST_TASK_BYTES)))
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
                self._set(path, (folder,))
                return replace(self._measure(folder), path=GPUDIRECT)
        except RuntimeError as error:  # of kvikio, or a SpillError
            return Obstacle(f"a trial failed: {error}", "See cufile.log, and run gdscheck -p.")


def least_near_the_best(choices: Sequence[int], rate: Callable[[int], float]) -> int:
    """The first of ``choices`` whose rate is near the best of all their rates."""
    rates = [rate(choice) for choice in choices]
    enough = _NEAR_THE_BEST * max(rates)
    return next(choice for choice, found in zip(choices, rates, strict=True) if found >= enough)


def choice(
    staged: FolderSpeed, posix: FolderSpeed, direct: FolderSpeed | Obstacle, wanted: str
) -> FolderSpeed:
    """The fastest of the ways that are ``wanted`` ("", "kvikio" or "gds"), with the reason.

    ``staged`` is the way without kvikio, ``posix`` kvikio's without GPUDirect Storage, ``direct``
    what that does or why it can't. Raises ConfigurationError where it is wanted and can't.
    """
    measured = [staged, posix]
    if isinstance(direct, FolderSpeed):
        measured.append(direct)
    elif wanted == "gds":
        raise no_gds(staged.folder, direct)
    allowed = {"gds": measured[2:], "kvikio": measured[1:]}.get(wanted, measured)
    fastest = max(allowed, key=lambda speed: speed.mixed_bytes_per_s)
    rates = ", ".join(f"{way.path} {way.mixed_bytes_per_s / 1e9:.2f} GB/s" for way in measured)
    why = {"gds": "require_gds=True", "kvikio": f"{ENVIRONMENT}=kvikio"}.get(wanted, "the fastest")
    lacking = f"; no {GPUDIRECT}: {direct.cause}" if isinstance(direct, Obstacle) else ""
    return replace(fastest, reason=f"{why}; {rates}{lacking}")
