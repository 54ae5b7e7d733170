"""Programs drawn at random give the same bits under a budget of a device's memory.

In: seeds; ``TERAIO_SEEDS=0-100`` looks for what nobody has seen. Out: equality of all that they
compute, on one stream and on several, with transfers and kernels that are delayed at random and
freed memory that is filled with NaN.

For half of them the drive passes for a slow one, so that plans make results again.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

import teraio
from tests.device.test_offloading import delay_kernels, peak_bytes, start_anew
from tests.drives import pass_for_slow
from tests.integration.random_programs import suite
from tests.integration.random_programs.program import random_program
from tests.integration.small_programs import run, with_enough

DELAY_US = 100
# Some of these seeds use several streams.
SEEDS = suite.seeds(range(27, 33))


@pytest.mark.parametrize("seed", SEEDS)
def test_a_random_program_gives_the_same_bits(
    seed: int, accelerator: str, spill: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if suite.has_slow_drive(seed):
        pass_for_slow(monkeypatch)
    scale = 3 if accelerator == "sim" else 12
    start_anew(accelerator)
    expected, _ = run(random_program(seed, accelerator, scale), None, spill)

    def within(budget: int) -> tuple[Any, teraio.RunReport]:
        start_anew(accelerator)
        program = random_program(seed, accelerator, scale)
        peak = 0

        def step(i: int) -> Any:
            nonlocal peak
            given = program.step(i)
            peak = peak_bytes(accelerator)
            return given

        delay_kernels(accelerator, DELAY_US)
        try:
            given, report = run(replace(program, step=step), budget, spill)
        finally:
            delay_kernels(accelerator, 0)
        assert peak <= budget  # the end of a run brings all back
        return given, report

    # On CUDA storages of these programs are as large as what the allocator divides.
    shares = (65, 80, 95) if accelerator == "sim" else (95,)
    given, report = with_enough(within, peak_bytes(accelerator), shares)
    assert given == expected
    suite.assert_kept_busy(report)
