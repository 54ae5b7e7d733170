"""Machines by name: what presets.toml says of accelerators, links and drives, as a Hardware.

In: names, counts. Out: Accelerator, Drive, Hardware. Must not know: torch, traces, plans.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import TypeVar

from teraio.errors import ConfigurationError
from teraio.records import Hardware, Tier

# Of the memory that the driver reports: the CUDA context, kernels, cuBLAS workspaces, and what the
# caching allocator loses to fragments.
_RESERVED_BYTES = 3 << 30
_SSD_LATENCY_S = 100e-6
_HOST_LATENCY_S = 10e-6
_LEAST_HOST_SHARE = 0.1
_Machine = TypeVar("_Machine")
DEFAULT_DRIVE = {"gen4": "samsung-990-pro-4tb", "gen5": "micron-9550-max-6tb"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Accelerator:
    """A GPU. ``flops`` are dense FLOP/s by arithmetic: "fp32", "tf32", "bf16".

    ``matmul_share`` and ``attention_share`` are the parts of them that large matrix products and
    flash attention reach. ``link_bytes_per_s`` is what copies over its PCIe link reach each way,
    ``memory_bytes`` what its driver reports.
    """

    key: str
    name: str
    memory_bytes: int
    multiprocessors: int
    flops: Mapping[str, float]
    matmul_share: float
    attention_share: float
    memory_bytes_per_s: float
    link_generation: str
    link_bytes_per_s: float
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Drive:
    """One SSD at its rated sequential speeds (bytes/s) and endurance (bytes)."""

    key: str
    name: str
    link_generation: str
    capacity_bytes: int
    read_bytes_per_s: float
    write_bytes_per_s: float
    rated_write_bytes: int
    source: str


def accelerators() -> Mapping[str, Accelerator]:
    """All accelerators, by the name that ``hardware`` takes."""
    return _load()[0]


def drives() -> Mapping[str, Drive]:
    """All drives, by the name that ``hardware`` takes."""
    return _load()[1]


def accelerator(key: str) -> Accelerator:
    """The accelerator called ``key``. Raises ConfigurationError, naming all, for another one."""
    return _named(accelerators(), key, "accelerator")


def hardware(
    accelerator_key: str,
    *,
    ssds: int = 4,
    drive: str | None = None,
    host_bytes: int = 0,
    memory_budget_bytes: int | None = None,
    ssd_bytes_per_s: float | None = None,
    max_write_bytes_per_day: float | None = None,
) -> Hardware:
    """What one GPU of a kind may use: memory, ``ssds`` drives of its own, and host memory.

    ``drive`` is a name of ``drives()``; by default one of the generation of the GPU's link. The
    budget is by default what the GPU has, less 3 GiB for what is no tensor. ``ssd_bytes_per_s``
    limits what all drives together move each way, where something between them and the GPU does.

    The GPU's link limits all tiers together, each way: host memory gets what the SSDs leave, and at
    least a tenth. Reads and writes at once share what a drive does of the faster of both alone,
    since no maker rates both at once.

    Raises ConfigurationError for names and numbers that can't be.
    """
    device = accelerator(accelerator_key)
    if ssds < 0 or host_bytes < 0 or (ssds == 0 and host_bytes == 0):
        raise ConfigurationError(
            f"ssds={ssds} and host_bytes={host_bytes} leave no place to move storages to; pass "
            "ssds=1 or more, or some host memory."
        )
    chosen = _named(drives(), drive or DEFAULT_DRIVE[device.link_generation], "drive")
    link = device.link_bytes_per_s
    tiers = []
    if ssds:
        most = link * (1 - _LEAST_HOST_SHARE) if host_bytes else link
        tiers.append(_ssd_tier(chosen, ssds, min(most, ssd_bytes_per_s or most)))
    if host_bytes:
        tiers.append(_host_tier(host_bytes, link, tiers))
    budget = memory_budget_bytes
    return Hardware(
        name=f"{device.name}, {ssds} x {chosen.name}" if ssds else device.name,
        budget_bytes=device.memory_bytes - _RESERVED_BYTES if budget is None else budget,
        tiers=tuple(tiers),
        max_write_bytes_per_day=max_write_bytes_per_day,
    )


def _ssd_tier(drive: Drive, count: int, each_way_bytes_per_s: float) -> Tier:
    read = min(count * drive.read_bytes_per_s, each_way_bytes_per_s)
    write = min(count * drive.write_bytes_per_s, each_way_bytes_per_s)
    both = count * max(drive.read_bytes_per_s, drive.write_bytes_per_s)
    return Tier(
        name="ssd",
        capacity_bytes=count * drive.capacity_bytes,
        read_bytes_per_s=read,
        write_bytes_per_s=write,
        mixed_bytes_per_s=min(both, read + write),
        latency_s=_SSD_LATENCY_S,
        rated_write_bytes=count * drive.rated_write_bytes,
        encodes=True,  # what the trace says is encoded
    )


def _host_tier(host_bytes: int, link_bytes_per_s: float, others: Sequence[Tier]) -> Tier:
    read = link_bytes_per_s - sum(tier.read_bytes_per_s for tier in others)
    write = link_bytes_per_s - sum(tier.write_bytes_per_s for tier in others)
    return Tier(
        name="host",
        capacity_bytes=host_bytes,
        read_bytes_per_s=read,
        write_bytes_per_s=write,
        mixed_bytes_per_s=read + write,
        latency_s=_HOST_LATENCY_S,
    )


def _named(known: Mapping[str, _Machine], key: str, what: str) -> _Machine:
    if key not in known:
        raise ConfigurationError(
            f"there is no {what} called {key!r}; the known ones are {', '.join(sorted(known))}."
        )
    return known[key]


@cache
def _load() -> tuple[Mapping[str, Accelerator], Mapping[str, Drive]]:
    data = tomllib.loads(files(__package__).joinpath("presets.toml").read_text(encoding="utf-8"))
    links = data["link"]
    gpus = {
        key: Accelerator(
            key=key,
            name=entry["name"],
            memory_bytes=entry["memory_mib"] << 20,
            multiprocessors=entry["multiprocessors"],
            flops=entry["flops"],
            matmul_share=entry["matmul_share"],
            attention_share=entry["attention_share"],
            memory_bytes_per_s=entry["memory_bytes_per_s"],
            link_generation=entry["link"],
            link_bytes_per_s=links[entry["link"]]["usable_bytes_per_s"],
            source=entry["source"],
        )
        for key, entry in data["accelerator"].items()
    }
    ssds = {
        key: Drive(
            key=key,
            name=entry["name"],
            link_generation=entry["link"],
            capacity_bytes=int(entry["capacity_tb"] * 1e12),
            read_bytes_per_s=entry["read_bytes_per_s"],
            write_bytes_per_s=entry["write_bytes_per_s"],
            rated_write_bytes=int(entry["rated_tb_written"] * 1e12),
            source=entry["source"],
        )
        for key, entry in data["drive"].items()
    }
    return gpus, ssds
