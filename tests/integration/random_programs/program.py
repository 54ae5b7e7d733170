"""Training programs drawn at random, for what nobody thought of writing.

In: a seed and a device. Out: a Program, all of whose choices come from the seed. Must not know:
budgets.

A program has a few registers, tensors of rows x width. A step fills them, runs the drawn
instructions, each of which reads some registers and replaces one, and trains on their sum.
"""

from __future__ import annotations

import io
import random
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn, optim

from tests.integration.random_programs import instructions, lasting, optimizers
from tests.integration.random_programs.world import (
    REGISTERS,
    Instruction,
    Interruption,
    World,
    failure,
)
from tests.integration.small_programs import STEPS, Program, data, iteration

NEVER = -1


@dataclass(frozen=True)
class Loop:
    """What a program does around its forward passes. ``..._at`` are steps."""

    rows: int
    sizes: tuple[float, ...]
    """Of the batches of one step after another."""
    parts: int
    as_module: bool
    clip: bool
    evaluate: bool
    set_to_none: bool
    hooks: bool
    backward_in_thread: bool
    schedule: bool
    closure: bool
    fail_at: int
    join_at: int
    reload_at: int


def _draw_loop(draw: random.Random, scale: int, as_module: bool) -> Loop:
    def chance(of: float) -> bool:
        return draw.random() < of

    def sometime(of: float) -> int:
        return draw.randrange(1, STEPS) if chance(of) else NEVER

    return Loop(
        rows=scale * draw.choice((64, 96, 128, 192)),
        sizes=draw.choice(((1.0,), (1.0,), (1.0, 0.5), (1.0, 1.0, 1.0, 0.75))),
        parts=draw.choice((1, 1, 1, 2, 3)),
        as_module=as_module,
        clip=chance(0.3),
        evaluate=chance(0.2),
        set_to_none=chance(0.75),
        hooks=chance(0.15),
        backward_in_thread=chance(0.1),
        schedule=chance(0.3),
        closure=chance(0.15),
        fail_at=sometime(0.2),
        join_at=sometime(0.15),
        reload_at=sometime(0.15),
    )


class Training:
    """Steps of a program."""

    def __init__(
        self,
        world: World,
        loop: Loop,
        instructions: list[Instruction],
        optimizer: optim.Optimizer | None,
        late: list[nn.Parameter],
    ) -> None:
        self.world, self.loop, self.instructions = world, loop, instructions
        self.optimizer = optimizer
        self.late = [] if isinstance(optimizer, optim.LBFGS) else late  # it has one group alone
        self.parameters = list(world.model.parameters())
        self.scheduler: optim.lr_scheduler.StepLR | None = None
        if optimizer is not None and loop.schedule:
            self.scheduler = optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
        if loop.hooks:
            for parameter in self.parameters[::2]:
                parameter.register_post_accumulate_grad_hook(_clamp_gradient)
            for parameter in self.parameters[1::2]:
                parameter.register_hook(lambda gradient: gradient * 0.5)

    def forward(self, i: int, instructions: list[Instruction]) -> Tensor:
        """The loss of batch ``i``."""
        world, loop = self.world, self.loop

        def compute() -> Tensor:
            count = int(loop.rows * loop.sizes[world.step % len(loop.sizes)])
            registers = [
                data(i * 100 + r, count, world.width).to(world.device).requires_grad_(r == 1)
                for r in range(REGISTERS)
            ]
            for instruction in instructions:
                instruction(registers, i)
            total = torch.stack([x.tanh().square().mean() for x in registers]).sum()
            return total + sum(w.square().mean() for w in world.weights)

        loss: Tensor = world.model(compute) if loop.as_module else compute()
        return loss

    def gradients(self, i: int) -> list[Tensor]:
        """Adds them up over the parts of a step; gives the losses."""
        given = []
        for part in range(self.loop.parts):
            loss = self.forward(i * self.loop.parts + part, self.instructions)
            if self.loop.backward_in_thread:
                self.world.in_thread(loss.backward)
            else:
                loss.backward()
            given.append(loss.detach().cpu())
        if self.loop.clip:
            given.append(nn.utils.clip_grad_norm_(self.parameters, 1.0).cpu())
        return given

    def clear_gradients(self) -> None:
        self.world.end_backward()
        if self.optimizer is not None:
            self.optimizer.zero_grad(set_to_none=self.loop.set_to_none)
        else:
            for parameter in self.parameters:
                parameter.grad = None

    def fail(self, i: int) -> None:
        """In the middle of a forward pass, then in a backward pass."""

        def interrupt(*_: Any) -> None:
            raise Interruption

        middle = len(self.instructions) // 2
        with failure():
            self.forward(i * self.loop.parts, [*self.instructions[:middle], interrupt])
        hook = self.world.weights[0].register_hook(interrupt)
        with failure():
            self.forward(i * self.loop.parts, self.instructions).backward()
        hook.remove()
        self.clear_gradients()

    def descend(self, i: int) -> list[Any]:
        optimizer = self.optimizer
        given: list[Any] = []
        if optimizer is None:
            given.append(self.gradients(i))
            with torch.no_grad():
                for parameter in self.parameters:
                    if parameter.grad is not None:
                        parameter -= 0.01 * parameter.grad
        elif self.loop.closure or isinstance(optimizer, optim.LBFGS):

            def evaluate() -> Tensor:
                self.clear_gradients()
                given.append(self.gradients(i))
                return given[-1][0]

            optimizer.step(torch.enable_grad()(evaluate))
        else:
            given.append(self.gradients(i))
            optimizer.step()
        if self.scheduler is not None:
            self.scheduler.step()
        self.clear_gradients()
        return given

    def reload(self) -> None:
        file = io.BytesIO()
        states = [] if self.optimizer is None else [self.optimizer.state_dict()]
        torch.save([self.world.model.state_dict(), *states], file)
        file.seek(0)
        model, *states = torch.load(file, weights_only=False)
        self.world.model.load_state_dict(model)
        if self.optimizer is not None:
            self.optimizer.load_state_dict(*states)

    def step(self, i: int) -> Any:
        self.world.step = i
        self.world.seen.clear()
        with iteration(self.world.model) if self.optimizer is None else nullcontext():
            if self.late and self.optimizer is not None and i == self.loop.join_at:
                self.optimizer.add_param_group({"params": self.late})
            if i == self.loop.fail_at:
                self.fail(i)
            given = self.descend(i)
            if i == self.loop.reload_at:
                self.reload()
            if self.loop.evaluate:
                with torch.no_grad():
                    given.append(self.forward(1000 + i, self.instructions).cpu())
        return given, list(self.world.seen)

    def state(self) -> Any:
        states = [] if self.optimizer is None else list(self.optimizer.state.values())
        return [self.world.state(), states, [parameter.grad for parameter in self.parameters]]


def _clamp_gradient(parameter: Tensor) -> None:
    assert parameter.grad is not None
    parameter.grad.clamp_(-1, 1)


def random_program(seed: int, device: str = "cpu", scale: int = 1) -> Program:
    """``scale`` widens all tensors in both directions."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    world = World(device, 128 * scale)
    drawn = instructions.KINDS + lasting.KINDS
    if world.on_cpu:
        drawn += instructions.KINDS_ON_CPU + lasting.KINDS_ON_CPU
    kinds, weights = zip(*drawn, strict=True)
    made = [kind(draw, world) for kind in draw.choices(kinds, weights, k=draw.randint(6, 30))]
    loop = _draw_loop(draw, scale, as_module=seed % 2 == 0)
    parameters = list(world.model.parameters())
    late = parameters[-3:] if loop.join_at != NEVER else []
    optimizer = None
    if draw.random() < 0.85:
        optimizer = optimizers.optimizer(
            draw, parameters[: len(parameters) - len(late)], world.on_cpu
        )
    training = Training(world, loop, made, optimizer, late)
    share = draw.choice((30, 40, 50, 65))
    return Program(world.model, training.step, training.state, share=share)
