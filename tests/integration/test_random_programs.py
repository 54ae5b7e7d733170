"""Programs drawn at random give the same bits under a budget.

In: seeds; ``TERAIO_SEEDS=1000-2000`` looks for what nobody has seen. Out: equality of all that they
compute, with transfers that are delayed at random and freed memory that is filled with NaN.

For half of them the drive passes for a slow one, so that plans make results again.
"""

from __future__ import annotations

import functools

import pytest

import teraio
from tests.drives import pass_for_slow
from tests.integration.random_programs import suite
from tests.integration.random_programs.program import random_program
from tests.integration.small_programs import same_bits_under_a_budget

SEEDS = suite.seeds(range(1000, 1024))


@pytest.fixture(scope="module")
def reports() -> dict[int, teraio.RunReport]:
    """Of the programs that have run."""
    return {}


@pytest.mark.parametrize("seed", SEEDS)
def test_a_random_program_gives_the_same_bits(
    seed: int,
    spill: str,
    monkeypatch: pytest.MonkeyPatch,
    reports: dict[int, teraio.RunReport],
) -> None:
    if suite.has_slow_drive(seed):
        pass_for_slow(monkeypatch)
    new = functools.partial(random_program, seed)
    report = same_bits_under_a_budget(new, spill, shares=(50, 65, 80, 100))
    suite.assert_kept_busy(report)
    reports[seed] = report


def test_budgets_of_random_programs_are_tight_and_some_make_results_again(
    reports: dict[int, teraio.RunReport],
) -> None:
    if len(reports) < len(SEEDS) or len(SEEDS) < 24:
        pytest.skip("not all programs were run")
    again = [seed for seed, report in reports.items() if suite.made_again(report)]
    assert 10 * len(again) >= len(reports)
    moving = [seed for seed, report in reports.items() if suite.moves_at_last(report)]
    assert 10 * len(moving) >= 9 * len(reports)
