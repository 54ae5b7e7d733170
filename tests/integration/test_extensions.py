"""Ops of C++ extensions, which reach data by pointers and may not say so in their schemas.

In: tests/integration/extension/ops.cpp, built here. Out: what they write outlives leaving memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import teraio
from teraio.engine.testing import send_away, state
from tests import cpp_sources
from tests.integration.training import NO_LIMIT

SOURCES = Path(__file__).parent / "extension"


@pytest.fixture(scope="module")
def ops() -> Any:
    cpp_sources.load("teraio_extension", SOURCES, ["-O0"], is_module=False)
    return torch.ops.teraio_extension


@pytest.fixture
def x(spill: str) -> Iterator[torch.Tensor]:
    """Has been away, so that its copy on the SSD is the same as what is in memory."""
    model = torch.nn.Linear(4, 4)
    teraio.offload(model, memory_budget=NO_LIMIT, ssd=spill)
    x = torch.zeros(1 << 16)
    send_away(x)
    assert x.sum() == 0
    yield x
    teraio.restore(model)


def after_leaving(x: torch.Tensor) -> torch.Tensor:
    send_away(x)
    assert state(x) == "away"
    return x


@pytest.mark.parametrize("name", ["inferred_fill", "fill"])
def test_what_an_op_that_returns_nothing_writes_is_kept(
    name: str, ops: Any, x: torch.Tensor
) -> None:
    getattr(ops, name)(x, 5.0)
    assert after_leaving(x).eq(5).all()


def test_what_an_op_of_an_inferred_schema_writes_is_kept(ops: Any, x: torch.Tensor) -> None:
    ops.inferred_add_into(torch.ones(1 << 16), x)
    assert after_leaving(x).eq(1).all()


def test_an_op_that_calls_its_result_a_view_may_read(ops: Any, x: torch.Tensor) -> None:
    assert ops.checked(after_leaving(x)).eq(0).all()
