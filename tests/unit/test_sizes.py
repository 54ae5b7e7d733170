"""Sizes as people write them, and as they are told what is needed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from teraio.errors import ConfigurationError
from teraio.planner.feasibility import PLAN_RESERVE, run_budget
from teraio.sizes import format_least, parse_size

GIB = 1 << 30


@pytest.mark.parametrize(
    ("size", "nbytes"),
    [
        (50, 50),
        (np.int64(50), 50),
        ("50B", 50),
        ("0", 0),
        ("1024", 1024),
        ("8GiB", 8 * GIB),
        ("1.5 GB", 1_500_000_000),
        ("60%", 0.6 * GIB),
    ],
)
def test_sizes_are_bytes(size: int | str, nbytes: float) -> None:
    parsed = parse_size(size, whole=GIB, what="memory_budget")
    assert parsed == int(nbytes)
    assert type(parsed) is int


@pytest.mark.parametrize(
    ("size", "sentence"),
    [
        ("50", """memory_budget='50' is 50 bytes; did you mean "50%" or "50GiB"?"""),
        ("500", """memory_budget='500' is 500 bytes; did you mean "500GiB"?"""),
        ("much", "memory_budget='much' is no size"),
        (True, "memory_budget=True is no size"),
        (-1, "memory_budget=-1 is negative"),
        (np.float64(50), "is no size"),
        (np.array([50, 60]), "is no size"),
        (1 << 70, f"memory_budget={1 << 70} is more than any machine has; pass bytes"),
        ("9" * 400 + "GiB", "is more than any machine has"),
    ],
)
def test_what_is_hardly_meant_is_refused(size: int | str, sentence: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_size(size, whole=GIB, what="memory_budget")
    assert sentence in str(caught.value)


def test_a_share_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="is a share") as caught:
        parse_size("50%", whole=None, what="--host")
    assert '%"' not in str(caught.value)


@given(st.integers(0, 1 << 45))
def test_the_least_that_is_needed_is_enough_as_it_is_printed(nbytes: int) -> None:
    told = parse_size(format_least(nbytes), whole=None, what="--budget")
    assert nbytes <= told <= nbytes * 1.1


@given(st.integers(1, 1 << 45))
def test_a_run_with_its_budget_plans_for_what_a_plan_has(nbytes: int) -> None:
    planned_for = int(run_budget(nbytes) * (1 - PLAN_RESERVE))
    assert nbytes <= planned_for <= nbytes + 2
