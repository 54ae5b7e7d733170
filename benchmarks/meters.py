"""What the kernel knows of this process: resident memory, CPU time, bytes to and from drives.

In: /proc, /sys. Out: figures between two readings. Must not know: what runs meanwhile.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread

from teraio.telemetry.host import drive_bytes

_RESET_HIGH_WATER = "5"  # proc_pid_clear_refs(5)


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


class HighWater:
    """The kernel's own high-water mark of resident memory, exact and free of cost.

    Raises OSError where it can't be reset.
    """

    def __init__(self) -> None:
        self.take()

    def take(self) -> int:
        """Peak in bytes since the last call."""
        line = next(
            line
            for line in Path("/proc/self/status").read_text().splitlines()
            if line.startswith("VmHWM:")
        )
        Path("/proc/self/clear_refs").write_text(_RESET_HIGH_WATER)
        return int(line.split()[1]) * 1024


class Sampler:
    """The same by looking often, for kernels or containers without that mark."""

    def __init__(self, interval_s: float = 0.01) -> None:
        self._interval_s = interval_s
        self._largest = resident_bytes()
        self._stop = Event()
        Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while not self._stop.wait(self._interval_s):
            self._largest = max(self._largest, resident_bytes())

    def take(self) -> int:
        now = resident_bytes()
        peak, self._largest = max(self._largest, now), now
        return peak

    def close(self) -> None:
        self._stop.set()


def peak_meter() -> HighWater | Sampler:
    try:
        return HighWater()
    except (OSError, StopIteration):
        return Sampler()


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes since boot, or since the process began."""

    read_bytes: int
    written_bytes: int

    def since(self, before: Traffic) -> Traffic:
        return Traffic(
            self.read_bytes - before.read_bytes, self.written_bytes - before.written_bytes
        )


def process_traffic() -> Traffic:
    """What this process caused at the level of drives; what the page cache served is not in it."""
    try:
        lines = Path("/proc/self/io").read_text().splitlines()
    except OSError:
        return Traffic(0, 0)
    figures = {name: int(value) for name, value in (line.split(": ") for line in lines)}
    return Traffic(figures["read_bytes"], figures["write_bytes"])


def swap_traffic() -> Traffic:
    """To and from swap space, of the whole machine: the kernel writes in nobody's name."""
    lines = Path("/proc/vmstat").read_text().splitlines()
    pages = {name: int(value) for name, value in (line.split() for line in lines)}
    page = os.sysconf("SC_PAGE_SIZE")
    return Traffic(pages["pswpin"] * page, pages["pswpout"] * page)


def drives_traffic(folders: tuple[str, ...]) -> Traffic | None:
    """The counters of the drives below ``folders``, each drive once; None if there are none."""
    one_of_each = {os.stat(folder).st_dev: folder for folder in folders}.values()
    known = [counted for folder in one_of_each if (counted := drive_bytes(folder))]
    if not known:
        return None
    return Traffic(sum(read for read, _ in known), sum(written for _, written in known))
