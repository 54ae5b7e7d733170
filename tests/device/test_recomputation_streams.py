"""Results that another stream makes again than the one that made them at first.

In: training on the simulated device whose backward pass reads saved results on two streams. Out:
the bits of training on one stream.
"""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch

import teraio
from tests.device.sim import SimModule
from tests.drives import pass_for_slow

STEPS = 8
DELAY_US = 1000

# What the second stream shares with the first without telling it.
Hazard = Literal["result", "written operand", "small operand"]


class TwoStreams(torch.autograd.Function):
    """Saves a result; a second stream reads it after the forward pass alone.

    Either the first stream reads it as well; or it writes to what the result is made from; or it
    frees a small operand, and takes memory of that size.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        scale: torch.Tensor,
        side: torch.Stream | None,
        made: Any,
        hazard: Hazard,
    ) -> torch.Tensor:
        y = x * scale if hazard == "small operand" else torch.tanh(x)
        ctx.save_for_backward(y)
        ctx.side, ctx.made, ctx.hazard, ctx.x = side, made, hazard, x.detach()
        if side is not None:
            made.record()
        return torch.tanh(y) if hazard == "small operand" else y * 1

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (y,) = ctx.saved_tensors
        one = y * y if ctx.hazard == "result" else None
        if ctx.side is None:
            other = y * 1
            if ctx.hazard == "written operand":
                ctx.x.mul_(0)
        else:
            with ctx.side:
                ctx.made.wait()
                other = y * 1
                done = type(ctx.made)()
                done.record()
            if ctx.hazard == "written operand":
                ctx.x.mul_(0)
            if ctx.hazard == "small operand":
                for _ in range(4):
                    torch.full((128,), 1e6, device="sim")
            done.wait()
            other.record_stream(torch.accelerator.current_stream())
        slope = 1 - (torch.tanh(other) if one is None else one * other)
        return gradients[0] * slope, None, None, None, None


class Layers(torch.nn.Module):
    def __init__(self, sim: SimModule, side: torch.Stream | None, hazard: Hazard) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(128, 128) for _ in range(6))
        self.scale = torch.nn.Parameter(torch.linspace(0.5, 1.5, 128), requires_grad=False)
        self.gates: list[torch.Tensor] = []
        self.sim, self.side, self.hazard = sim, side, hazard

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            gate = layer(x)
            self.gates.append(gate.detach())
            x = TwoStreams.apply(gate, self.scale, self.side, self.sim.Event(), self.hazard)
            x = x.square()
        return x


def trained(
    sim: SimModule, hazard: Hazard, spill: str | None, *, two_streams: bool
) -> tuple[list[torch.Tensor], int]:
    torch.manual_seed(0)
    model = Layers(sim, sim.Stream() if two_streams else None, hazard).to("sim")
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
    sim.synchronize()
    sim.set_delay(0)
    count = 0
    if spill is not None:
        count = sum(step.recomputed_bytes for step in teraio.report(model).steps)
        teraio.restore(model)
    return [parameter.detach().cpu() for parameter in model.parameters()], count


@pytest.mark.parametrize("hazard", ["result", "written operand", "small operand"])
def test_streams_see_what_is_made_again_and_what_it_is_made_from(
    sim: SimModule, spill: str, monkeypatch: pytest.MonkeyPatch, hazard: Hazard
) -> None:
    pass_for_slow(monkeypatch)
    expected, _ = trained(sim, hazard, None, two_streams=False)
    without, _ = trained(sim, hazard, None, two_streams=True)
    assert all(map(torch.equal, without, expected))
    results, count = trained(sim, hazard, spill, two_streams=True)
    assert count > 0
    assert all(map(torch.equal, results, expected))
