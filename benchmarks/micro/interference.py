"""What traffic to a drive costs the computing beside it, with neither teraio nor a model.

In: options. Out: matrix products per second while another process moves data to and from a folder,
and without, in turns. Must not know: teraio.

Moving takes processor time (the kernel's, and on a virtual machine that of whoever plays its
drive), and where one thread of a product is held up, the others wait for it. No schedule hides
that: a step under a budget can be slower than plain PyTorch's by so much although it never waits
for data. The pieces have the size of a small model's activations.
"""

from __future__ import annotations

import argparse
import mmap
import multiprocessing
import os
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median

from benchmarks.micro.findings import Findings
from benchmarks.table import table

_PIECES = 64
# Of a layer: tokens, hidden, feed forward.
_SHAPE = (768, 512, 1376)
_PRODUCTS = 20  # between two looks at the clock


def move(path: Path, piece_bytes: int, bytes_per_s: float, seconds: float, say: Connection) -> None:
    """Reads and writes pieces of a file in turns; says when it begins and how much that was."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_DIRECT)
    memory = mmap.mmap(-1, piece_bytes)
    try:
        for at in range(_PIECES):
            os.pwritev(file, [memory], at * piece_bytes)
        say.send(0)
        begin, moved = time.perf_counter(), 0
        while (now := time.perf_counter() - begin) < seconds:
            if moved > now * bytes_per_s:
                time.sleep(moved / bytes_per_s - now)
                continue
            turn = moved // piece_bytes
            transfer = os.preadv if turn % 2 else os.pwritev
            transfer(file, [memory], turn % _PIECES * piece_bytes)
            moved += piece_bytes
        say.send(moved)
    finally:
        os.close(file)


def products_per_s(seconds: float) -> float:
    """Matrix products of torch's threads per second."""
    import torch

    tokens, hidden, wide = _SHAPE
    left, right = torch.ones(tokens, hidden), torch.ones(hidden, wide)
    done, begin = 0, time.perf_counter()
    while (now := time.perf_counter() - begin) < seconds:
        for _ in range(_PRODUCTS):
            torch.mm(left, right)
        done += _PRODUCTS
    return done / now


def beside(folder: Path, piece_bytes: int, bytes_per_s: float, seconds: float) -> dict[str, float]:
    """Products and bytes per second while so much is to be moved; 0: nothing."""
    if not bytes_per_s:
        return {"products_per_s": products_per_s(seconds), "bytes_per_s": 0.0}
    with tempfile.TemporaryDirectory(dir=folder) as own:
        say, hear = multiprocessing.Pipe()
        mover = multiprocessing.get_context("spawn").Process(
            target=move, args=(Path(own) / "pieces", piece_bytes, bytes_per_s, seconds, say)
        )
        mover.start()
        say.close()
        hear.recv()  # EOFError if it has failed, after its own words
        found = products_per_s(seconds)
        moved = hear.recv()
        mover.join()
    return {"products_per_s": found, "bytes_per_s": moved / seconds}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--ssd", type=Path, metavar="DIR", default=Path.cwd(), help="the folder")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    parser.add_argument("--kilobytes", type=int, default=1536, help="of each request, 4 at least")
    parser.add_argument(
        "--rates", type=int, nargs="+", metavar="MB/S", default=[200, 400, 800], help="to be moved"
    )


def run(options: argparse.Namespace) -> Findings:
    rates = [0, *options.rates]
    piece_bytes = max(1, options.kilobytes // 4) * 4096
    found: dict[int, list[dict[str, float]]] = {rate: [] for rate in rates}
    products_per_s(options.seconds)
    for _ in range(options.rounds):
        for rate in rates:
            found[rate].append(beside(options.ssd, piece_bytes, rate * 1e6, options.seconds))
    rows = []
    for rate, rounds in found.items():
        moved = median(one["bytes_per_s"] for one in rounds) / 1e6
        speeds = [one["products_per_s"] for one in rounds]
        shares = [
            one["products_per_s"] / alone["products_per_s"]
            for one, alone in zip(rounds, found[0], strict=True)
        ]
        share = f"{median(shares):.0%} ({min(shares):.0%} to {max(shares):.0%})" if rate else ""
        rows.append((str(rate), f"{moved:.0f}", f"{median(speeds):.0f}", share))
    shown = table(
        f"Matrix products beside traffic on {options.ssd}, medians",
        ("MB/s asked", "MB/s moved", "products/s", "of those alone (least to largest)"),
        rows,
    )
    return Findings(tables=(shown,), figures={str(rate): rounds for rate, rounds in found.items()})
