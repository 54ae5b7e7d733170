"""Host memory as a tier: what leaves for it and comes back follows the device's order."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import psutil
import pytest
import torch

import teraio
from teraio.runtime.revision import Revision
from tests.device.sim import SimModule
from tests.drives import pass_for

MIB = 1 << 20
WEIGHT, WEIGHTS = 4 * MIB, 12
BUDGET = 24 * MIB


@pytest.fixture(autouse=True)
def _steady(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is measured on a busy machine decides nothing."""
    # A drive that seems to be as quick as host memory would be used beside it, or in its place.
    pass_for(monkeypatch, host=1e11, ssd=1e9)
    # An iteration may compute quicker than the profiled ones did. Those after it would be recorded,
    # and waited for.
    monkeypatch.setattr(Revision, "quicker", lambda *_: False)


@pytest.fixture
def model(sim: SimModule, spill: str) -> Iterator[torch.nn.ParameterList]:
    """Twice as large as its budget, with host memory for all of it."""
    made = torch.nn.ParameterList(
        torch.full((WEIGHT // 4,), float(i), device="sim") for i in range(WEIGHTS)
    )
    teraio.offload(made, memory_budget=BUDGET, ssd=spill, host_memory=2 * WEIGHTS * WEIGHT)
    yield made
    with contextlib.suppress(teraio.ConfigurationError):  # it may be back already
        teraio.restore(made)


def add_one(model: torch.nn.ParameterList) -> None:
    with teraio.iteration(model), torch.no_grad():
        for weight in model:
            weight.add_(1)


def values(model: torch.nn.ParameterList) -> list[float]:
    found = []
    for weight in model:
        assert (weight == weight[0]).all()
        found.append(weight[0].item())
    return found


def test_the_host_waits_for_no_copy(model: torch.nn.ParameterList, sim: SimModule) -> None:
    """With the device standing still, all ops of some iterations can be issued."""
    before, meanwhile = 6, 2  # the first ones are profiled or timed, so they are waited for
    for _ in range(before):
        add_one(model)
    with sim.paused():
        for _ in range(meanwhile):
            add_one(model)
    report = teraio.report(model)
    assert report.phase == "run"
    assert all(step.read_bytes > 0 and step.written_bytes > 0 for step in report.steps)
    assert values(model) == [i + before + meanwhile for i in range(WEIGHTS)]
    assert sim.peak() <= BUDGET
    teraio.restore(model)
    assert values(model) == [i + before + meanwhile for i in range(WEIGHTS)]


def test_what_dies_while_it_is_copied_keeps_its_memory_until_then(
    model: torch.nn.ParameterList, sim: SimModule
) -> None:
    add_one(model)
    with sim.paused(), torch.no_grad():
        made = [weight * 2 for weight in model]  # they leave for each other
        doubled = [one[0] for one in made[-1:]]
        del made
        others = [torch.full((WEIGHT // 4,), -1.0, device="sim") for _ in range(2)]
    assert all((other == -1).all() for other in others)
    assert doubled[0].item() == 2 * WEIGHTS
    assert values(model) == [i + 1 for i in range(WEIGHTS)]


def test_views_make_no_room(model: torch.nn.ParameterList, sim: SimModule) -> None:
    """What leaves is what the plan says, whatever looks at the weights in between."""
    torch.ones(2 * WEIGHT // 4, device="sim")  # no op has ever needed more
    for _ in range(8):
        with teraio.iteration(model), torch.no_grad():
            for weight in model:
                weight.add_(1)
                assert weight.view(-1).t().expand(2, -1).shape == (2, WEIGHT // 4)
    report = teraio.report(model)
    assert report.phase == "run" and report.plan is not None
    written = [step.written_bytes for step in report.steps[-3:]]
    assert written == [report.plan.written_bytes] * 3


def test_a_copy_whose_data_is_back_yields_its_place(sim: SimModule, spill: str) -> None:
    """Weights are back, unchanged, before what the plan has for their places leaves."""
    count = 6
    model = torch.nn.ParameterList(
        torch.full((WEIGHT // 4,), float(i), device="sim") for i in range(count)
    )
    budget, host = (2 * count + 3) * WEIGHT, 4 * WEIGHT
    teraio.offload(model, memory_budget=budget, ssd=spill, host_memory=host)

    def filled(value: float) -> list[torch.Tensor]:
        return [torch.full((WEIGHT // 4,), value, device="sim") for _ in range(2 * count)]

    written = []
    for _ in range(8):
        begin = psutil.Process().io_counters().write_bytes
        with teraio.iteration(model), torch.no_grad():
            used = [weight * 2 for weight in model]
            del used
            between = filled(1.0)  # beside what the weights leave
            for one in between:
                one.add_(1)
            del between, one
            made = [weight * 2 for weight in model]
            between = []  # beside what these leave
            for _ in range(count):
                between.append(model[0] + 1)
                for weight in model:
                    weight.sum()
            del between
            for weight, one in zip(model, made, strict=True):
                weight.add_(one)
            del made, one
        written.append(psutil.Process().io_counters().write_bytes - begin)
    plan = teraio.report(model).plan
    assert plan is not None
    by_tier = {use.tier: use.written_bytes for use in plan.tiers}
    assert by_tier["host"] > host  # its room is used more than once
    assert sum(written[-4:]) < 5 * by_tier["ssd"]  # where they don't yield, it is a third more
    assert values(model) == [i * 3.0**8 for i in range(count)]
    assert sim.peak() <= budget
    teraio.restore(model)
