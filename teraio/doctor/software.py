"""Python, PyTorch and the native part.

In: nothing. Out: Checks. Must not know: folders, devices.
"""

from __future__ import annotations

import platform
import sys
from importlib import import_module

from teraio.doctor.check import Check, Status

_GROUP = "software"
_OLDEST_PYTHON = (3, 11)
_OLDEST_TORCH = (2, 11)


def checks() -> tuple[Check, ...]:
    """All of them; the native part is only tried where PyTorch is there."""
    torch = _torch()
    native = (_native(),) if torch.status != "fail" else ()
    return (_system(), _python(), torch, *native)


def _check(name: str, status: Status, found: str, remedy: str = "") -> Check:
    return Check(group=_GROUP, name=name, status=status, found=found, remedy=remedy)


def _system() -> Check:
    found = f"{platform.system()} {platform.release()}, {platform.machine()}"
    if platform.system() != "Linux":
        return _check("system", "fail", found, "Use Linux; direct I/O is made for it.")
    tested = platform.machine() == "x86_64"
    return _check(
        "system", "ok" if tested else "warn", found, "" if tested else "Tested on x86_64 only."
    )


def _python() -> Check:
    if sys.version_info < _OLDEST_PYTHON:
        return _check("Python", "fail", platform.python_version(), "Install Python 3.11 or newer.")
    return _check("Python", "ok", platform.python_version())


def _torch() -> Check:
    try:
        version = str(import_module("torch").__version__)
    except ImportError as error:
        return _check("PyTorch", "fail", str(error), "pip install torch")
    if _numbers(version) < _OLDEST_TORCH:
        return _check("PyTorch", "fail", version, "pip install --upgrade 'torch>=2.11'")
    return _check("PyTorch", "ok", version)


def _numbers(version: str) -> tuple[int, ...]:
    parts = version.split("+")[0].split(".")[:2]
    return tuple(int(part) for part in parts if part.isdigit())


def _native() -> Check:
    try:
        import_module("teraio._C")
    except ImportError as error:
        return _check(
            "native part",
            "fail",
            str(error),
            "Build it for this PyTorch: make build, or pip install --no-build-isolation . in the "
            "folder of teraio's sources.",
        )
    return _check("native part", "ok", "loads")
