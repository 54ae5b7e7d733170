"""Models without data, and steps in the backward pass, on a device that is not the CPU.

Its backward pass runs on a thread of its own, its kernels later than their ops.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

import teraio
import teraio._C as _C
from teraio.engine.backward_step import BackwardStep
from teraio.engine.materialize import materialize, stored_tensors, weight_files
from teraio.engine.testing import stress
from tests.device.sim import SimModule
from tests.device.test_offloading import (
    assert_equal,
    peak_bytes,
    placed,
    plain,
    start_anew,
)
from tests.integration.training import Case, Training

MIB = 1 << 20


def network() -> nn.Sequential:
    layers = [nn.Linear(64, 64) for _ in range(4)]
    layers[3].weight = layers[1].weight
    return nn.Sequential(*layers, nn.BatchNorm1d(64))


def without_data() -> nn.Sequential:
    with torch.device("meta"):
        return network()


def same(one: nn.Module, other: nn.Module) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return list(mine) == list(theirs) and all(
        torch.equal(mine[key].cpu(), theirs[key].cpu()) for key in mine
    )


def test_tensors_are_initialised_on_the_device_with_its_own_random_numbers(sim: SimModule) -> None:
    torch.manual_seed(3)
    with torch.device("sim"):
        reference = network()
    model, handed_over = without_data(), []
    torch.manual_seed(3)
    materialize(model, torch.device("sim"), None, lambda _, name: handed_over.append(name))
    assert {parameter.device.type for parameter in model.parameters()} == {"sim"}
    assert same(model, reference)
    assert {name for name, _ in model.named_parameters()} <= set(handed_over)


def test_files_are_read_to_the_device_piece_by_piece(
    sim: SimModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = network()
    state = {name: tensor.clone() for name, tensor in reference.state_dict().items()}
    save_file(state, tmp_path / "model.safetensors")
    monkeypatch.setattr(weight_files, "_PIECE_BYTES", 1000)
    sim.set_delay(200)
    model = without_data()
    materialize(model, torch.device("sim"), stored_tensors(tmp_path), lambda *_: None)
    assert {parameter.device.type for parameter in model.parameters()} == {"sim"}
    assert same(model, reference)


def trained(train: Callable[[nn.Module], None]) -> nn.Module:
    torch.manual_seed(3)
    model = network().to("sim")
    torch.manual_seed(4)
    train(model)
    return model


@pytest.mark.parametrize("foreach", [False, True])
def test_steps_on_the_thread_of_the_backward_pass_give_the_same_bits(
    foreach: bool, sim: SimModule
) -> None:
    def loop(model: nn.Module) -> None:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, foreach=foreach)
        for _ in range(5):
            model(torch.randn(8, 64, device="sim")).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()

    def loop_in_backward(model: nn.Module) -> None:
        steps = BackwardStep()
        steps.add({parameter: name for name, parameter in model.named_parameters()})
        hook = register_optimizer_step_pre_hook(steps.before_step)
        try:
            loop(model)
        finally:
            hook.remove()
            steps.close()

    sim.set_delay(50)
    assert same(trained(loop_in_backward), trained(loop))


MIB = 1 << 20


def deep(width: int) -> nn.Module:
    return nn.Sequential(*(nn.Linear(width, width) for _ in range(16)))


def losses_of(model: nn.Module, device: str) -> list[str]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    found = []
    for _ in range(4):
        loss = model(torch.ones(4, model[0].in_features, device=device)).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.item().hex())
    return found


@pytest.mark.parametrize("origin", ["meta", "cpu", "files"])
def test_a_model_larger_than_the_budget_comes_to_the_device_and_trains(
    origin: str,
    accelerator: str,
    spill: str,
    tmp_path: Path,
) -> None:
    """Twice as many parameters as the budget has bytes for: 16 MiB, or 256 on CUDA."""
    width, budget = (512, 8 * MIB) if accelerator == "sim" else (2048, 128 * MIB)
    torch.manual_seed(3)
    with torch.device(accelerator if origin == "meta" else "cpu"):
        reference = deep(width)
    with torch.device("cpu" if origin == "cpu" else "meta"):
        torch.manual_seed(3)
        model = deep(width)
    weights = None
    if origin == "files":
        weights = tmp_path / "model.safetensors"
        save_file(reference.state_dict(), weights)
    expected = losses_of(reference.to(accelerator), accelerator)
    parameters = list(model.parameters())
    del reference
    start_anew(accelerator)
    torch.manual_seed(3)
    teraio.offload(model, memory_budget=budget, ssd=spill, device=accelerator, weights=weights)
    try:
        stress(500)
        assert losses_of(model, accelerator) == expected
        assert peak_bytes(accelerator) <= budget
        assert list(map(id, model.parameters())) == list(map(id, parameters))
    finally:
        stress(0)
        teraio.restore(model)


@pytest.mark.parametrize(
    "case",
    [Case("llama"), Case("gpt2", "adamw_foreach", frozenset({"dropout", "scheduler"}))],
    ids=str,
)
def test_steps_in_the_backward_pass_are_equal_under_a_budget(
    case: Case,
    accelerator: str,
    spill: str,
) -> None:
    case = placed(case, accelerator)
    expected, peak = plain(case)
    start_anew(accelerator)
    training = Training(case)
    budget = peak * 2 // 5
    teraio.offload(training.model, memory_budget=budget, ssd=spill, optimizer_in_backward=True)
    try:
        stress(500)
        training.run()
        assert teraio.report(training.model).phase == "run"
        assert peak_bytes(accelerator) <= budget
    finally:
        stress(0)
        teraio.restore(training.model)
    training.take_digests()
    assert_equal(training.outcome, expected)


def test_host_memory_is_measured_where_the_model_leaves_little(sim: SimModule, spill: str) -> None:
    model = torch.nn.ParameterList(torch.ones(MIB // 4, device="sim") for _ in range(11))
    teraio.offload(model, memory_budget=12 * MIB, ssd=spill, host_memory=8 * MIB)
    assert "host" in {tier.name for tier in teraio.report(model).hardware.tiers}
    assert sim.allocated() <= 12 * MIB
    teraio.restore(model)


def test_a_run_that_can_not_begin_leaves_nothing_behind(
    sim: SimModule, spill: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(nbytes: int) -> None:
        raise RuntimeError("no speed")

    model = torch.nn.ParameterList(torch.ones(MIB // 4, device="sim") for _ in range(4))
    with monkeypatch.context() as patched:
        patched.setattr(_C, "host_speeds", fail)
        with pytest.raises(RuntimeError, match="no speed"):
            teraio.offload(model, memory_budget=12 * MIB, ssd=spill, host_memory=8 * MIB)
    assert model[0].untyped_storage().data_ptr()  # no guard
    torch.ones(24 * MIB // 4, device="sim")  # no limit
    teraio.offload(model, memory_budget=12 * MIB, ssd=spill)
    teraio.restore(model)
