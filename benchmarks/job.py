"""One training run of the demo and what came of it, as records that travel between processes.

In: nothing. Out: Job, Outcome, the sizes of the models. Must not know: torch, teraio.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """A Llama-like model and the batch it trains on; tokens are bytes, so the vocabulary is 256."""

    hidden: int
    layers: int
    heads: int
    feed_forward: int
    batch: int
    sequence: int


SIZES = {
    "small": Size(hidden=256, layers=4, heads=4, feed_forward=688, batch=4, sequence=128),
    "100m": Size(hidden=768, layers=14, heads=12, feed_forward=2048, batch=3, sequence=256),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """``budget_bytes`` None: without teraio."""

    name: str
    size: str
    dtype: str
    steps: int
    threads: int
    budget_bytes: int | None
    ssd: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a run gave. ``seconds`` are wall times of steps, taken alike with and without teraio.

    ``planned`` says for each step whether it ran under a plan; without teraio, whether it came
    after the first two. Figures that only teraio knows are None without it; those in plural have
    one entry per step.
    """

    losses: tuple[float, ...]
    parameters_sha256: str
    seconds: tuple[float, ...]
    planned: tuple[bool, ...]
    rss_growth_bytes: int
    parameters: int
    peak_bytes: tuple[int, ...] | None = None
    read_bytes: tuple[int, ...] | None = None
    written_bytes: tuple[int, ...] | None = None
    stall_s: tuple[float, ...] | None = None
    drift_ops: tuple[int, ...] | None = None
    ops: tuple[int, ...] | None = None
    predicted_s: float | None = None
    ideal_s: float | None = None
    bound_s: float | None = None
