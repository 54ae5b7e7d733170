"""The columns of a trace say what its records say, one by one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings

from teraio.planner.columns import NONE, columns
from teraio.planner.memory import live_by_op
from teraio.planner.periods import age
from teraio.records import Trace
from tests.unit import strategies
from tests.unit.periods_one_by_one import periods_one_by_one
from tests.unit.traces import transformer_trace


def check(trace: Trace) -> None:
    found, periods = columns(trace), periods_one_by_one(trace)
    assert np.array_equal(found.live, live_by_op(trace))
    table = found.periods
    rows = zip(
        table.storage.tolist(),
        table.after.tolist(),
        table.before.tolist(),
        table.length.tolist(),
        table.written_at.tolist(),
        table.age.tolist(),
        table.nbytes.tolist(),
        strict=True,
    )
    assert list(rows) == [
        (
            p.storage,
            p.after,
            NONE if p.before is None else p.before,
            p.length,
            NONE if p.written_at is None else p.written_at,
            age(p, len(trace.ops)),
            trace.storages[p.storage].nbytes,
        )
        for p in periods
    ]
    copies = [(p.storage, p.written_at) for p in periods]
    numbers = table.copy.tolist()
    assert len(set(zip(copies, numbers, strict=True))) == len(set(copies)) == len(set(numbers))


@given(strategies.traces())
@settings(max_examples=300, deadline=None)
def test_columns_agree_with_the_records_one_by_one(trace: Trace) -> None:
    check(trace)


@pytest.mark.parametrize("zero_grad", ["start", "backward"])
def test_columns_of_a_transformer_agree_with_the_records(zero_grad: str) -> None:
    check(transformer_trace(layers=3, zero_grad=zero_grad))


def test_an_empty_trace_has_empty_columns() -> None:
    check(Trace(device="cpu", ops=(), storages=(), anchors=(), base_bytes=5))
