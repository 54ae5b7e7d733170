"""Runs that begin or end while streams compute, and memory that then changes its owner.

In: programs with two streams on the simulated device, which tell each other what PyTorch asks them
to. Out: their bits without teraio.
"""

from __future__ import annotations

import gc

import pytest
import torch

import teraio
from teraio.engine import testing
from tests.device.sim import SimModule
from tests.device.test_recomputation_streams import STEPS, Layers
from tests.drives import pass_for_slow

WIDTH = 512
BUDGET = "16MiB"


def linear(sim: SimModule) -> torch.nn.Linear:
    torch.manual_seed(0)
    return torch.nn.Linear(WIDTH, WIDTH, bias=False).to("sim")


def test_what_another_stream_writes_as_a_run_begins_leaves_when_it_is_written(
    sim: SimModule, spill: str
) -> None:
    main, side = torch.accelerator.current_stream(), sim.Stream()
    model = linear(sim)
    sim.synchronize()
    side.wait_stream(main)
    sim.set_delay(100_000)
    with side, torch.no_grad():
        for value in range(31):  # for longer than a run takes to begin
            model.weight.fill_(value)
    teraio.offload(model, memory_budget=BUDGET, ssd=spill)
    testing.send_away(model.weight)
    sim.set_delay(0)
    main.wait_stream(side)
    assert testing.state(model.weight) == "away"
    assert (model.weight.detach() * 1).cpu().unique().tolist() == [30.0]
    teraio.restore(model)


def test_memory_from_before_the_run_is_not_used_again_before_other_streams_have_read_it(
    sim: SimModule, spill: str
) -> None:
    """It goes back to the stream that it was taken on, which is none of the run's."""
    main, side = torch.accelerator.current_stream(), sim.Stream()
    with side:
        model = linear(sim)
    main.wait_stream(side)
    sim.synchronize()
    expected = model.weight.detach().cpu()
    teraio.offload(model, memory_budget=BUDGET, ssd=spill, host_memory="64MiB")
    with sim.paused(main):
        doubled = model.weight.detach() * 2
        testing.send_away(model.weight)
        assert testing.state(model.weight) == "away"
        with side:
            other = torch.ones(WIDTH, WIDTH, device="sim") * 3
        side.synchronize()
    sim.synchronize()
    assert torch.equal(doubled.cpu(), expected * 2)
    assert torch.equal(model.weight.detach().cpu(), expected)
    assert other.unique().tolist() == [3.0]
    teraio.restore(model)


def test_memory_of_another_stream_that_the_program_has_after_the_run(
    sim: SimModule, spill: str
) -> None:
    """It takes it for that of its own stream, which frees it."""
    main, side = torch.accelerator.current_stream(), sim.Stream()
    model = linear(sim)
    sim.synchronize()
    teraio.offload(model, memory_budget=BUDGET, ssd=spill)
    testing.send_away(model.weight)
    side.wait_stream(main)
    with side:
        model.weight.detach().sum()  # which brings it back
    main.wait_stream(side)
    sim.synchronize()
    teraio.restore(model)
    expected = model.weight.detach().cpu() * 2
    with sim.paused(main):
        doubled = model.weight.detach() * 2
        model.weight = None  # type: ignore[assignment]
        gc.collect()
        with side:
            torch.zeros(WIDTH, WIDTH, device="sim")
        side.synchronize()
    assert torch.equal(doubled.cpu(), expected)


def test_results_are_made_again_after_what_they_are_made_from_as_a_run_ends(
    sim: SimModule, spill: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pass_for_slow(monkeypatch)

    def trained(limited: bool) -> list[torch.Tensor]:
        gc.collect()
        sim.reset()
        torch.manual_seed(0)
        main, side = torch.accelerator.current_stream(), sim.Stream()
        model = Layers(sim, None, "result").to("sim")
        if limited:
            teraio.offload(model, memory_budget="24MiB", ssd=spill)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for step in range(STEPS):
            torch.manual_seed(step)
            x = torch.randn(4096, 128).to("sim")
            if step < STEPS - 1:
                loss = model(x).mean()
            else:
                sim.synchronize()
                side.wait_stream(main)
                sim.set_delay(40_000)
                with side:
                    loss = model(x).mean()
                if limited:
                    plan = teraio.report(model).plan
                    assert plan is not None and plan.recomputations
                    teraio.restore(model)
                sim.set_delay(0)
                main.wait_stream(side)
            loss.backward()
            model.gates.clear()
            optimizer.step()
            optimizer.zero_grad()
        sim.synchronize()
        return [parameter.detach().cpu() for parameter in model.parameters()]

    assert all(map(torch.equal, trained(limited=False), trained(limited=True)))
