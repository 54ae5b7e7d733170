"""A comparison of the suite ``gpu`` at small size: what teraio gives there counts."""

from __future__ import annotations

import pytest
import torch

from benchmarks.__main__ import all_ours_count
from benchmarks.comparison import Comparison, Entry
from benchmarks.results import collect
from benchmarks.rotation import Place, run_each
from benchmarks.rows import rows
from tests.required import lacking

# Under smaller budgets what the allocator reserves may exceed them (docs/gpu-status.md).
COMPARISON = Comparison(
    shape="llama-100m",
    dtype="bf16",
    entries=(
        Entry(system="teraio", share=0.6),
        Entry(system="teraio", share=0.35, host_share=0.65),
        Entry(system="checkpointing"),
    ),
    warm_up=3,
    timed=5,
)


@pytest.mark.gpu
def test_a_comparison_on_a_gpu_counts(spill: str) -> None:
    if not torch.cuda.is_available():
        lacking("gpu", "no CUDA device")
    place = Place(device="cuda", threads=2, ssd=(spill,))
    results = collect("gpu", place, tuple(run_each([COMPARISON], place, lambda text: None)))
    (compared,) = results.compared
    found = rows(compared)
    assert [row.faults for row in found] == [()] * 4
    assert all_ours_count(results)
    assert all(row.loss_difference == 0.0 for row in found)
    limited = [row for row in found if row.limit_bytes is not None]
    assert len(limited) == 2
    for row in limited:
        assert row.peak_bytes is not None and row.limit_bytes is not None
        assert row.peak_bytes <= row.limit_bytes
