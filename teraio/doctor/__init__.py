"""What this machine can do for teraio, and what is missing: a list of checks.

In: folders that storages may spill to. Out: Checks, each with what was found and the remedy, and
the speeds measured. Must not know: rendering, models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from teraio.doctor import gpu, memory, software, storage
from teraio.doctor.check import Check, Status
from teraio.records import Hardware

__all__ = ["Check", "Diagnosis", "Status", "diagnose"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """All checks. ``hardware`` is this machine as measured; None where nothing could be."""

    checks: tuple[Check, ...]
    hardware: Hardware | None

    def worst(self) -> Status:
        """The most serious status of all checks."""
        order: tuple[Status, ...] = ("ok", "missing", "warn", "fail")
        return max((check.status for check in self.checks), key=order.index, default="ok")


def diagnose(folders: Sequence[Path]) -> Diagnosis:
    """Runs all checks; measures the speed of each folder that can be used."""
    base = software.checks()
    works = all(check.status != "fail" for check in base)
    stored = storage.examine(folders, measure=works)
    checks = (*base, *memory.checks(), *stored.checks, *gpu.checks(folders))
    return Diagnosis(checks=checks, hardware=stored.hardware)
