"""What teraio costs when everything fits: the same model with and without it, in turns.

In: options. Out: the medians of both, their ratio and the cost per op. Must not know: budgets that
make anything move.

Blocks of steps with and without teraio alternate in one process, so that a machine that gets
slower or faster does so for both. The very first plain block comes before teraio is loaded.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch

from benchmarks.micro.findings import Findings
from benchmarks.table import table

# Above any machine's memory, so nothing moves.
NO_LIMIT = 1 << 46
PROFILE_ITERATIONS = 2
SETTLE_STEPS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Overhead:
    """Seconds per step, medians over all steps. ``first_s``: before teraio was loaded."""

    model: str
    first_s: float
    plain_s: float
    offloaded_s: float
    ops: int

    @property
    def ratio(self) -> float:
        return self.offloaded_s / self.plain_s

    @property
    def us_per_op(self) -> float:
        return (self.offloaded_s - self.plain_s) / max(1, self.ops) * 1e6


@dataclass(frozen=True, slots=True)
class Work:
    model: torch.nn.Module
    step: Callable[[], None]


def encoder() -> Work:
    """A small encoder layer: about 850 ops of a few microseconds each, the worst case."""
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


def timed_block(step: Callable[[], None], block_seconds: float) -> list[float]:
    """Seconds of each step until ``block_seconds`` have passed, after a few steps to settle."""
    for _ in range(SETTLE_STEPS):
        step()
    times: list[float] = []
    end = time.perf_counter() + block_seconds
    while not times or time.perf_counter() < end:
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return times


def offloaded_block(work: Work, block_seconds: float) -> tuple[list[float], int]:
    """Step times under a plan that moves nothing, and the ops of a step."""
    import teraio

    teraio.offload(work.model, memory_budget=NO_LIMIT, profile_iterations=PROFILE_ITERATIONS)
    try:
        for _ in range(PROFILE_ITERATIONS):
            work.step()
        times = timed_block(work.step, block_seconds)
        report = teraio.report(work.model)
        if report.phase != "run" or report.steps[-1].written_bytes:
            raise RuntimeError(f"not a run in which everything fits: {report.steps[-1]}")
        return times, len(report.trace.ops) if report.trace else 0
    finally:
        teraio.restore(work.model)


def measure(name: str, rounds: int, block_seconds: float) -> Overhead:
    torch.manual_seed(0)
    work = WORKS[name]()
    first = timed_block(work.step, block_seconds)
    plain: list[float] = []
    offloaded: list[float] = []
    ops = 0
    for turn in range(rounds):
        # The order changes from round to round: whoever comes second finds warmer caches.
        if turn % 2:
            plain += timed_block(work.step, block_seconds)
        times, ops = offloaded_block(work, block_seconds)
        offloaded += times
        if not turn % 2:
            plain += timed_block(work.step, block_seconds)
    return Overhead(
        model=name,
        first_s=statistics.median(first),
        plain_s=statistics.median(plain),
        offloaded_s=statistics.median(offloaded),
        ops=ops,
    )


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", choices=sorted(WORKS), action="append")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--block-seconds", type=float, default=2.0)
    parser.add_argument("--threads", type=int, default=1)


def run(options: argparse.Namespace) -> Findings:
    torch.set_num_threads(options.threads)
    names = options.model or sorted(WORKS)
    results = [measure(name, options.rounds, options.block_seconds) for name in names]
    shown = table(
        "Overhead when everything fits",
        ("model", "before, ms", "plain, ms", "teraio, ms", "ratio", "traced ops", "us each"),
        [_row(one) for one in results],
    )
    figures = [{**asdict(one), "ratio": one.ratio, "us_per_op": one.us_per_op} for one in results]
    return Findings(tables=(shown,), figures=figures)


def _row(one: Overhead) -> tuple[str, ...]:
    return (
        one.model,
        f"{one.first_s * 1e3:.3f}",
        f"{one.plain_s * 1e3:.3f}",
        f"{one.offloaded_s * 1e3:.3f}",
        f"{one.ratio:.4f}",
        str(one.ops),
        f"{one.us_per_op:.2f}",
    )
