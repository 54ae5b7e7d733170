"""Opens the spill space: a file in each folder, each by the path that is fastest there.

In: folders, the device whose memory will move. Out: the native spill space, and for each folder its
measured speed, the path that was chosen and why. Must not know: models, plans.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import torch

import teraio._C as _C
from teraio import errors
from teraio.engine import gds
from teraio.engine.gds import Obstacle
from teraio.errors import ConfigurationError
from teraio.profiler.hardware import FolderSpeed

# By default host memory goes by threads of our own; with "kvikio" it takes kvikio's way too.
ENVIRONMENT = "TERAIO_IO"
MEASURED_BYTES = 128 << 20

DIRECT = "direct I/O from host memory"
BUFFERED = "buffered I/O from host memory"


class Spill:
    """An open spill space; ``speeds`` has an entry for each folder.

    ``space`` is for ``_C.start``. Close it after ``_C.stop``.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        """Raises SpillError for a folder that can't hold a spill file."""
        _C.set_error_types(errors.BudgetError, errors.SpillError)
        self.space = _C.SpillSpace()
        self.folders = tuple(folders)
        files = [self.space.add_folder(str(folder)) for folder in folders]
        self.fds = [file["fd"] for file in files]
        self.direct = [file["direct"] for file in files]
        self.speeds: list[FolderSpeed] = []
        self.owned = ExitStack()  # what the native part uses and Python must close

    def close(self) -> None:
        """Gives back everything that the engine did not take over."""
        self.space.close()
        self.owned.close()


def open_spill(folders: Sequence[Path], *, device: str = "cpu", require_gds: bool = False) -> Spill:
    """Opens a spill file in each folder and measures it by each path there is for ``device``.

    Host memory goes by direct I/O. Memory of a GPU goes by kvikio: by GPUDirect Storage where it
    works and is the faster way, else by way of pinned host memory. With ``require_gds`` anything
    but GPUDirect Storage is an error.

    Raises SpillError for folders that can't be used, ConfigurationError where GPUDirect Storage is
    required and can't be had, where kvikio is needed and can't be used, or for another device.
    """
    kind = torch.device(device).type
    if kind not in CHOOSERS:
        raise ConfigurationError(
            f"storages on {device} can't be spilled; put the model on {' or '.join(CHOOSERS)}."
        )
    if require_gds:
        _check_gds(folders, kind)
    spill = Spill(folders)
    try:
        CHOOSERS[kind](spill, device, require_gds)
    except BaseException:
        spill.close()
        raise
    return spill


def _for_host(spill: Spill, device: str, require_gds: bool) -> None:
    named = os.environ.get(ENVIRONMENT, "")
    if named not in ("", "native", "kvikio"):
        raise ConfigurationError(f"{ENVIRONMENT} is {named!r}; set it to native or kvikio.")
    if named == "kvikio":
        _by_kvikio(spill, device, require_gds)
    else:
        spill.speeds = [_host_speed(spill, folder) for folder in range(len(spill.folders))]


def _by_kvikio(spill: Spill, device: str, require_gds: bool) -> None:
    from teraio.profiler.kvikio_trials import KvikioTrials

    KvikioTrials(spill, device, require_gds).choose()


# What fills in the speeds and sets the path, by the type of the device.
CHOOSERS: dict[str, Callable[[Spill, str, bool], None]] = {"cpu": _for_host, "cuda": _by_kvikio}


def no_gds(folder: Path, obstacle: Obstacle) -> ConfigurationError:
    """The error for a folder that GPUDirect Storage is required for and can't reach."""
    return ConfigurationError(
        f"require_gds=True, but GPUDirect Storage can't be used with the folder {folder}: "
        f"{obstacle.cause}. {obstacle.remedy} Or leave require_gds out."
    )


def _check_gds(folders: Sequence[Path], kind: str) -> None:
    for folder in folders:
        found = gds.obstacle(folder)
        if kind != "cuda" and found is None:
            found = Obstacle(f"the model is on {kind}", "Put the model on a GPU.")
        if found is not None:
            raise no_gds(folder, found)


def _host_speed(spill: Spill, folder: int) -> FolderSpeed:
    direct = spill.direct[folder]
    return FolderSpeed(
        folder=spill.folders[folder],
        path=DIRECT if direct else BUFFERED,
        reason="training runs on the CPU"
        if direct
        else "training runs on the CPU, and the file system has no direct I/O",
        direct=direct,
        **spill.space.measure(folder, MEASURED_BYTES),
    )
