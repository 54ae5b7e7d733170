"""What teraio costs when everything fits: the same model with and without it, in turns.

In: options. Out: the ratio of both, its spread and the cost per op. Must not know: budgets that
make anything move.

Two processes make the same steps, one of them without ever loading teraio. They take turns of about
a second or less, and each pair of turns gives one ratio: a machine that gets slower or faster
does so for both. On a busy machine the ratio of the lower quartiles is worth a look too: those
steps are of the moments when nobody else computed.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection

import torch

from benchmarks.micro.findings import Findings
from benchmarks.table import table
from benchmarks.worker import HUGE_PAGES

# Above any machine's memory, so nothing moves.
NO_LIMIT = 1 << 46
# Those that are profiled, those whose memory is new, and some more.
SETTLE_STEPS = 10
TURN_SECONDS = 0.25
LEAST_STEPS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Overhead:
    """Seconds per step of each turn, its steps' median.

    ``ops``: calls of operators in a step, with those that other operators make: all are watched.
    """

    model: str
    ops: int
    plain: list[float]
    offloaded: list[float]

    @property
    def ratios(self) -> list[float]:
        return [b / a for a, b in zip(self.plain, self.offloaded, strict=True)]

    @property
    def us_per_op(self) -> float:
        excess = (b - a for a, b in zip(self.plain, self.offloaded, strict=True))
        return statistics.median(excess) / self.ops * 1e6


@dataclass(frozen=True, slots=True)
class Work:
    model: torch.nn.Module
    step: Callable[[], None]


def encoder() -> Work:
    """A small encoder layer: about 780 ops of a few microseconds each, the worst case."""
    model = torch.nn.TransformerEncoderLayer(64, 4, 128, batch_first=True, dropout=0.0)
    data = torch.randn(2, 16, 64)
    return _work(model, lambda: model(data).square().mean())


def llama() -> Work:
    """A mid-size Llama-like model, about 13 million parameters."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=256,
        hidden_size=512,
        num_hidden_layers=4,
        intermediate_size=1376,
        num_attention_heads=8,
        num_key_value_heads=8,
        use_cache=False,
    )
    model = LlamaForCausalLM(config)
    tokens = torch.randint(0, 256, (2, 128))
    return _work(model, lambda: model(input_ids=tokens, labels=tokens).loss)


WORKS = {"encoder": encoder, "llama": llama}


def _work(model: torch.nn.Module, forward: Callable[[], torch.Tensor]) -> Work:
    optimizer = torch.optim.AdamW(model.parameters())

    def step() -> None:
        torch.autograd.backward(forward())
        optimizer.step()
        optimizer.zero_grad()

    return Work(model, step)


class Side:
    """One of the two, in a process of its own."""

    def __init__(self, name: str, threads: int, with_teraio: bool) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        arguments = (theirs, name, threads, with_teraio)
        self._process = context.Process(target=_serve, args=arguments, daemon=True)
        self._process.start()
        theirs.close()
        self.turn()  # after those to settle

    def turn(self) -> float:
        try:
            self._pipe.send(None)
            return float(self._pipe.recv())
        except (EOFError, OSError):
            raise self._died() from None

    def end(self) -> None:
        self._pipe.close()  # which ends it
        self._process.join()
        if self._process.exitcode:
            raise self._died()

    def _died(self) -> RuntimeError:
        self._process.join()
        return RuntimeError(f"a process of the benchmark ended with {self._process.exitcode}")


def _serve(pipe: Connection, name: str, threads: int, with_teraio: bool) -> None:
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    work = WORKS[name]()
    if with_teraio:
        import teraio

        teraio.offload(work.model, memory_budget=NO_LIMIT)
    for _ in range(SETTLE_STEPS):
        work.step()
    while _asked(pipe):
        pipe.send(_turn(work.step))
    if with_teraio:
        report = teraio.report(work.model)
        if report.phase != "run" or report.steps[-1].written_bytes:
            raise RuntimeError(f"not a run in which everything fits: {report.steps[-1]}")


def _asked(pipe: Connection) -> bool:
    """Waits for the next turn; False when there is none."""
    try:
        pipe.recv()
    except EOFError:
        return False
    return True


def _turn(step: Callable[[], None]) -> float:
    times: list[float] = []
    while len(times) < LEAST_STEPS or sum(times) < TURN_SECONDS:
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def count_ops(step: Callable[[], object]) -> int:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        step()
    # Not the stretches that autograd names.
    return sum(event.name.startswith("aten::") for event in profile.events())


def measure(name: str, rounds: int, threads: int) -> Overhead:
    sides = [Side(name, threads, with_teraio) for with_teraio in (False, True)]
    times: tuple[list[float], list[float]] = ([], [])
    for round_ in range(rounds):
        # The order changes from round to round: the second finds other things in the caches.
        for which in (0, 1) if round_ % 2 else (1, 0):
            times[which].append(sides[which].turn())
    for side in sides:
        side.end()
    work = WORKS[name]()
    work.step()
    return Overhead(model=name, ops=count_ops(work.step), plain=times[0], offloaded=times[1])


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", choices=sorted(WORKS), action="append")
    parser.add_argument("--rounds", type=int, default=80)
    parser.add_argument("--threads", type=int, default=1)


def run(options: argparse.Namespace) -> Findings:
    if options.rounds < 2:
        raise SystemExit(f"--rounds {options.rounds}: a spread takes two at least")
    # Threads that wait for work must not compute in the other's turn.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.update(HUGE_PAGES)
    names = options.model or sorted(WORKS)
    results = [measure(name, options.rounds, options.threads) for name in names]
    shown = table(
        "Overhead when everything fits (medians; quartiles)",
        ("model", "plain, ms", "teraio, ms", "ratio", "lower quartiles", "ops", "us each"),
        [_row(one) for one in results],
    )
    figures = [{**asdict(one), "us_per_op": one.us_per_op} for one in results]
    return Findings(tables=(shown,), figures=figures)


def _row(one: Overhead) -> tuple[str, ...]:
    low, middle, high = statistics.quantiles(one.ratios, n=4)
    fast_plain, plain, _ = statistics.quantiles(one.plain, n=4)
    fast_offloaded, offloaded, _ = statistics.quantiles(one.offloaded, n=4)
    return (
        one.model,
        f"{plain * 1e3:.3f}",
        f"{offloaded * 1e3:.3f}",
        f"{middle:.3f} ({low:.3f} to {high:.3f})",
        f"{fast_offloaded / fast_plain:.3f}",
        str(one.ops),
        f"{one.us_per_op:.2f}",
    )
