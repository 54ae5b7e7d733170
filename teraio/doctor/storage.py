"""The folders that storages spill to: file system, room, direct I/O, speed.

In: folders. Out: Checks, and the Hardware that they make up. Must not know: GPUs.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from teraio.doctor.check import Check, Status
from teraio.engine.folders import check_folder, file_system
from teraio.errors import SpillError
from teraio.profiler.hardware import (
    FolderSpeed,
    free_bytes,
    hardware,
    memory_bytes,
    stripe_weights,
)
from teraio.records import Hardware
from teraio.sizes import format_size
from teraio.telemetry.host import by_drive

_LITTLE_ROOM = 16 << 30
_SLOW_BYTES_PER_S = 1e9
_NETWORK = ("nfs", "nfs4", "cifs", "smb3", "fuse.sshfs", "9p")


@dataclass(frozen=True, slots=True)
class Examined:
    """What the folders are; ``hardware`` is None where none could be measured."""

    checks: tuple[Check, ...]
    hardware: Hardware | None


def examine(folders: Sequence[Path], measure: bool) -> Examined:
    """Checks each folder, and with ``measure`` writes and reads 128 MiB there."""
    checks: list[Check] = []
    speeds: list[FolderSpeed] = []
    usable = {folder: _usable(folder) for folder in folders}
    works = [folder for folder, check in usable.items() if check.status != "fail"]
    sharing = {Path(one): some for some in by_drive(works) for one in some}
    for folder, check in usable.items():
        checks.append(check)
        if check.status == "fail":
            continue
        checks += [_room(folder), _shared(_drive(folder), folder, sharing[folder])]
        if measure:
            speed = _measured(folder)
            checks += _speed(folder, speed)
            speeds += [speed] if isinstance(speed, FolderSpeed) else []
    machine = hardware(memory_bytes(), speeds, stripe_weights(speeds)) if speeds else None
    return Examined(tuple(checks), machine)


def _check(folder: Path, name: str, status: Status, found: str, remedy: str = "") -> Check:
    return Check(group=f"folder {folder}", name=name, status=status, found=found, remedy=remedy)


def _usable(folder: Path) -> Check:
    try:
        check_folder(folder, allow_tmpfs=False)
    except SpillError as error:
        return _check(
            folder,
            "folder",
            "fail",
            str(error).partition(";")[0],
            "Pass a folder on an SSD that is there and can be written to.",
        )
    kind = file_system(folder) or "unknown file system"
    if kind in _NETWORK:
        return _check(
            folder, "file system", "warn", f"{kind}: a network", "Pass a folder on a local SSD."
        )
    return _check(folder, "file system", "ok", kind)


def _room(folder: Path) -> Check:
    free = free_bytes(folder)
    if free < _LITTLE_ROOM:
        return _check(
            folder,
            "free space",
            "warn",
            format_size(free),
            "`teraio plan` says how much a plan needs.",
        )
    return _check(folder, "free space", "ok", format_size(free))


def _drive(folder: Path) -> Check:
    """Which block device the folder lies on, as far as the kernel tells."""
    device = os.stat(folder).st_dev
    link = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}")
    block = link.resolve()
    # Of a partition, the drive that it is part of has the queue.
    drive = next((p for p in (block, block.parent) if (p / "queue").is_dir()), None)
    if not link.exists() or drive is None:
        return _check(folder, "drive", "ok", "unknown (a virtual file system)")
    rotational = _first_line(drive / "queue" / "rotational") == "1"
    model = _first_line(drive / "device" / "model")
    found = f"{drive.name}{f', {model}' if model else ''}"
    if rotational and not drive.name.startswith("vd"):  # virtual drives don't know
        return _check(folder, "drive", "warn", f"{found}: a hard disk", "Use an SSD.")
    return _check(folder, "drive", "ok", found)


def _shared(drive: Check, folder: Path, sharing: Sequence[str]) -> Check:
    """A drive that is fine for one folder is not for several."""
    others = ", ".join(other for other in sharing if Path(other) != folder)
    if not others:
        return drive
    return replace(
        drive,
        status="warn",
        found=f"{drive.found}; on the same drive as {others}: they share its speed",
        remedy=f"{drive.remedy} Pass one folder per drive.".strip(),
    )


def _first_line(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _measured(folder: Path) -> FolderSpeed | str:
    from teraio.profiler.machine import measure_folders

    try:
        return measure_folders([folder])[0]
    except SpillError as error:
        return str(error)


def _speed(folder: Path, speed: FolderSpeed | str) -> list[Check]:
    if isinstance(speed, str):
        return [_check(folder, "speed", "fail", speed, "Free space there, or pass another folder.")]
    direct = _check(folder, "direct I/O", "ok", "O_DIRECT works")
    if not speed.direct:
        direct = _check(
            folder,
            "direct I/O",
            "warn",
            "the file system has none",
            "ext4 or xfs have it; without it I/O takes more CPU time and page cache.",
        )
    slow = min(speed.read_bytes_per_s, speed.write_bytes_per_s) < _SLOW_BYTES_PER_S
    return [
        direct,
        _check(folder, "way", "ok", f"{speed.path} ({speed.reason})"),
        _check(
            folder,
            "speed",
            "warn" if slow else "ok",
            f"read {speed.read_bytes_per_s / 1e9:.2f} GB/s, "
            f"write {speed.write_bytes_per_s / 1e9:.2f} GB/s, "
            f"both at once {speed.mixed_bytes_per_s / 1e9:.2f} GB/s, "
            f"latency {speed.latency_s * 1e6:.0f} us",
            "Slow for an SSD: training will wait. Try another drive." if slow else "",
        ),
    ]
