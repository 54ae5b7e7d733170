"""The lower bound, on cases that can be worked out by hand."""

from __future__ import annotations

import pytest

from teraio.planner import lower_bound_s
from tests.unit.small import machine, storage, trace


def test_what_fits_is_bounded_by_the_ops_alone() -> None:
    assert lower_bound_s(trace([1, 2, 3], storage([0])), machine(1000)) == pytest.approx(0.006)


def test_data_beyond_the_budget_has_to_be_read_once_per_iteration() -> None:
    weights = [storage([k]) for k in range(8)]
    bound = lower_bound_s(trace([0.1] * 8, *weights), machine(3000))
    assert bound == pytest.approx(0.005)


def test_changed_data_beyond_the_budget_has_to_be_written_too() -> None:
    weights = [storage([k], [k]) for k in range(8)]
    bound = lower_bound_s(trace([0.1] * 8, *weights), machine(3000, both=1e6))
    assert bound == pytest.approx(0.010)


def test_a_rush_in_a_long_iteration_is_seen() -> None:
    weights = [storage([k]) for k in range(4)]
    calm = [10.0] * 4
    bound = lower_bound_s(trace([0.1] * 4 + calm, *weights), machine(1000))
    assert bound == pytest.approx(0.040 + 0.003)


def test_separate_rushes_add_up() -> None:
    weights = [storage([k, k + 5], [k]) for k in range(4)]
    ops = [0.0] * 4 + [10.0] + [0.0] * 4 + [10.0]
    bound = lower_bound_s(trace(ops, *weights), machine(1000))
    assert bound >= 0.020 + 0.006 - 1e-9
