"""Functions of one register, those of PyTorch that compute and keep the shape.

In: draws and a world. Out: functions, alone or in a chain that is called in some way. Must not
know: registers.
"""

from __future__ import annotations

import random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.integration.random_programs import writes
from tests.integration.random_programs.calls import within
from tests.integration.random_programs.world import WEIGHTS, Function, World


class _Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(x, scale)
        ctx.kept = x.tanh()  # not by save_for_backward
        return x * scale

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        x, scale = ctx.saved_tensors
        return gradient * scale + 0.01 * ctx.kept, (gradient * x).sum(0)


# ------------------------------------------------------------ on any device


def _convolved(x: Tensor) -> Tensor:
    weight = torch.ones(len(x), 1, 3, device=x.device)
    return F.conv1d(x[None], weight, padding=1, groups=len(x))[0]


def _scattered(x: Tensor) -> Tensor:
    to = torch.arange(x.shape[1], device=x.device).flip(0).expand(len(x), -1)
    y = x.scatter(1, to, x * 2).scatter_add(1, to, x)
    return y.scatter_reduce(0, to % len(x), x, "amax")


def _with_losses(x: Tensor) -> Tensor:
    classes = torch.arange(len(x), device=x.device) % x.shape[1]
    return x + F.cross_entropy(x, classes) + F.mse_loss(x.tanh(), x.detach())


def _with_nothing(x: Tensor) -> Tensor:
    return torch.cat([x[:0], x, x.new_empty(0, x.shape[1])]) + x.new_zeros(0).sum()


ANYWHERE: tuple[Function, ...] = (
    torch.tanh,
    torch.sigmoid,
    F.gelu,
    F.silu,
    F.relu,
    torch.sin,
    torch.exp,
    torch.abs,
    torch.square,
    F.softplus,
    torch.clone,
    torch.neg,
    lambda x: x.softmax(-1),
    lambda x: x.cumsum(0) / len(x),
    lambda x: x.cummax(0).values + x.cumprod(1),
    lambda x: x.sort(dim=1).values,
    lambda x: x.topk(x.shape[1], dim=1, sorted=True).values,
    lambda x: x.flip(0).roll(3, 1),
    lambda x: x.double().mul(0.5).float(),
    lambda x: x.bfloat16().add(1).float(),
    lambda x: x.to(torch.float32) + x.contiguous().view_as(x),
    lambda x: F.layer_norm(x, x.shape[1:]),
    lambda x: F.dropout(x, 0.2),
    lambda x: F.dropout(x, 0.1, inplace=False) + torch.rand_like(x),
    lambda x: F.relu(x * 1.0 + 0.1, inplace=True),
    lambda x: x - x.mean(0, keepdim=True),
    lambda x: x / (x.detach().abs().max() + 1),
    lambda x: x.masked_fill(x > 1, 0.5),
    lambda x: torch.where(x > 0, x, x.expm1()),
    lambda x: x.clamp_min(-0.5).clone().clamp_(max=3).log1p().where(x > 0, x).nan_to_num(),
    lambda x: x.index_select(1, torch.arange(x.shape[1] - 1, -1, -1, device=x.device)),
    lambda x: x.gather(0, x.detach().argsort(dim=0)),
    lambda x: torch.cat([*x.chunk(3)][::-1]),
    lambda x: torch.stack(x.unbind(1)[::-1], 1),
    lambda x: x.mean(0).expand_as(x) + x,
    lambda x: x.reshape(len(x), 4, -1).transpose(1, 2).reshape(len(x), -1),
    lambda x: x.t().contiguous().t(),
    lambda x: (x @ x.t()).softmax(-1) @ x,
    lambda x: torch.einsum("ij,kj->ik", x, x) @ x / len(x),
    lambda x: F.glu(torch.cat([x, x], 1)),
    lambda x: torch.var_mean(x, 0)[0] + x,
    lambda x: torch.max(x, 1, keepdim=True).values * x,
    lambda x: torch.complex(x, x).mul(1j).conj().real,
    lambda x: torch.outer(x.sum(1), x[0]) / x.shape[1],
    lambda x: x.reshape(-1).unfold(0, x.shape[1], x.shape[1]).clone(),
    _convolved,
    _scattered,
    _with_losses,
    _with_nothing,
)


# ------------------------------------------------------------ on the CPU alone


def _convolved_in_two_dimensions(x: Tensor) -> Tensor:
    weight = torch.ones(4, 1, 3, 3) * 0.1
    return F.conv2d(x[None, None], weight, padding=1).mean(1)[0]


def _pooled(x: Tensor) -> Tensor:
    pooled = F.max_pool1d(x[None], 3, 1, 1)[0] + F.avg_pool1d(x[None], 3, 1, 1)[0]
    return pooled + F.interpolate(x[None, None], scale_factor=0.5)[0, 0].mean()


def _normalised(x: Tensor) -> Tensor:
    groups = F.group_norm(x.unsqueeze(0).transpose(1, 2).contiguous(), 4)[0].t()
    return F.batch_norm(x, None, None, training=True) + groups


def _transformed(x: Tensor) -> Tensor:
    return torch.fft.irfft(torch.fft.rfft(x, dim=1), n=x.shape[1], dim=1)


def _decomposed(x: Tensor) -> Tensor:
    finite = x.detach().tanh().nan_to_num()
    q, _ = torch.linalg.qr(finite[:32, :32].contiguous())
    values = torch.linalg.svdvals(finite[:16].contiguous())
    return x + q.sum() + values.sum() + torch.linalg.norm(x, dim=1, keepdim=True)


def _as_sparse(x: Tensor) -> Tensor:
    large = (x.detach() * (x.detach() > 0.5)).to_sparse()
    return torch.sparse.mm(large.t(), x).tanh()[:1].expand_as(x) + x


def _as_sparse_rows(x: Tensor) -> Tensor:
    plain = x.detach()
    large = (plain * (plain > 0.5)).to_sparse_csr()
    return (large @ (plain.t() @ plain)).tanh() + x


def _quantized(x: Tensor) -> Tensor:
    return x + torch.quantize_per_tensor(x.detach(), 0.1, 0, torch.qint8).dequantize()


def _in_mkldnn(x: Tensor) -> Tensor:
    return x + x.detach().contiguous().to_mkldnn().relu().to_dense()


def _nested(x: Tensor) -> Tensor:
    parts = [part.detach().clone() for part in (x[: len(x) // 3], x[len(x) // 3 :])]
    return x + F.silu(torch.nested.nested_tensor(parts, layout=torch.jagged)).values()


def _random(x: Tensor) -> Tensor:
    own = torch.Generator().manual_seed(3)
    mask = torch.empty_like(x).bernoulli_(0.5, generator=own)
    return x[torch.randperm(len(x))] + mask + torch.empty_like(x).normal_()


def _pushed(x: Tensor) -> Tensor:
    y, tangent = torch.func.jvp(lambda z: z.sin() * z, (x.detach(),), (torch.ones_like(x),))
    return x + y + tangent.tanh()


ON_CPU: tuple[Function, ...] = (
    _convolved_in_two_dimensions,
    _pooled,
    _normalised,
    _transformed,
    _decomposed,
    _quantized,
    _in_mkldnn,
    _nested,
    _random,
    _pushed,
    lambda x: F.alpha_dropout(x, 0.1, True),
    lambda x: torch.func.vmap(lambda row: row.softmax(-1).cumsum(0))(x),
)


# ------------------------------------------------------------ without hooks and casts around them


def _with_functional_gradient(x: Tensor) -> Tensor:
    return x + torch.func.grad(lambda z: z.tanh().square().sum())(x.detach()).tanh()


def _with_jacobian(x: Tensor) -> Tensor:
    plain = x.detach()
    jacobian = torch.func.jacrev(lambda z: (z[None] @ plain.t()).tanh().mean(0))(plain[0])
    return x + jacobian.sum()


OUTERMOST_ON_CPU: tuple[Function, ...] = (
    _as_sparse,
    _as_sparse_rows,
    _with_functional_gradient,
    _with_jacobian,
)


# ------------------------------------------------------------ drawn ones


def _attention(draw: random.Random, world: World, depth: int) -> Function:
    heads, causal = draw.choice((1, 2, 4)), draw.random() < 0.5
    # The fused one has no second derivative, and the simulated device none at all.
    fused = world.on_cpu and not depth
    backends = [SDPBackend.MATH, *([SDPBackend.FLASH_ATTENTION] if fused else [])]

    def attend(x: Tensor) -> Tensor:
        split = x.reshape(1, len(x), heads, -1).transpose(1, 2)
        with sdpa_kernel(backends):
            joined = F.scaled_dot_product_attention(split, split, split, is_causal=causal)
        return joined[0].transpose(0, 1).reshape(len(x), -1)

    return attend


def _linear(draw: random.Random, world: World) -> Function:
    weight, bias = world.weights[draw.randrange(WEIGHTS)], world.biases[draw.randrange(WEIGHTS)]
    return draw.choice(
        (
            lambda x: F.linear(x, weight, bias).tanh(),
            lambda x: F.layer_norm(x @ weight, x.shape[1:], bias, None),
            lambda x: x + F.gelu(torch.addmm(bias, x, weight.t())),
            lambda x: torch.baddbmm(bias, x[None], weight[None])[0].clamp(-3, 3),
            lambda x: _Scaled.apply(x, bias + 1),
        )
    )


def _ready(draw: random.Random, world: World, depth: int) -> Function:
    functions = [*ANYWHERE, *writes.ANYWHERE]
    if world.on_cpu:
        functions += [*ON_CPU, *writes.ON_CPU, *(OUTERMOST_ON_CPU if not depth else ())]
    return draw.choice(functions)


def _chain(functions: list[Function]) -> Function:
    def chained(x: Tensor) -> Tensor:
        for function in functions:
            x = function(x).float()  # some functions take nothing else, and some cast
        return x

    return chained


def function(draw: random.Random, world: World, depth: int = 0) -> Function:
    chance = draw.random()
    if chance < 0.25:
        return _linear(draw, world)
    if chance < 0.6:
        return _ready(draw, world, depth)
    if chance < 0.65:
        return writes.in_place(draw, world.width)
    if chance < 0.7:
        return _attention(draw, world, depth)
    if depth < 2 and chance < 0.95:
        inner = [function(draw, world, depth + 1) for _ in range(draw.randint(1, 3))]
        return within(draw, world, _chain(inner), outermost=not depth)
    return torch.tanh
