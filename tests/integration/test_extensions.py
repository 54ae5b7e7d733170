"""Ops of C++ extensions, which reach data by pointers and may not say so in their schemas.

In: tests/integration/extension/ops.cpp, built here. Out: what they write outlives leaving memory.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import teraio
from teraio.engine.testing import send_away, state
from tests import cpp_sources
from tests.drives import pass_for_slow
from tests.integration.test_recomputation import Gated, assert_same, gated, recomputed, trained
from tests.integration.training import NO_LIMIT

SOURCES = Path(__file__).parent / "extension"


@pytest.fixture(scope="module")
def library() -> str:
    return str(cpp_sources.load("teraio_extension", SOURCES, ["-O0"], is_module=False))


@pytest.fixture(scope="module")
def ops(library: str) -> Any:
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


class Filled(torch.autograd.Function):
    """Makes memory by an op, and lets a function that is no op fill it."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, fill: Callable[[torch.Tensor], None]) -> torch.Tensor:
        y = torch.tanh(x)
        fill(y)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        (y,) = ctx.saved_tensors
        return gradients[0] * y, None


def test_a_result_that_no_op_has_filled_is_not_made_again_by_its_op(
    library: str, spill: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pass_for_slow(monkeypatch)
    write = ctypes.CDLL(library).write_unseen

    def fill(y: torch.Tensor) -> None:
        write(ctypes.c_void_p(y.untyped_storage()._cdata), ctypes.c_float(0.5))

    def new() -> Gated:
        return gated(lambda _, gate: Filled.apply(gate, fill))

    model = new()
    teraio.offload(model, memory_budget="3MiB", ssd=spill)
    results, count = trained(model), recomputed(model)
    teraio.restore(model)
    assert_same(results, trained(new()))
    assert count > 0  # of other ops
