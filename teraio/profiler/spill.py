"""Opens the spill space: a file in each folder, each by the path that is fastest there.

In: folders, the device whose memory will move. Out: the native spill space, and for each folder its
measured speed, the path that was chosen and why. Must not know: models, plans.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import teraio._C as _C
from teraio import errors
from teraio.engine import gds
from teraio.engine.accelerator import accelerator_for
from teraio.engine.gds import Obstacle
from teraio.engine.kvikio_path import KvikioMissing, KvikioPath
from teraio.errors import ConfigurationError
from teraio.profiler.hardware import FolderSpeed

# By default host memory goes by threads of our own; with "kvikio" it takes kvikio's way too.
ENVIRONMENT = "TERAIO_IO"
MEASURED_BYTES = 128 << 20

# Of the native part when it stages; and two buffers for each of the two threads that measure.
_REQUEST_BYTES = 8 << 20
_STAGING_BYTES = 4 * _REQUEST_BYTES
_BLOCK_BYTES = 512  # of st_blocks, whatever the file system's are

DIRECT = "direct I/O from host memory"
BUFFERED = "buffered I/O from host memory"
STAGED = "direct I/O through host memory"
STAGED_BUFFERED = "buffered I/O through host memory"
NO_DIRECT = ", and the file system has no direct I/O"


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
        self.kvikio: KvikioPath | None = None  # what moves memory of a GPU, if that is kvikio
        self.owned = ExitStack()  # what the native part uses and Python must close

    def file_bytes(self) -> list[int]:
        """What the file in each folder takes of its drive."""
        return [os.fstat(fd).st_blocks * _BLOCK_BYTES for fd in self.fds]

    def close(self) -> None:
        """Gives back everything that the engine did not take over."""
        self.space.close()
        self.owned.close()


def open_spill(
    folders: Sequence[Path],
    *,
    device: str = "cpu",
    require_gds: bool = False,
    budget_bytes: int | None = None,
) -> Spill:
    """Opens a spill file in each folder and measures it by each way there is for ``device``.

    Host memory goes by direct I/O. Memory of an accelerator goes by direct I/O through page-locked
    host memory; that of a GPU by kvikio or GPUDirect Storage where these are faster. With
    ``require_gds`` anything but GPUDirect Storage is an error. Measuring takes no more memory of an
    accelerator than ``budget_bytes`` leave beside what is there.

    Raises SpillError for folders that can't be used, ConfigurationError where GPUDirect Storage is
    required and can't be had, or where $TERAIO_IO asks for what can't be.
    """
    kind = torch.device(device).type
    wanted = os.environ.get(ENVIRONMENT, "")
    if wanted not in ("", "native", "kvikio"):
        raise ConfigurationError(f"{ENVIRONMENT} is {wanted!r}; set it to native or kvikio.")
    if require_gds:
        _check_gds(folders, kind)
    spill = Spill(folders)
    try:
        if kind == "cpu":
            _choose_for_host(spill, wanted)
        else:
            wanted = "gds" if require_gds else wanted
            _choose_for_accelerator(spill, device, wanted, budget_bytes)
    except BaseException:
        spill.close()
        raise
    return spill


def no_gds(folder: Path, obstacle: Obstacle) -> ConfigurationError:
    """The error for a folder that GPUDirect Storage is required for and can't reach."""
    return ConfigurationError(
        f"require_gds=True, but GPUDirect Storage can't be used with the folder {folder}: "
        f"{obstacle.cause}. {obstacle.remedy} Or leave require_gds out."
    )


def _choose_for_host(spill: Spill, wanted: str) -> None:
    if wanted == "kvikio":
        from teraio.profiler.kvikio_trials import KvikioTrials

        KvikioTrials(spill).choose_for_host()
        return
    spill.speeds = [
        FolderSpeed(
            folder=folder,
            path=DIRECT if direct else BUFFERED,
            reason=f"training runs on the CPU{'' if direct else NO_DIRECT}",
            direct=direct,
            **spill.space.measure(number, MEASURED_BYTES),
        )
        for number, (folder, direct) in enumerate(zip(spill.folders, spill.direct, strict=True))
    ]


def _choose_for_accelerator(
    spill: Spill, device: str, wanted: str, budget_bytes: int | None
) -> None:
    with device_memory(device, budget_bytes) as memory:
        spill.speeds = [
            FolderSpeed(
                folder=folder,
                path=STAGED if direct else STAGED_BUFFERED,
                reason=f"{ENVIRONMENT}=native" if wanted == "native" else "the only way there is",
                direct=direct,
                **spill.space.measure(number, MEASURED_BYTES, **memory),
            )
            for number, (folder, direct) in enumerate(zip(spill.folders, spill.direct, strict=True))
        ]
        if torch.device(device).type == "cuda" and wanted != "native":
            _try_kvikio(spill, memory, wanted)


def _try_kvikio(spill: Spill, memory: dict[str, Any], wanted: str) -> None:
    from teraio.profiler.kvikio_trials import KvikioTrials

    try:
        if not memory:
            raise KvikioMissing(
                "the budget leaves no memory of the device to try kvikio with; raise memory_budget."
            )
        KvikioTrials(spill, memory).choose_for_gpu(wanted)
    except RuntimeError as error:  # kvikio is missing or fails; the way without it works
        if wanted:
            raise
        spill.space.forget_device_path()
        spill.speeds = [replace(speed, reason=str(error)) for speed in spill.speeds]


@contextmanager
def device_memory(device: str, budget_bytes: int | None) -> Iterator[dict[str, Any]]:
    """Memory for speed tests, for ``space.measure``: of the device, and page-locked of the host.

    Empty, so that host memory is measured instead, where the budget leaves hardly any.
    """
    accelerator = accelerator_for(torch.device(device))
    if accelerator is None:
        raise ConfigurationError(f"{device} is no accelerator; pass one such as cuda:0.")
    room, _ = accelerator.free_and_total_bytes()
    if budget_bytes is not None:
        room = min(room, budget_bytes - _C.allocated(device))
    nbytes = min(MEASURED_BYTES, room // 2 // _REQUEST_BYTES * _REQUEST_BYTES)
    if nbytes <= 0:
        yield {}
        return
    memory = torch.empty(nbytes, dtype=torch.uint8, device=device)
    # Direct I/O wants memory of whole pages.
    staging = mmap.mmap(-1, _STAGING_BYTES)
    begin = ctypes.c_char.from_buffer(staging)
    accelerator.lock_pages([(ctypes.addressof(begin), _STAGING_BYTES)])
    try:
        yield {
            "device": str(memory.device),
            "address": memory.data_ptr(),
            "span": memory.nbytes,
            "staging": ctypes.addressof(begin),
        }
    finally:
        accelerator.unlock_pages()
        del begin, memory
        torch.get_device_module(device).empty_cache()


def _check_gds(folders: Sequence[Path], kind: str) -> None:
    for folder in folders:
        found = gds.obstacle(folder)
        if kind != "cuda" and found is None:
            found = Obstacle(f"the model is on {kind}", "Put the model on a GPU.")
        if found is not None:
            raise no_gds(folder, found)
