"""Instructions that leave something to later steps: results, averages, windows, buffers.

In: draws and a world. Out: instructions. Must not know: what registers are computed from.
"""

from __future__ import annotations

import copy
import io
import pickle
import random
from collections import deque
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from tests.integration.random_programs.instructions import Kind
from tests.integration.random_programs.world import (
    MEANS,
    WEIGHTS,
    Function,
    Instruction,
    Window,
    World,
    register,
)

# ------------------------------------------------------------ results


def _carried(draw: random.Random, world: World) -> Instruction:
    """A result that a later step reads."""
    key, source, target = draw.randrange(4), register(draw), register(draw)
    how: Function = draw.choice((Tensor.detach, lambda x: x.detach().clone()))

    def run(registers: list[Tensor], _: int) -> None:
        if key in world.kept:
            registers[target] = registers[target] + world.kept[key].mean(0)
        world.kept[key] = how(registers[source])

    return run


def _queued(draw: random.Random, world: World) -> Instruction:
    """Results of several steps, as a replay memory keeps them."""
    queue: deque[Tensor] = deque(maxlen=draw.randint(1, 3))
    source, target = register(draw), register(draw)

    def run(registers: list[Tensor], _: int) -> None:
        if queue:
            registers[target] = registers[target] * queue[0].mean().tanh()
        queue.append(registers[source].detach())

    return run


def _inferred(draw: random.Random, world: World) -> Instruction:
    """A tensor of inference mode."""
    key, source, target = draw.randrange(3), register(draw), register(draw)

    def run(registers: list[Tensor], _: int) -> None:
        if key in world.inferred:
            registers[target] = registers[target] + world.inferred[key].clone().mean(0)
        with torch.inference_mode():
            world.inferred[key] = registers[source].detach().tanh() * 2
            world.inferred[key].add_(1)

    return run


def _output(draw: random.Random, world: World) -> Instruction:
    """An output that is written anew in each step."""
    key, source, target = draw.randrange(3), register(draw), register(draw)

    def run(registers: list[Tensor], _: int) -> None:
        x = registers[source].detach()
        output = world.outputs.setdefault(key, torch.empty(0, device=x.device))
        if output.shape != x.shape:
            output.resize_(x.shape)
        torch.mul(x, 0.5, out=output)
        torch.sigmoid(output, out=output)
        registers[target] = registers[target] * output.mean(0)

    return run


def _window(draw: random.Random, world: World) -> Instruction:
    """An array on a tensor's memory, which is written through for some steps."""
    key, target, life = draw.randrange(3), register(draw), draw.randint(2, 5)

    def run(registers: list[Tensor], _: int) -> None:
        if key not in world.windows or world.step % life == 0:
            tensor = registers[target].detach().clone()
            world.windows[key] = Window(tensor, tensor.numpy())
        window = world.windows[key]
        window.array[1:7] += 0.5
        registers[target] = registers[target] + window.tensor.mean(0)
        window.array[...] *= 0.5

    return run


def _exchanged(draw: random.Random, world: World) -> Instruction:
    """What lasts is replaced by copies, some of which were in files."""
    kind, every = draw.randrange(6), draw.randint(2, 4)

    def run(registers: list[Tensor], _: int) -> None:
        if world.step % every:
            return
        file = io.BytesIO()
        if kind == 0:
            torch.save(dict(world.model.named_buffers()), file)
            file.seek(0)
            world.model.load_state_dict(torch.load(file), strict=False)
        elif kind == 1:
            world.kept = copy.deepcopy(world.kept)
        elif kind == 2 and world.on_cpu:
            world.kept = pickle.loads(pickle.dumps(world.kept))
        elif kind == 3:
            for i in range(MEANS):
                world.mean(i).data = world.mean(i).data.clone()
        elif kind == 4:
            torch.save([world.kept, world.shadows], file)
            file.seek(0)
            world.kept, world.shadows = torch.load(file)
        else:
            world.kept = {key: kept.clone() for key, kept in world.kept.items()}

    return run


# ------------------------------------------------------------ averages


def _shadowed(draw: random.Random, world: World) -> Instruction:
    """A moving average of a weight."""
    which, target = draw.randrange(WEIGHTS), register(draw)
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


def _averaged(draw: random.Random, world: World) -> Instruction:
    """A running mean in a buffer, which this step or the next one reads."""
    i, source, target = draw.randrange(MEANS), register(draw), register(draw)
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


# ------------------------------------------------------------ buffers

Change = Callable[[Tensor, Tensor, Tensor], object]
"""Of a buffer, by a scalar; the third is another buffer."""


def _by_a_storage(mean: Tensor, by: Tensor, _: Tensor) -> None:
    mean.untyped_storage().copy_((mean * 0.5 + by).untyped_storage())


def _by_a_resized_storage(mean: Tensor, by: Tensor, _: Tensor) -> None:
    halved = (mean * 0.5).clone()
    mean.set_(mean.clone())  # that of an array can't be resized
    storage = mean.untyped_storage()
    storage.resize_(0)
    storage.resize_(halved.nbytes)
    mean.copy_(halved)


def _by_an_array(mean: Tensor, by: Tensor, _: Tensor) -> None:
    mean.numpy()[...] += 1


CHANGES: tuple[Change, ...] = (
    lambda mean, by, _: mean.mul_(0.9).add_(by),
    lambda mean, by, _: mean.data.add_(by),
    lambda mean, by, _: mean.set_(mean.clone() * 0.5),
    lambda mean, by, other: torch._foreach_add_(
        [mean, other], [torch.ones_like(mean), torch.zeros_like(mean)]
    ),
    lambda mean, by, _: torch.add(mean, by, out=mean),
    lambda mean, by, _: mean.view(-1)[5:-5].copy_(mean.view(-1)[10:].clone()),
    lambda mean, by, _: mean.uniform_(-1, 1),
    _by_a_storage,
)
CHANGES_ON_CPU: tuple[Change, ...] = (
    lambda mean, by, _: from_dlpack(mean.detach()).add_(by),
    _by_an_array,
    _by_a_resized_storage,
)
OF_BUFFERS: tuple[Function, ...] = (
    torch.tanh,
    torch.sigmoid,
    torch.square,
    F.gelu,
    lambda mean: mean.softmax(-1),
    lambda mean: mean @ mean.t() @ mean,
    lambda mean: F.layer_norm(mean, mean.shape[1:]),
    lambda mean: mean.bfloat16().float(),
    lambda mean: mean + 1,
)


def _changed(draw: random.Random, world: World) -> Instruction:
    """Backward needs what is made of a buffer, which changes before."""
    i, target, whole = draw.randrange(MEANS), register(draw), draw.random() < 0.5
    make = draw.choice(OF_BUFFERS)
    change = draw.choice(CHANGES + (CHANGES_ON_CPU if world.on_cpu else ()))

    def run(registers: list[Tensor], _: int) -> None:
        mean, x = world.mean(i), registers[target]
        made = make(mean)
        factor = made.repeat(-(-len(x) // len(made)), 1)[: len(x)] if whole else made.mean(0)
        registers[target] = x * factor + x.tanh() * factor.square()
        with torch.no_grad():
            change(mean, x.detach().mean(), world.mean((i + 1) % MEANS))
            mean.clamp_(-2, 2)

    return run


KINDS: tuple[tuple[Kind, int], ...] = (
    (_carried, 1),
    (_queued, 1),
    (_inferred, 1),
    (_output, 1),
    (_exchanged, 1),
    (_shadowed, 1),
    (_averaged, 1),
    (_changed, 3),
)
KINDS_ON_CPU: tuple[tuple[Kind, int], ...] = ((_window, 1),)
