"""A result that one stream makes again is complete before another stream reads it.

In: training on the simulated device whose backward pass reads saved results on two streams. Out:
the bits of training on one stream.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

import teraio
from tests.device.sim import SimModule
from tests.drives import pass_for_slow

STEPS = 8
DELAY_US = 1000


class TwoStreams(torch.autograd.Function):
    """Saves tanh of its operand; reads it on two streams, each after the forward pass alone."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, side: torch.Stream | None, made: Any) -> torch.Tensor:
        y = torch.tanh(x)
        ctx.save_for_backward(y)
        ctx.side, ctx.made = side, made
        if side is not None:
            made.record()
        return y * 1

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (y,) = ctx.saved_tensors
        one = y * y
        if ctx.side is None:
            return gradients[0] * (1 - one * y), None, None
        with ctx.side:
            ctx.made.wait()
            other = y * 1
            ctx.side.synchronize()
        return gradients[0] * (1 - one * other), None, None


class Layers(torch.nn.Module):
    def __init__(self, sim: SimModule, side: torch.Stream | None) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(128, 128) for _ in range(6))
        self.gates: list[torch.Tensor] = []
        self.sim, self.side = sim, side

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            gate = layer(x)
            self.gates.append(gate.detach())
            x = TwoStreams.apply(gate, self.side, self.sim.Event()).square()
        return x


def trained(sim: SimModule, spill: str | None) -> tuple[list[torch.Tensor], int]:
    torch.manual_seed(0)
    model = Layers(sim, None if spill is None else sim.Stream()).to("sim")
    if spill is not None:
        teraio.offload(model, memory_budget="24MiB", ssd=spill)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(STEPS):
        torch.manual_seed(step)
        sim.set_delay(DELAY_US if step >= STEPS - 2 else 0)
        model(torch.randn(4096, 128).to("sim")).mean().backward()
        model.gates.clear()
        optimizer.step()
        optimizer.zero_grad()
    count = 0
    if spill is not None:
        count = sum(step.recomputed_bytes for step in teraio.report(model).steps)
        teraio.restore(model)
    return [parameter.detach().cpu() for parameter in model.parameters()], count


def test_another_stream_sees_what_is_made_again(
    sim: SimModule, spill: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pass_for_slow(monkeypatch)
    expected, _ = trained(sim, None)
    results, count = trained(sim, spill)
    assert count > 0
    assert all(map(torch.equal, results, expected))
