"""The speeds of this machine's spill folders, measured now.

In: folders. Out: FolderSpeeds and the Hardware of this machine. Must not know: models, plans.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from teraio.profiler.hardware import FolderSpeed, hardware, stripe_weights
from teraio.profiler.spill import open_spill
from teraio.records import Hardware


def measure_folders(folders: Sequence[Path]) -> list[FolderSpeed]:
    """Writes and reads 128 MiB in each folder. Raises SpillError where that fails."""
    with closing(open_spill(folders)) as spill:
        return spill.speeds


def measured_hardware(folders: Sequence[Path], budget_bytes: int) -> Hardware:
    """This machine with a budget and the folders striped by their measured speeds."""
    speeds = measure_folders(folders)
    return hardware(budget_bytes, speeds, stripe_weights(speeds))
