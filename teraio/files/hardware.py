"""Hardware in files.

In: a Hardware, or JSON values. Out: JSON values, or a Hardware whose rates can be computed with.
Must not know: files.
"""

from __future__ import annotations

from typing import Any

from teraio.files.fault import fail
from teraio.files.fields import Fields, objects_of
from teraio.records import Hardware, SpillFolder, Tier

_TIER_LATER: dict[str, object] = {"rated_write_bytes": None, "folders": [], "encodes": False}
_TIER = (
    "name",
    "capacity_bytes",
    "read_bytes_per_s",
    "write_bytes_per_s",
    "mixed_bytes_per_s",
    "latency_s",
    *_TIER_LATER,
)
_HARDWARE_LATER = {"max_write_bytes_per_day": None}
_SPILL_FOLDER = ("folder", "path", "reason")
_HARDWARE = ("name", "budget_bytes", "tiers", *_HARDWARE_LATER)


def write_hardware(hardware: Hardware) -> dict[str, Any]:
    """The hardware as JSON values."""
    body = {name: getattr(hardware, name) for name in _HARDWARE}
    tiers = objects_of(hardware.tiers, _TIER)
    for tier in tiers:
        tier["folders"] = objects_of(tier["folders"], _SPILL_FOLDER)
    return {**body, "tiers": tiers}


def read_hardware(value: object, where: str) -> Hardware:
    """The hardware that ``write_hardware`` gave; raises Fault for anything else."""
    fields = Fields(value, where, _HARDWARE, _HARDWARE_LATER)
    tiers = fields.items("tiers", _read_tier)
    if len({tier.name for tier in tiers}) < len(tiers):
        fail(f"{where}.tiers has two tiers of the same name")
    return Hardware(
        name=fields.text("name"),
        budget_bytes=fields.integer("budget_bytes"),
        tiers=tiers,
        max_write_bytes_per_day=fields.optional("max_write_bytes_per_day", fields.number),
    )


def _read_tier(value: object, where: str) -> Tier:
    fields = Fields(value, where, _TIER, _TIER_LATER)
    return Tier(
        name=fields.text("name"),
        capacity_bytes=fields.integer("capacity_bytes"),
        read_bytes_per_s=fields.rate("read_bytes_per_s"),
        write_bytes_per_s=fields.rate("write_bytes_per_s"),
        mixed_bytes_per_s=fields.rate("mixed_bytes_per_s"),
        latency_s=fields.number("latency_s"),
        rated_write_bytes=fields.optional("rated_write_bytes", fields.integer),
        folders=fields.items("folders", _read_spill_folder),
        encodes=fields.flag("encodes"),
    )


def _read_spill_folder(value: object, where: str) -> SpillFolder:
    fields = Fields(value, where, _SPILL_FOLDER)
    return SpillFolder(
        folder=fields.text("folder"), path=fields.text("path"), reason=fields.text("reason")
    )
