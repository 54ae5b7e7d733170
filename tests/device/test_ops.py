"""Every op of PyTorch's database, and its gradient, gives the CPU's bits on the simulated device.

In: `op_db` of torch.testing, a few samples of each op. Out: the names of ops that differ.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.testing._internal.common_methods_invocations import op_db
from torch.utils._pytree import tree_flatten, tree_map_only

from tests.device.sim import SimModule

SAMPLES = 3

# Op -> why it can't be compared.
EXCEPTIONS = {
    "as_strided.partial_views": "reads parts of a storage that .to() does not copy",
    "native_batch_norm": "its unused statistics have another size in evaluation",
    "_native_batch_norm_legit": "its unused statistics have another size in evaluation",
    "nn.functional.embedding_bag": "its unused indices have another size in evaluation",
    "linalg.lstsq": "its unused residuals have another size",
    "linalg.lstsq.grad_oriented": "its unused residuals have another size",
    "fft.rfftn": "its result has other strides, so its gradient is summed in another order",
    "to": "copies to the host without waiting, so what comes next on the host is a race",
    "tensor_split": "wants its indices on the CPU, whatever the device",
}

# These draw other numbers on another device.
RANDOM = {
    "cauchy",
    "exponential",
    "geometric",
    "log_normal",
    "multinomial",
    "nn.functional.alpha_dropout",
    "nn.functional.dropout",
    "nn.functional.dropout2d",
    "nn.functional.dropout3d",
    "nn.functional.feature_alpha_dropout.with_train",
    "nn.functional.fractional_max_pool3d",
    "nn.functional.multi_head_attention_forward",
    "nn.functional.rrelu",
    "nn.functional.scaled_dot_product_attention",
    "normal",
    "normal.in_place",
    "normal.number_mean",
    "pca_lowrank",
    "rand_like",
    "randint_like",
    "randn_like",
    "svd_lowrank",
    "uniform",
}


def names_and_calls() -> Iterator[tuple[str, Any, Any]]:
    for op in op_db:
        name = op.name + (f".{op.variant_test_name}" if op.variant_test_name else "")
        uninitialised = "empty" in op.name
        if (
            torch.float32 in op.supported_dtypes("cpu")
            and name not in EXCEPTIONS
            and name not in RANDOM
            and not uninitialised
            and "sparse" not in op.name
        ):
            samples = op.sample_inputs("cpu", torch.float32, requires_grad=op.supports_autograd)
            for sample in itertools.islice(samples, SAMPLES):
                yield name, op, sample


def moved(value: Any, device: str) -> Any:
    def move(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.detach().to(device).requires_grad_(tensor.requires_grad)

    value = tree_map_only(torch.Tensor, move, value)
    return tree_map_only(torch.device, lambda _: torch.device(device), value)


def results(op: Any, sample: Any, device: str) -> list[Any]:
    """What the op returns, and the gradient of its sum for its first input, on the CPU."""
    x, args, kwargs = moved((sample.input, sample.args, sample.kwargs), device)
    with sdpa_kernel(SDPBackend.MATH):
        y = op.op(x, *args, **kwargs)
    leaves = tree_flatten(y)[0]
    if isinstance(x, torch.Tensor) and isinstance(y, torch.Tensor) and y.requires_grad:
        y.sum().abs().backward()
        leaves.append(x.grad)
    torch.accelerator.synchronize()  # copies to the host may not block
    return [leaf.detach().cpu() if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]


def equal(one: list[Any], other: list[Any]) -> bool:
    try:
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)
    except AssertionError:
        return False
    return True


def on_cpu(op: Any, sample: Any) -> list[Any] | None:
    """None for what the CPU can't do (some gradients), or does otherwise each time."""
    try:
        first = results(op, sample, "cpu")
        return first if equal(first, results(op, sample, "cpu")) else None
    except Exception:
        return None


@pytest.mark.timeout(600)
def test_every_op_gives_the_bits_of_the_cpu(sim: SimModule) -> None:
    compared, different = set(), {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, op, sample in names_and_calls():
            expected = on_cpu(op, sample)
            if expected is None:
                continue
            compared.add(name)
            try:
                got = results(op, sample, "sim")
                if not equal(got, expected):
                    different[name] = "other results"
            except Exception as error:
                different[name] = repr(error)
    assert different == {}
    assert len(compared) > 550


def test_whole_numbers_are_counted_as_on_cuda(sim: SimModule) -> None:
    counts = torch.histc(torch.tensor([1, 2, 2, 5], device="sim"), bins=4, min=0, max=7)
    assert counts.dtype == torch.int64
    assert counts.tolist() == [1, 2, 1, 0]


def test_a_convolution_and_its_gradient_give_the_bits_of_the_cpu(sim: SimModule) -> None:
    gradients = []
    for device in ("cpu", "sim"):
        torch.manual_seed(0)
        layer = torch.nn.Conv2d(3, 8, 4, stride=4).to(device)
        x = torch.arange(3 * 16 * 16, dtype=torch.float32).view(1, 3, 16, 16).to(device)
        layer(x).sin().sum().backward()
        gradients.append([p.grad.cpu() for p in layer.parameters() if p.grad is not None])
    assert equal(*gradients)
