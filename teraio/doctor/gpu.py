"""GPUs, and what transfers between them and SSDs need.

In: folders. Out: Checks. Must not know: memory of the host, speeds.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from teraio.doctor.check import Check, Status
from teraio.engine import gds
from teraio.engine.folders import file_system

_GROUP = "GPU"


def checks(folders: Sequence[Path]) -> tuple[Check, ...]:
    """All of them; without a driver only it and what is installed for GPUs."""
    driver = _driver()
    installed = (
        _cuda(),
        _package("Triton", "triton", "pip install triton: packing kernels need it."),
        _package("kvikio", "kvikio-cu13", "pip install kvikio-cu13", also="kvikio-cu12"),
        _package("NVML", "nvidia-ml-py", "pip install nvidia-ml-py: telemetry needs it."),
    )
    if driver.status != "ok":
        return (driver, *installed)
    return (
        driver,
        *installed,
        _system(),
        _cufile_config(),
        *(_folder(folder) for folder in folders if folder.is_dir()),
    )


def _check(name: str, status: Status, found: str, remedy: str = "") -> Check:
    return Check(group=_GROUP, name=name, status=status, found=found, remedy=remedy)


def _driver() -> Check:
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return _check(
            "driver", "missing", "no libcuda.so.1", "For training on a GPU, install its driver."
        )
    number = ctypes.c_int()
    library.cuDriverGetVersion(ctypes.byref(number))
    found = f"CUDA {number.value // 1000}.{number.value % 1000 // 10}"
    if library.cuInit(0) != 0:
        return _check(
            "driver", "missing", f"{found}, but no GPU", "On a machine with a GPU: nvidia-smi."
        )
    return _check("driver", "ok", found)


def _cuda() -> Check:
    try:
        torch: Any = import_module("torch")
    except ImportError:
        return _check("CUDA in PyTorch", "missing", "no PyTorch", "pip install torch")
    if torch.version.cuda is None:
        return _check(
            "CUDA in PyTorch", "missing", "a build for the CPU", "Install PyTorch's CUDA build."
        )
    if not torch.cuda.is_available():
        return _check(
            "CUDA in PyTorch",
            "warn",
            f"built for CUDA {torch.version.cuda}, which this driver can't run",
            "Update the driver, or install a build for an older CUDA.",
        )
    names = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    found = ", ".join(f"{p.name} with {p.total_memory / 2**30:.0f} GiB" for p in names)
    return _check("CUDA in PyTorch", "ok", f"{torch.version.cuda}: {found}")


def _package(name: str, package: str, remedy: str, also: str = "") -> Check:
    for candidate in filter(None, (package, also)):
        try:
            return _check(name, "ok", f"{candidate} {version(candidate)}")
        except PackageNotFoundError:
            continue
    return _check(name, "missing", "not installed", remedy)


def _system() -> Check:
    found = gds.system_obstacle()
    if found is not None:
        remedy = f"{found.remedy} Without it data goes through host memory."
        return _check("GPUDirect Storage", "missing", found.cause, remedy)
    try:
        text = "nvidia-fs: " + gds.NVIDIA_FS.read_text().strip().replace("\n", ", ")
    except OSError:
        text = "by use_pci_p2pdma, without the kernel module nvidia-fs"
    return _check("GPUDirect Storage", "ok", text)


def _cufile_config() -> Check:
    path = gds.cufile_config()
    try:
        compatible = gds.cufile_properties().get("allow_compat_mode")
    except OSError:
        return _check("cuFile settings", "missing", f"no {path}", "cuFile uses its defaults.")
    except ValueError as error:
        return _check(
            "cuFile settings", "warn", f"{path}: {error}", "Correct the file; it is JSON."
        )
    found = f"{path}: allow_compat_mode is {str(compatible).lower()}"
    if compatible is True:
        return _check("cuFile settings", "ok", f"{found}; teraio forbids it for its own process")
    return _check("cuFile settings", "ok", found)


def _folder(folder: Path) -> Check:
    name = f"GDS for {folder}"
    found = gds.folder_obstacle(folder)
    if found is not None:
        return _check(name, "missing", found.cause, found.remedy)
    return _check(name, "ok", file_system(folder))
