"""What this machine offers to a plan.

In: measured speeds of the spill folders. Out: a Hardware, and how to stripe. Must not know: torch.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import psutil

from teraio.records import Hardware, SpillFolder, Tier
from teraio.telemetry.host import by_drive

_MOST_PARTS = 16
# To issue a copy and to be told of its end.
_HOST_LATENCY_S = 20e-6
# Of less, latencies and chance are a good part.
_LEAST_WORK_BYTES = 64 << 20
_GROUPS = Path("/proc/self/cgroup")
_GROUP_FILES = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderSpeed:
    """What one spill folder does by ``path``, in bytes/s, and in words why by that one.

    ``direct`` tells whether the page cache is bypassed.
    """

    folder: Path
    path: str
    reason: str
    direct: bool
    read_bytes_per_s: float
    write_bytes_per_s: float
    mixed_bytes_per_s: float
    latency_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class HostSpeed:
    """What copies between the device and page-locked host memory do, in bytes/s."""

    capacity_bytes: int
    read_bytes_per_s: float
    write_bytes_per_s: float
    mixed_bytes_per_s: float


class Work(NamedTuple):
    """What a tier did in an iteration: seconds in which it only read, only wrote, and did both."""

    reading_s: float
    writing_s: float
    both_s: float
    read_bytes: int
    written_bytes: int


def share_of_speed(tier: Tier, work: Work) -> float | None:
    """What part of its rates a tier had in its ``work``; None where that was too little to tell."""
    both_s = tier.mixed_share * work.both_s
    able = tier.read_bytes_per_s * (work.reading_s + both_s)
    able += tier.write_bytes_per_s * (work.writing_s + both_s)
    if tier.encodes or able < _LEAST_WORK_BYTES:
        return None
    return (work.read_bytes + work.written_bytes) / able


def at_share_of_speed(tier: Tier, share: float) -> Tier:
    """The tier with a part of its rates."""
    return replace(
        tier,
        read_bytes_per_s=share * tier.read_bytes_per_s,
        write_bytes_per_s=share * tier.write_bytes_per_s,
        mixed_bytes_per_s=share * tier.mixed_bytes_per_s,
    )


def stripe_weights(speeds: Sequence[FolderSpeed]) -> list[int]:
    """Parts of each stripe that go to each folder, in proportion to its speed with reads and
    writes mixed."""
    rates = _shared([speed.mixed_bytes_per_s for speed in speeds], speeds)
    whole = 1 if len(speeds) == 1 else _MOST_PARTS
    return [max(1, round(whole * rate / max(rates))) for rate in rates]


def _shared(amounts: Sequence[float], speeds: Sequence[FolderSpeed]) -> list[float]:
    """What each folder has of its drive's, which it had to itself while it was measured."""
    sharers = {f: len(some) for some in by_drive(s.folder for s in speeds) for f in some}
    return [
        amount / sharers[str(speed.folder)] for amount, speed in zip(amounts, speeds, strict=True)
    ]


def hardware(
    budget_bytes: int,
    speeds: Sequence[FolderSpeed],
    weights: Sequence[int],
    host: HostSpeed | None = None,
    file_bytes: Sequence[int] | None = None,
    *,
    encodes: bool = False,
) -> Hardware:
    """The budget, one SSD tier striped over the folders, and host memory where it is a tier.

    A stripe is as fast as its slowest part, and folders on one drive share its speed and room.
    ``file_bytes`` is what spill files take in each folder already, which is room too. ``encodes``
    is that of the SSD tier.
    """
    total = sum(weights)
    taken = file_bytes or [0] * len(speeds)
    free = _shared([free_bytes(speed.folder) for speed in speeds], speeds)

    def striped(parts: Sequence[float]) -> float:
        return min(part * total / weight for part, weight in zip(parts, weights, strict=True))

    def rate(measured: Sequence[float]) -> float:
        return striped(_shared(measured, speeds))

    tier = Tier(
        name="ssd",
        capacity_bytes=int(striped([room + own for room, own in zip(free, taken, strict=True)])),
        read_bytes_per_s=rate([speed.read_bytes_per_s for speed in speeds]),
        write_bytes_per_s=rate([speed.write_bytes_per_s for speed in speeds]),
        mixed_bytes_per_s=rate([speed.mixed_bytes_per_s for speed in speeds]),
        latency_s=max(speed.latency_s for speed in speeds),
        folders=tuple(
            SpillFolder(folder=str(speed.folder), path=speed.path, reason=speed.reason)
            for speed in speeds
        ),
        encodes=encodes,
    )
    tiers = (tier,) if host is None else (tier, _host_tier(host))
    return Hardware(name="this machine", budget_bytes=budget_bytes, tiers=tiers)


def _host_tier(host: HostSpeed) -> Tier:
    return Tier(
        name="host",
        capacity_bytes=host.capacity_bytes,
        read_bytes_per_s=host.read_bytes_per_s,
        write_bytes_per_s=host.write_bytes_per_s,
        mixed_bytes_per_s=host.mixed_bytes_per_s,
        latency_s=_HOST_LATENCY_S,
    )


def free_bytes(folder: Path) -> int:
    """Bytes that this user may still write on the file system of ``folder``."""
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize


def memory_bytes() -> int:
    """Memory that this process may use at most: of the machine, or of its control groups if that is
    less."""
    total = int(psutil.virtual_memory().total)
    return min(total, group_limit_bytes() or total)


def group_limit_bytes() -> int | None:
    """The least memory limit of the process's control groups; None without one."""
    limits = []
    try:
        lines = _GROUPS.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            limits += _limits_up(_GROUP_FILES, path, "memory.max")
        elif "memory" in controllers.split(","):
            limits += _limits_up(_GROUP_FILES / "memory", path, "memory.limit_in_bytes")
    return min(limits, default=None)


def _limits_up(root: Path, path: str, name: str) -> list[int]:
    """The limits of a group and of all groups that it is in."""
    here, found = root / path.lstrip("/"), []
    for folder in (here, *here.parents):
        with suppress(OSError, ValueError):  # no such group here, or "max"
            found.append(int((folder / name).read_text()))
        if folder == root:
            break
    return found


def free_memory_bytes() -> int:
    """Memory that can still be taken without swapping, within the control group's limit."""
    used = int(psutil.Process().memory_info().rss)
    return min(int(psutil.virtual_memory().available), memory_bytes() - used)
