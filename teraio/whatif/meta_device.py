"""Runs training on the meta device as it would run on CUDA.

In: nothing. Out: a context in which PyTorch chooses for meta tensors what it chooses for CUDA ones.
Must not know: models, traces, costs.

[Note: values]
Tensors of the meta device have no values. A program that takes another course depending on a truth
value (usually a check that all is as it should be) is told that it is true; one that asks for a
number can't be followed, and gets an error that says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.optim.optimizer as torch_optimizer

from teraio.errors import ConfigurationError

_FLASH_DTYPES = (torch.float16, torch.bfloat16)
_FLASH_WIDTH = 256


@contextmanager
def like_cuda() -> Iterator[None]:
    """Attention runs in the kernel that CUDA would choose, optimizers may be fused, checks hold."""
    supported = "_get_fused_kernels_supported_devices"
    original = getattr(torch_optimizer, supported)
    setattr(torch_optimizer, supported, lambda: [*original(), "meta"])
    try:
        with torch.library._scoped_library("aten", "IMPL") as library:
            library.impl("scaled_dot_product_attention", _attention, "AutogradMeta")
            library.impl("_local_scalar_dense", _value, "Meta", allow_override=True)
            library.impl("_grouped_mm", _grouped_mm, "Meta", allow_override=True)
            yield
    finally:
        setattr(torch_optimizer, supported, original)


def _value(tensor: torch.Tensor) -> bool:
    if tensor.dtype == torch.bool:
        return True
    raise ConfigurationError(
        f"the program asks for the value of a tensor ({tensor.dtype}), so what it does next "
        "depends on data, which tensors of the meta device don't have. Make the shapes of what "
        "follows independent of data for the trace, or measure it with teraio.offload."
    )


def _grouped_mm(
    a: torch.Tensor,
    b: torch.Tensor,
    offs: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """The shape of the result for any dtype; PyTorch's own meta function takes BF16 only."""
    rows, columns = a.shape[-2], b.shape[-1]
    if a.dim() == 3 and b.dim() == 3:
        shape = [a.shape[0], rows, columns]
    elif a.dim() == 2 and b.dim() == 2 and offs is not None:
        shape = [offs.shape[0], rows, columns]
    else:
        shape = [rows, columns]
    return a.new_empty(shape, dtype=out_dtype or a.dtype)


def _attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """Flash attention where CUDA has it (half precision, no mask), else memory-efficient attention.

    The latter has no grouped heads: CUDA falls back to the unfused form then, so programs repeat
    keys and values themselves, which is what happens here.
    """
    if query.dtype in _FLASH_DTYPES and attn_mask is None and query.shape[-1] <= _FLASH_WIDTH:
        flash = torch.ops.aten._scaled_dot_product_flash_attention
        output: torch.Tensor = flash(query, key, value, dropout_p, is_causal, scale=scale)[0]
        return output
    if enable_gqa:
        groups = query.shape[-3] // key.shape[-3]
        key = key.repeat_interleave(groups, -3)
        value = value.repeat_interleave(groups, -3)
    bias = None if attn_mask is None else _bias(attn_mask, query, key)
    efficient = torch.ops.aten._scaled_dot_product_efficient_attention
    keep = torch.is_grad_enabled()
    output = efficient(query, key, value, bias, keep, dropout_p, is_causal, scale=scale)[0]
    return output


def _bias(mask: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill_(
            mask.logical_not(), -torch.inf
        )
    return mask.expand(*query.shape[:-1], key.shape[-2])
