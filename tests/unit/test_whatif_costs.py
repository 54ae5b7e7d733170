"""Simulated times respect physics: no kernel beats its accelerator, and more work takes longer."""

from __future__ import annotations

from math import prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from teraio.whatif.costs import (
    LAUNCH_S,
    Kernel,
    Product,
    TensorShape,
    flops,
    product_seconds,
    seconds,
    traffic_bytes,
)
from teraio.whatif.presets import accelerator, accelerators

BYTES = {"Float": 4, "BFloat16": 2, "Long": 8}
ACCELERATORS = st.sampled_from(sorted(accelerators().values(), key=lambda device: device.key))
SIZES = st.integers(1, 20_000)


def tensor(*shape: int, dtype: str = "Float", written: bool = False) -> TensorShape:
    return TensorShape(dtype, shape, prod(shape) * BYTES[dtype], written)


def kernel(name: str, *inputs: TensorShape, outputs: tuple[TensorShape, ...] = ()) -> Kernel:
    return Kernel(f"aten::{name}", False, inputs, outputs)


def mm(rows: int, columns: int, depth: int, dtype: str) -> Kernel:
    a, b = tensor(rows, depth, dtype=dtype), tensor(depth, columns, dtype=dtype)
    return kernel("mm", a, b, outputs=(tensor(rows, columns, dtype=dtype),))


@given(ACCELERATORS, SIZES, SIZES, SIZES, st.sampled_from(["Float", "BFloat16"]))
def test_no_matrix_product_beats_the_accelerator(device, rows, columns, depth, dtype) -> None:
    call = mm(rows, columns, depth, dtype)
    peak = device.flops["bf16" if dtype == "BFloat16" else "fp32"]
    took = seconds(call, device)
    assert took >= 2 * rows * columns * depth / peak
    assert took >= traffic_bytes(call) / device.memory_bytes_per_s
    assert took >= LAUNCH_S


@given(ACCELERATORS, SIZES, SIZES, SIZES)
def test_tensor_cores_are_never_slower_than_plain_ones(device, rows, columns, depth) -> None:
    call = mm(rows, columns, depth, "Float")
    # Tiles of matrix cores are larger, so only products that fill them gain.
    if min(rows, columns) >= 256 and rows % 128 == 0 and columns % 256 == 0:
        assert seconds(call, device, "tf32") <= seconds(call, device, "fp32") * 1.01


LARGE = st.integers(256, 20_000)


@given(ACCELERATORS, LARGE, LARGE, LARGE, st.integers(2, 16))
def test_more_products_take_longer_and_hardly_more_than_one_after_the_other(
    device, rows, columns, depth, count
) -> None:
    one = product_seconds(Product(1, rows, columns, depth), device, "bf16")
    many = product_seconds(Product(count, rows, columns, depth), device, "bf16")
    # Together they may be cut less well: whole waves of one fit better than those of two.
    assert one * (1 - 1e-9) <= many <= count * one * 1.2


def test_a_large_product_reaches_what_was_measured() -> None:
    """An H100 SXM reaches 794.5 TFLOP/s of BF16 at best, an A100 SXM 271.2 (ml-engineering)."""
    for key, measured in (("h100-sxm", 794.5e12), ("a100-80gb", 271.2e12)):
        call = mm(16384, 16384, 16384, "BFloat16")
        reached = flops(call) / seconds(call, accelerator(key))
        assert 0.85 * measured <= reached <= measured


def test_small_products_are_inefficient() -> None:
    device = accelerator("h100-sxm")
    small, large = mm(512, 512, 512, "BFloat16"), mm(8192, 8192, 8192, "BFloat16")
    rate = [flops(call) / seconds(call, device) for call in (small, large)]
    assert rate[0] < rate[1] / 5


def test_views_and_allocations_take_no_time() -> None:
    device = accelerator("h200")
    view = Kernel("aten::transpose", True, (tensor(4096, 4096),), ())
    assert seconds(view, device) == 0
    assert seconds(kernel("empty", outputs=(tensor(4096, 4096),)), device) == 0
    assert seconds(kernel("_unsafe_view", tensor(64)), device) == 0


def test_a_pointwise_op_takes_its_traffic() -> None:
    a = tensor(1 << 14, 1 << 14)
    call = kernel("add", a, a, outputs=(a,))
    assert traffic_bytes(call) == 3 * a.nbytes
    in_place = kernel("add_", tensor(1 << 14, 1 << 14, written=True), a)
    assert traffic_bytes(in_place) == 3 * a.nbytes
    device = accelerator("a100-80gb")
    assert seconds(call, device) == pytest.approx(3 * a.nbytes / (0.88 * device.memory_bytes_per_s))


def test_a_copy_does_not_read_what_it_overwrites() -> None:
    a = tensor(1024, 1024)
    assert traffic_bytes(kernel("copy_", tensor(1024, 1024, written=True), a)) == 2 * a.nbytes


def test_an_embedding_reads_only_the_rows_it_gives() -> None:
    weight, tokens = tensor(100_000, 1024), tensor(8, 128, dtype="Long")
    rows = tensor(8, 128, 1024)
    call = kernel("embedding", weight, tokens, outputs=(rows,))
    assert traffic_bytes(call) == 2 * rows.nbytes + tokens.nbytes


def test_a_causal_mask_halves_attention() -> None:
    q = tensor(4, 32, 2048, 128, dtype="BFloat16")
    inputs, device = (q, q, q), accelerator("h100-sxm")
    full = Kernel("aten::_scaled_dot_product_flash_attention", False, inputs, (q,), (False, False))
    causal = Kernel("aten::_scaled_dot_product_flash_attention", False, inputs, (q,), (True, False))
    assert flops(full) == 4 * 4 * 32 * 2048 * 2048 * 128
    assert flops(causal) * 2 == flops(full)
    assert seconds(full, device) == pytest.approx(2 * seconds(causal, device))


def test_groups_share_rows_evenly() -> None:
    tokens, experts = tensor(4096, 1024), tensor(8, 1024, 3072)
    ends = TensorShape("Int", (8,), 32)
    call = kernel("_grouped_mm", tokens, experts, ends, outputs=(tensor(4096, 3072),))
    assert flops(call) == 2 * 4096 * 1024 * 3072
