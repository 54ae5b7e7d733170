"""Training programs drawn at random, for what nobody thought of writing.

In: a seed and a device. Out: a Program, all of whose choices come from the seed. Must not know:
budgets.

A program has a few registers, tensors of rows x width. A step fills them, runs the drawn
instructions, each of which reads some registers and replaces one, and trains on their sum.
"""

from __future__ import annotations

import copy
import io
import random
import threading
from collections import deque
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from tests.integration.small_programs import Program, data, iteration

REGISTERS = 5
WEIGHTS = 6

Function = Callable[[Tensor], Tensor]
"""What an instruction makes of one register; it keeps the shape."""


class World:
    """What lasts between the steps of a program."""

    def __init__(self, device: str, width: int) -> None:
        self.device, self.width = device, width
        self.step = 0
        self.model = nn.Module()
        self.weights = nn.ParameterList(nn.Parameter(self._matrix(width)) for _ in range(WEIGHTS))
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(width)) for _ in range(WEIGHTS))
        self.model.weights, self.model.biases = self.weights, self.biases
        for i in range(3):
            self.model.register_buffer(f"mean{i}", torch.zeros(64, width))
        self.model.to(device)
        self.kept: dict[int, Tensor] = {}
        self.shadows: dict[int, Tensor] = {}
        self.seen: list[Any] = []
        self.streams: list[Any] = []

    def join_streams(self) -> None:
        """Some gradients may be memory of streams other than the current one."""
        for stream in self.streams:
            stream.wait_stream(torch.accelerator.current_stream())
        self.streams.clear()

    @staticmethod
    def _matrix(width: int) -> Tensor:
        return torch.randn(width, width) / width**0.5

    def mean(self, i: int) -> Tensor:
        return self.model.get_buffer(f"mean{i}")

    def state(self) -> Any:
        return [self.model.state_dict(), self.kept, self.shadows]


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


# ------------------------------------------------------------ functions of one register

UNARY: tuple[Function, ...] = (
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
    lambda x: x.sort(dim=1).values,
    lambda x: x.topk(x.shape[1], dim=1, sorted=True).values,
    lambda x: x.flip(0).roll(3, 1),
    lambda x: x.double().mul(0.5).float(),
    lambda x: x.bfloat16().add(1).float(),
    lambda x: F.layer_norm(x, x.shape[1:]),
    lambda x: F.dropout(x, 0.2),
    lambda x: F.dropout(x, 0.1, inplace=False) + torch.rand_like(x),
    lambda x: x - x.mean(0, keepdim=True),
    lambda x: x / (x.detach().abs().max() + 1),
    lambda x: x.masked_fill(x > 1, 0.5),
    lambda x: torch.where(x > 0, x, x.expm1()),
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
    lambda x: F.conv1d(x[None], torch.ones(len(x), 1, 3, device=x.device), None, 1, 1, 1, len(x))[
        0
    ],
    lambda x: torch.var_mean(x, 0)[0] + x,
    lambda x: torch.max(x, 1, keepdim=True).values * x,
    lambda x: torch.complex(x, x).mul(1j).conj().real,
    lambda x: torch.outer(x.sum(1), x[0]) / x.shape[1],
    lambda x: x.reshape(-1).unfold(0, x.shape[1], x.shape[1]).clone(),
)


def _attention(heads: int, causal: bool, backends: list[SDPBackend]) -> Function:
    def attend(x: Tensor) -> Tensor:
        split = x.reshape(1, len(x), heads, -1).transpose(1, 2)
        with sdpa_kernel(backends):
            joined = F.scaled_dot_product_attention(split, split, split, is_causal=causal)
        return joined[0].transpose(0, 1).reshape(len(x), -1)

    return attend


def _in_place(draw: random.Random, world: World) -> Function:
    start, stop = sorted(draw.sample(range(world.width), 2))
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
            first, second = y[:, : world.width // 2], y[:, world.width // 2 :]
            first.mul_(factor)
            second.add_(first)
        return y

    return write


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


def _within(draw: random.Random, world: World, inner: Function) -> Function:
    """``inner`` as some program would call it."""
    kind = draw.randrange(10)
    reentrant, pace, phase = draw.random() < 0.5, draw.randint(2, 4), draw.randrange(3)

    def in_thread(x: Tensor) -> Tensor:
        made: list[Tensor] = []
        graded, inferring = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        stream = nullcontext() if world.device == "cpu" else torch.accelerator.current_stream()

        def work() -> None:
            with torch.inference_mode(inferring), torch.set_grad_enabled(graded), stream:
                made.append(inner(x))

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        return made[0]

    def on_stream(x: Tensor) -> Tensor:
        if world.device == "cpu":
            return in_thread(x)
        main, other = torch.accelerator.current_stream(), getattr(torch, world.device).Stream()
        other.wait_stream(main)
        x.record_stream(other)
        with other:
            y = inner(x)
        main.wait_stream(other)
        y.record_stream(main)
        world.streams.append(other)
        return y

    def penalised(x: Tensor) -> Tensor:
        if not (torch.is_grad_enabled() and x.requires_grad):
            return inner(x)
        y = inner(x)
        if not y.requires_grad:
            return y
        (gradient,) = torch.autograd.grad(y.sum(), x, create_graph=True, allow_unused=True)
        return y if gradient is None else y + gradient.tanh()

    def aside(x: Tensor) -> Tensor:
        """A backward pass of its own, whose gradients stay in the weights."""
        if not torch.is_grad_enabled():
            return inner(x)
        leaf = x.detach().requires_grad_()
        loss = inner(leaf).square().mean()
        loss.backward(retain_graph=reentrant)
        if reentrant:
            loss.backward()
        return x if leaf.grad is None else x + leaf.grad

    def cast(x: Tensor) -> Tensor:
        with torch.autocast(world.device, dtype=torch.bfloat16):
            return inner(x).float()

    def packed(x: Tensor) -> Tensor:
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t.clone(), lambda t: t):
            return inner(x)

    def inferred(x: Tensor) -> Tensor:
        with torch.inference_mode() if reentrant else torch.no_grad():
            y = inner(x)
        return x + y.clone() if reentrant else x + y

    def sometimes(x: Tensor) -> Tensor:
        return inner(x) if world.step % pace == phase % pace else x

    def by_value(x: Tensor) -> Tensor:
        return inner(x) if x.detach().mean().item() > 0 else x * 0.5

    def hooked(x: Tensor) -> Tensor:
        y = inner(x)
        if y.requires_grad:
            y.register_hook(lambda gradient: gradient * 0.9)
        return y

    def again(x: Tensor) -> Tensor:
        return checkpoint(inner, x, use_reentrant=False)

    ways = (
        in_thread,
        on_stream,
        penalised,
        aside,
        cast,
        packed,
        inferred,
        sometimes,
        by_value if reentrant else hooked,
        again,
    )
    return ways[kind]


def _chain(functions: list[Function]) -> Function:
    def chained(x: Tensor) -> Tensor:
        for function in functions:
            x = function(x)
        return x

    return chained


def function(draw: random.Random, world: World, depth: int = 0) -> Function:
    chance = draw.random()
    if chance < 0.3:
        return _linear(draw, world)
    if chance < 0.6:
        return draw.choice(UNARY)
    if chance < 0.7:
        return _in_place(draw, world)
    if chance < 0.75:
        # The fused one has no second derivative, and the simulated device none at all.
        fused = world.device == "cpu" and not depth
        backends = [SDPBackend.MATH, *([SDPBackend.FLASH_ATTENTION] if fused else [])]
        return _attention(draw.choice((1, 2, 4)), draw.random() < 0.5, backends)
    if depth < 2 and chance < 0.95:
        inner = [function(draw, world, depth + 1) for _ in range(draw.randint(1, 3))]
        return _within(draw, world, _chain(inner))
    return torch.tanh


# ------------------------------------------------------------ instructions

Instruction = Callable[[list[Tensor], int], None]


def _applied(draw: random.Random, world: World) -> Instruction:
    source, target = draw.randrange(REGISTERS), draw.randrange(REGISTERS)
    made = function(draw, world)

    def run(registers: list[Tensor], _: int) -> None:
        registers[target] = made(registers[source])

    return run


def _combined(draw: random.Random, world: World) -> Instruction:
    one, other, target = (draw.randrange(REGISTERS) for _ in range(3))
    combine: Callable[[Tensor, Tensor], Tensor] = draw.choice(
        (
            torch.add,
            lambda x, y: x.tanh() * y,
            lambda x, y: torch.lerp(x, y, 0.3),
            lambda x, y: torch.addcmul(x, y, y, value=0.1).clamp(-3, 3),
            lambda x, y: torch.where(x > y, x, y),
            lambda x, y: torch.stack([x, y]).mean(0),
            lambda x, y: torch.cat([x, y], 1)[:, ::2],
            lambda x, y: (x * 1).add_(y, alpha=0.5),
            lambda x, y: x.clone().copy_(y) + x,
            lambda x, y: x.clone().masked_scatter_(x > 0, y),
            lambda x, y: (x @ y.t()).softmax(1) @ y,
        )
    )

    def run(registers: list[Tensor], _: int) -> None:
        registers[target] = combine(registers[one], registers[other])

    return run


def _averaged(draw: random.Random, world: World) -> Instruction:
    """A running mean in a buffer, which this step or the next one reads."""
    i, source, target = draw.randrange(3), draw.randrange(REGISTERS), draw.randrange(REGISTERS)
    early, replace = draw.random() < 0.5, draw.random() < 0.3

    def run(registers: list[Tensor], _: int) -> None:
        seen = world.mean(i)
        if early:
            registers[target] = registers[target] + seen.mean(0)
        with torch.no_grad():
            update = registers[source].detach().mean(0)
            if replace:
                seen.data = seen * 0.9 + update * 0.1
            else:
                seen.mul_(0.9).add_(update, alpha=0.1)
        if not early:
            registers[target] = registers[target] + world.mean(i).clone()[0]

    return run


def _carried(draw: random.Random, world: World) -> Instruction:
    """A result that a later step reads."""
    key, source, target = draw.randrange(4), draw.randrange(REGISTERS), draw.randrange(REGISTERS)
    how: Function = draw.choice((Tensor.detach, lambda x: x.detach().clone()))

    def run(registers: list[Tensor], _: int) -> None:
        if key in world.kept:
            registers[target] = registers[target] + world.kept[key].mean(0)
        world.kept[key] = how(registers[source])

    return run


def _queued(draw: random.Random, world: World) -> Instruction:
    """Results of several steps, as a replay memory keeps them."""
    queue: deque[Tensor] = deque(maxlen=draw.randint(1, 3))
    source, target = draw.randrange(REGISTERS), draw.randrange(REGISTERS)

    def run(registers: list[Tensor], _: int) -> None:
        if queue:
            registers[target] = registers[target] * queue[0].mean().tanh()
        queue.append(registers[source].detach())

    return run


def _shadowed(draw: random.Random, world: World) -> Instruction:
    """A moving average of a weight."""
    which, target = draw.randrange(WEIGHTS), draw.randrange(REGISTERS)
    anew = draw.random() < 0.4

    def run(registers: list[Tensor], _: int) -> None:
        with torch.no_grad():
            weight = world.weights[which].detach()
            if which not in world.shadows:
                world.shadows[which] = copy.deepcopy(weight)
            elif anew:
                world.shadows[which] = world.shadows[which].lerp(weight, 0.1)
            else:
                world.shadows[which].lerp_(weight, 0.1)
        registers[target] = torch.tanh(registers[target] @ world.shadows[which])

    return run


def _of_storages(draw: random.Random, world: World) -> Instruction:
    """What works on storages rather than on tensors."""
    kind, i, target = draw.randrange(6), draw.randrange(3), draw.randrange(REGISTERS)

    def run(registers: list[Tensor], _: int) -> None:
        x = registers[target]
        plain = x.detach()
        if kind == 0:
            y = torch.empty(0, device=x.device).set_(
                plain.clone().untyped_storage(), 0, plain.shape
            )
        elif kind == 1:
            file = io.BytesIO()
            torch.save(plain, file)
            file.seek(0)
            y = torch.load(file, map_location=x.device)
        elif kind == 2:
            y = (
                torch.empty(0, device=x.device)
                .resize_(len(x) * 2, world.width)
                .fill_(0.1)[: len(x)]
            )
            y.add_(plain)
        elif kind == 3:
            y = torch.from_numpy(plain.cpu().numpy().copy()).to(x.device)
        elif kind == 4:
            y = copy.deepcopy(plain)
            world.mean(i).set_(torch.zeros(64, world.width, device=x.device) + y.mean())
        else:
            y = plain.clone()
            y.untyped_storage().copy_(plain.contiguous().untyped_storage()[: y.nbytes])
        registers[target] = x + 0.1 * y

    return run


def _looked_at(draw: random.Random, world: World) -> Instruction:
    source = draw.randrange(REGISTERS)

    def run(registers: list[Tensor], _: int) -> None:
        world.seen.append(registers[source].detach().sum().item())

    return run


def _fresh(draw: random.Random, world: World) -> Instruction:
    target, shift = draw.randrange(REGISTERS), draw.randint(1, 99)

    def run(registers: list[Tensor], i: int) -> None:
        registers[target] = data(i * 100 + shift, *registers[target].shape).to(world.device)

    return run


_INSTRUCTIONS: tuple[tuple[Callable[[random.Random, World], Instruction], int], ...] = (
    (_applied, 14),
    (_combined, 4),
    (_averaged, 1),
    (_carried, 1),
    (_queued, 1),
    (_shadowed, 1),
    (_of_storages, 1),
    (_looked_at, 1),
    (_fresh, 1),
)


def _optimizer(draw: random.Random, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    kind = draw.randrange(7)
    foreach = draw.random() < 0.5
    if kind == 0:
        return torch.optim.SGD(parameters, lr=0.01, momentum=0.9, foreach=foreach)
    if kind == 1:
        return torch.optim.RMSprop(parameters, lr=1e-3, centered=True, foreach=foreach)
    if kind == 2:
        return torch.optim.Adagrad(parameters, lr=1e-2, foreach=foreach)
    if kind == 3:
        return torch.optim.AdamW(parameters, lr=1e-3, amsgrad=True, foreach=foreach)
    if kind == 4:
        return torch.optim.AdamW(parameters, lr=1e-3, fused=True)
    if kind == 5:
        halves = parameters[::2], parameters[1::2]
        groups = [{"params": half, "lr": 1e-3 * (i + 1)} for i, half in enumerate(halves)]
        return torch.optim.NAdam(groups, foreach=foreach)
    return torch.optim.Adam(parameters, lr=1e-3, weight_decay=0.01, foreach=foreach)


def random_program(seed: int, device: str = "cpu", scale: int = 1) -> Program:
    """``scale`` widens all tensors in both directions."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    world = World(device, 128 * scale)
    kinds, weights = zip(*_INSTRUCTIONS, strict=True)
    instructions = [
        kind(draw, world) for kind in draw.choices(kinds, weights, k=draw.randint(6, 30))
    ]
    rows = scale * draw.choice((64, 96, 128, 192))
    sizes = draw.choice(((1.0,), (1.0,), (1.0, 0.5), (1.0, 1.0, 1.0, 0.75)))
    parts = draw.choice((1, 1, 1, 2, 3))
    clip, evaluate, to_none = (draw.random() < chance for chance in (0.3, 0.2, 0.8))
    with_optimizer = draw.random() < 0.85
    parameters = list(world.model.parameters())
    optimizer = _optimizer(draw, parameters) if with_optimizer else None

    def forward(i: int) -> Tensor:
        count = int(rows * sizes[world.step % len(sizes)])
        registers = [
            data(i * 100 + r, count, world.width).to(world.device).requires_grad_(r == 1)
            for r in range(REGISTERS)
        ]
        for instruction in instructions:
            instruction(registers, i)
        total = torch.stack([x.tanh().square().mean() for x in registers]).sum()
        return total + sum(w.square().mean() for w in world.weights)

    def step(i: int) -> Any:
        world.step, given = i, []
        world.seen.clear()
        for part in range(parts):
            loss = forward(i * parts + part)
            loss.backward()
            given.append(loss.detach().cpu())
        if clip:
            given.append(nn.utils.clip_grad_norm_(parameters, 1.0).cpu())
        if optimizer is not None:
            optimizer.step()
            world.join_streams()
            optimizer.zero_grad(set_to_none=to_none)
        else:
            with torch.no_grad():
                for parameter in parameters:
                    if parameter.grad is not None:
                        parameter -= 0.01 * parameter.grad
                world.join_streams()
                for parameter in parameters:
                    parameter.grad = None
        if evaluate:
            with torch.no_grad():
                given.append(forward(1000 + i).cpu())
        return given, list(world.seen)

    def marked(i: int) -> Any:
        with iteration(world.model):
            return step(i)

    states = [] if optimizer is None else optimizer.state
    return Program(
        world.model,
        step if with_optimizer else marked,
        lambda: [world.state(), [*states.values()] if optimizer is not None else []],
        share=draw.choice((35, 50, 65, 80)),
    )
