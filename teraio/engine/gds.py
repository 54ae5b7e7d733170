"""What stands between a folder and GPUDirect Storage.

In: folders, the kernel's and cuFile's settings. Out: obstacles, each with its remedy. Must not
know: torch, kvikio, speeds.

The conditions are those of NVIDIA's GDS installation and troubleshooting guide. What can be told
without cuFile is told here; whether cuFile then agrees, a trial shows (``engine.kvikio_path``).
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from teraio.engine.folders import mount

NVIDIA_FS = Path("/proc/driver/nvidia-fs/version")
_UDEV = Path("/run/udev")
_CUFILE_DEFAULT = "/etc/cufile.json"
_FILE_SYSTEMS = ("ext4", "xfs")
_COMMENT = re.compile(r'("(?:\\.|[^"\\])*")|//[^\n]*|/\*.*?\*/', re.DOTALL)
# cuFile has a compatibility mode of its own, in which it copies through host memory in silence.
_ALLOW_COMPATIBLE = "CUFILE_ALLOW_COMPAT_MODE"
_FORCE_COMPATIBLE = "CUFILE_FORCE_COMPAT_MODE"
_P2PDMA = "CUFILE_USE_PCIP2PDMA"


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Why GPUDirect Storage can't work, and what would help."""

    cause: str
    remedy: str


def obstacle(folder: Path) -> Obstacle | None:
    """The first obstacle to GPUDirect Storage between a GPU and ``folder``; None where none is
    seen."""
    return driver_obstacle() or system_obstacle() or folder_obstacle(folder)


def driver_obstacle() -> Obstacle | None:
    """Whether there is a CUDA driver that sees a GPU. Without one cuFile may spin for ever."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return Obstacle("there is no CUDA driver (libcuda.so.1)", "Install the GPU's driver.")
    count = ctypes.c_int()
    if library.cuInit(0) != 0 or library.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return Obstacle("the CUDA driver finds no GPU", "On a machine with a GPU: nvidia-smi.")
    if count.value == 0:
        return Obstacle("the CUDA driver shows no GPU", "Look at CUDA_VISIBLE_DEVICES.")
    return None


def system_obstacle() -> Obstacle | None:
    """What the kernel, a container or cuFile's settings are in the way with."""
    if "microsoft" in platform.release().lower():
        return Obstacle("the Windows Subsystem for Linux has none", "Use Linux itself.")
    if not NVIDIA_FS.exists() and not _p2pdma():
        return Obstacle(
            "the kernel module nvidia-fs is not loaded",
            "sudo modprobe nvidia-fs (package nvidia-gds), on the host if this is a container; "
            "or set use_pci_p2pdma in cufile.json where kernel and driver can do without it.",
        )
    if not _UDEV.is_dir():
        return Obstacle(
            "/run/udev can't be seen, as in a container",
            "Start the container with --volume /run/udev:/run/udev:ro.",
        )
    if _wanted(_FORCE_COMPATIBLE, "force_compat_mode"):
        return Obstacle(
            "cuFile's settings force its compatibility mode",
            f"Set force_compat_mode in cufile.json, or {_FORCE_COMPATIBLE}, to false.",
        )
    if _environment(_ALLOW_COMPATIBLE):
        return Obstacle(
            f"{_ALLOW_COMPATIBLE} is true, so it can't be told from cuFile's compatibility mode",
            f"Unset {_ALLOW_COMPATIBLE}, or set it to false.",
        )
    return None


def folder_obstacle(folder: Path) -> Obstacle | None:
    """Whether the folder's file system has GPUDirect Storage."""
    found = mount(folder)
    if found is None or found.kind not in _FILE_SYSTEMS:
        kind = found.kind if found else "an unknown file system"
        return Obstacle(f"{kind} has no GPUDirect Storage", "Use a folder on ext4 or xfs.")
    # The kernel leaves the option out where it is the default.
    modes = [option for option in found.options if option.startswith("data=")]
    if found.kind == "ext4" and modes not in ([], ["data=ordered"]):
        return Obstacle(
            f"ext4 is mounted with {', '.join(modes)}", "Mount it with the option data=ordered."
        )
    return None


def forbid_compatibility() -> None:
    """Makes cuFile refuse what it can't do directly; call it before cuFile is first used.

    Else its own compatibility mode would pass for GPUDirect Storage.
    """
    os.environ.setdefault(_ALLOW_COMPATIBLE, "false")


def cufile_config() -> Path:
    """The file with cuFile's settings, there or not."""
    return Path(os.environ.get("CUFILE_ENV_PATH_JSON") or _CUFILE_DEFAULT)


def cufile_properties() -> dict[str, Any]:
    """The section ``properties`` of cuFile's settings. Raises OSError and ValueError."""
    settings = json.loads(_COMMENT.sub(r"\1", cufile_config().read_text()))
    if not isinstance(settings, dict):
        raise ValueError("the settings are no JSON object")
    properties = settings.get("properties", {})
    return properties if isinstance(properties, dict) else {}


def _p2pdma() -> bool:
    return _wanted(_P2PDMA, "use_pci_p2pdma")


def _wanted(variable: str, name: str) -> bool:
    """A setting of cuFile; the environment goes before the file."""
    if variable in os.environ:
        return _environment(variable)
    try:
        return cufile_properties().get(name) is True
    except (OSError, ValueError):
        return False


def _environment(variable: str) -> bool:
    return os.environ.get(variable, "").strip().lower() in ("1", "true", "yes", "on")
