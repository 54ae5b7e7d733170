"""Instructions that need nothing but the registers, weights and gradients of this step.

In: draws and a world. Out: instructions. Must not know: what lasts between the steps.
"""

from __future__ import annotations

import copy
import io
import random
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.integration.random_programs.functions import function
from tests.integration.random_programs.world import (
    MEANS,
    WEIGHTS,
    Instruction,
    World,
    register,
)
from tests.integration.small_programs import data

Kind = Callable[[random.Random, World], Instruction]


def _applied(draw: random.Random, world: World) -> Instruction:
    source, target = register(draw), register(draw)
    made = function(draw, world)

    def run(registers: list[Tensor], _: int) -> None:
        registers[target] = made(registers[source])

    return run


def _combined(draw: random.Random, world: World) -> Instruction:
    one, other, target = register(draw), register(draw), register(draw)
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


def _of_storages(draw: random.Random, world: World) -> Instruction:
    """What works on storages rather than on tensors."""
    kind, i, target = draw.randrange(6), draw.randrange(MEANS), register(draw)

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
            mean = world.mean(i)
            mean.set_(torch.zeros(mean.shape, device=x.device) + y.mean())
        else:
            y = plain.clone()
            y.untyped_storage().copy_(plain.contiguous().untyped_storage()[: y.nbytes])
        registers[target] = x + 0.1 * y

    return run


def _looked_at(draw: random.Random, world: World) -> Instruction:
    source = register(draw)

    def run(registers: list[Tensor], _: int) -> None:
        world.seen.append(registers[source].detach().sum().item())

    return run


def _fresh(draw: random.Random, world: World) -> Instruction:
    target, shift = register(draw), draw.randint(1, 99)

    def run(registers: list[Tensor], i: int) -> None:
        registers[target] = data(i * 100 + shift, *registers[target].shape).to(world.device)

    return run


def _operand_lost(draw: random.Random, world: World) -> Instruction:
    """The operand of a result that backward needs is written to where autograd does not see it."""
    source, target, kind = register(draw), register(draw), draw.randrange(4)
    keeping_its_result = draw.choice((torch.tanh, torch.sigmoid, torch.exp, _softmax))

    def run(registers: list[Tensor], _: int) -> None:
        operand = registers[source] * 1.01 + 0.1
        result = keeping_its_result(operand)
        plain = operand.detach()
        if kind == 0:
            plain.zero_()
        elif kind == 1:
            plain.data.mul_(3)
        elif kind == 2 and world.on_cpu:
            plain.numpy()[...] = 7
        else:
            plain.copy_(result.detach() * 2)
        registers[target] = result + plain.mean()

    return run


def _softmax(x: Tensor) -> Tensor:
    return x.softmax(-1)


def _gradient_written(draw: random.Random, world: World) -> Instruction:
    """A gradient of an earlier part of the step, if there is one.

    On a device it may be in use on streams that only autograd knows.
    """
    which, kind = draw.randrange(WEIGHTS), draw.randrange(5)

    def run(registers: list[Tensor], _: int) -> None:
        weight = world.weights[which]
        if weight.grad is None:
            return
        with torch.no_grad():
            halved = weight.grad * 0.5
            if kind == 0:
                weight.grad.mul_(0.5)
            elif kind == 1:
                weight.grad = halved
            elif kind == 2:
                weight.grad.data = halved
            elif kind == 3:
                weight.grad = None
            else:
                weight.data.add_(weight.grad, alpha=-0.001)

    return run


def _routed(draw: random.Random, world: World) -> Instruction:
    """As many rows as values say, as for an expert."""
    source, target, which = register(draw), register(draw), draw.randrange(WEIGHTS)

    def run(registers: list[Tensor], _: int) -> None:
        x = registers[source]
        rows = (x.detach().sum(1) > 0).nonzero().flatten()
        y = torch.zeros_like(x)
        if len(rows):
            y = y.index_add(0, rows, x[rows] @ world.weights[which])
        registers[target] = registers[target] + y.tanh()

    return run


def _embedded(draw: random.Random, world: World) -> Instruction:
    source, target, which = register(draw), register(draw), draw.randrange(WEIGHTS)
    by_frequency = world.on_cpu and draw.random() < 0.5

    def run(registers: list[Tensor], _: int) -> None:
        scores = registers[source].detach()[:, 0].abs().nan_to_num(0, 9, 9).clamp(max=9)
        rows = (scores * 7).long()
        registers[target] = registers[target] + F.embedding(
            rows, world.weights[which], padding_idx=0, scale_grad_by_freq=by_frequency
        )

    return run


KINDS: tuple[tuple[Kind, int], ...] = (
    (_applied, 14),
    (_combined, 4),
    (_of_storages, 1),
    (_looked_at, 1),
    (_fresh, 1),
    (_operand_lost, 2),
    (_routed, 1),
    (_embedded, 1),
)
KINDS_ON_CPU: tuple[tuple[Kind, int], ...] = ((_gradient_written, 1),)
