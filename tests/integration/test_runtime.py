"""The life of a run: what is profiled, planned, and planned again."""

from __future__ import annotations

import time

import torch
from torch import nn

import teraio
from teraio.engine.testing import stress


class SlowAtTimes(nn.Module):
    """A stack of layers whose forward pass waits ``delay_s`` when it is called."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(nn.Linear(128, 128) for _ in range(8)))
        self.delay_s = 0.0

    def forward(self, data: torch.Tensor) -> torch.Tensor:
        time.sleep(self.delay_s)
        return self.layers(data)


def test_a_profile_of_a_slow_iteration_is_put_right_by_the_next_quicker_one(spill: str) -> None:
    torch.manual_seed(0)
    model = teraio.offload(SlowAtTimes(), memory_budget="1MiB", ssd=spill)
    optimizer = torch.optim.AdamW(model.parameters())
    ideals = []
    for delay_s in (0.0, 2.0, 0.0, 0.0):
        model.delay_s = delay_s
        model(torch.randn(4, 128)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        ideals.append(teraio.report(model).ideal_s)
    report = teraio.report(model)
    assert report.plan is not None and report.plan.moves
    assert ideals[0] is None
    assert ideals[1] is not None and ideals[1] > 2.0
    assert report.ideal_s is not None and report.ideal_s < 1.0
    assert report.trace is not None
    assert report.ideal_s == sum(op.duration_ns for op in report.trace.ops) * 1e-9
    teraio.restore(model)


def test_a_step_report_names_the_ops_that_waited_and_for_what(spill: str) -> None:
    torch.manual_seed(0)
    model = teraio.offload(SlowAtTimes(), memory_budget="1MiB", ssd=spill)
    optimizer = torch.optim.AdamW(model.parameters())
    stress(20_000)  # transfers so slow that ops must wait
    for _ in range(5):
        model(torch.randn(4, 128)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    report = teraio.report(model)
    stress(0)
    teraio.restore(model)
    assert report.trace is not None
    step = report.steps[-1]
    assert step.stalls
    assert sum(stall.seconds for stall in step.stalls) <= step.stall_s + 1e-6
    assert list(step.stalls) == sorted(step.stalls, key=lambda stall: -stall.seconds)
    for stall in step.stalls:
        assert stall.op <= len(report.trace.ops)
        if stall.waits_for == "data" and stall.storage is not None:
            assert stall.op in report.trace.storages[stall.storage].uses
