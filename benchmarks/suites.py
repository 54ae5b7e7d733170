"""The suites: which comparisons they make, on which device, and how long they may take.

In: nothing. Out: SUITES by name. Must not know: torch, processes.
"""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.comparison import Comparison, Entry

DEEPSPEED = ("zero2", "zero3", "infinity-optimizer", "infinity", "infinity-small")
_PYTORCH = ("checkpointing", "save-on-cpu", "torchao", "fsdp")


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    line: str
    device: str
    minutes: float
    comparisons: tuple[Comparison, ...]


def _teraio(*shares: float) -> tuple[Entry, ...]:
    return tuple(Entry(system="teraio", share=share) for share in shares)


def _in_backward(*shares: float) -> tuple[Entry, ...]:
    """For fp32 only: an optimizer that has master weights can't step so."""
    return tuple(Entry(system="teraio", share=share, in_backward=True) for share in shares)


def _plain(*systems: str) -> tuple[Entry, ...]:
    return tuple(Entry(system=system) for system in systems)


def _few(shape: str, dtype: str, *more: Entry) -> Comparison:
    """What a curve over sizes, batches or sequences needs."""
    entries = (*_teraio(0.5), *_plain("infinity"), *_teraio(0.7), *more)
    return Comparison(shape=shape, dtype=dtype, entries=entries)


def _with_host(*shares: float) -> tuple[Entry, ...]:
    """Host memory for all that leaves, which is a little more than what exceeds the limit."""
    return tuple(Entry(system="teraio", share=share, host_share=1.1 - share) for share in shares)


_HOST = _with_host(0.5)
_SWAP = (Entry(system="swap", share=0.5),)
_KEEPING = _plain("keeping")

SUITES = {
    "quick": Suite(
        line="all systems on models of 13 million parameters; shows that everything works",
        device="cpu",
        minutes=5,
        comparisons=(
            Comparison(
                shape="llama-13m",
                dtype="fp32",
                entries=(
                    *_teraio(0.75, 0.6),
                    *_plain(*_PYTORCH, *DEEPSPEED),
                    *_SWAP,
                    *_HOST,
                    *_KEEPING,
                ),
            ),
            Comparison(
                shape="gpt-13m",
                dtype="bf16",
                entries=(*_teraio(0.75), *_plain("checkpointing", "zero3", "infinity")),
            ),
        ),
    ),
    "cpu": Suite(
        line="100 million parameters, all systems; budgets, sizes, batch, sequence, bf16",
        device="cpu",
        minutes=30,
        comparisons=(
            Comparison(
                shape="llama-100m",
                dtype="fp32",
                entries=(
                    *_teraio(0.5),
                    *_plain("infinity", "infinity-optimizer", "zero3", "zero2"),
                    *_teraio(0.7, 0.35),
                    *_in_backward(0.5, 0.35),
                    *_SWAP,
                    *_KEEPING,
                    *_plain("infinity-small", *_PYTORCH),
                    *_HOST,
                ),
            ),
            _few("llama-25m", "fp32", *_KEEPING),
            _few("gpt-100m", "fp32", *_KEEPING),
            _few("llama-100m", "bf16", *_KEEPING),
            _few("llama-100m-batch1", "fp32", *_KEEPING, *_in_backward(0.5)),
            _few("llama-100m-seq768", "fp32", *_KEEPING),
        ),
    ),
    "gpu": Suite(
        line="1 billion parameters beside systems in host memory; 100 million beside those on SSDs",
        device="cuda",
        minutes=8,
        comparisons=(
            Comparison(
                shape="llama-1b",
                dtype="bf16",
                entries=(
                    *_with_host(0.5, 0.6, 0.4, 0.25),
                    *_plain("zero3", "zero2", "checkpointing", "save-on-cpu", "fsdp"),
                ),
            ),
            Comparison(
                shape="llama-100m-batch8-seq1024",
                dtype="bf16",
                entries=(
                    *_teraio(0.5, 0.6, 0.4, 0.25),
                    *_plain("infinity", "infinity-optimizer"),
                ),
            ),
        ),
    ),
    "paper": Suite(
        line="1 to 8 billion parameters; budgets, sizes, batch, sequence, drives",
        device="cuda",
        minutes=60,
        comparisons=(
            Comparison(
                shape="llama-3b",
                dtype="fp32",
                entries=(
                    *_teraio(0.5),
                    *_HOST,
                    *_plain(*DEEPSPEED, *_PYTORCH),
                    *_teraio(0.8, 0.65, 0.35, 0.2),
                    Entry(system="teraio", share=0.5, drives=1),
                    Entry(system="teraio", share=0.5, drives=2),
                ),
            ),
            Comparison(
                shape="llama-3b",
                dtype="bf16",
                entries=(*_teraio(0.7, 0.5, 0.35), *_HOST, *_plain(*DEEPSPEED, *_PYTORCH)),
            ),
            _few("llama-1b", "fp32"),
            _few("llama-8b", "bf16"),
            _few("llama-3b-batch2", "fp32"),
            _few("llama-3b-seq4096", "fp32"),
        ),
    ),
}
