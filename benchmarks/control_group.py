"""A limit on memory that the kernel keeps, with swap space behind it (control groups, cgroup).

In: a process and bytes. Out: the process confined, or Unavailable with the reason. Must not know:
what the process does.

The limit counts what is allocated after the process has joined; what it held before stays with the
group that it came from. Machines have control groups of version 2 or, older ones, of version 1.
"""

from __future__ import annotations

import os
from pathlib import Path

from benchmarks.systems import Unavailable

_MOUNT = Path("/sys/fs/cgroup")
_GROUPS = Path("/proc/self/cgroup")
_SWAPS = Path("/proc/swaps")
_PAGE_CLUSTER = Path("/proc/sys/vm/page-cluster")
_OF_VERSION_1, _OF_VERSION_2 = "memory.limit_in_bytes", "memory.max"


class ControlGroup:
    def __init__(
        self,
        pid: int,
        limit_bytes: int,
        *,
        mount: Path = _MOUNT,
        groups: Path = _GROUPS,
        swaps: Path = _SWAPS,
    ) -> None:
        """Raises Unavailable when this machine does not let us."""
        reason = why_not(mount, groups, swaps)
        own = own_group(mount, groups)
        if reason or own is None:
            raise Unavailable(reason)
        self._folder = own / f"benchmark-{pid}"
        limit = _OF_VERSION_2
        try:
            if (own / _OF_VERSION_1).exists():
                limit = _OF_VERSION_1
            else:
                _delegate_memory(own)
            self._folder.mkdir()
            (self._folder / limit).write_text(str(limit_bytes))
            (self._folder / "cgroup.procs").write_text(str(pid))
        except OSError as error:
            self.close()
            raise Unavailable(f"no control group of our own: {error}") from error

    def close(self) -> None:
        """Removes the group; its process must have ended."""
        if self._folder.is_dir():
            self._folder.rmdir()


def why_not(mount: Path = _MOUNT, groups: Path = _GROUPS, swaps: Path = _SWAPS) -> str | None:
    """Why no process can be confined here; None when it may work."""
    own = own_group(mount, groups)
    if own is None:
        return "the machine has no control groups with a memory controller"
    if len(swaps.read_text().splitlines()) < 2:
        return "no swap space is active (swapon)"
    if not os.access(own, os.W_OK):
        return f"the control group {own} is not ours to divide; run under Delegate=yes"
    return None


def read_ahead_pages() -> int:
    """How many pages the kernel reads from swap space at once. In a small group those that nobody
    asked for can leave no room for those that are needed, and the kernel kills its process."""
    return 1 << int(_PAGE_CLUSTER.read_text())


def own_group(mount: Path = _MOUNT, groups: Path = _GROUPS) -> Path | None:
    """The folder that limits this process's memory; its parent once we have moved into a leaf."""
    try:
        lines = [line.split(":", 2) for line in groups.read_text().splitlines()]
    except OSError:
        return None
    for _, controllers, path in lines:
        if "memory" in controllers.split(","):
            return _folder(mount / "memory", path)
    try:
        controllers_of_2 = (mount / "cgroup.controllers").read_text().split()
    except OSError:
        return None
    for number, _, path in lines:
        if number == "0" and "memory" in controllers_of_2:
            return _folder(mount, path)
    return None


def _folder(mount: Path, path: str) -> Path:
    folder = mount / path.lstrip("/")
    return folder.parent if folder.name == "benchmark-parent" else folder


def _delegate_memory(own: Path) -> None:
    """A group that has processes may not hand controllers on, so this process moves into a leaf."""
    if "memory" in (own / "cgroup.subtree_control").read_text().split():
        return
    leaf = own / "benchmark-parent"
    leaf.mkdir(exist_ok=True)
    (leaf / "cgroup.procs").write_text(str(os.getpid()))
    (own / "cgroup.subtree_control").write_text("+memory")
