"""The observer on the meta device: births, deaths and kernels of storages that have no data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

import teraio._C as _C

LARGE = 64 * 1024  # elements of FP32: far above what is too small to be seen


@pytest.fixture
def watched() -> Iterator[None]:
    _C.watch_meta(16 << 10)
    _C.mark_training_thread()
    _C.record(True)
    _C.log_calls()
    yield
    _C.record(False)
    _C.unwatch_meta()


def taken() -> tuple[dict[str, Any], list[list[Any]]]:
    """The recording, and the signatures of each op's kernels."""
    recording = _C.take_recording()
    signatures, patterns = _C.take_calls()
    return recording, [[signatures[s] for s in patterns[p]] for p in recording["calls"]]


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


def op_names(recording: dict[str, Any]) -> list[str]:
    return [recording["op_names"][name] for name in recording["ops"][0]]


def test_births_and_deaths_are_seen_when_they_happen(watched) -> None:
    a = meta(LARGE)
    b = a + 1
    block = _C.block_id(b)
    assert block not in (0, _C.block_id(a))
    assert _C.block_id(b.view(256, -1)) == block
    c = b * 2
    del b
    recording, _ = taken()
    assert op_names(recording) == ["aten::empty", "aten::add", "aten::mul"]
    births = dict(zip(recording["births"][0], recording["births"][2], strict=True))
    assert births == {_C.block_id(a): 0, block: 1, _C.block_id(c): 2}
    assert (block, 2) in list(zip(*recording["deaths"], strict=True))
    assert not {_C.block_id(a), _C.block_id(c)} & set(recording["deaths"][0])


def test_an_address_that_is_used_again_is_another_storage(watched) -> None:
    seen = set()
    for _ in range(100):
        seen.add(_C.block_id(meta(LARGE)))
    assert len(seen) == 100
    assert seen.isdisjoint(block for block, _, _ in _C.live_blocks())


def test_what_a_kernel_is_made_of_on_the_meta_device_is_not_seen(watched) -> None:
    """There, a BF16 product casts to FP32 and back; a GPU does it in one kernel."""
    a = meta(LARGE, dtype=torch.bfloat16)
    b = a * a
    recording, kernels = taken()
    assert op_names(recording) == ["aten::empty", "aten::mul"]
    assert recording["ops"][4] == [0, 0]  # no workspace
    assert [[kernel[0] for kernel in of_op] for of_op in kernels] == [
        ["aten::empty"],
        ["aten::mul"],
    ]
    assert len(recording["births"][0]) == 2
    del b


def test_ops_that_are_made_of_others_everywhere_are_looked_into(watched) -> None:
    bias, x, weight = meta(1024), meta(64, 512), meta(1024, 512)
    torch.nn.functional.linear(x, weight, bias)
    recording, kernels = taken()
    assert op_names(recording)[-1] == "aten::linear"
    assert [kernel[0] for kernel in kernels[-1] if not kernel[1]] == ["aten::addmm"]


def test_signatures_tell_what_is_read_and_written(watched) -> None:
    a, b = meta(256, 1024), meta(256, 1024)
    a.add_(b[0].expand(256, 1024))
    torch._foreach_mul_([a, b], 2.0)
    _, kernels = taken()
    add = next(k for of_op in kernels for k in of_op if k[0] == "aten::add_")
    full, row = 256 * 1024 * 4, 1024 * 4
    assert [(nbytes, written) for _, _, nbytes, written in add[2]] == [(full, True), (row, False)]
    assert add[3] == []  # its result is its first operand
    foreach = next(k for of_op in kernels for k in of_op if k[0] == "aten::_foreach_mul_")
    assert [(nbytes, written) for _, _, nbytes, written in foreach[2]] == [(full, True)] * 2


def test_kernels_of_small_ops_count_with_the_next_one(watched) -> None:
    small = meta(4) + 1
    a = meta(LARGE)
    _, kernels = taken()
    assert [kernel[0] for kernel in kernels[0]] == ["aten::empty", "aten::add", "aten::empty"]
    del small, a


def test_a_failing_op_leaves_nothing_open(watched) -> None:
    a, b = meta(256, 256), meta(300, 256)
    with pytest.raises(RuntimeError):
        a @ b
    c = a @ a
    recording, _ = taken()
    assert op_names(recording)[-1] == "aten::matmul"
    births = zip(recording["births"][0], recording["births"][2], strict=True)
    assert (_C.block_id(c), len(recording["ops"][0]) - 1) in list(births)
