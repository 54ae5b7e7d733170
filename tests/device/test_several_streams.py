"""A model whose layers compute on two streams trains under a budget to the same bits.

In: the simulated device, and CUDA where there is one. Out: parameters equal to those without
teraio, while transfers and kernels are delayed at random. Must not know: how storages move.
"""

from __future__ import annotations

import pytest
import torch

import teraio
from teraio.engine.testing import stress
from tests.device.test_offloading import delay_kernels, module_of, peak_bytes, start_anew

STEPS = 8
DELAY_US = 500


class Branches(torch.nn.Module):
    """Each layer adds what one stream and what the other makes of its input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ones = torch.nn.ModuleList(torch.nn.Linear(width, width) for _ in range(6))
        self.others = torch.nn.ModuleList(torch.nn.Linear(width, width) for _ in range(6))

    def forward(self, x: torch.Tensor, side: torch.Stream) -> torch.Tensor:
        main = torch.accelerator.current_stream()
        for one, other in zip(self.ones, self.others, strict=True):
            side.wait_stream(main)
            with side:
                branch = other(x).tanh().square()
            x.record_stream(side)
            x = one(x).sigmoid()
            main.wait_stream(side)
            branch.record_stream(main)
            x = x + branch
        return x


def trained(accelerator: str, budget: int | None, spill: str) -> tuple[list[torch.Tensor], int]:
    """Its parameters, and the most memory that it took."""
    start_anew(accelerator)
    scale = 1 if accelerator == "sim" else 4
    torch.manual_seed(0)
    model = Branches(256 * scale).to(accelerator)
    side = module_of(accelerator).Stream()
    if budget is not None:
        teraio.offload(model, memory_budget=budget, ssd=spill)
        stress(DELAY_US)
    delay_kernels(accelerator, DELAY_US // 10)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    try:
        for step in range(STEPS):
            torch.manual_seed(step)
            x = torch.randn(1024, 256 * scale).to(accelerator)
            model(x, side).square().mean().backward()
            optimizer.step()
            # Half of the gradients are the side stream's memory.
            side.wait_stream(torch.accelerator.current_stream())
            optimizer.zero_grad()
        peak = peak_bytes(accelerator)
        if budget is not None:
            assert teraio.report(model).steps[-1].read_bytes > 0
    finally:
        stress(0)
        delay_kernels(accelerator, 0)
        if budget is not None:
            teraio.restore(model)
    return [parameter.detach().cpu() for parameter in model.parameters()], peak


@pytest.mark.parametrize("share", [80, 50])
def test_layers_on_two_streams_train_to_the_same_bits(
    accelerator: str, share: int, spill: str
) -> None:
    expected, peak = trained(accelerator, None, spill)
    results, most = trained(accelerator, peak * share // 100, spill)
    assert most <= peak * share // 100
    assert all(map(torch.equal, results, expected))


def test_an_iteration_is_recorded_whose_last_op_is_done_before_others(
    accelerator: str, spill: str
) -> None:
    """It prefetches on a stream that nothing waits for."""
    start_anew(accelerator)
    model = torch.nn.Sequential(*(torch.nn.Linear(256, 256) for _ in range(2))).to(accelerator)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    side = module_of(accelerator).Stream()
    teraio.offload(model, memory_budget="64MiB", ssd=spill)
    delay_kernels(accelerator, DELAY_US // 5)
    try:
        for _ in range(3):
            with teraio.iteration(model):
                model(torch.ones(64, 256, device=accelerator)).sum().backward()
                optimizer.step()
                optimizer.zero_grad()
                with side:
                    torch.ones(64, 256, device=accelerator).add_(1)
        trace = teraio.report(model).trace
    finally:
        delay_kernels(accelerator, 0)
        teraio.restore(model)
    assert trace is not None
    assert sum(op.duration_ns for op in trace.ops) > 0
