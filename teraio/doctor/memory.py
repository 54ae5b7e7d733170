"""Memory of the machine, its limits, and how it is laid out.

In: nothing. Out: Checks. Must not know: torch, folders.
"""

from __future__ import annotations

import os
import resource
from pathlib import Path

import psutil

from teraio.doctor.check import Check, Status
from teraio.profiler.hardware import group_limit_bytes
from teraio.sizes import format_size

_GROUP = "memory"
_LITTLE = 2 << 30
_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def checks() -> tuple[Check, ...]:
    """All of them."""
    return (_free(), _group_limit(), _locked(), _huge_pages(), _numa())


def _check(name: str, status: Status, found: str, remedy: str = "") -> Check:
    return Check(group=_GROUP, name=name, status=status, found=found, remedy=remedy)


def _free() -> Check:
    memory = psutil.virtual_memory()
    found = f"{format_size(memory.available)} free of {format_size(memory.total)}"
    if memory.available < _LITTLE:
        return _check("RAM", "warn", found, "Close what takes memory, or set a small budget.")
    return _check("RAM", "ok", found)


def _group_limit() -> Check:
    limit = group_limit_bytes()
    if limit is None or limit >= psutil.virtual_memory().total:
        return _check("control group", "ok", "no limit on memory")
    return _check(
        "control group", "ok", f"limits memory to {format_size(limit)}; the default budget heeds it"
    )


def _locked() -> Check:
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if soft == resource.RLIM_INFINITY:
        return _check("locked memory", "ok", "no limit (ulimit -l)")
    return _check(
        "locked memory",
        "ok",
        f"limit of {format_size(soft)} (ulimit -l); memory that CUDA pins is not under it",
    )


def _huge_pages() -> Check:
    try:
        modes = _HUGE_PAGES.read_text()
    except OSError:
        return _check("huge pages", "warn", "unknown", "I/O takes more CPU time without them.")
    mode = modes.partition("[")[2].partition("]")[0]
    if mode == "never":
        return _check(
            "huge pages",
            "warn",
            "never",
            f"echo madvise | sudo tee {_HUGE_PAGES}: I/O then takes less CPU time.",
        )
    return _check("huge pages", "ok", mode)


def _numa() -> Check:
    nodes = sorted(Path("/sys/devices/system/node").glob("node[0-9]*"))
    cores = f"{len(os.sched_getaffinity(0))} of {os.cpu_count()} cores"
    if len(nodes) <= 1:
        return _check("NUMA", "ok", f"one node, {cores}")
    return _check(
        "NUMA",
        "ok",
        f"{len(nodes)} nodes, {cores}",
        "Run on the node of GPU and drives: numactl --cpunodebind=N --membind=N.",
    )
