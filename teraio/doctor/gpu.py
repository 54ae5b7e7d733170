"""GPUs, and what transfers between them and SSDs need.

In: folders. Out: Checks. Must not know: memory of the host, speeds.

What GPUDirect Storage needs (module nvidia-fs or a driver with P2PDMA, ext4 mounted with
data=ordered or xfs, cufile.json) is in NVIDIA's GDS installation and troubleshooting guide.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from teraio.doctor.check import Check, Status
from teraio.engine.folders import mount

_GROUP = "GPU"
_NVIDIA_FS = Path("/proc/driver/nvidia-fs/version")
_CUFILE_DEFAULT = "/etc/cufile.json"
_GDS_FILE_SYSTEMS = ("ext4", "xfs")
_COMMENT = re.compile(r'("(?:\\.|[^"\\])*")|//[^\n]*|/\*.*?\*/', re.DOTALL)


def checks(folders: Sequence[Path]) -> tuple[Check, ...]:
    """All of them; without a driver the rest is not looked at."""
    driver = _driver()
    if driver.status != "ok":
        return (driver,)
    return (
        driver,
        _cuda(),
        _package("Triton", "triton", "pip install triton: packing kernels need it."),
        _package("kvikio", "kvikio-cu13", "pip install kvikio-cu13", also="kvikio-cu12"),
        _package("NVML", "nvidia-ml-py", "pip install nvidia-ml-py: telemetry needs it."),
        _nvidia_fs(),
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


def _nvidia_fs() -> Check:
    try:
        found = _NVIDIA_FS.read_text().strip().replace("\n", ", ")
    except OSError:
        return _check(
            "GPUDirect Storage",
            "missing",
            "kernel module nvidia-fs is not loaded",
            "sudo modprobe nvidia-fs (package nvidia-gds); without it data goes through host "
            "memory.",
        )
    return _check("GPUDirect Storage", "ok", f"nvidia-fs: {found}")


def _cufile_config() -> Check:
    path = Path(os.environ.get("CUFILE_ENV_PATH_JSON") or _CUFILE_DEFAULT)
    try:
        settings = json.loads(_COMMENT.sub(r"\1", path.read_text()))
        compatible = settings.get("properties", {}).get("allow_compat_mode")
    except OSError:
        return _check("cuFile settings", "missing", f"no {path}", "cuFile uses its defaults.")
    except (ValueError, AttributeError) as error:
        return _check(
            "cuFile settings", "warn", f"{path}: {error}", "Correct the file; it is JSON."
        )
    found = f"{path}: allow_compat_mode is {str(compatible).lower()}"
    if compatible is True:
        return _check("cuFile settings", "ok", f"{found}; where GDS can't work, it goes unnoticed")
    return _check("cuFile settings", "ok", found)


def _folder(folder: Path) -> Check:
    name = f"GDS for {folder}"
    found = mount(folder)
    if found is None or found.kind not in _GDS_FILE_SYSTEMS:
        kind = found.kind if found else "unknown file system"
        return _check(name, "missing", f"{kind} has no GPUDirect Storage", "Use ext4 or xfs.")
    if found.kind == "ext4" and "data=ordered" not in found.options:
        # The kernel leaves the option out where it is the default.
        if any(option.startswith("data=") for option in found.options):
            return _check(
                name, "warn", ",".join(found.options), "Mount it with the option data=ordered."
            )
        return _check(name, "ok", "ext4, data=ordered by default")
    return _check(name, "ok", found.kind)
