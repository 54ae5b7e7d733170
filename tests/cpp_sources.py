"""C++ sources of tests, compiled once for each state of sources, flags, PyTorch and Python.

In: a folder of sources, a C++ compiler. Out: what was built under build/, loaded. Must not know:
what the sources are for.
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from torch.utils import cpp_extension

_BUILDS = Path(__file__).resolve().parents[1] / "build"
# torch is built with NDEBUG; without it some of its classes have another layout.
_FLAGS = ["-DNDEBUG", "-Wall", "-Wextra", "-Wshadow"]


def load(name: str, folder: Path, flags: list[str], *, is_module: bool = True) -> Any:
    """The module ``name`` of all sources in ``folder``; without ``is_module`` the path of a library
    that only registers ops.

    Processes that want it at the same time wait for one of them to build it. Raises: RuntimeError.
    """
    if shutil.which("g++") is None or shutil.which("ninja") is None:
        raise RuntimeError(
            f"{name} of the tests needs g++ and ninja to be built; "
            "install them (Debian: apt install g++ ninja-build)"
        )
    flags = [*_FLAGS, *flags]
    build = _BUILDS / name / _key(folder, flags)
    build.mkdir(parents=True, exist_ok=True)
    with (build / "building").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        # PyTorch's own lock is a file that a killed build leaves behind.
        (build / "lock").unlink(missing_ok=True)
        return cpp_extension.load(
            name=name,
            sources=[str(path) for path in sorted(folder.glob("*.cpp"))],
            extra_cflags=flags,
            build_directory=str(build),
            with_cuda=False,
            is_python_module=is_module,
        )


def _key(folder: Path, flags: list[str]) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    digest.update(" ".join([*flags, torch.__version__, sys.version]).encode())
    return digest.hexdigest()[:16]
