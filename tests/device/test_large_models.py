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

from teraio.engine.backward_step import BackwardStep
from teraio.engine.materialize import materialize, stored_tensors, weight_files
from tests.device.sim import SimModule


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
        steps.add({id(parameter): name for name, parameter in model.named_parameters()})
        hook = register_optimizer_step_pre_hook(steps.before_step)
        try:
            loop(model)
        finally:
            hook.remove()
            steps.close()

    sim.set_delay(50)
    assert same(trained(loop_in_backward), trained(loop))
