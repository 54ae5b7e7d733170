"""Compiles all kernels for GPUs that are not here, as a launch would.

In: compute capabilities, as arguments. Out: for each kernel the memory instructions of its PTX,
those that round otherwise than IEEE's, and the bytes it spills, as JSON on standard output. Must
not know: what is expected.

A process of its own, because the tests' process interprets kernels.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from teraio.kernels.lossy_format import MINIFLOATS
from teraio.kernels.with_triton import copying, lossless, lossy

TYPES = {"rows": "*i64", "owners": "*i32", "descriptors": "*i64"}
MEMORY = re.compile(r"\b(?:ld|st)\.global[.\w:]*")
# Instructions that round otherwise than IEEE's: flushed denormals, fused and approximate ones.
ROUNDING = re.compile(r"\b(?:\w+[.\w]*\.ftz[.\w]*|fma\.[.\w]*|\w+\.(?:approx|full)\.[.\w]*)")
PTXAS = Path(triton.__file__).parent / "backends/nvidia/bin/ptxas"


def kernels() -> dict[str, tuple[Any, dict[str, Any], dict[str, Any]]]:
    """Name -> kernel, its constants, its options."""
    found: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {}
    wide, narrow = {"num_warps": copying.WARPS}, {"num_warps": lossless.WARPS}
    found["copy_tiles"] = copying.copy_tiles, {"TILE": copying.TILE_NBYTES}, wide
    for kernel in (lossless.describe_blocks, lossless.encode_blocks, lossless.decode_blocks):
        for size in (2, 4):
            found[f"{kernel.__name__} {size}"] = kernel, {"SIZE": size}, narrow
    plain = {"num_warps": lossy.WARPS, "enable_fp_fusion": False}
    for value in (tl.float32, tl.bfloat16, tl.float16):
        for kernel in (lossy.encode_int8, lossy.decode_int8):
            found[f"{kernel.__name__} {value}"] = kernel, {"VALUE": value}, plain
        for codec in MINIFLOATS:
            for kernel in (lossy.encode_minifloats, lossy.decode_minifloats):
                constants = _minifloat_constants(kernel, codec, value)
                found[f"{kernel.__name__} {codec} {value}"] = kernel, constants, plain
    for kernel in (lossy.encode_bf16, lossy.decode_bf16):
        found[kernel.__name__] = kernel, {}, plain
    return found


def _minifloat_constants(kernel: Any, codec: str, value: Any) -> dict[str, Any]:
    form = MINIFLOATS[codec]
    fields = ("signed", "rebias", "normal", "steps", "step", "largest", "nan", "infinity")
    constants = {name.upper(): getattr(form, name) for name in fields}
    return {"VALUE": value} | {k: v for k, v in constants.items() if k in kernel.arg_names}


def compiled(
    kernel: Any, constants: dict[str, Any], options: dict[str, Any], capability: int
) -> str:
    """The PTX. Tables are aligned, as PyTorch's allocators give them."""
    names = kernel.arg_names
    source = ASTSource(
        fn=kernel,
        signature={name: "constexpr" if name in constants else TYPES[name] for name in names},
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in TYPES if name in names},
    )
    target = GPUTarget("cuda", capability, 32)
    found: str = triton.compile(source, target=target, options=options).asm["ptx"]
    return found


def spilled(ptx: str, capability: int) -> int:
    architecture = f"sm_{capability}{'a' if capability >= 90 else ''}"
    command = [str(PTXAS), "-v", f"-arch={architecture}", "-o", "/dev/null", "/dev/stdin"]
    done = subprocess.run(command, input=ptx, capture_output=True, text=True, check=True)
    return sum(int(nbytes) for nbytes in re.findall(r"(\d+) bytes spill", done.stderr))


def main() -> None:
    found = {}
    for capability in map(int, sys.argv[1:]):
        for name, (kernel, constants, options) in kernels().items():
            ptx = compiled(kernel, constants, options, capability)
            counts = Counter(MEMORY.findall(ptx))
            found[f"{name} sm_{capability}"] = {
                "memory": dict(counts),
                "spilled": spilled(ptx, capability),
                "rounding": sorted(set(ROUNDING.findall(ptx))),
            }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
