"""Packing and unpacking beside a plain copy of the same bytes on the same device.

In: options. Out: bytes per second. Must not know: how anything is packed.

Storages are allocated one by one and hold normally distributed values. Times are medians: of CUDA's
events on a GPU, of wall time on the CPU. Times of pack() and unpack() are those of whole calls,
with all their checks, some microseconds of Python for each storage; "kernel" is the launch alone,
with a table that is there already, which is what a GPU sees when calls are issued ahead of it.
What comes back of exact codecs is compared with what was packed first.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.machine import machine_name
from benchmarks.micro.findings import Findings
from benchmarks.table import Table, table
from teraio.errors import ConfigurationError
from teraio.kernels import CODECS, Packed, implementation, pack, staging_nbytes, unpack
from teraio.sizes import format_size, parse_size

SIZES = [1 << bits for bits in range(12, 27, 2)]
MOST_STORAGES = 1 << 15
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Seconds for ``count`` storages of ``nbytes`` bytes; ``ratio`` is stored bytes over raw ones.

    ``kernel_s`` is 0 where there is no kernel to launch alone.
    """

    codec: str
    nbytes: int
    count: int
    copy_s: float
    pack_s: float
    unpack_s: float
    kernel_s: float
    ratio: float


def seconds(work: Callable[[], object], device: torch.device, repeats: int) -> float:
    """The median over ``repeats``, after two calls that are not counted."""
    for _ in range(2):
        work()
    timed = _on_gpu if device.type == "cuda" else _on_cpu
    return statistics.median(timed(work) for _ in range(repeats))


def _on_gpu(work: Callable[[], object]) -> float:
    begin: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    end: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()
    begin.record()
    work()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3


def _on_cpu(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def measured(codec: str, nbytes: int, options: argparse.Namespace, device: torch.device) -> Result:
    dtype = DTYPES[options.dtype]
    count = max(1, min(options.total // nbytes, MOST_STORAGES))
    generator = torch.Generator(device).manual_seed(0)
    storages = [
        torch.randn(nbytes // dtype.itemsize, device=device, generator=generator)
        .mul_(0.02)
        .to(dtype)
        for _ in range(count)
    ]
    targets = [torch.empty_like(storage) for storage in storages]
    staging = torch.empty(staging_nbytes(storages, codecs=codec), dtype=torch.uint8, device=device)
    chosen = implementation(device, options.implementation)

    def packing() -> Packed:
        return pack(storages, staging, codecs=codec, implementation=chosen)

    packed = packing()

    def unpacking() -> None:
        unpack(packed, staging, targets, implementation=chosen)

    unpacking()
    if CODECS[codec].exact and not all(map(torch.equal, storages, targets)):
        raise RuntimeError(f"{codec}: what was unpacked is not what was packed")
    source, target = (torch.zeros(count * nbytes, dtype=torch.uint8, device=device) for _ in "12")
    return Result(
        codec=codec,
        nbytes=nbytes,
        count=count,
        copy_s=seconds(lambda: target.copy_(source), device, options.repeats),
        pack_s=seconds(packing, device, options.repeats),
        unpack_s=seconds(unpacking, device, options.repeats),
        kernel_s=_kernel_seconds(codec, storages, staging, chosen, options.repeats),
        ratio=sum(piece.nbytes for piece in packed.pieces) / (count * nbytes),
    )


def _kernel_seconds(
    codec: str, storages: list[Tensor], staging: Tensor, chosen: str, repeats: int
) -> float:
    if codec != "raw" or chosen != "triton":
        return 0.0
    from teraio.kernels.with_triton import copying

    nbytes = storages[0].numel() * storages[0].element_size()
    base = staging.data_ptr()
    rows = [(s.data_ptr(), base + nbytes * at, nbytes) for at, s in enumerate(storages)]
    made = copying.copy_table(rows, staging.device)
    return seconds(lambda: copying.launch(made), staging.device, repeats)


def _shown(results: list[Result], title: str) -> Table:
    heads = (
        "codec", "storage", "number", "stored", "copy, GB/s", "pack", "unpack",
        "pack of copy", "unpack of copy", "kernel of copy",
    )  # fmt: skip
    return table(title, heads, [_row(result) for result in results])


def _row(result: Result) -> tuple[str, ...]:
    total = result.nbytes * result.count
    times = (result.copy_s, result.pack_s, result.unpack_s)
    return (
        result.codec,
        format_size(result.nbytes),
        f"{result.count:,}",
        f"{result.ratio:.3f}",
        *(f"{total / spent / 1e9:,.3g}" for spent in times),
        *(f"{result.copy_s / spent:.0%}" for spent in times[1:]),
        f"{result.copy_s / result.kernel_s:.0%}" if result.kernel_s else "",
    )


def what_ran(device: torch.device, options: argparse.Namespace) -> str:
    chosen = implementation(device, options.implementation)
    if device.type != "cuda":
        ran = "Triton's interpreter" if chosen == "triton" else "the twins in plain torch"
        where = f"{machine_name()}, torch {torch.__version__}"
        return f"{where}: NO GPU; these are figures of {ran}, not Triton's compiled kernels"
    versions = f"torch {torch.__version__}"
    if chosen == "triton":
        import triton

        versions += f", Triton {triton.__version__}"
    return f"{torch.cuda.get_device_name(device)}, {versions}, by {chosen}"


def _bytes(text: str) -> int:
    try:
        return parse_size(text, whole=0, what="bytes")
    except ConfigurationError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _storage_bytes(text: str) -> int:
    nbytes = _bytes(text)
    if nbytes < 16 or nbytes % 4:
        raise argparse.ArgumentTypeError("multiples of 4 bytes, from 16 up")
    return nbytes


def add_options(parser: argparse.ArgumentParser) -> None:
    gpu = torch.cuda.is_available()
    parser.add_argument("--device", default="cuda" if gpu else "cpu")
    parser.add_argument(
        "--size", nargs="+", type=_storage_bytes, default=SIZES, help="of a storage; such as 64KiB"
    )
    parser.add_argument(
        "--total", type=_bytes, default="1GiB" if gpu else "64MiB", help="bytes in one call"
    )
    parser.add_argument("--codec", nargs="+", default=["raw", "lossless"], choices=list(CODECS))
    parser.add_argument("--dtype", choices=list(DTYPES), default="bf16")
    parser.add_argument("--repeats", type=int, default=20 if gpu else 3)
    parser.add_argument("--implementation", choices=["torch", "triton"], default=None)


def run(options: argparse.Namespace) -> Findings:
    device = torch.device(options.device)
    results = [
        measured(codec, nbytes, options, device)
        for codec in options.codec
        for nbytes in options.size
        if DTYPES[options.dtype] == torch.float32 or codec != "bf16"
    ]
    ran = what_ran(device, options)
    return Findings(
        tables=(_shown(results, ran),),
        figures={"machine": ran, "results": [asdict(result) for result in results]},
    )
