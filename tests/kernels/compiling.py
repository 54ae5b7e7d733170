"""Compiles all kernels for a GPU that is not here, by the launches that packing makes.

In: a compute capability, as argument. Out: for each kernel the memory instructions of its PTX,
those that round otherwise than IEEE's, and the bytes it spills, as JSON on standard output. Must
not know: what is expected.

Triton is told of a GPU, and every launch ends when its kernel is compiled. A process of its own,
because the tests' process interprets kernels.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from teraio.kernels import CODECS, staging_nbytes
from teraio.kernels.with_triton import copying, lossless, lossy

MEMORY = re.compile(r"\b(?:ld|st)\.global[.\w:]*")
# Instructions that round otherwise than IEEE's: flushed denormals, fused and approximate ones.
ROUNDING = re.compile(r"\b(?:\w+[.\w]*\.ftz[.\w]*|fma\.[.\w]*|\w+\.(?:approx|full)\.[.\w]*)")


class Compiler:
    """Takes launches, and keeps the PTX of each under the label that is set."""

    def __init__(self, capability: int) -> None:
        self.label = ""
        self.found: dict[str, str] = {}
        self._run = JITFunction.run
        target = GPUTarget("cuda", capability, 32)
        driver.set_active(
            SimpleNamespace(
                get_current_device=lambda: 0,
                get_current_stream=lambda device: 0,
                get_current_target=lambda: target,
            )
        )
        compiler = self

        def run(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
            kernel = compiler._run(self, *args, grid=grid, warmup=True, **options)
            name = f"{self.fn.__name__} {compiler.label}".strip()
            compiler.found[name] = kernel.asm["ptx"]

        JITFunction.run = run


def launch_everything(compiler: Compiler) -> None:
    storages = [torch.zeros(5000)]
    staging = torch.zeros(20_000, dtype=torch.uint8)
    copying.pack(storages, [0], staging)
    copying.unpack(storages, [0], staging)
    for dtype in (torch.float32, torch.bfloat16):
        compiler.label = str(dtype).removeprefix("torch.")
        values = [storage.to(dtype) for storage in storages]
        tables = [lossless.describe(values)]
        lossless.encode(values, tables, [0], staging)
        lossless.decode(values, [0], staging)
    for codec in CODECS.values():
        for name in codec.dtypes:
            compiler.label = f"{codec.name} {name}"
            values = [storage.to(getattr(torch, name)) for storage in storages]
            staging = torch.zeros(staging_nbytes(values, codecs=codec.name), dtype=torch.uint8)
            lossy.encode(codec.name, values, [0], staging)
            lossy.decode(codec.name, values, [0], staging)


def spilled(ptx: str, capability: int) -> int:
    architecture = f"sm_{capability}{'a' if capability >= 90 else ''}"
    # Triton ships several, and writes PTX that only the architecture's own can read.
    ptxas = get_ptxas(capability).path
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(ptx)
        command = [ptxas, "-v", f"-arch={architecture}", "-o", source.with_suffix(".cubin"), source]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"ptxas ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return sum(int(nbytes) for nbytes in re.findall(r"(\d+) bytes spill", done.stderr))


def main() -> None:
    capability = int(sys.argv[1])
    compiler = Compiler(capability)
    launch_everything(compiler)
    found = {
        name: {
            "memory": dict(Counter(MEMORY.findall(ptx))),
            "rounding": sorted(set(ROUNDING.findall(ptx))),
            "spilled": spilled(ptx, capability),
        }
        for name, ptx in compiler.found.items()
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
