"""Builds ``teraio._C`` from csrc/ against the installed torch; the rest is in pyproject.toml.

In: csrc/*.cpp, the headers of torch, $TERAIO_CXXFLAGS. Out: one extension module. Must not know:
CUDA.
"""

from __future__ import annotations

import os
import sysconfig
from pathlib import Path

from setuptools import setup
from torch.utils.cpp_extension import BuildExtension, CppExtension, include_paths

ROOT = Path(__file__).parent

# Headers of others are system headers, so that the warnings below count for our own sources only.
# They are errors in CI alone, where TERAIO_CXXFLAGS says so: what a newer compiler finds should not
# keep anybody from building.
SYSTEM_DIRS = [*include_paths(), sysconfig.get_paths()["include"]]
WARNINGS = ["-Wall", "-Wextra", "-Wshadow", "-Wconversion", "-Wno-sign-conversion"]


def native_extension() -> CppExtension:
    sources = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("csrc/*.cpp"))
    headers = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("csrc/*.h"))
    return CppExtension(
        name="teraio._C",
        sources=sources,
        depends=headers,
        extra_compile_args=[
            "-O3",
            # torch is built with it; without it RecordFunction has another layout.
            "-DNDEBUG",
            "-fvisibility=default",
            *WARNINGS,
            *(f"-isystem{path}" for path in SYSTEM_DIRS),
            # Last, so that they win over those above, which $CFLAGS does not.
            *os.environ.get("TERAIO_CXXFLAGS", "").split(),
        ],
    )


setup(ext_modules=[native_extension()], cmdclass={"build_ext": BuildExtension})
