"""A run of teraio at its real size without a GPU: ``python -m tests.cuda.rehearsal``.

In: PyTorch's CUDA build. Out: seconds of each step without a limit and under a budget, predicted
and measured. Must not know: what a GPU computes, since hardly anything is computed.

On the double of CUDA with a pace (``[Note: pace]`` in runtime/stream.h) an op takes a multiple of
the time that it would take on an H200, by its bytes and its matrix products, and memory is only
counted. So streams, the allocator and the engine do what they do on a GPU, at sizes that no
machine without one has memory for. Drives are as quick as they are, which is too quick; the run
believes that they are slow, so that plans use host memory.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.cuda import double

_DEVICE_BYTES = 140_000_000_000  # of an H200
_FEW_STEPS = 4


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.cuda.rehearsal", description=__doc__)
    parser.add_argument("--shape", default="llama-1b", help="of benchmarks/shapes.py")
    parser.add_argument("--batch", type=int, help="sequences a step; default: the shape's")
    parser.add_argument("--share", type=float, default=0.5, help="of the peak, as the budget")
    parser.add_argument("--host", type=float, default=0.6, help="of the peak, as host memory")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--pace", type=float, default=8.0, help="how much slower than a GPU")
    parser.add_argument("--save", type=Path, help="where to keep the run, for `teraio report`")
    settings = parser.parse_args(arguments)
    if not double.is_here():
        variables = {
            **double.environment(),
            double.PACE: str(settings.pace),
            "CUDA_DOUBLE_BYTES": str(_DEVICE_BYTES),
        }
        os.execve(
            sys.executable, [sys.executable, "-m", "tests.cuda.rehearsal", *arguments], variables
        )
    rehearse(settings)


def rehearse(settings: argparse.Namespace) -> None:
    import torch

    import teraio
    from benchmarks.models import Batches, build_model
    from benchmarks.shapes import SHAPES
    from benchmarks.systems.eager import Eager, new_optimizer
    from benchmarks.systems.offloaded import Offloaded
    from teraio import files
    from tests.drives import pass_for_slow

    pass_for_slow(pytest.MonkeyPatch())
    torch.set_num_threads(1)
    shape = SHAPES[settings.shape]
    if settings.batch:
        shape = replace(shape, batch=settings.batch)
    pace = settings.pace
    batches = Batches(shape, "cuda")
    plain = Eager(model := build_model(shape, "bf16", "cuda"), new_optimizer(model, "bf16"))
    ideal = []
    for step in range(_FEW_STEPS):
        begin = time.perf_counter()
        plain.step(batches[step])
        ideal.append((time.perf_counter() - begin) / pace)
    peak = torch.cuda.max_memory_reserved()
    print(f"no limit: {min(ideal):.3f} s a step, {peak / 1e9:.2f} GB reserved", flush=True)
    del model, plain
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    model = build_model(shape, "bf16", "cpu", source="cuda")
    folder = tempfile.TemporaryDirectory(dir=Path.cwd())
    teraio.offload(
        model,
        device="cuda",
        memory_budget=int(settings.share * peak),
        host_memory=int(settings.host * peak),
        ssd=folder.name,
    )
    training = Offloaded(model, new_optimizer(model, "bf16"))
    for step in range(settings.steps):
        begin, retries = time.perf_counter(), _retries()
        training.step(batches[step])
        took = (time.perf_counter() - begin) / pace
        last = teraio.report(model).steps[-1]
        print(
            f"step {step}: {took:.3f} s ({last.phase}), stall {last.stall_s / pace:.3f} s, "
            f"read {last.read_bytes / 1e9:.2f} GB, written {last.written_bytes / 1e9:.2f} GB, "
            f"made again {last.recomputed_bytes / 1e9:.2f} GB, "
            f"defragmented {_retries() - retries} times",
            flush=True,
        )
    report = teraio.report(model)
    if report.plan is not None:
        plan = report.plan
        print(
            f"predicted {plan.predicted_s / pace:.3f} s, bound {plan.bound_s / pace:.3f} s a step"
        )
    if settings.save:
        files.save(report, settings.save)
    reserved = torch.cuda.max_memory_reserved()
    print(f"reserved {reserved / 1e9:.2f} of {settings.share * peak / 1e9:.2f} GB", flush=True)
    folder.cleanup()
    os._exit(0)  # what a run brings back at its end has no data here


def _retries() -> int:
    import torch

    return int(torch.cuda.memory_stats()["num_alloc_retries"])


if __name__ == "__main__":
    main(sys.argv[1:])
