"""A limit on memory that the kernel keeps, with swap space behind it (cgroup v2).

In: a process and bytes. Out: the process confined, or Unavailable with the reason. Must not know:
what the process does.

The limit counts what is allocated after the process has joined; what it held before stays with the
group that it came from.
"""

from __future__ import annotations

import os
from pathlib import Path

from benchmarks.systems import Unavailable

_MOUNT = Path("/sys/fs/cgroup")


class ControlGroup:
    def __init__(self, pid: int, limit_bytes: int, *, mount: Path = _MOUNT) -> None:
        """Raises Unavailable when this machine does not let us."""
        reason = why_not(mount)
        if reason:
            raise Unavailable(reason)
        own = own_group(mount)
        self._folder = own / f"benchmark-{pid}"
        try:
            _delegate_memory(own)
            self._folder.mkdir()
            (self._folder / "memory.max").write_text(str(limit_bytes))
            (self._folder / "cgroup.procs").write_text(str(pid))
        except OSError as error:
            self.close()
            raise Unavailable(f"no control group of our own: {error}") from error

    def close(self) -> None:
        """Removes the group; its process must have ended."""
        if self._folder.is_dir():
            self._folder.rmdir()


def why_not(mount: Path = _MOUNT, swaps: Path = Path("/proc/swaps")) -> str | None:
    """Why no process can be confined here; None when it may work."""
    try:
        controllers = (mount / "cgroup.controllers").read_text().split()
    except OSError:
        return "the machine has no control groups of version 2 (no cgroup.controllers)"
    if "memory" not in controllers:
        return "the memory controller is not in control groups of version 2 here"
    if len(swaps.read_text().splitlines()) < 2:
        return "no swap space is active (swapon)"
    if not os.access(own_group(mount), os.W_OK):
        return f"the control group {own_group(mount)} is not ours to divide; run under Delegate=yes"
    return None


def own_group(mount: Path = _MOUNT, groups: Path = Path("/proc/self/cgroup")) -> Path:
    """The folder of this process's group; its parent once we have moved into a leaf."""
    line = next(one for one in groups.read_text().splitlines() if one.startswith("0::"))
    folder = mount / line.removeprefix("0::").lstrip("/")
    return folder.parent if folder.name == "benchmark-parent" else folder


def _delegate_memory(own: Path) -> None:
    """A group that has processes may not hand controllers on, so this process moves into a leaf."""
    if "memory" in (own / "cgroup.subtree_control").read_text().split():
        return
    leaf = own / "benchmark-parent"
    leaf.mkdir(exist_ok=True)
    (leaf / "cgroup.procs").write_text(str(os.getpid()))
    (own / "cgroup.subtree_control").write_text("+memory")
