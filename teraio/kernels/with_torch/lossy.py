"""The lossy codecs in plain torch: scales of groups first, then a code for each value.

In: checked storages of floating-point values, offsets, a staging buffer. Out: codes, and values
again. Must not know: Triton, layouts of several storages.

All scaling is by powers of two or rounded once, so that Triton's kernels give the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from teraio.kernels.codecs import CODECS, GROUP, fixed_nbytes
from teraio.kernels.lossy_format import INT8_NAN, INT8_SMALLEST, LOWEST_TOP, MINIFLOATS, Minifloat


def encode(codec: str, storages: Sequence[Tensor], offsets: Sequence[int], staging: Tensor) -> None:
    for storage, offset in zip(storages, offsets, strict=True):
        scales, codes = _parts(codec, storage.numel(), offset, staging)
        if codec == "bf16":
            codes.copy_(storage.to(torch.bfloat16).view(torch.uint8))
            continue
        coded, scale = _CODERS[codec][0](_groups(storage.float(), storage.numel()))
        codes.copy_(coded.flatten()[: storage.numel()])
        scales.copy_(scale.flatten().contiguous().view(torch.uint8))


def decode(codec: str, storages: Sequence[Tensor], offsets: Sequence[int], staging: Tensor) -> None:
    for storage, offset in zip(storages, offsets, strict=True):
        scales, codes = _parts(codec, storage.numel(), offset, staging)
        if codec == "bf16":
            storage.copy_(codes.view(torch.bfloat16))
            continue
        values = _CODERS[codec][1](_groups(codes, storage.numel()), scales)
        storage.copy_(values.flatten()[: storage.numel()])


def _parts(codec: str, count: int, offset: int, staging: Tensor) -> tuple[Tensor, Tensor]:
    """The bytes of the scales, and those of the codes."""
    kind = CODECS[codec]
    piece = staging[offset : offset + fixed_nbytes(kind, count)]
    scales = -(-count // GROUP) * kind.scale_nbytes
    return piece[:scales], piece[piece.numel() - count * kind.code_nbytes :]


def _groups(values: Tensor, count: int) -> Tensor:
    return torch.nn.functional.pad(values, (0, -count % GROUP)).view(-1, GROUP)


def _encode_minifloat(kind: Minifloat, values: Tensor) -> tuple[Tensor, Tensor]:
    bits = values.view(torch.int32)
    magnitude = bits & 0x7FFFFFFF
    finite = magnitude < 0x7F800000
    top = (magnitude.masked_fill(~finite, 0).amax(1, keepdim=True) >> 23).clamp(min=LOWEST_TOP)
    scaled = magnitude.view(torch.float32) * _power_of_two(261 - top)
    rounded = scaled.view(torch.int32)
    rounded = (rounded + 0x7FFFF + ((rounded >> 20) & 1)) >> 20
    small = torch.round(scaled.clamp(max=kind.normal) * kind.steps).to(torch.int32)
    codes = torch.where(scaled < kind.normal, small, rounded - kind.rebias)
    codes = codes.clamp(max=kind.largest)
    if not kind.signed:
        codes = torch.where((codes == 0) & (magnitude > 0), 1, codes)
    codes = torch.where(finite, codes, kind.infinity)
    negative = bits < 0
    lost = magnitude > 0x7F800000
    if not kind.signed:
        lost = lost | (negative & (magnitude > 0))
    if kind.signed:
        codes = codes | (negative.to(torch.int32) << 7)
    codes = torch.where(lost, kind.nan, codes)
    return codes.to(torch.uint8), top.to(torch.uint8)


def _decode_minifloat(kind: Minifloat, codes: Tensor, scales: Tensor) -> Tensor:
    signed = codes.to(torch.int32)
    code = signed & 0x7F if kind.signed else signed
    normal = ((code << 20) + (kind.rebias << 20)).view(torch.float32)
    scaled = torch.where(code < 8, code.float() * kind.step, normal)
    values = scaled * _power_of_two(scales.to(torch.int32)[:, None] - 7)
    values = torch.where(code == kind.infinity, torch.inf, values)
    values = torch.where(code == kind.nan, torch.nan, values)
    return torch.where(signed > 0x7F, -values, values) if kind.signed else values


def _encode_int8(values: Tensor) -> tuple[Tensor, Tensor]:
    finite = values.isfinite()
    largest = values.masked_fill(~finite, 0).abs().amax(1, keepdim=True)
    large = largest >= INT8_SMALLEST
    # Divided by tensors: for a number, torch multiplies with its reciprocal, which rounds twice.
    most = torch.full_like(largest, 127.0)
    scale = torch.where(large, largest / most, 0.0)
    inverse = torch.where(large, most / largest, 0.0)
    codes = torch.round(torch.where(finite, values, 0.0) * inverse).to(torch.int32)
    return torch.where(finite, codes, INT8_NAN).to(torch.int8).view(torch.uint8), scale


def _decode_int8(codes: Tensor, scales: Tensor) -> Tensor:
    signed = codes.view(torch.int8).to(torch.int32)
    values = signed.float() * scales.view(torch.float32)[:, None]
    return torch.where(signed == INT8_NAN, torch.nan, values)


def _power_of_two(biased: Tensor) -> Tensor:
    """2 ** (biased - 127)."""
    return (biased << 23).view(torch.float32)


_Encoder = Callable[[Tensor], tuple[Tensor, Tensor]]
_Decoder = Callable[[Tensor, Tensor], Tensor]


def _minifloat_coders(kind: Minifloat) -> tuple[_Encoder, _Decoder]:
    return (
        lambda values: _encode_minifloat(kind, values),
        lambda codes, scales: _decode_minifloat(kind, codes, scales),
    )


_CODERS: dict[str, tuple[_Encoder, _Decoder]] = {
    "int8": (_encode_int8, _decode_int8),
    **{name: _minifloat_coders(kind) for name, kind in MINIFLOATS.items()},
}
