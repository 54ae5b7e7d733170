"""CUDA without a GPU: PyTorch's CUDA build, with a double in place of NVIDIA's driver and runtime.

In: PyTorch's CUDA build and CUDA's headers (both from PyPI), a C++ compiler. Out: an environment
in which ``torch.cuda`` works, with kernels. Must not know: teraio.

PyTorch's own allocator, streams, events, pinned memory and copies run as they are, on memory of the
host that only copies and kernels may touch. Ops are computed by the CPU's kernels when their turn
in the stream has come. There are no kernels of the GPU: whoever launches one is told its name.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import torch

HERE = Path(__file__).parent
RUNTIME = HERE / "runtime"
KERNELS = (HERE / "kernels", HERE.parent / "device" / "csrc")
# Of the simulated device's sources, those that know of no device.
SHARED = ("gaps.cpp", "kernel.cpp", "shapes.cpp")
BUILDS = HERE.parents[1] / "build" / "cuda"

FLAGS = ["-std=c++20", "-O1", "-DNDEBUG", "-Wall", "-Wextra", "-fPIC", "-shared"]
PACE = "CUDA_DOUBLE_PACE"  # how much slower than a GPU a device is that computes nothing
VARIABLE = "TERAIO_CUDA_DOUBLE"  # where the kernels are, in processes that have the double


def environment() -> dict[str, str]:
    """Variables for a process in which CUDA is the double. Builds it if need be.

    Raises RuntimeError that says what is missing.
    """
    packages = Path(torch.__file__).parents[1]
    headers = packages / "nvidia" / f"cu{(torch.version.cuda or '0').split('.')[0]}" / "include"
    if torch.version.cuda is None:
        raise RuntimeError(f"PyTorch {torch.__version__} is no CUDA build; PyPI's for Linux is one")
    if not (headers / "crt" / "host_defines.h").exists():
        raise RuntimeError(f"CUDA's headers are not in {headers}: pip install nvidia-cuda-crt")
    if shutil.which("g++") is None:
        raise RuntimeError("the double of CUDA needs g++ (Debian: apt install g++)")
    folder = BUILDS / _key()
    folder.mkdir(parents=True, exist_ok=True)
    runtime, kernels = folder / "libcuda.so.1", folder / "kernels.so"
    torch_at = Path(torch.__file__).parent
    if not kernels.exists():
        _compile(runtime, sorted(RUNTIME.glob("*.cpp")), ["-isystem", str(headers)])
        nvml = folder / "libnvidia-ml.so.1"
        nvml.unlink(missing_ok=True)
        nvml.symlink_to(runtime.name)
        own, shared = KERNELS
        _compile(
            kernels,
            [*sorted(own.glob("*.cpp")), *(shared / name for name in SHARED)],
            [
                "-DSIM_DEVICE_TYPE=CUDA",
                f"-I{shared}",
                *("-isystem", str(torch_at / "include")),
                *("-isystem", str(torch_at / "include/torch/csrc/api/include")),
                *("-isystem", str(headers)),
                f"-L{torch_at / 'lib'}",
                *("-lc10", "-lc10_cuda", "-ltorch_cpu", "-ltorch_cuda", str(runtime)),
            ],
        )
    return {
        **os.environ,
        "LD_PRELOAD": str(runtime),
        "LD_LIBRARY_PATH": _path(folder, os.environ.get("LD_LIBRARY_PATH")),
        # Processes of Python load the kernels as they start.
        "PYTHONPATH": _path(HERE / "site", HERE.parents[1], os.environ.get("PYTHONPATH")),
        VARIABLE: str(kernels),
    }


def _path(*folders: Path | str | None) -> str:
    return os.pathsep.join(str(folder) for folder in folders if folder)


def _compile(target: Path, sources: list[Path], flags: list[str]) -> None:
    made = target.with_suffix(".new")
    name = f"-Wl,-soname,{target.name}"
    command = ["g++", *FLAGS, "-o", str(made), *map(str, sources), name, *flags]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"the double of CUDA can't be built:\n{done.stderr[-4000:]}")
    made.rename(target)


def _key() -> str:
    """Another one for other sources, flags or PyTorch."""
    digest = hashlib.sha256(" ".join([*FLAGS, torch.__version__]).encode())
    for folder in (RUNTIME, *KERNELS):
        for path in sorted(folder.iterdir()):
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def is_here() -> bool:
    """Whether CUDA is the double in this process."""
    return VARIABLE in os.environ


def load_kernels() -> None:
    """Gives CUDA's ops their kernels. Triton, which would make some for a GPU, is hidden."""
    sys.modules["triton"] = None  # type: ignore[assignment]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of kernels that are replaced
        torch.ops.load_library(os.environ[VARIABLE])
    if PACE in os.environ:
        return
    # Which attention a GPU would take is not asked of an op.
    torch.backends.cuda.enable_flash_sdp(False)
    torch.backends.cuda.enable_mem_efficient_sdp(False)
    torch.backends.cuda.enable_cudnn_sdp(False)


def set_delay(max_us: int) -> None:
    """Kernels and copies start after up to so many microseconds, drawn anew for each."""
    ctypes.CDLL(None).cuda_double_set_delay(ctypes.c_int64(max_us))


def main(arguments: list[str]) -> None:
    """Runs the tests that need a GPU, or those that the arguments for pytest choose."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", *arguments]
    os.execve(sys.executable, command, {**environment(), "TERAIO_REQUIRE": "gpu"})


if __name__ == "__main__":
    main(sys.argv[1:])
