"""Functions of one register that write: in place, through views, arrays and storages, into outputs.

In: draws and a width. Out: functions; what they write to is their own. Must not know: programs.
"""

from __future__ import annotations

import pickle
import random
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from tests.integration.random_programs.world import Function, failure


def _own(x: Tensor) -> Tensor:
    """A copy that autograd does not follow, in the usual order."""
    return x.detach().clone(memory_format=torch.contiguous_format)


# ------------------------------------------------------------ that autograd follows


class _Tanh(torch.autograd.Function):
    """Writes its result in place, and keeps it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = x.clone().tanh_()
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return gradient.mul(1 - y * y)


class _Halved(torch.autograd.Function):
    """Writes to what it is given."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.mark_dirty(x)
        return x.mul_(0.5)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * 0.5


def _through_views(x: Tensor) -> Tensor:
    y = (x * 1.0).contiguous()
    inner, columns = y.view(-1)[7:-9].view(-1), y.t()[3:9]
    side = min(y.shape)
    diagonal = y[:side, :side].diagonal()
    columns.mul_(0.5)
    inner[::3].add_(0.1)
    diagonal.neg_()
    left, right = y[:, : y.shape[1] // 2], y[:, y.shape[1] // 2 :]
    right.copy_(left * 0.5)
    return y


def in_place(draw: random.Random, width: int) -> Function:
    start, stop = sorted(draw.sample(range(width), 2))
    pace, factor = draw.randint(2, 5), draw.uniform(0.5, 1.5)
    kind = draw.randrange(7)

    def write(x: Tensor) -> Tensor:
        y = (x * 1.0).contiguous() if kind % 2 else x.clone(memory_format=torch.contiguous_format)
        if kind == 0:
            y[:, start:stop].mul_(factor)
        elif kind == 1:
            y[::pace] += y[::pace].detach()
        elif kind == 2:
            y.view(-1)[start : 40 * stop + 1].add_(1).tanh_()
        elif kind == 3:
            y.t()[start].copy_(x[:, stop])
        elif kind == 4:
            y[y > 1] = factor
        elif kind == 5:
            y.index_add_(0, torch.tensor([0, 2, 1], device=y.device), x[:3], alpha=factor)
        else:
            first, second = y[:, : width // 2], y[:, width // 2 :]
            first.mul_(factor)
            second.add_(first)
        return y

    return write


# ------------------------------------------------------------ that autograd does not follow


def _through_strides(x: Tensor) -> Tensor:
    y = _own(x)
    y.as_strided((len(y) - 1, y.shape[1]), (y.shape[1], 1), 3).mul_(0.7)
    return x + y


def _through_complex(x: Tensor) -> Tensor:
    z = torch.view_as_complex(_own(x).view(len(x), -1, 2))
    z.real.mul_(0.5)
    z.imag.add_(0.1)
    z.mul_(1j)
    return x + torch.view_as_real(z).reshape(x.shape)


def _through_other_types(x: Tensor) -> Tensor:
    y = x.detach().to(torch.bfloat16)
    y.add_(1)
    y[::2] = 0.5
    return x + y.to(x.dtype) + y.view(torch.int16).float().tanh()


def _through_a_mask(x: Tensor) -> Tensor:
    mask = x.detach() > 0
    mask.logical_not_()
    mask.view(torch.uint8)[:3] = 1
    return x * mask


def _into_outputs(x: Tensor) -> Tensor:
    plain = x.detach()
    y, product = torch.empty_like(plain), torch.empty(0, device=x.device)
    torch.mul(plain, 2, out=y)
    torch.add(y, plain, out=y)
    torch.sin(y[:8], out=y[8:16])
    torch.mm(plain, plain.t(), out=product)
    return x + y + product.mean()


def _into_sorted_outputs(x: Tensor) -> Tensor:
    values = torch.empty(0, device=x.device)
    indices = torch.empty(0, dtype=torch.long, device=x.device)
    torch.sort(x.detach(), out=(values, indices))
    return x + values + indices


def _into_a_resized_storage(x: Tensor) -> Tensor:
    y = _own(x)
    storage, kept = y.untyped_storage(), y.clone()
    size = storage.nbytes()
    storage.resize_(0)
    storage.resize_(size)
    y.copy_(kept)
    storage.resize_(size * 2)
    both = torch.empty(0, device=x.device).set_(storage, 0, (2 * len(y), y.shape[1]))
    both[len(y) :].zero_()
    return x + y + both[-1]


def _into_other_data(x: Tensor) -> Tensor:
    y, other = x.detach() * 2, x.detach().tanh()
    y.data = other
    other.mul_(3)
    y.data = y.data.clone()
    return x + y + other


def _into_lists(x: Tensor) -> Tensor:
    parts = [part.clone() for part in x.detach().chunk(4)]
    torch._foreach_mul_(parts, 0.5)
    sums = torch._foreach_add(parts, 1.0)
    torch._foreach_addcmul_(parts, sums, sums, 0.1)
    torch._foreach_copy_(sums[:2], parts[2:])
    return x + torch.cat(sums) + torch.stack(torch._foreach_norm(parts)).sum()


def _into_lists_that_do_not_fit(x: Tensor) -> Tensor:
    parts = [part.clone() for part in x.detach().chunk(4)]
    written = [*parts[:-1], torch.zeros(3, 7, device=x.device)]
    with failure():
        torch._foreach_add_(written, [part.tanh() for part in parts])
    return x + torch.cat(parts)


ANYWHERE: tuple[Function, ...] = (
    _Tanh.apply,
    lambda x: _Halved.apply(x * 1.0),
    _through_views,
    _through_strides,
    _through_complex,
    _through_other_types,
    _through_a_mask,
    _into_outputs,
    _into_sorted_outputs,
    _into_a_resized_storage,
    _into_other_data,
    _into_lists,
    _into_lists_that_do_not_fit,
)


# ------------------------------------------------------------ to memory of the host


def _through_an_array(x: Tensor) -> Tensor:
    y = x.detach().clone()
    array = y.numpy()
    array[1:5] += 1
    np.tanh(array, out=array)
    doubled = y * 2
    array *= 0.5
    return x + doubled + y


def _through_dlpack(x: Tensor) -> Tensor:
    y = x.detach().clone()
    other = from_dlpack(y)
    other.mul_(0.5)
    between = y.tanh()
    other.add_(1)
    return x + between + y


def _into_shared_memory(x: Tensor) -> Tensor:
    y = x.detach().clone()
    y.share_memory_()
    y.mul_(2)
    copy: Tensor = pickle.loads(pickle.dumps(y))
    return x + copy


def _into_swapped_tensors(x: Tensor) -> Tensor:
    one, other = x.detach() * 2, x.detach() * 3
    torch.utils.swap_tensors(one, other)
    one.add_(1)
    return x + one - other


def _to_rows_that_are_not_there(x: Tensor) -> Tensor:
    y = _own(x)
    with failure():
        y.index_copy_(0, torch.tensor([0, len(y) + 3]), y[:2] * 2)
    return x + y


ON_CPU: tuple[Function, ...] = (
    _through_an_array,
    _through_dlpack,
    _into_shared_memory,
    _into_swapped_tensors,
    _to_rows_that_are_not_there,
)
