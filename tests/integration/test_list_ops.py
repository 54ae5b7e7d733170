"""Optimizers that step all parameters by ops on lists get them in parts, with the same numbers.

In: PyTorch's optimizers. Out: equal parameters and states, few bytes at once, little traffic. Must
not know: plans.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import FunctionType
from typing import Any

import pytest
import torch
from torch.jit._builtins import _get_builtin_table
from torch.optim import Optimizer, sgd

import teraio
from teraio.engine import list_ops

COUNT, ROWS, COLUMNS = 8, 64, 96
TENSOR_BYTES = ROWS * COLUMNS * 4

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "AdamW": {"foreach": True},
    "AdamW fused": {"fused": True},
    "Adam": {"foreach": True, "amsgrad": True},
    "SGD": {"foreach": True, "lr": 0.1, "momentum": 0.9},
    "SGD plain": {"foreach": True, "lr": 0.1},
    "SGD fused": {"fused": True, "lr": 0.1, "momentum": 0.9},
    "Adagrad": {"foreach": True},
    "Adagrad fused": {"fused": True},
    "RMSprop": {"foreach": True, "momentum": 0.9, "centered": True},
    "NAdam": {"foreach": True},
    "RAdam": {"foreach": True},
    "Adamax": {"foreach": True},
    "Adadelta": {"foreach": True},
    "Rprop": {"foreach": True},
    "ASGD": {"foreach": True},
    "Adafactor": {"foreach": True},
}


@pytest.fixture(autouse=True)
def _originals_afterwards() -> Iterator[None]:
    yield
    list_ops.uninstall()


def trained(name: str, steps: int = 3) -> list[torch.Tensor]:
    """Parameters and states after some steps; the last parameter has no gradient in one of them."""
    generator = torch.Generator().manual_seed(1)
    parameters = [
        torch.nn.Parameter(torch.randn(ROWS, COLUMNS, generator=generator)) for _ in range(COUNT)
    ]
    optimizer = getattr(torch.optim, name.split()[0])(parameters, **OPTIMIZERS[name])
    for step in range(steps):
        for parameter in parameters:
            parameter.grad = torch.randn(ROWS, COLUMNS, generator=generator)
        if step == 1:
            parameters[-1].grad = None
        optimizer.step()
    states = [value for state in optimizer.state.values() for value in state.values()]
    return [*parameters, *(value for value in states if isinstance(value, torch.Tensor))]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_that_gets_its_lists_in_parts_computes_the_same(name: str) -> None:
    expected = trained(name)
    list_ops.install(4 * TENSOR_BYTES)
    found = trained(name)
    assert len(found) == len(expected) > COUNT - ("plain" in name)
    assert all(map(torch.equal, found, expected))


def trained_in_bf16(
    steps: int,
    spoil: Callable[[int, torch.Tensor], torch.Tensor | None],
    name: str,
    **settings: Any,
) -> list[torch.Tensor]:
    """Parameters after some steps, in which ``spoil`` changes the last one's gradient."""
    generator = torch.Generator().manual_seed(2)

    def drawn() -> torch.Tensor:
        return torch.randn(ROWS, COLUMNS, generator=generator).bfloat16()

    parameters = [torch.nn.Parameter(drawn()) for _ in range(COUNT)]
    optimizer = getattr(torch.optim, name)(parameters, foreach=True, **settings)
    for step in range(steps):
        for parameter in parameters:
            parameter.grad = drawn()
        parameters[-1].grad = spoil(step, drawn())
        optimizer.step()
    return [parameter.detach() for parameter in parameters]


def test_a_group_of_which_one_state_is_missing_computes_the_same() -> None:
    """SGD then takes another way for all of the group, with other roundings in bf16."""

    def momentum() -> list[torch.Tensor]:
        def late(step: int, gradient: torch.Tensor) -> torch.Tensor | None:
            return gradient if step >= 2 else None

        return trained_in_bf16(4, late, "SGD", lr=0.1, momentum=0.9)

    expected = momentum()
    list_ops.install(2 * TENSOR_BYTES)
    assert all(map(torch.equal, momentum(), expected))


def test_a_group_with_a_sparse_gradient_computes_the_same() -> None:
    """Adagrad then takes all of the group one by one, with other roundings in bf16."""

    def accumulated() -> list[torch.Tensor]:
        return trained_in_bf16(3, lambda step, gradient: gradient.to_sparse(1), "Adagrad")

    expected = accumulated()
    list_ops.install(2 * TENSOR_BYTES)
    assert all(map(torch.equal, accumulated(), expected))


def test_one_part_goes_through_all_ops_before_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else each op would bring in everything again."""
    seen: list[int] = []
    original = torch._foreach_sqrt

    def sqrt(tensors: list[torch.Tensor]) -> Any:
        seen.append(len(tensors))
        return original(tensors)

    monkeypatch.setattr(torch, "_foreach_sqrt", sqrt)
    list_ops.install(9 * TENSOR_BYTES)  # parameter, gradient and two states of two parameters
    trained("AdamW", steps=1)
    assert seen == [2] * (COUNT // 2)


def grouped(lists: list[list[torch.Tensor]]) -> dict[Any, Any]:
    return Optimizer._group_tensors_by_device_and_dtype(lists, with_indices=True)


def test_groups_of_parts_have_keys_that_tell_device_and_dtype() -> None:
    tensors = [torch.ones(ROWS, COLUMNS, dtype=torch.bfloat16) for _ in range(COUNT)]
    list_ops.install(TENSOR_BYTES)
    # As PyTorch's SGD asks for them.
    groups = FunctionType(grouped.__code__, vars(sgd))([tensors, []])
    assert len(groups) == COUNT // 2
    assert {(device.type, dtype) for device, dtype in groups} == {("cpu", torch.bfloat16)}
    found = [(lists, indices) for lists, indices in groups.values()]
    assert [index for _, indices in found for index in indices] == list(range(COUNT))
    kept = [tensor for (own, _), _ in found for tensor in own]
    assert all(a is b for a, b in zip(kept, tensors, strict=True))
    assert all(empty == [] for (_, empty), _ in found)


class _Normalised(torch.optim.SGD):
    """Divides gradients by their norm over the whole group, which is one figure."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        parameters = self.param_groups[0]["params"]
        gradients = [parameter.grad for parameter in parameters]
        groups = self._group_tensors_by_device_and_dtype([parameters, gradients])
        with torch.no_grad():
            for (own, their), _ in groups.values():
                norm = torch.stack(torch._foreach_norm(their)).norm()
                torch._foreach_add_(own, torch._foreach_div(their, norm), alpha=-0.1)


class _Derived(torch.optim.SGD):
    """Steps as PyTorch's own does."""


def stepped(kind: type[torch.optim.SGD]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    parameters = [
        torch.nn.Parameter(torch.randn(ROWS, COLUMNS, generator=generator)) for _ in range(COUNT)
    ]
    optimizer = kind(parameters, lr=0.1, foreach=True)
    for parameter in parameters:
        parameter.grad = torch.randn(ROWS, COLUMNS, generator=generator)
    optimizer.step()
    return [parameter.detach() for parameter in parameters]


def test_an_optimizer_of_others_gets_whole_groups() -> None:
    """It may compute one figure for all of a group."""
    expected = stepped(_Normalised)
    list_ops.install(2 * TENSOR_BYTES)
    assert len(grouped([expected])) == 1
    assert all(map(torch.equal, stepped(_Normalised), expected))


def test_an_optimizer_that_inherits_the_step_of_pytorchs_gets_parts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = stepped(_Derived)
    seen: list[int] = []
    original = torch._foreach_add_

    def add_(tensors: list[torch.Tensor], *args: Any, **kwargs: Any) -> None:
        seen.append(len(tensors))
        original(tensors, *args, **kwargs)

    monkeypatch.setattr(torch, "_foreach_add_", add_)
    list_ops.install(4 * TENSOR_BYTES)  # parameter and gradient of two parameters
    assert all(map(torch.equal, stepped(_Derived), expected))
    assert seen == [2] * (COUNT // 2)


def test_the_original_functions_come_back() -> None:
    before = (vars(torch.optim.Optimizer)[list_ops._GROUPING], torch._foreach_add_)
    list_ops.install(1)
    assert vars(torch.optim.Optimizer)[list_ops._GROUPING] is not before[0]
    list_ops.uninstall()
    assert (vars(torch.optim.Optimizer)[list_ops._GROUPING], torch._foreach_add_) == before


def ones() -> list[torch.Tensor]:
    return [torch.ones(ROWS, COLUMNS) for _ in range(COUNT)]


@pytest.mark.parametrize("name", ["_foreach_addcdiv_", "_foreach_addcmul_"])
def test_scalars_in_one_tensor_go_with_the_tensors_that_they_are_for(name: str) -> None:
    scalars = torch.linspace(0.1, 0.8, COUNT)
    list_ops.install(6 * TENSOR_BYTES)  # two tensors of each list
    tensors = ones()
    getattr(torch, name)(tensors, ones(), ones(), scalars)
    assert [float(tensor[3, 7]) for tensor in tensors] == (1 + scalars).tolist()


def test_a_call_that_pytorch_refuses_is_refused_by_pytorch_and_changes_nothing() -> None:
    tensors = ones()
    wrong: list[Any] = [
        lambda: torch._foreach_add([*tensors, None], 1.0),
        lambda: torch._foreach_add([None, *tensors], 1.0),
        lambda: torch._foreach_add_(tensors, [*ones()[1:], None]),
        lambda: torch._foreach_mul_(tensors, [2.0, 3.0]),  # as many as a part has
        lambda: torch._foreach_addcmul_(tensors, ones(), ones(), torch.tensor([2.0, 3.0])),
    ]

    def refusals() -> list[tuple[type[BaseException], str]]:
        found = []
        for call in wrong:
            with pytest.raises((TypeError, RuntimeError)) as caught:
                call()
            found.append((caught.type, str(caught.value)))
        return found

    expected = refusals()
    for share in (2, 4, 6):
        list_ops.install(share * TENSOR_BYTES)
        assert refusals() == expected
    assert all(map(torch.equal, tensors, ones()))


def test_torchscript_compiles_list_ops() -> None:
    def added(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        return torch._foreach_add(tensors, 1.0)

    before = dict(_get_builtin_table())
    list_ops.install(TENSOR_BYTES)
    found = torch.jit.script(added)(ones())
    assert all(float(tensor[3, 7]) == 2.0 for tensor in found)
    list_ops.uninstall()
    assert _get_builtin_table() == before


def test_results_on_lists_leave_before_an_op_uses_them(spill: str) -> None:
    """They may be as many bytes as all parameters."""
    count, side = 24, 512  # 24 MiB
    model = torch.nn.ParameterList(torch.full((side, side), float(i)) for i in range(count))
    teraio.offload(model, memory_budget="16MiB", ssd=spill)
    for _ in range(4):
        with teraio.iteration(model), torch.no_grad():
            doubled = torch._foreach_mul(list(model), 2.0)
            assert [float(tensor[3, 7]) for tensor in doubled] == [2.0 * i for i in range(count)]
    report = teraio.report(model)
    teraio.restore(model)
    assert max(step.peak_bytes for step in report.steps) <= 16 << 20
