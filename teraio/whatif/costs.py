"""How long a kernel takes on an accelerator that is not here.

In: a kernel's name with the shapes of its tensors, and an Accelerator. Out: seconds. Must not know:
torch, where the kernel was called, memory plans.

[Note: the model]
A kernel takes the longest of three times: its arithmetic, its traffic with device memory, and a
launch. Traffic is each operand once: what it reads and what it writes, at a share of the rated
bandwidth. Arithmetic counts for matrix products, convolutions and attention only; everything else
is bound by memory on any accelerator of the last ten years. A matrix product is cut into tiles, one
per multiprocessor at a time; tiles that don't fill the last wave, and matrices smaller than a tile,
waste what they don't fill. Views and allocations take no time. docs/simulation.md compares the
results with published measurements.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import ceil, prod
from typing import Literal

from teraio.whatif.presets import Accelerator

Float32Matmul = Literal["fp32", "tf32"]

# From the start of one short kernel to the start of the next, when the CPU is far enough ahead.
LAUNCH_S = 3e-6
# What copies and pointwise kernels reach of the rated bandwidth.
_BANDWIDTH_SHARE = 0.88
# Tiles of matrix products (rows, columns), and their speed relative to the largest.
_MATRIX_CORE_TILES = (((128, 256), 1.0), ((128, 128), 0.92), ((64, 128), 0.75), ((64, 64), 0.5))
_PLAIN_CORE_TILES = (((128, 128), 1.0), ((64, 128), 0.93), ((64, 64), 0.8), ((32, 64), 0.55))
# A product of this depth runs at half speed. Where tiles fill waves badly, the depth is split.
_HALF_SPEED_DEPTH = 64
_LEAST_SPLIT_DEPTH = 512
_MOST_SPLITS = 16

# Kernels that allocate, or are views without saying so.
_FREE = ("empty", "new_empty", "_unsafe_view", "_local_scalar_dense", "set_", "resize_", "_reshape")
# They write their first operand without reading it.
_WRITE_ONLY = ("copy_", "fill_", "zero_", "uniform_", "normal_", "random_", "bernoulli_")
# They read as many rows of the first operand as they give.
_GATHER = ("embedding", "index_select", "gather", "index", "_embedding_bag")
# They touch as many rows of the first operand as the others have.
_SCATTER = ("index_add_", "index_put_", "_index_put_impl_", "scatter_", "scatter_add_")


@dataclass(frozen=True, slots=True)
class TensorShape:
    """An operand: ``dtype`` such as "Float", shape, bytes in memory, whether it is written."""

    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    written: bool = False


@dataclass(frozen=True, slots=True)
class Kernel:
    """A call that a device would run as one kernel, or a few.

    ``view``: the result is another view of an input. ``outputs`` are new tensors only. ``flags``
    are the arguments that are bool, in order.
    """

    name: str
    view: bool
    inputs: tuple[TensorShape, ...]
    outputs: tuple[TensorShape, ...]
    flags: tuple[bool, ...] = ()

    @property
    def base_name(self) -> str:
        """The name without its namespace."""
        return self.name.rpartition("::")[2]


@dataclass(frozen=True, slots=True)
class Product:
    """``count`` matrix products of (``rows`` x ``depth``) by (``depth`` x ``columns``)."""

    count: int
    rows: int
    columns: int
    depth: int

    @property
    def flops(self) -> int:
        """Multiplications and additions."""
        return 2 * self.count * self.rows * self.columns * self.depth


def seconds(kernel: Kernel, device: Accelerator, float32_matmul: Float32Matmul = "fp32") -> float:
    """Time of one call on ``device``, whose FP32 matrix products run in ``float32_matmul``."""
    if is_free(kernel):
        return 0.0
    compute = 0.0
    if kernel.base_name in _ATTENTION:
        compute = _attention_seconds(kernel, device)
    else:
        # Allowed to use matrix cores for FP32, a library takes plain ones where they are quicker.
        kinds = {_arithmetic(kernel, float32_matmul), _arithmetic(kernel, "fp32")}
        for product in products(kernel):
            compute += min(product_seconds(product, device, kind) for kind in kinds)
    memory = traffic_bytes(kernel) / (device.memory_bytes_per_s * _BANDWIDTH_SHARE)
    return max(compute, memory, LAUNCH_S)


def is_free(kernel: Kernel) -> bool:
    """True for calls that run nothing on the device."""
    return kernel.view or kernel.base_name.startswith(_FREE)


def flops(kernel: Kernel) -> int:
    """Arithmetic of matrix products and attention; 0 for everything else."""
    if kernel.base_name in _ATTENTION:
        return int(_attention_flops(kernel))
    return sum(product.flops for product in products(kernel))


def traffic_bytes(kernel: Kernel) -> int:
    """Bytes that pass between the device and its memory, each operand once."""
    name, inputs = kernel.base_name, kernel.inputs
    written = _bytes(kernel.outputs) + _bytes(tensor for tensor in inputs if tensor.written)
    if name in _GATHER:
        return written + _bytes(kernel.outputs) + _bytes(inputs[1:])
    if name in _SCATTER:
        return 3 * _bytes(inputs[1:])
    read = inputs[1:] if name in _WRITE_ONLY else inputs
    return written + _bytes(read)


def _bytes(tensors: Iterable[TensorShape]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


# ---------------------------------------------------------------- matrix products


def products(kernel: Kernel) -> tuple[Product, ...]:
    """The matrix products that a kernel comes down to; none for most kernels."""
    shapes = _PRODUCTS.get(kernel.base_name)
    return tuple(shapes(kernel)) if shapes else ()


def product_seconds(product: Product, device: Accelerator, arithmetic: str) -> float:
    """Seconds of the arithmetic of ``product`` in "fp32", "tf32" or "bf16"."""
    tiles = _PLAIN_CORE_TILES if arithmetic == "fp32" else _MATRIX_CORE_TILES
    best = max(speed * _filled(product, tile, device.multiprocessors) for tile, speed in tiles)
    depth_share = product.depth / (product.depth + _HALF_SPEED_DEPTH)
    rate = device.flops[arithmetic] * device.matmul_share
    return product.flops / (rate * best * depth_share) if product.flops else 0.0


def _filled(product: Product, tile: tuple[int, int], multiprocessors: int) -> float:
    """Part of all multiprocessors' work that goes into the result."""
    rows, columns = tile
    tiles = product.count * ceil(product.rows / rows) * ceil(product.columns / columns)
    inside = product.count * product.rows * product.columns / (tiles * rows * columns)
    most_splits = max(1, min(_MOST_SPLITS, product.depth // _LEAST_SPLIT_DEPTH))
    waves = (tiles * splits / multiprocessors for splits in range(1, most_splits + 1))
    return inside * max(wave / ceil(wave) for wave in waves)


def _matrix(tensor: TensorShape) -> tuple[int, int]:
    return tensor.shape[-2], tensor.shape[-1]


def _mm(first: int) -> Callable[[Kernel], Iterable[Product]]:
    """Products of inputs ``first`` and ``first + 1``, with batch dimensions in front."""

    def shapes(kernel: Kernel) -> Iterable[Product]:
        a, b = kernel.inputs[first], kernel.inputs[first + 1]
        rows, depth = _matrix(a)
        yield Product(prod(a.shape[:-2]), rows, b.shape[-1], depth)

    return shapes


def _mv(kernel: Kernel) -> Iterable[Product]:
    rows, depth = _matrix(kernel.inputs[-2])
    yield Product(1, rows, 1, depth)


def _grouped_mm(kernel: Kernel) -> Iterable[Product]:
    """Groups of equal size: which rows meet which matrix is not known before the run."""
    a, b = kernel.inputs[0], kernel.inputs[1]
    groups = kernel.inputs[2].shape[0] if len(kernel.inputs) > 2 else 1
    rows, depth = _matrix(a)
    columns = b.shape[-1]
    if len(a.shape) == 2 and len(b.shape) == 2:  # groups along the depth: gradients of weights
        yield Product(groups, rows, columns, ceil(depth / groups))
    elif len(a.shape) == 2:  # groups of rows
        yield Product(groups, ceil(rows / groups), columns, depth)
    elif len(b.shape) == 2:  # groups of columns
        yield Product(groups, rows, ceil(columns / groups), depth)
    else:
        yield Product(groups, rows, columns, depth)


def _convolution(kernel: Kernel) -> Iterable[Product]:
    weight, output = kernel.inputs[1], kernel.outputs[0]
    positions = prod(output.shape) // output.shape[1]
    yield Product(1, positions, output.shape[1], prod(weight.shape[1:]))


def _convolution_backward(kernel: Kernel) -> Iterable[Product]:
    gradient, weight = kernel.inputs[0], kernel.inputs[2]
    positions = prod(gradient.shape) // gradient.shape[1]
    once = Product(1, positions, gradient.shape[1], prod(weight.shape[1:]))
    wanted = sum(len(output.shape) > 1 for output in kernel.outputs)
    yield from [once] * wanted


_PRODUCTS: dict[str, Callable[[Kernel], Iterable[Product]]] = {
    "mm": _mm(0),
    "bmm": _mm(0),
    "addmm": _mm(1),
    "baddbmm": _mm(1),
    "mv": _mv,
    "addmv": _mv,
    "_addmm_activation": _mm(1),
    "_grouped_mm": _grouped_mm,
    "grouped_mm_fallback": _grouped_mm,
    "convolution": _convolution,
    "_convolution": _convolution,
    "convolution_backward": _convolution_backward,
}


def _arithmetic(kernel: Kernel, float32_matmul: Float32Matmul) -> str:
    half = any(tensor.dtype in ("BFloat16", "Half") for tensor in kernel.inputs)
    return "bf16" if half else float32_matmul


# ---------------------------------------------------------------- attention

# Forward and backward, with the number of matrix products of each: two, and five with the one that
# is computed again.
_ATTENTION = {
    "_scaled_dot_product_flash_attention": 2,
    "_scaled_dot_product_flash_attention_backward": 5,
    "_scaled_dot_product_efficient_attention": 2,
    "_scaled_dot_product_efficient_attention_backward": 5,
    "_scaled_dot_product_cudnn_attention": 2,
    "_scaled_dot_product_cudnn_attention_backward": 5,
}
# The memory-efficient kernel works in FP32 by three passes of TF32, about as fast as plain cores.
_FP32_ATTENTION_SHARE = 0.5


def _attention_flops(kernel: Kernel) -> float:
    name = kernel.base_name
    at = 1 if name.endswith("_backward") else 0
    query, key = kernel.inputs[at], kernel.inputs[at + 1]
    batch, heads, length, width = query.shape
    causal = kernel.flags[_CAUSAL_FLAG.get(name, 0)] if kernel.flags else False
    # A causal mask leaves half of the products, and the kernels skip the other half.
    share = 0.5 if causal and length == key.shape[2] else 1.0
    return _ATTENTION[name] * 2.0 * batch * heads * length * key.shape[2] * width * share


# Among the bool arguments: efficient attention is told first whether to keep the log-sum-exp.
_CAUSAL_FLAG = {
    "_scaled_dot_product_efficient_attention": 1,
    "_scaled_dot_product_efficient_attention_backward": -1,
    "_scaled_dot_product_cudnn_attention": 1,
}


def _attention_seconds(kernel: Kernel, device: Accelerator) -> float:
    arithmetic = _arithmetic(kernel, "fp32")
    share = _FP32_ATTENTION_SHARE if arithmetic == "fp32" else device.attention_share
    return _attention_flops(kernel) / (device.flops[arithmetic] * share)
