"""Programs that make states anew in each step, where others write to those they have."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.func import functional_call, grad

import teraio
import teraio._C as _C
from teraio.engine import schedule
from teraio.engine.places import Places
from teraio.planner import least_budget
from tests.integration.small_programs import Program, iteration, mlp, run, trained
from tests.integration.training import NO_LIMIT
from tests.unit.small import move, plan_of, storage, trace

LEAVE, COPY, FETCH = range(3)


class ReplacingAdam(torch.optim.Optimizer):
    """Adam as formulas have it, slow enough for a drive to bring the states in between. ``seen``
    tells where those of matrices are as they are used next."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": 1e-3})
        self.seen: list[str] = []

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for parameter in self.param_groups[0]["params"]:
            state = self.state[parameter]
            if not state:
                state["m"], state["v"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
            time.sleep(0.003)
            if parameter.dim() == 2:
                self.seen += [_C.state(state["m"]), _C.state(state["v"])]
            state["m"] = 0.9 * state["m"] + 0.1 * parameter.grad
            state["v"] = 0.99 * state["v"] + 0.01 * parameter.grad**2
            parameter -= 1e-3 * state["m"] / (state["v"].sqrt() + 1e-8)


def replaced_states() -> Program:
    torch.manual_seed(0)
    model = mlp(12)
    data = torch.randn(16, 256)
    optimizer = ReplacingAdam(model.parameters())
    return trained(model, lambda i: model(data).square().mean(), optimizer)


def functional_training() -> Program:
    """Weights and states are in dictionaries of the program, so that none has a name."""
    torch.manual_seed(0)
    model = mlp(12)
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    first = {name: torch.zeros_like(p) for name, p in weights.items()}
    second = {name: torch.zeros_like(p) for name, p in weights.items()}
    data = torch.randn(8, 256)

    def loss(given: dict[str, torch.Tensor]) -> torch.Tensor:
        return functional_call(model, given, (data,)).square().mean()  # type: ignore[no-any-return]

    def step(i: int) -> Any:
        with iteration(model):
            for name, gradient in grad(loss)(weights).items():
                first[name] = 0.9 * first[name] + 0.1 * gradient
                second[name] = 0.99 * second[name] + 0.01 * gradient**2
                change = first[name] / (second[name].sqrt() + 1e-8)
                weights[name] = weights[name] - 1e-3 * change
        return i

    return Program(model, step, lambda: [weights, first, second])


def states_in_changing_numbers() -> Program:
    """Every other step drops a state that the next one makes again, so that no plan can tell which
    of them follows which."""
    torch.manual_seed(0)
    model = mlp(4)
    states = [torch.zeros(256, 256) for _ in range(24)]

    def step(i: int) -> Any:
        with iteration(model):
            means = []
            for at in range(23):
                states[at] = states[at] * 0.9 + i
                means.append(states[at].mean())
            if i % 2:
                states.append(states[0] + 1)
            else:
                states.pop()
        return means

    return Program(model, step, lambda: states)


def test_iterations_go_on_without_a_plan_where_none_keeps_the_budget(
    spill: str, caplog: pytest.LogCaptureFixture
) -> None:
    expected, _ = run(states_in_changing_numbers(), None, spill)
    budget = 4 << 20  # of 6 MiB and the model
    given, report = run(states_in_changing_numbers(), budget, spill)
    assert given == expected
    assert "no plan" in caplog.text
    assert report.phase == "run" and report.plan is None
    assert [step.peak_bytes for step in report.steps if step.peak_bytes > budget] == []
    assert report.steps[-1].read_bytes > 0


@pytest.mark.parametrize(
    ("build", "share"), [(replaced_states, 50), (replaced_states, 30), (functional_training, 50)]
)
def test_replaced_states_have_equal_bits_under_a_plan_for_a_small_budget(
    build: Callable[[], Program], share: int, spill: str
) -> None:
    expected, _ = run(build(), None, spill)
    _, unlimited = run(build(), NO_LIMIT, spill)
    budget = max(step.peak_bytes for step in unlimited.steps) * share // 100
    given, report = run(build(), budget, spill)
    assert given == expected
    assert [step.peak_bytes for step in report.steps if step.peak_bytes > budget] == []
    assert report.trace is not None and report.plan is not None
    assert least_budget(report.trace) < budget // 3
    ran = [step for step in report.steps if step.phase == "run"]
    assert ran and all(step.drift_ops == 0 for step in ran)
    assert ran[-1].read_bytes > 0 and ran[-1].written_bytes > 0


def test_replaced_states_come_back_before_they_are_used(spill: str) -> None:
    torch.manual_seed(0)
    model = mlp(12)
    optimizer = ReplacingAdam(model.parameters())
    teraio.offload(model, memory_budget="7MiB", ssd=spill)
    data = torch.randn(16, 256)
    for _ in range(6):
        time.sleep(0.05)
        optimizer.seen.clear()
        away = [_C.state(t) for state in optimizer.state.values() for t in state.values()].count(
            "away"
        )
        loss = model(data).square().mean()
        loss.backward()
        time.sleep(0.05)
        optimizer.step()
        optimizer.zero_grad()
    assert away > 12
    assert optimizer.seen.count("away") < away // 2
    teraio.restore(model)


def test_what_is_carried_is_known_by_one_name_until_its_successor_is_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # 0 becomes 1 in the next iteration, where 0 is made anew by op 6.
    on = trace(
        [1] * 10,
        storage([6, 7], [6], birth=6, name="state"),
        storage([1, 4, 8], death=8, name="state"),
        storage([2, 5], [5], name="weight"),
        storage([9], [9], birth=9, name="kept"),
    )
    moves = [
        move(0, 6, 9, 0, 1),
        move(1, 1, 2, 3, 4, offset=4096),
        move(1, 4, 6, 7, 8, offset=4096),
        move(2, 5, 6, 1, 2, offset=8192),
    ]
    given: list[Any] = []
    monkeypatch.setattr(schedule, "_C", SimpleNamespace(follow=lambda *all_: given.extend(all_)))
    schedule.follow(
        on,
        plan_of(on, moves),
        blocks={0: 70, 2: 72, 3: 73},
        carried={0: 1},
        births=[[] for _ in on.ops],
        places=Places(),
        codecs=[0] * 4,
    )
    actions, uses, persistent, bound = given[4], given[6], given[7], given[11]
    assert [(op, storage, kind) for op, due in enumerate(actions) for storage, kind, *_ in due] == [
        (0, 0, FETCH),
        (1, 0, LEAVE),
        (1, 2, FETCH),
        (3, 0, FETCH),
        (4, 0, LEAVE),
        (5, 2, LEAVE),
        (6, 0, COPY),
        (7, 0, LEAVE),
        (7, 1, FETCH),
    ]
    assert uses[:3] == [(1, 4, 6, 7), (1, 4, 8), (2, 5)]
    assert persistent == [True, False, True, False]
    assert bound == [(0, 70), (2, 72)]
