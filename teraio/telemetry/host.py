"""This process, the memory of the machine, and the drives below folders, as the kernel sees them.

In: folders. Out: Measures, counters of drives. Must not know: torch, who looks and when.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import psutil

from teraio.telemetry.measure import Measure, Unmeasured

_SECTOR_BYTES = 512
# Columns of /sys/dev/block/MAJOR:MINOR/stat, by the kernel's Documentation/block/stat.rst.
_SECTORS_READ, _SECTORS_WRITTEN = 2, 6


class Machine:
    """Memory and processor time of this process, and what memory is left to all."""

    def __init__(self) -> None:
        self._process = psutil.Process()

    def measures(self) -> Iterator[Measure]:
        """The figures now."""
        with self._process.oneshot():
            resident = self._process.memory_info().rss
            times = self._process.cpu_times()
        yield Measure("process", "resident memory", "bytes", resident)
        yield Measure("process", "CPU", "cores", times.user + times.system, counter=True)
        yield Measure("machine", "memory available", "bytes", psutil.virtual_memory().available)


class Drives:
    """What all programs read from and write to the drives below ``folders``, each drive once."""

    def __init__(self, folders: Iterable[str]) -> None:
        self._drives = {f"drive of {', '.join(some)}": some[0] for some in by_drive(folders)}

    def measures(self) -> Iterator[Measure | Unmeasured]:
        """The counters now."""
        for name, folder in self._drives.items():
            counted = drive_bytes(folder)
            if counted is None:
                yield Unmeasured(f"{name}: the kernel has no counters for its file system")
                continue
            for what, nbytes in zip(("read", "written"), counted, strict=True):
                yield Measure(name, what, "bytes/s", nbytes, counter=True)


def by_drive(folders: Iterable[str | os.PathLike[str]]) -> list[list[str]]:
    """Folders that exist, those on one file system together, which share its drives."""
    found: dict[int, list[str]] = {}
    for folder in folders:
        found.setdefault(os.stat(folder).st_dev, []).append(os.fspath(folder))
    return list(found.values())


def drive_bytes(folder: str) -> tuple[int, int] | None:
    """Bytes read and written since boot by the drive below ``folder``; None without a drive."""
    try:
        device = os.stat(folder).st_dev
        path = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/stat")
        columns = path.read_text().split()
    except OSError:
        return None
    return (
        int(columns[_SECTORS_READ]) * _SECTOR_BYTES,
        int(columns[_SECTORS_WRITTEN]) * _SECTOR_BYTES,
    )
