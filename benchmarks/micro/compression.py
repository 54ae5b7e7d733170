"""How much smaller codecs make the storages of a training run, and how far off the lossy ones are.

In: options. Out: ratios and errors. Must not know: the encoded format.

A Llama-like model is trained with AdamW on the source files of Python's standard library, once in
fp32 and once in bf16 throughout. After each number of steps, every weight, gradient and optimizer
state is packed. Ratios and errors hold for any implementation, since all write the same bytes.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from benchmarks.micro.findings import Findings
from benchmarks.models import Batches, adamw, build_model, loss_of
from benchmarks.shapes import Shape
from benchmarks.table import Table, table
from teraio.kernels import CODECS, pack, staging_nbytes, unpack

Storages = dict[str, list[Tensor]]
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


@dataclass(frozen=True, slots=True, kw_only=True)
class LossyResult:
    """Of fp32 values after the last step.

    ``error`` is the root mean square of the errors over that of the values; ``zeroed`` the share of
    values other than 0 that became 0.
    """

    kind: str
    codec: str
    ratio: float
    error: float
    zeroed: float


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


def lossy(kind: str, codec: str, storages: list[Tensor]) -> LossyResult:
    staging = torch.empty(staging_nbytes(storages, codecs=codec), dtype=torch.uint8)
    packed = pack(storages, staging, codecs=codec)
    targets = [torch.empty_like(storage) for storage in storages]
    unpack(packed, staging, targets)
    exact, back = torch.cat(storages).double(), torch.cat(targets).double()
    return LossyResult(
        kind=kind,
        codec=codec,
        ratio=sum(piece.nbytes for piece in packed.pieces) / (4 * len(exact)),
        error=float(((back - exact).square().mean() / exact.square().mean()).sqrt()),
        zeroed=float(((back == 0) & (exact != 0)).sum() / (exact != 0).sum()),
    )


def storages_by_kind(model: torch.nn.Module, optimizer: torch.optim.AdamW) -> Storages:
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


def train(shape: Shape, dtype: str, stops: list[int]) -> Iterator[tuple[int, Storages]]:
    """The storages after each number of steps in ``stops``; they change with the next step."""
    torch.manual_seed(0)
    model = build_model(shape, dtype, "cpu")
    optimizer = adamw(model.parameters())
    batches = Batches(shape, "cpu")
    for step in range(max(stops) + 1):
        if step in stops:
            yield step, storages_by_kind(model, optimizer)
        optimizer.zero_grad()
        torch.autograd.backward(loss_of(model, batches[step]))
        optimizer.step()


def compare(shape: Shape, stops: list[int]) -> tuple[list[Result], list[LossyResult]]:
    exact, approximate = [], []
    for dtype in ("fp32", "bf16"):
        for step, found in train(shape, dtype, stops):
            exact += [measured(dtype, step, kind, storages) for kind, storages in found.items()]
            if dtype == "fp32" and step == max(stops):
                approximate += [
                    lossy(kind, codec.name, storages)
                    for kind, storages in found.items()
                    for codec in CODECS.values()
                    if not codec.exact and (codec.name != "ufp8" or kind == "exp_avg_sq")
                ]
    return exact, approximate


def _lossless_table(results: list[Result]) -> Table:
    stops = sorted({result.steps for result in results})
    ratios = {(r.kind, r.dtype, r.steps): r.ratio for r in results}
    rows = []
    for kind in KINDS:
        for dtype in dict.fromkeys(result.dtype for result in results):
            row = [ratios.get((kind, dtype, stop)) for stop in stops]
            rows.append((kind, dtype, *(f"{ratio:.3f}" if ratio else "" for ratio in row)))
    return table(
        "Lossless: encoded bytes over raw bytes, after so many steps",
        ("kind", "dtype", *map(str, stops)),
        rows,
        words=2,
    )


def _lossy_table(results: list[LossyResult]) -> Table:
    return table(
        "Lossy codecs on the fp32 values after the last step",
        ("kind", "codec", "of raw bytes", "rms error of rms value", "became zero"),
        [(r.kind, r.codec, f"{r.ratio:.3f}", f"{r.error:.2%}", f"{r.zeroed:.3%}") for r in results],
        words=2,
    )


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--steps", type=int, nargs="+", default=[0, 1, 10, 50], metavar="N")
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)


def run(options: argparse.Namespace) -> Findings:
    shape = Shape(
        family="llama",
        layers=options.layers,
        hidden=options.hidden,
        heads=max(1, options.hidden // 64),
        feed_forward=options.hidden * 8 // 3,
        batch=2,
        sequence=256,
    )
    exact, approximate = compare(shape, options.steps)
    return Findings(
        tables=(_lossless_table(exact), _lossy_table(approximate)),
        figures={
            "lossless": [asdict(result) for result in exact],
            "lossy": [asdict(result) for result in approximate],
        },
    )
