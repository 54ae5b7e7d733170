"""Programs drawn at random give the same bits under a budget of a device's memory.

In: seeds; ``TERAIO_SEEDS=0-100`` looks for what nobody has seen. Out: equality of all that they
compute, on one stream and on several, with transfers and kernels that are delayed at random and
freed memory that is filled with NaN.
"""

from __future__ import annotations

import os

import pytest

from tests.device.test_offloading import delay_kernels, peak_bytes, start_anew
from tests.integration.random_programs import random_program
from tests.integration.small_programs import run

DELAY_US = 100
# Some of these seeds use several streams.
first, last = os.environ.get("TERAIO_SEEDS", "27-33").split("-")


@pytest.mark.parametrize("seed", range(int(first), int(last)))
def test_a_random_program_gives_the_same_bits(seed: int, accelerator: str, spill: str) -> None:
    scale = 3 if accelerator == "sim" else 12
    start_anew(accelerator)
    expected, _ = run(random_program(seed, accelerator, scale), None, spill)
    # Storages of these programs are as large as what the allocator divides.
    budget = peak_bytes(accelerator) * 95 // 100
    start_anew(accelerator)
    program = random_program(seed, accelerator, scale)
    delay_kernels(accelerator, DELAY_US)
    try:
        given, report = run(program, budget, spill)
    finally:
        delay_kernels(accelerator, 0)
    assert given == expected
    assert peak_bytes(accelerator) <= budget
    assert sum(step.read_bytes for step in report.steps) > 0
