"""The life of a run: what is profiled, planned, and planned again."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Any, NoReturn

import pytest
import torch
from torch import nn

import teraio
from teraio import api
from teraio.engine.testing import stress
from teraio.planner import replayed
from teraio.records import Plan
from teraio.runtime import planning, revision
from tests.integration.training import Case, Training, plain


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


def test_drives_that_are_slower_in_training_get_another_plan(spill: str) -> None:
    def trained(budget: str | None) -> list[float]:
        torch.manual_seed(0)
        model = nn.Sequential(*(nn.Linear(1024, 1024) for _ in range(8)))
        if budget:
            teraio.offload(model, memory_budget=budget, ssd=spill)
            tested.append(teraio.report(model).hardware.tiers[0].mixed_bytes_per_s)
            stress(10_000)
        optimizer = torch.optim.AdamW(model.parameters())
        losses = []
        for _ in range(5):
            loss = model(torch.ones(4, 1024)).mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        if budget:
            stress(0)
            seen.append(teraio.report(model).hardware.tiers[0].mixed_bytes_per_s)
            teraio.restore(model)
        return losses

    tested: list[float] = []
    seen: list[float] = []
    assert trained("48MiB") == trained(None)
    assert seen[0] < 0.8 * tested[0]


def losses_of(
    lengths: list[int],
    *,
    budget: int | None = None,
    spill: str = "",
    after_step: Callable[[nn.Module], None] = lambda _: None,
) -> list[float]:
    """Of a training on sequences of so many tokens."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(256, 256) for _ in range(16)))
    if budget is not None:
        teraio.offload(model, memory_budget=budget, ssd=spill)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    losses = []
    for step, tokens in enumerate(lengths):
        loss = model(torch.full((tokens, 256), 1 / (1 + step))).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        after_step(model)
    if budget is not None:
        teraio.restore(model)
    return losses


def test_a_loop_whose_sequences_differ_in_length_gets_the_plan_of_the_longest(spill: str) -> None:
    lengths = [1024, 1024, 512, 2048, 4096, *[512] * 30, 1024, 6144, 6144]
    planned: list[int] = []

    def note(model: nn.Module) -> None:
        report = teraio.report(model)
        if report.plan is not None and report.trace is not None:
            planned.append(max(storage.nbytes for storage in report.trace.storages) // 1024)

    assert losses_of(lengths, budget=16 << 20, spill=spill, after_step=note) == losses_of(lengths)
    # Of the first ones that are recorded no more only the size is seen; the next is planned for.
    assert planned == [1024, 1024, 2048, 4096, *[4096] * 30, 4096, 4096, 6144]


def test_a_plan_comes_where_short_sequences_fit_and_long_ones_do_not(spill: str) -> None:
    lengths = [256, 256, 512, 2048, 256, 256, 2048, 256, 2048]
    moves: list[int] = []

    def note(model: nn.Module) -> None:
        report = teraio.report(model)
        moves.append(len(report.plan.moves) if report.plan is not None else -1)

    assert losses_of(lengths, budget=20 << 20, spill=spill, after_step=note) == losses_of(lengths)
    assert moves[:6] == [-1, 0, 0, 0, 0, 0]
    assert all(count > 0 for count in moves[6:])


def test_a_long_sequence_that_no_plan_can_be_made_for_is_trained_on_all_the_same(
    spill: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing_plan(*_: object) -> NoReturn:
        tried.append(None)
        raise teraio.SpillError("the drive is full")

    def end_planning(model: nn.Module) -> None:
        plans.append(teraio.report(model).plan)
        if len(plans) == 2:
            monkeypatch.setattr(planning, "make_plan", failing_plan)

    plans: list[Plan | None] = []
    tried: list[None] = []
    lengths = [1024, 1024, *[2048, 1024, 1024] * 5]
    expected = losses_of(lengths)
    assert losses_of(lengths, budget=16 << 20, spill=spill, after_step=end_planning) == expected
    assert plans[1] is not None and plans[1:] == [plans[1]] * 16
    assert len(tried) <= 4  # also for those that compute quicker


def interrupt_planning(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next time a plan is made, as Ctrl-C would."""

    def interrupted(*_: object) -> NoReturn:
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(planning, "make_plan", interrupted)


def test_an_interrupt_while_planning_for_a_long_sequence_leads_to_another_plan(
    spill: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(256, 256) for _ in range(16)))
    teraio.offload(model, memory_budget=16 << 20, ssd=spill)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)

    def step(tokens: int) -> None:
        model(torch.ones(tokens, 256)).mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    step(1024)
    step(1024)
    interrupt_planning(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        step(2048)
    optimizer.zero_grad()
    for _ in range(3):
        step(2048)
    report = teraio.report(model)
    assert report.plan is not None and report.plan.moves
    teraio.restore(model)


class Comparable(nn.Module):
    """Has no hash, as it can be equal to others."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Comparable) and other.factor == self.factor

    def forward(self, data: torch.Tensor) -> torch.Tensor:
        return data * self.factor


def test_modules_that_have_no_hash_can_be_called(spill: str) -> None:
    model = nn.Sequential(nn.Linear(256, 256), nn.Linear(256, 256))
    criterion = Comparable(3.0)
    teraio.offload(model, memory_budget="4MiB", ssd=spill)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for _ in range(3):
        criterion(model(torch.ones(8, 256))).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert teraio.report(model).plan is not None
    teraio.restore(model)


class MasterSgd:
    """A mixed-precision loop's optimizer: it steps fp32 copies of the weights."""

    def __init__(self, weights: list[nn.Parameter], flat: bool) -> None:
        self.weights = weights
        copies = [weight.detach().float() for weight in weights]
        self.masters = [torch.cat([copy.flatten() for copy in copies])] if flat else copies
        self.inner = torch.optim.SGD(self.masters, lr=0.1, momentum=0.9)

    def step(self) -> None:
        gradients = [weight.grad for weight in self.weights]
        flat = len(self.masters) == 1
        parts = [torch.cat([g.float().flatten() for g in gradients])] if flat else gradients
        for master, part in zip(self.masters, parts, strict=True):
            master.grad = part.float()
        self.inner.step()
        self.inner.zero_grad()
        sizes = [weight.numel() for weight in self.weights]
        results = self.masters[0].split(sizes) if flat else self.masters
        with torch.no_grad():
            for weight, result in zip(self.weights, results, strict=True):
                weight.copy_(result.view_as(weight))
                weight.grad = None


def run_with_masters(spill: str, *, flat: bool) -> tuple[nn.Module, teraio.RunReport]:
    torch.manual_seed(0)
    budget = "4MiB" if flat else "1MiB"
    model = teraio.offload(SlowAtTimes().bfloat16(), memory_budget=budget, ssd=spill)
    optimizer = MasterSgd(list(model.parameters()), flat=flat)
    for _ in range(4):
        model(torch.randn(4, 128, dtype=torch.bfloat16)).sum().backward()
        optimizer.step()
    report = teraio.report(model)
    teraio.restore(model)
    return model, report


def test_an_optimizer_of_master_weights_ends_iterations_too(spill: str) -> None:
    _, report = run_with_masters(spill, flat=False)
    assert [step.phase for step in report.steps] == ["profile", "profile", "run", "run"]
    assert report.trace is not None
    names = {storage.name: storage.kind for storage in report.trace.storages}
    assert names["layers.0.weight:master"] == "optimizer_state"
    assert names["layers.0.weight:master:momentum_buffer"] == "optimizer_state"


def test_a_loop_whose_iterations_are_not_seen_is_warned(
    spill: str, caplog: pytest.LogCaptureFixture
) -> None:
    _, report = run_with_masters(spill, flat=True)
    assert report.steps == ()
    assert "teraio.iteration" in caplog.text


def test_a_loop_that_ends_no_iteration_is_warned(
    spill: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = teraio.offload(SlowAtTimes(), memory_budget="1MiB", ssd=spill)
    with torch.no_grad():
        for _ in range(99):
            model(torch.ones(4, 128))
        assert caplog.text == ""
        for _ in range(99):
            model(torch.ones(4, 128))
    teraio.restore(model)
    assert caplog.text.count("100 calls of the model and no end of an iteration") == 1


def trained(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        model(torch.ones(4, 128)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def ended(model: nn.Module) -> int:
    """How many iterations have."""
    steps = teraio.report(model).steps
    return steps[-1].iteration + 1 if steps else 0


def two_models(spill: str) -> list[tuple[SlowAtTimes, torch.optim.Optimizer]]:
    """Of one run, each with its optimizer."""
    models = (
        teraio.offload(SlowAtTimes(), memory_budget="1MiB", ssd=spill),
        teraio.offload(SlowAtTimes()),
    )
    return [(model, torch.optim.SGD(model.parameters(), lr=0.1)) for model in models]


@pytest.mark.parametrize("end", ["it rests", "it is gone", "its model is restored"])
def test_iterations_end_without_the_optimizer_that_came_up_last(end: str, spill: str) -> None:
    (first, stays), (second, goes) = two_models(spill)
    for _ in range(3):
        trained(first, stays, 1)
        trained(second, goes, 1)
    assert ended(first) == 3 + 1  # the first ended with the first step of the other
    if end == "it is gone":
        del goes
        gc.collect()
    elif end == "its model is restored":
        teraio.restore(second)
    trained(first, stays, 30)
    assert ended(first) >= 4 + 20
    assert teraio.report(first).plan is not None
    if end == "it rests":
        trained(second, goes, 1)
        before = ended(first)
        for _ in range(5):
            trained(first, stays, 1)
            trained(second, goes, 1)
        assert ended(first) == before + 5
        teraio.restore(second)
    teraio.restore(first)


def test_an_optimizer_that_rests_at_times_costs_ever_fewer_profiles(spill: str) -> None:
    model = teraio.offload(SlowAtTimes(), memory_budget="1MiB", ssd=spill)
    often = torch.optim.SGD(model.layers[:4].parameters(), lr=0.1)
    rarely = torch.optim.SGD(model.layers[4:].parameters(), lr=0.1)
    rounds = []
    for _ in range(6):
        before = ended(model)
        trained(model, often, 25)
        trained(model, rarely, 1)
        rounds.append(ended(model) - before)
    teraio.restore(model)
    assert rounds[0] > 10
    assert rounds[-2:] == [1, 1]


def test_marked_iterations_within_each_other_are_one(spill: str) -> None:
    (first, one), (second, other) = two_models(spill)
    for _ in range(4):
        with teraio.iteration(first), teraio.iteration(second):
            trained(first, one, 1)
            trained(second, other, 1)
    steps = teraio.report(first).steps
    teraio.restore(first)
    teraio.restore(second)
    assert len(steps) == 4
    assert all(step.peak_bytes > 0 for step in steps)


def test_gradients_of_many_optimizers_are_known_as_such(spill: str) -> None:
    model = teraio.offload(SlowAtTimes(), memory_budget="1MiB", ssd=spill)
    optimizers = [torch.optim.SGD(layer.parameters(), lr=0.1) for layer in model.layers]
    for _ in range(3):
        model(torch.ones(4, 128)).sum().backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    trace = teraio.report(model).trace
    teraio.restore(model)
    assert trace is not None
    gradients = {s.name for s in trace.storages if s.kind == "gradient"}
    assert gradients == {f"layers.{i}.weight:grad" for i in range(len(optimizers))}


def test_gradients_of_each_step_of_an_iteration_are_known_as_such(spill: str) -> None:
    """As of a critic, which makes several for each of the generator's."""
    (critic, often), (generator, rarely) = two_models(spill)
    for _ in range(4):
        trained(critic, often, 5)
        trained(generator, rarely, 1)
    trace = teraio.report(critic).trace
    for model in (critic, generator):
        teraio.restore(model)
    assert trace is not None
    products = [s for s in trace.storages if s.kind == "activation" and s.nbytes == 4 * 128 * 128]
    assert not products
    assert sum(s.name == "layers.0.weight:grad" for s in trace.storages) == 5


def test_a_model_that_goes_without_having_trained_leaves_the_plan_as_it_is(spill: str) -> None:
    model = teraio.offload(SlowAtTimes(), memory_budget="1MiB", ssd=spill)
    teacher = teraio.offload(SlowAtTimes())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trained(model, optimizer, 4)
    plan = teraio.report(model).plan
    assert plan is not None
    del teacher
    gc.collect()
    trained(model, optimizer, 1)
    assert teraio.report(model).phase == "run"
    assert ended(model) == 5
    teraio.restore(model)


def test_an_iteration_with_an_evaluation_is_not_what_others_are_planned_by(spill: str) -> None:
    model = teraio.offload(SlowAtTimes(), memory_budget="1MiB", ssd=spill)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trained(model, optimizer, 1)
    with torch.no_grad():
        for _ in range(3):
            model(torch.ones(4, 128))
    trained(model, optimizer, 1)
    with_evaluation = teraio.report(model).trace
    trained(model, optimizer, 6)
    trace = teraio.report(model).trace
    teraio.restore(model)
    assert with_evaluation is not None and trace is not None
    assert len(trace.ops) < len(with_evaluation.ops)


def test_a_loop_within_one_marked_iteration_is_warned(
    spill: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = teraio.offload(SlowAtTimes(), memory_budget="1MiB", ssd=spill)
    with teraio.iteration(model):
        trained(model, torch.optim.SGD(model.parameters(), lr=0.1), 12)
    assert len(teraio.report(model).steps) == 1
    teraio.restore(model)
    assert caplog.text.count("10 optimizer steps in one") == 1


def test_many_optimizers_that_step_in_each_marked_iteration_are_not_warned_of(
    spill: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = nn.ModuleList(nn.Linear(64, 64) for _ in range(8))
    optimizers = {p: torch.optim.SGD([p], lr=0.1) for p in model.parameters()}

    def step(parameter: torch.Tensor) -> None:
        optimizers[parameter].step()
        parameter.grad = None

    hooks = [parameter.register_post_accumulate_grad_hook(step) for parameter in optimizers]
    teraio.offload(model, memory_budget="1MiB", ssd=spill)
    for _ in range(4):
        with teraio.iteration(model):
            sum(layer(torch.ones(4, 64)).sum() for layer in model).backward()
    report = teraio.report(model)
    teraio.restore(model)
    for hook in hooks:  # parameters live for ever that their own hooks refer to
        hook.remove()
    assert caplog.text == ""
    assert [step.phase for step in report.steps] == ["profile", "profile", "run", "run"]


def test_steps_end_iterations_again_once_none_is_marked_any_more(spill: str) -> None:
    model = teraio.offload(SlowAtTimes(), memory_budget="1MiB", ssd=spill)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    mark = teraio.iteration(model)
    for _ in range(3):
        with mark:
            model(torch.ones(4, 128)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert len(teraio.report(model).steps) == 3
    trained(model, optimizer, 4)
    report = teraio.report(model)
    assert len(report.steps) == 7
    teraio.restore(model)


def test_an_empty_iteration_is_no_profile(spill: str) -> None:
    model = teraio.offload(SlowAtTimes(), memory_budget="1MiB", ssd=spill)
    for _ in range(4):
        with teraio.iteration(model):
            pass
    assert teraio.report(model).plan is None
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        with teraio.iteration(model):
            trained(model, optimizer, 1)
    plan = teraio.report(model).plan
    assert plan is not None and plan.ideal_s > 0
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


def test_what_a_plan_keeps_free_gives_way_to_the_largest_op(
    spill: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "PLAN_RESERVE", 0.99)
    training = Training(Case("llama"))
    teraio.offload(training.model, memory_budget=16 << 20, ssd=[spill])
    training.run(4)
    report = teraio.report(training.model)
    assert report.plan is not None
    teraio.restore(training.model)
    assert training.outcome.losses == plain(Case("llama")).losses[:4]


def test_a_budget_below_the_largest_op_of_the_profile_says_which_one_works(
    spill: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = Training(Case("llama"))
    teraio.offload(training.model, memory_budget=16 << 20, ssd=[spill])
    monkeypatch.setattr(api._runtime._resources, "counted_bytes", 1 << 20)
    with pytest.raises(teraio.BudgetError, match=r"op \d+ \(aten::.*memory_budget=\d+"):
        training.run(2)
    teraio.restore(training.model)


def test_a_step_report_does_not_count_planning(spill: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real_plan = planning.make_plan

    def slow_plan(*arguments: Any) -> Plan:
        time.sleep(5)
        return real_plan(*arguments)

    monkeypatch.setattr(planning, "make_plan", slow_plan)
    monkeypatch.setattr(revision, "_FIRST", 0)
    training = Training(Case("llama"))
    teraio.offload(training.model, memory_budget=16 << 20, ssd=[spill])
    training.run(3)
    steps = teraio.report(training.model).steps
    assert [step.phase for step in steps] == ["profile", "profile", "run"]
    assert steps[2].duration_s < 5
    teraio.restore(training.model)


def test_a_module_that_dies_leaves_its_place_to_nobody(spill: str) -> None:
    """Python may give its id() to a later module."""
    model = nn.Sequential(nn.Linear(128, 128), nn.Linear(128, 128))
    model.extend(nn.Identity() for _ in range(100))
    teraio.offload(model, memory_budget="1MiB", ssd=spill)
    numbers = api._runtime._module_numbers
    assert len(numbers) == 103
    del model[2:]
    gc.collect()
    assert set(numbers) == {model, *model}
    teraio.restore(model)


def test_an_interrupt_while_planning_leads_to_another_plan(
    spill: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = Training(Case("llama"))
    teraio.offload(training.model, memory_budget=16 << 20, ssd=[spill])
    training.run(1)
    interrupt_planning(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        training.step()
    training.optimizer.zero_grad()
    for _ in range(3):
        training.step()
    report = teraio.report(training.model)
    assert report.plan is not None and report.plan.moves
    teraio.restore(training.model)


def scaled_at_times(model: nn.Module, steps: int) -> list[str]:
    """Losses of steps of which the sixth and seventh halve gradients and optimizer states."""
    optimizer = torch.optim.Adam(model.parameters(), foreach=False)
    generator = torch.Generator().manual_seed(1)
    losses = []
    for step in range(steps):
        loss = model(torch.randn(256, 256, generator=generator)).square().mean()
        loss.backward()
        if step in (5, 6):
            for weight in model.parameters():
                weight.grad.mul_(0.5)  # type: ignore[union-attr]
        optimizer.step()
        if step in (5, 6):
            for weight in model.parameters():
                optimizer.state[weight]["exp_avg"].mul_(0.5)
                optimizer.state[weight]["exp_avg_sq"].mul_(0.5)
        optimizer.zero_grad()
        losses.append(float(loss.detach()).hex())
    return losses


def test_a_copy_written_while_its_data_is_read_is_not_used_once_that_has_changed(
    spill: str,
) -> None:
    def stack() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(*(nn.Linear(256, 256, bias=False) for _ in range(12)))

    expected = scaled_at_times(stack(), 10)
    model = teraio.offload(stack(), memory_budget="7MiB", ssd=spill)
    stress(1000)
    losses = scaled_at_times(model, 10)
    stress(0)
    report = teraio.report(model)
    assert report.plan is not None and report.trace is not None
    storages = replayed(report.trace, report.plan.recomputations).storages
    early = [
        storages[move.storage].kind
        for move in report.plan.moves
        if move.leaves_after(storages[move.storage], len(report.trace.ops)) != move.offload_after
    ]
    assert "optimizer_state" in early
    assert losses == expected
    teraio.restore(model)


def test_a_long_run_keeps_only_the_latest_reports(
    spill: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("teraio.runtime.steps._KEPT", 5)
    monkeypatch.setattr("teraio.runtime.steps._WITH_STALLS", 2)
    model = teraio.offload(nn.Linear(128, 128), memory_budget="64MiB", ssd=spill)
    for _ in range(13):
        with teraio.iteration(model):
            model(torch.ones(4, 128)).sum().backward()
    assert [step.iteration for step in teraio.report(model).steps] == [5, 6, 7, 8, 9, 10, 11, 12]
    teraio.restore(model)
