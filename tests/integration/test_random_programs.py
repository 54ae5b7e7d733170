"""Programs drawn at random give the same bits under a budget.

In: seeds; ``TERAIO_SEEDS=1000-2000`` looks for what nobody has seen. Out: equality of all that they
compute, with transfers that are delayed at random and freed memory that is filled with NaN.
"""

from __future__ import annotations

import functools
import os

import pytest

from tests.integration.random_programs import random_program
from tests.integration.small_programs import same_bits_under_a_budget

first, last = os.environ.get("TERAIO_SEEDS", "1000-1024").split("-")


@pytest.mark.parametrize("seed", range(int(first), int(last)))
def test_a_random_program_gives_the_same_bits(seed: int, spill: str) -> None:
    report = same_bits_under_a_budget(functools.partial(random_program, seed), spill)
    assert sum(step.written_bytes for step in report.steps) > 0
