"""Floating-point values to encode: ordinary ones, and those that encoders get wrong.

In: a kind, a number, a seed. Out: tensors on the CPU. Must not know: any codec.
"""

from __future__ import annotations

import torch
from torch import Tensor

SPECIAL_BITS = (
    0x00000000, 0x80000000,  # zeros
    0x00000001, 0x80000001, 0x007FFFFF, 0x00010000, 0x80400000,  # denormals
    0x00800000, 0x7F7FFFFF, 0xFF7F0000,  # the smallest and the largest normal ones
    0x7F800000, 0xFF800000,  # infinities
    0x7FC00000, 0xFFC12345, 0x7F800001, 0xFFBFFFFF, 0x7FFF0000,  # NaN with payloads
    0x3F800000, 0xBF800000,
)  # fmt: skip


def _signed(bits: int) -> int:
    return bits - (1 << 32) if bits >= 1 << 31 else bits


SPECIAL = torch.tensor([_signed(bits) for bits in SPECIAL_BITS], dtype=torch.int32).view(
    torch.float32
)


def normal(count: int, seed: int = 0, scale: float = 0.02) -> Tensor:
    return scale * torch.randn(count, generator=torch.Generator().manual_seed(seed))


def any_bits(count: int, seed: int = 0) -> Tensor:
    """Every pattern of 32 bits is as likely as any other."""
    made = torch.Generator().manual_seed(seed)
    return (
        torch.randint(-(2**31), 2**31, (count,), generator=made, dtype=torch.int64)
        .to(torch.int32)
        .view(torch.float32)
    )


def _with_special(count: int, seed: int) -> Tensor:
    found = normal(count, seed)
    made = torch.Generator().manual_seed(seed)
    places = torch.randint(0, max(1, count), (min(count, 40),), generator=made)
    found[places] = SPECIAL[torch.randint(0, len(SPECIAL), (len(places),), generator=made)]
    return found


def _wide(count: int, seed: int) -> Tensor:
    """Magnitudes over many powers of two, as of squared gradients."""
    return torch.exp(6 * normal(count, seed, 1.0)) * 1e-12


def _sparse(count: int, seed: int) -> Tensor:
    """As gradients of an embedding: few values are not zero."""
    found = normal(count, seed)
    found[normal(count, seed + 1, 1.0) < 1.5] = 0
    return found


KINDS = {
    "normal": normal,
    "squares": lambda count, seed: normal(count, seed).square(),
    "half zero": lambda count, seed: torch.relu(normal(count, seed)),
    "bf16 in fp32": lambda count, seed: normal(count, seed).bfloat16().float(),
    "sparse": _sparse,
    "wide": _wide,
    "any bits": any_bits,
    "with special ones": _with_special,
    "zeros": lambda count, seed: torch.zeros(count),
    "equal": lambda count, seed: torch.full((count,), -1.25),
    "denormals": lambda count, seed: normal(count, seed) * 1e-38,
    "large": lambda count, seed: normal(count, seed, 1e38),
}


def as_dtype(values: Tensor, dtype: torch.dtype) -> Tensor:
    """For bfloat16 the upper half of the bits, so that payloads and denormals stay."""
    if dtype == torch.bfloat16:
        return (values.view(torch.int32) >> 16).to(torch.int16).view(torch.bfloat16)
    return values.to(dtype)


def same_bits(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.cpu().view(torch.uint8), other.cpu().view(torch.uint8))
