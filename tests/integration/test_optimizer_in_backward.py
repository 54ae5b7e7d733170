"""Steps in the backward pass give the same bits as ordinary ones, or one clear error.

In: cases of tests.integration.training, and loops of a small model. Out: equality of losses,
parameters and optimizer states; errors for all that needs gradients after the backward pass.
"""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import teraio
from teraio.engine.backward_step import _SEPARATE, UsedGradient
from tests.integration.training import NO_LIMIT, OPTIMIZERS, Case, Outcome, Training, plain

MIB = 1 << 20
CASES = [
    *(Case(model) for model in ("llama", "gpt2", "t5", "mixtral", "vit")),
    *(Case("llama", optimizer) for optimizer in OPTIMIZERS if optimizer != "adamw"),
    Case("llama", "adamw_foreach", frozenset({"scheduler", "tied", "evaluate"})),
    Case("gpt2", "adamw_fused", frozenset({"dropout", "autocast", "checkpointing"})),
    Case("t5", "adafactor", frozenset({"generate", "scheduler", "dropout"})),
    Case("mixtral", "sgd", frozenset({"last_batch", "frozen"})),
]


def stepped_in_backward(case: Case, budget: int, spill: str) -> Outcome:
    training = Training(case)
    teraio.offload(training.model, memory_budget=budget, ssd=spill, optimizer_in_backward=True)
    training.run()
    training.outcome.report = teraio.report(training.model)
    teraio.restore(training.model)
    training.take_digests()
    return training.outcome


@pytest.mark.parametrize("case", CASES, ids=str)
def test_results_are_equal_with_and_without_a_limit(case: Case, spill: str) -> None:
    free = stepped_in_backward(case, NO_LIMIT, spill)
    assert free.numbers() == plain(case).numbers()
    assert free.report is not None
    budget = max(step.peak_bytes for step in free.report.steps) * 2 // 5
    limited = stepped_in_backward(case, budget, spill)
    assert limited.numbers() == plain(case).numbers()
    assert limited.report is not None and limited.report.plan is not None
    assert limited.report.plan.moves
    assert max(step.peak_bytes for step in limited.report.steps) <= budget


# ------------------------------------------------------------ a small model


def layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(128, 128) for _ in range(6)))


Loop = Callable[[nn.Module], None]


def offloaded(model: nn.Module, spill: str, budget: int = NO_LIMIT) -> nn.Module:
    return teraio.offload(model, memory_budget=budget, ssd=spill, optimizer_in_backward=True)


def backward(model: nn.Module) -> torch.Tensor:
    loss = model(torch.randn(4, 128)).square().mean()
    loss.backward()
    return loss


def assert_loop_is_equal(loop: Loop, spill: str, make: Callable[[], nn.Module] = layers) -> None:
    reference = make()
    torch.manual_seed(1)
    loop(reference)
    model = offloaded(make(), spill)
    torch.manual_seed(1)
    loop(model)
    teraio.restore(model)
    for one, other in zip(model.parameters(), reference.parameters(), strict=True):
        assert torch.equal(one, other)
        assert one.grad is None


@pytest.mark.parametrize("kind", _SEPARATE, ids=lambda kind: kind.__name__)
def test_every_optimizer_that_is_named_steps_its_parameters_one_by_one(
    kind: type[torch.optim.Optimizer], spill: str
) -> None:
    def loop(model: nn.Module) -> None:
        matrices = [p for p in model.parameters() if p.dim() == 2]
        optimizer = kind(matrices if kind.__name__ == "Muon" else model.parameters())
        for _ in range(4):
            backward(model)
            optimizer.step()
            model.zero_grad()

    assert_loop_is_equal(loop, spill)


def test_groups_with_settings_of_their_own_and_late_parameters_are_stepped_alike(
    spill: str,
) -> None:
    def loop(model: nn.Module) -> None:
        model[0].requires_grad_(False)
        parts = [
            {"params": layer.parameters(), "lr": 0.01 * (i + 1)}
            for i, layer in enumerate(model[1:4])
        ]
        optimizer = torch.optim.SGD(parts, momentum=0.9, weight_decay=0.1)
        for step in range(8):
            if step == 3:
                optimizer.add_param_group({"params": model[5].parameters(), "lr": 0.05})
            if step == 5:
                model[0].requires_grad_(True)
                optimizer.add_param_group({"params": model[0].parameters(), "lr": 0.02})
            backward(model)
            optimizer.step()
            model.zero_grad()

    assert_loop_is_equal(loop, spill)


def test_several_optimizers_with_schedulers_step_their_own_parameters(spill: str) -> None:
    def loop(model: nn.Module) -> None:
        optimizers = [
            torch.optim.AdamW(model[:3].parameters(), lr=1e-2),
            torch.optim.SGD(model[3:].parameters(), lr=torch.tensor(1e-2)),
        ]
        schedulers = [torch.optim.lr_scheduler.StepLR(one, 2, 0.5) for one in optimizers]
        for _ in range(7):
            backward(model)
            for optimizer in optimizers:
                optimizer.step()
            for scheduler in schedulers:
                scheduler.step()
            for optimizer in optimizers:
                optimizer.zero_grad()

    assert_loop_is_equal(loop, spill)


def test_a_checkpoint_of_the_optimizer_can_be_loaded_on_the_way(spill: str) -> None:
    def loop(model: nn.Module) -> None:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        saved: dict[str, Any] = {}
        for step in range(8):
            backward(model)
            optimizer.step()
            optimizer.zero_grad()
            if step == 3:
                saved = copy.deepcopy(optimizer.state_dict())
            if step == 5:
                optimizer.load_state_dict(saved)

    assert_loop_is_equal(loop, spill)


class Branches(nn.Module):
    """Uses one of two layers, by turns."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.parts = nn.ModuleList(nn.Linear(128, 128) for _ in range(3))
        self.turn = 0

    def forward(self, data: torch.Tensor) -> torch.Tensor:
        self.turn += 1
        return self.parts[2](self.parts[self.turn % 2](data))


def test_parameters_that_get_no_gradient_in_an_iteration_are_not_stepped(spill: str) -> None:
    def loop(model: nn.Module) -> None:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        for _ in range(7):
            backward(model)
            optimizer.step()
            optimizer.zero_grad()

    assert_loop_is_equal(loop, spill, Branches)


def test_a_new_optimizer_takes_over_from_one_that_is_gone(spill: str) -> None:
    def loop(model: nn.Module) -> None:
        for kind in (torch.optim.SGD, torch.optim.AdamW):
            optimizer = kind(model.parameters(), lr=1e-2)
            for _ in range(3):
                backward(model)
                optimizer.step()
                optimizer.zero_grad()
            del optimizer
            gc.collect()

    assert_loop_is_equal(loop, spill)


def test_gradients_die_in_the_backward_pass_and_the_peak_is_lower(spill: str) -> None:
    def run(in_backward: bool) -> teraio.RunReport:
        model = layers()
        teraio.offload(model, memory_budget=NO_LIMIT, ssd=spill, optimizer_in_backward=in_backward)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(4):
            backward(model)
            optimizer.step()
            optimizer.zero_grad()
        report = teraio.report(model)
        teraio.restore(model)
        return report

    ordinary, report = run(False), run(True)
    assert report.trace is not None
    last = max(i for i, op in enumerate(report.trace.ops) if op.phase == "backward")
    gradients = [s for s in report.trace.storages if s.kind == "gradient"]
    assert sorted(s.name for s in gradients) == sorted(f"{i}.weight:grad" for i in range(6))
    assert all(s.birth is not None and s.death is not None for s in gradients)
    alive = [
        sum(s.birth <= op and op <= s.death for s in gradients)  # type: ignore[operator]
        for op in range(len(report.trace.ops))
    ]
    assert max(alive) <= 2
    assert any(op.phase == "optimizer" for op in report.trace.ops[:last])
    six_gradients = 6 * 128 * 128 * 4
    saved = ordinary.steps[-1].peak_bytes - report.steps[-1].peak_bytes
    assert saved >= six_gradients // 2


def test_neither_model_nor_optimizer_is_kept_alive(spill: str) -> None:
    model = offloaded(layers(), spill)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        backward(model)
        optimizer.step()
        optimizer.zero_grad()
    references = [weakref.ref(model), weakref.ref(optimizer), weakref.ref(model[0].weight)]
    del model, optimizer
    gc.collect()
    assert [reference() for reference in references] == [None, None, None]


# ------------------------------------------------------------ what can't work


def clip_norm(model: nn.Module, _optimizer: torch.optim.Optimizer) -> None:
    backward(model)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)


def clip_norm_foreach(model: nn.Module, _optimizer: torch.optim.Optimizer) -> None:
    backward(model)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)


def clip_value(model: nn.Module, _optimizer: torch.optim.Optimizer) -> None:
    backward(model)
    torch.nn.utils.clip_grad_value_(model.parameters(), 1.0)


def read(model: nn.Module, _optimizer: torch.optim.Optimizer) -> None:
    backward(model)
    print(model[0].weight.grad.abs().max())


def accumulate(model: nn.Module, _optimizer: torch.optim.Optimizer) -> None:
    backward(model)
    backward(model)


def backward_again(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    backward(model)
    optimizer.zero_grad()
    backward(model)


def zero_before_step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    backward(model)
    optimizer.zero_grad()


def replace(model: nn.Module, _optimizer: torch.optim.Optimizer) -> None:
    backward(model)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)


def change_rate(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    backward(model)
    optimizer.param_groups[0]["lr"] *= 0.5


@pytest.mark.parametrize(
    ("between", "message"),
    [
        (clip_norm, r"gradient of \d\.\w+ was used by the optimizer.*Clipping"),
        (clip_norm_foreach, r"gradient of \d\.\w+ was used by the optimizer.*Clipping"),
        (clip_value, r"gradient of \d\.\w+ was used by the optimizer.*Clipping"),
        (read, r"gradient of 0\.weight was used by the optimizer.*reads \.grad"),
        (accumulate, r"gives \d\.\w+ another gradient.*accumulated"),
        (backward_again, r"second backward pass gives \d\.\w+"),
        (zero_before_step, r"gradient of \d\.\w+ was taken away or replaced"),
        (replace, r"gradient of \d\.\w+ was taken away or replaced"),
        (change_rate, r"^lr of the optimizer changed between backward\(\) and step\(\)"),
    ],
)
def test_what_needs_gradients_after_backward_is_noticed(
    between: Callable[[nn.Module, torch.optim.Optimizer], None], message: str, spill: str
) -> None:
    model = offloaded(layers(), spill)
    optimizer = torch.optim.AdamW(model.parameters())
    backward(model)
    optimizer.step()
    optimizer.zero_grad()
    with pytest.raises(teraio.ConfigurationError, match=message) as caught:
        between(model, optimizer)
        optimizer.step()
    assert "optimizer_in_backward=True out of teraio.offload" in str(caught.value)
    teraio.restore(model)
    assert not any(isinstance(parameter.grad, UsedGradient) for parameter in model.parameters())


@pytest.mark.parametrize("when", ["every", "some"])
def test_gradients_that_are_kept_from_one_iteration_to_the_next_are_noticed(
    when: str, spill: str
) -> None:
    model = offloaded(Branches(), spill)
    optimizer = torch.optim.AdamW(model.parameters())
    with pytest.raises(teraio.ConfigurationError, match=r"zero_grad\(\)"):
        for step in range(4):
            backward(model)
            optimizer.step()
            if when == "some" and step < 2:
                optimizer.zero_grad()
    teraio.restore(model)


def test_zeros_instead_of_no_gradients_are_noticed(spill: str) -> None:
    """0 + -0 is 0, so a gradient that is added to zeros may have other bits."""
    model = offloaded(layers(), spill)
    optimizer = torch.optim.AdamW(model.parameters())
    backward(model)
    optimizer.step()
    with pytest.raises(teraio.ConfigurationError, match=r"zero_grad\(set_to_none=False\)"):
        optimizer.zero_grad(set_to_none=False)
    teraio.restore(model)


@pytest.mark.parametrize("which", ["pre", "post"])
def test_hooks_of_the_step_that_read_gradients_are_noticed(which: str, spill: str) -> None:
    model = offloaded(layers(), spill)
    optimizer = torch.optim.AdamW(model.parameters())

    def hook(*_: Any) -> None:
        torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])

    getattr(optimizer, f"register_step_{which}_hook")(hook)
    with pytest.raises(teraio.ConfigurationError, match="was used by the optimizer"):
        for _ in range(2):
            backward(model)
            optimizer.step()
            optimizer.zero_grad()
    teraio.restore(model)


def test_a_closure_is_refused(spill: str) -> None:
    model = offloaded(layers(), spill)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(teraio.ConfigurationError, match="closure"):
        optimizer.step(lambda: float(backward(model)))
    teraio.restore(model)


def test_no_closure_is_none(spill: str) -> None:
    """Wrappers of optimizers pass None on."""
    model = offloaded(layers(), spill)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        backward(model)
        optimizer.step(None)
        optimizer.zero_grad()
    assert all(parameter.grad is None for parameter in model.parameters())
    teraio.restore(model)


class NormedSGD(torch.optim.SGD):
    """Scales the gradients of all parameters by their common norm."""

    def step(self, closure: Any = None) -> None:
        torch.nn.utils.clip_grad_norm_(self.param_groups[0]["params"], 1.0)
        super().step()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: torch.optim.LBFGS(p), "LBFGS is not known to step each parameter by itself"),
        (lambda p: NormedSGD(p, lr=0.1), "NormedSGD is not known to step each parameter by itself"),
        (lambda p: torch.optim.SGD(p, lr=0.1, differentiable=True), "differentiable"),
    ],
)
def test_optimizers_that_may_look_at_several_parameters_are_refused(
    make: Callable[[Iterator[nn.Parameter]], torch.optim.Optimizer], message: str, spill: str
) -> None:
    model = offloaded(layers(), spill)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer = make(model.parameters())
    backward(model)
    with pytest.raises(teraio.ConfigurationError, match=message):
        optimizer.step()
    assert all(map(torch.equal, before, model.parameters()))
    teraio.restore(model)


def test_an_optimizer_of_master_weights_is_refused(spill: str) -> None:
    model = offloaded(layers().to(torch.bfloat16), spill)
    masters = [parameter.detach().float() for parameter in model.parameters()]
    optimizer = torch.optim.AdamW(masters)
    with pytest.raises(teraio.ConfigurationError, match=r"copies of the parameters \(\d\.\w+:m"):
        optimizer.step()
    teraio.restore(model)


def test_a_scaler_is_refused_before_anything_is_stepped(spill: str) -> None:
    model = offloaded(layers(), spill)
    scaler = torch.amp.GradScaler("cpu")
    with pytest.raises(teraio.ConfigurationError, match="GradScaler"):
        scaler.scale([torch.ones(()), (model(torch.ones(4, 128)).sum(),)])
    with pytest.raises(teraio.ConfigurationError, match="GradScaler"):
        scaler.scale(model[0].bias)
    with pytest.raises(teraio.ConfigurationError, match="GradScaler"):
        scaler.scale(reentrant(model)(torch.ones(4, 128).requires_grad_()).sum())
    with pytest.raises(teraio.ConfigurationError, match="GradScaler"):
        scaler.scale(model(torch.ones(4, 128)).sum() for _ in range(2))
    disabled = torch.amp.GradScaler("cpu", enabled=False)
    assert disabled.scale(model(torch.ones(4, 128)).sum()).requires_grad
    teraio.restore(model)
    assert scaler.scale(model(torch.ones(4, 128)).sum()).requires_grad


def test_a_scaler_of_another_model_is_not_refused(spill: str) -> None:
    model, other = offloaded(layers(), spill), layers()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    scaler.scale(other(torch.ones(4, 128)).sum()).backward()
    assert scaler.scale(torch.ones(())) == 2
    teraio.restore(model)


def reentrant(model: nn.Sequential) -> Loop:
    """Calls its layers in checkpoints whose backward passes are within the one of the whole."""

    def call(x: torch.Tensor) -> torch.Tensor:
        for layer in model:
            x = checkpoint(layer, x, use_reentrant=True)
        return x

    return call


@pytest.mark.parametrize("in_checkpoints", [False, True])
@pytest.mark.parametrize("ended_by", [KeyboardInterrupt, ArithmeticError])
def test_a_loop_goes_on_after_a_backward_pass_that_was_interrupted(
    ended_by: type[BaseException],
    in_checkpoints: bool,
    spill: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def interrupt(_: torch.Tensor) -> None:
        if interrupts:
            raise ended_by

    interrupts: list[bool] = []
    model = offloaded(layers(), spill)
    model[3].weight.register_hook(interrupt)
    call = reentrant(model) if in_checkpoints else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(6):
        optimizer.zero_grad()
        interrupts[:] = [True] * (step in (2, 3))
        before = [parameter.detach().clone() for parameter in model.parameters()]
        try:
            call(torch.randn(4, 128).requires_grad_()).square().mean().backward()
        except ended_by:
            assert list(map(torch.equal, before, model.parameters())) == [True] * 7 + [False] * 5
            continue
        optimizer.step()
        assert not any(map(torch.equal, before, model.parameters()))
    teraio.restore(model)
    assert caplog.text.count("an exception ended a backward pass") == 2


def test_a_parameter_of_two_optimizers_is_refused(spill: str) -> None:
    model = offloaded(layers(), spill)
    one = torch.optim.SGD(model.parameters(), lr=0.1)
    two = torch.optim.SGD(model[0].parameters(), lr=0.1)
    backward(model)
    one.step()
    with pytest.raises(teraio.ConfigurationError, match=r"0\.weight belongs to two optimizers"):
        two.step()
    teraio.restore(model)


def test_a_model_without_the_argument_keeps_ordinary_steps_beside_one_with_it(spill: str) -> None:
    fast, ordinary = offloaded(layers(), spill), teraio.offload(layers(), ssd=spill)
    reference = layers()
    optimizers = [torch.optim.AdamW(model.parameters()) for model in (fast, ordinary, reference)]
    for step in range(4):
        for model, optimizer in zip((fast, ordinary, reference), optimizers, strict=True):
            torch.manual_seed(step)
            backward(model)
            if model is ordinary:
                assert float(model[0].weight.grad.abs().max()) > 0
            optimizer.step()
            optimizer.zero_grad()
    teraio.restore(fast)
    teraio.restore(ordinary)
    for parameters in zip(*(m.parameters() for m in (fast, ordinary, reference)), strict=True):
        assert torch.equal(parameters[0], parameters[2])
        assert torch.equal(parameters[1], parameters[2])


def test_a_model_that_is_restored_before_another_takes_ordinary_steps(spill: str) -> None:
    first, other, reference = offloaded(layers(), spill), offloaded(layers(), spill), layers()
    optimizers = [torch.optim.AdamW(model.parameters()) for model in (first, reference)]
    for step in range(4):
        for model, optimizer in zip((first, reference), optimizers, strict=True):
            torch.manual_seed(step)
            backward(model)
            if step == 2 and model is first:
                teraio.restore(first)  # its parameters are stepped already
            elif step == 3:
                nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
            optimizer.zero_grad()
    teraio.restore(other)
    assert all(map(torch.equal, first.parameters(), reference.parameters()))


def test_gradients_are_ordinary_after_the_end_though_the_optimizer_is_gone(spill: str) -> None:
    model = offloaded(layers(), spill)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        backward(model)
        optimizer.step()
    del optimizer
    gc.collect()
    teraio.restore(model)
    assert all(parameter.grad is None for parameter in model.parameters())
    backward(model)
    assert all(type(parameter.grad) is torch.Tensor for parameter in model.parameters())
