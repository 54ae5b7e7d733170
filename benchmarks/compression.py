"""How much smaller the lossless codec makes the storages of a training run.

In: the command line. Out: a table, JSON on request. Must not know: the encoded format.

``python -m benchmarks.compression [--steps N ...] [--hidden N] [--layers N]``

A Llama-like model is trained with AdamW on the source files of Python's standard library, once in
fp32 and once in bf16 throughout. After each number of steps, every weight, gradient and optimizer
state is packed. Ratios hold for any implementation, since all write the same bytes.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.models import Batches, adamw, build_model, loss_of
from benchmarks.shapes import Shape
from teraio.kernels import pack, staging_nbytes

KINDS = ("weights", "gradients", "exp_avg", "exp_avg_sq")


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """``ratio`` is encoded bytes over raw ones; ``encoded_share`` what did not stay raw."""

    dtype: str
    steps: int
    kind: str
    nbytes: int
    ratio: float
    encoded_share: float


def measured(dtype: str, steps: int, kind: str, storages: list[Tensor]) -> Result:
    staging = torch.empty(staging_nbytes(storages, codecs="lossless"), dtype=torch.uint8)
    pieces = pack(storages, staging, codecs="lossless").pieces
    raw = sum(piece.raw_nbytes for piece in pieces)
    return Result(
        dtype=dtype,
        steps=steps,
        kind=kind,
        nbytes=raw,
        ratio=sum(piece.nbytes for piece in pieces) / raw,
        encoded_share=sum(p.raw_nbytes for p in pieces if p.codec == "lossless") / raw,
    )


def storages_by_kind(
    model: torch.nn.Module, optimizer: torch.optim.AdamW
) -> dict[str, list[Tensor]]:
    """Gradients are those of the last step."""
    found: dict[str, list[Tensor]] = defaultdict(list)
    for parameter in model.parameters():
        found["weights"].append(parameter.detach().flatten())
        if parameter.grad is not None:
            found["gradients"].append(parameter.grad.flatten())
        for name in ("exp_avg", "exp_avg_sq"):
            if name in optimizer.state[parameter]:
                found[name].append(optimizer.state[parameter][name].flatten())
    return found


def train(shape: Shape, dtype: str, stops: list[int]) -> Iterator[Result]:
    torch.manual_seed(0)
    model = build_model(shape, dtype, "cpu")
    optimizer = adamw(model.parameters())
    batches = Batches(shape, "cpu")
    for step in range(max(stops) + 1):
        if step in stops:
            for kind, storages in storages_by_kind(model, optimizer).items():
                yield measured(dtype, step, kind, storages)
        optimizer.zero_grad()
        torch.autograd.backward(loss_of(model, batches[step]))
        optimizer.step()


def table(results: list[Result]) -> Table:
    stops = sorted({result.steps for result in results})
    found = Table(title="Lossless: encoded bytes over raw bytes, after so many steps")
    for name in ("kind", "dtype", *map(str, stops)):
        found.add_column(name, justify="left" if name in ("kind", "dtype") else "right")
    ratios = {(r.kind, r.dtype, r.steps): r.ratio for r in results}
    for kind in KINDS:
        for dtype in dict.fromkeys(result.dtype for result in results):
            row = [ratios.get((kind, dtype, stop)) for stop in stops]
            found.add_row(kind, dtype, *(f"{ratio:.3f}" if ratio else "" for ratio in row))
    return found


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compression", description=__doc__)
    parser.add_argument("--steps", type=int, nargs="+", default=[0, 1, 10, 50], metavar="N")
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--json", type=Path, metavar="OUT", help="write all figures to this file")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    shape = Shape(
        family="llama",
        layers=options.layers,
        hidden=options.hidden,
        heads=max(1, options.hidden // 64),
        feed_forward=options.hidden * 8 // 3,
        batch=2,
        sequence=256,
    )
    results = [r for dtype in ("fp32", "bf16") for r in train(shape, dtype, options.steps)]
    console = Console()
    console = console if console.is_terminal else Console(width=120)
    console.print(table(results))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps([asdict(r) for r in results], indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
