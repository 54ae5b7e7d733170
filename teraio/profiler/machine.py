"""The speeds of this machine's spill folders, measured now.

In: folders. Out: FolderSpeeds and the Hardware of this machine. Must not know: models, plans.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch  # noqa: F401  the native module links to its libraries

import teraio._C as _C
from teraio.profiler.hardware import FolderSpeed, hardware, stripe_weights
from teraio.records import Hardware

MEASURED_BYTES = 128 << 20


def measure_folders(folders: Sequence[Path]) -> list[FolderSpeed]:
    """Writes and reads 128 MiB in each folder. Raises SpillError where that fails."""
    measured = _C.open_spill([str(folder) for folder in folders], MEASURED_BYTES)
    return [
        FolderSpeed(folder=folder, **speed) for folder, speed in zip(folders, measured, strict=True)
    ]


def measured_hardware(folders: Sequence[Path], budget_bytes: int) -> Hardware:
    """This machine with a budget and the folders striped by their measured speeds."""
    speeds = measure_folders(folders)
    return hardware(budget_bytes, speeds, stripe_weights(speeds))
