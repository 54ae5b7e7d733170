"""Results that are given up and made again by running their op once more have the same bits.

In: training on drives that pass for slow ones, so that plans run ops again. Out: equality with
training without teraio, and the budget kept.
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
import torch

import teraio
from teraio import planner
from teraio.engine import testing
from teraio.planner import recomputation
from teraio.records import Hardware, Plan, PlanOptions, Recomputation, Trace
from tests.drives import pass_for_slow
from tests.integration.test_equal_results import assert_equal
from tests.integration.training import Case, offloaded, plain, unlimited_peak

CASES = [
    *(Case(model) for model in ("llama", "gpt2", "t5", "mixtral", "vit")),
    *(
        Case("llama", features=frozenset({feature}))
        for feature in ("accumulate", "autocast", "clip", "evaluate", "generate")
    ),
    Case("gpt2", "sgd", frozenset({"dropout", "last_batch"})),
]


@pytest.fixture(autouse=True)
def _slow_drives(monkeypatch: pytest.MonkeyPatch) -> None:
    pass_for_slow(monkeypatch)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_results_made_again_are_equal_within_the_budget(case: Case, spill: str) -> None:
    budget = unlimited_peak(case, spill) // 2
    outcome = offloaded(case, budget, spill)
    assert_equal(outcome, plain(case))
    report = outcome.report
    assert report is not None and report.plan is not None
    assert report.plan.recomputations
    assert max(step.peak_bytes for step in report.steps) <= budget
    assert sum(step.recomputed_bytes for step in report.steps) > 0
    if not case.features:
        assert sum(step.drift_ops for step in report.steps) == 0


Op = Callable[[torch.Tensor], torch.Tensor]


class Saved(torch.autograd.Function):
    """Saves the result of ``op``, by default tanh, and not its operand."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, op: Op = torch.tanh) -> torch.Tensor:
        with torch.enable_grad():  # only what autograd records is made again
            y = op(x).detach()
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        (y,) = ctx.saved_tensors
        return gradients[0] * (1 - y * y), None


Activate = Callable[["Gated", torch.Tensor], torch.Tensor]


class Gated(torch.nn.Module):
    """Layers whose activations can be made again from ``gates``, which nothing else needs."""

    def __init__(self, activate: Callable[[Gated, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(128, 128) for _ in range(6))
        self.gates: list[torch.Tensor] = []
        self.activate = activate
        self.steps = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            gate = layer(x)
            activated = self.activate(self, gate)
            self.gates.append(gate.detach())
            x = activated * activated
        self.steps += 1
        return x

    def planned(self) -> bool:
        """Whether a plan is followed that has not seen this."""
        return self.steps >= STEPS - 2


def tanh(model: Gated, gate: torch.Tensor) -> torch.Tensor:
    return Saved.apply(gate)


def keeping(kept: list[torch.Tensor], activate: Activate = tanh) -> Activate:
    """``activate``, whose results are added to ``kept``."""

    def activate_and_keep(model: Gated, gate: torch.Tensor) -> torch.Tensor:
        activated = activate(model, gate)
        kept.append(activated.detach())
        return activated

    return activate_and_keep


STEPS = 8


def trained(model: Gated, between: Callable[[int, Gated], object] = lambda *_: None) -> list[Any]:
    """Losses and weights. ``between`` is called with the step after each forward pass."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    results: list[Any] = []
    for step in range(STEPS):
        torch.manual_seed(step)
        loss = model(torch.randn(512, 128)).square().mean()
        between(step, model)
        loss.backward()
        model.gates.clear()
        optimizer.step()
        optimizer.zero_grad()
        results.append(loss.item())
    return [*results, *(parameter.detach().clone() for parameter in model.parameters())]


def gated(activate: Callable[[Gated, torch.Tensor], torch.Tensor] = tanh) -> Gated:
    torch.manual_seed(0)
    return Gated(activate)


@pytest.fixture
def running(spill: str) -> Iterator[Gated]:
    """A model whose plan makes results again."""
    model = gated()
    teraio.offload(model, memory_budget="3MiB", ssd=spill)
    yield model
    teraio.restore(model)


def assert_same(results: list[Any], expected: list[Any]) -> None:
    assert len(results) == len(expected)
    assert all(
        torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
        for one, other in zip(results, expected, strict=True)
    )


def recomputed(model: Gated, since: int = 0) -> int:
    return sum(step.recomputed_bytes for step in teraio.report(model).steps[since:])


def test_with_transfers_delayed_and_freed_memory_poisoned(running: Gated) -> None:
    testing.stress(2000)
    try:
        assert_same(trained(running), trained(gated()))
    finally:
        testing.stress(0)
    assert recomputed(running) > 0


def test_an_operand_that_is_written_to(running: Gated) -> None:
    """The result is made again before its operand changes, though no plan foresaw that."""

    def overwrite(step: int, model: Gated) -> None:
        if step >= STEPS - 2:
            for gate in model.gates:
                gate.zero_()

    assert_same(trained(running, overwrite), trained(gated(), overwrite))
    assert recomputed(running, since=STEPS - 2) > 0


def test_an_operand_that_only_its_result_needs(running: Gated) -> None:
    """What is kept for making a result again goes when it has been made."""

    def forget(step: int, model: Gated) -> None:
        if step >= STEPS - 2:
            model.gates.clear()

    assert_same(trained(running, forget), trained(gated()))
    assert recomputed(running, since=STEPS - 2) > 0


def test_an_operand_that_is_held(running: Gated) -> None:
    """Whoever holds a tensor may write to its memory, so what is made from it is made before."""

    def overwrite(step: int, model: Gated) -> None:
        if step >= STEPS - 2:
            for gate in model.gates:
                with teraio.resident(gate):
                    ctypes.memset(gate.data_ptr(), 0, gate.nbytes)

    assert_same(trained(running, overwrite), trained(gated()))
    assert recomputed(running, since=STEPS - 2) > 0


def test_an_operand_whose_address_is_out(running: Gated) -> None:
    """Nothing is made again from what somebody may write to at any time."""

    def publish(step: int, model: Gated) -> None:
        addresses.extend(gate.data_ptr() for gate in model.gates)

    addresses: list[int] = []
    assert_same(trained(running, publish), trained(gated()))


def test_an_iteration_that_is_given_up(running: Gated) -> None:
    """Results that were given up and are never needed again just go."""

    def fail(step: int, model: Gated) -> None:
        if step == STEPS - 1:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        trained(running, fail)
    assert recomputed(running) > 0
    running.load_state_dict(gated().state_dict())
    assert_same(trained(running), trained(gated()))


def test_a_run_that_is_closed_while_results_are_given_up(spill: str) -> None:
    model = gated()
    teraio.offload(model, memory_budget="3MiB", ssd=spill)
    end = lambda step, model: teraio.restore(model) if step == STEPS - 1 else None  # noqa: E731
    assert_same(trained(model, end), trained(gated()))


def test_nothing_is_made_again_from_what_was_written_between_two_runs(spill: str) -> None:
    """Nobody watches there, so whatever is still here stays as it is."""

    def written(layer: int, limited: bool) -> list[Any]:
        def activate(model: Gated, gate: torch.Tensor) -> torch.Tensor:
            activated = Saved.apply(gate)
            if model.steps == STEPS - 1 and len(model.gates) == layer:
                if limited:
                    here.append(testing.state(activated) == "resident")
                    teraio.restore(model)
                with torch.no_grad():
                    gate.zero_()
                if limited:
                    teraio.offload(model, memory_budget="3MiB", ssd=spill)
            return activated

        model = gated(activate)
        if limited:
            teraio.offload(model, memory_budget="3MiB", ssd=spill)
        results = trained(model)
        if limited:
            teraio.restore(model)
        return results

    here: list[bool] = []
    for layer in range(6):
        assert_same(written(layer, limited=True), written(layer, limited=False))
    assert here == [True] * 6


def test_threads_do_not_change_the_bits(running: Gated) -> None:
    """Loops are cut into parts by threads, and ends of parts may be rounded in another way."""

    def change(step: int, model: Gated) -> None:
        torch.set_num_threads(2 - torch.get_num_threads() % 2)

    try:
        results = trained(running, change)
        assert recomputed(running) > 0
        torch.set_num_threads(1)
        assert_same(results, trained(gated(), change))
    finally:
        torch.set_num_threads(1)


def test_threads_that_make_results_again_leave_settings_as_they_are(running: Gated) -> None:
    """Of the process, where the forward pass had others."""
    kept: list[torch.Tensor] = []

    def read(step: int, model: Gated) -> None:
        assert torch.backends.mkldnn.enabled
        halves = (kept[::2], kept[1::2])
        readers = [
            threading.Thread(target=lambda some=some: [t.sum() for t in some]) for some in halves
        ]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        kept.clear()
        left.append(torch.backends.mkldnn.enabled)

    left: list[bool] = []
    running.activate = keeping(kept)
    forward = running.forward

    def without_mkldnn(x: torch.Tensor) -> torch.Tensor:
        with torch.backends.mkldnn.flags(enabled=False):
            return forward(x)

    running.forward = without_mkldnn  # type: ignore[method-assign]
    for _ in range(4):
        trained(running, read)
    assert recomputed(running) > 0
    assert all(left)


Away = dict[int, torch.Tensor]


def when_away(model: Gated, act: Callable[[Away], None], activate: Activate = tanh) -> None:
    """Trains, and once a plan is followed gives ``act`` the activations that are to be made again,
    by their layers."""
    kept: list[torch.Tensor] = []

    def call(step: int, model: Gated) -> None:
        away = {i: result for i, result in enumerate(kept) if testing.state(result) == "away"}
        kept.clear()
        if step == STEPS - 1:
            act(away)

    model.activate = keeping(kept, activate)
    trained(model, call)
    assert recomputed(model) > 0


def readers(count: int, away: Away) -> list[threading.Thread]:
    """Threads that all need one result made again."""
    result = next(iter(away.values()))
    threads = [threading.Thread(target=result.sum) for _ in range(count)]
    for thread in threads:
        thread.start()
    while testing.state(result) == "away":
        time.sleep(0.001)
    return threads


def test_settings_that_the_program_changes_meanwhile_stay_changed(running: Gated) -> None:
    left: list[Any] = []

    def change(away: Away) -> None:
        testing.send_away(*running.gates)
        testing.stress(1_000_000)
        threads = readers(1, away)
        torch.use_deterministic_algorithms(True)
        torch.set_default_dtype(torch.float64)
        torch.backends.mkldnn.set_flags(False)
        try:
            for thread in threads:
                thread.join()
            left.append(torch.are_deterministic_algorithms_enabled())
            left.append(torch.get_default_dtype())
            left.append(torch.backends.mkldnn.enabled)
        finally:
            torch.use_deterministic_algorithms(False)
            torch.set_default_dtype(torch.float32)
            torch.backends.mkldnn.set_flags(True)
            testing.stress(0)

    when_away(running, change)
    assert left == [True, torch.float64, False]


def test_threads_that_wait_for_one_result_do_not_keep_each_other_awake(running: Gated) -> None:
    computed: list[float] = []

    def wait(away: Away) -> None:
        testing.send_away(*running.gates)
        testing.stress(2_000_000)
        begin = time.process_time()
        for thread in readers(3, away):
            thread.join()
        testing.stress(0)
        computed.append(time.process_time() - begin)

    when_away(running, wait)
    assert computed[0] < 0.25  # seconds, where it would be more than one


_meanwhile: list[Callable[[], torch.Tensor]] = []


@torch.library.custom_op("teraio_tests::holding", mutates_args=())
def holding(held: torch.Tensor) -> torch.Tensor:
    return _meanwhile[0]()


def test_a_thread_that_makes_room_is_told_of_one_that_waits_for_its_turn(running: Gated) -> None:
    """One makes a result again and lacks memory that the op of the other has, which waits for one
    that was made with other settings. Neither can go on: one of them is told so."""
    ends: list[str] = []

    def every_other_without_mkldnn(model: Gated, gate: torch.Tensor) -> torch.Tensor:
        with torch.backends.mkldnn.flags(enabled=len(model.gates) % 2 == 0):
            return tanh(model, gate)

    def end(work: Callable[[], object]) -> None:
        try:
            work()
            ends.append("done")
        except teraio.BudgetError:
            ends.append("too little memory")

    def both(away: Away) -> None:
        ours = next(result for layer, result in away.items() if layer % 2 == 0)
        theirs = next(result for layer, result in away.items() if layer % 2)
        holds = threading.Event()

        def meanwhile() -> torch.Tensor:
            holds.set()
            time.sleep(1)  # until the other lacks memory
            return theirs.sum()

        _meanwhile[:] = [meanwhile]
        large = torch.zeros(5 << 19, dtype=torch.uint8)  # of 3 MiB
        other = threading.Thread(target=end, args=(lambda: holding(large),), daemon=True)
        other.start()
        holds.wait()
        first = threading.Thread(target=end, args=(ours.sum,), daemon=True)
        first.start()
        for thread in (other, first):
            thread.join(60)
        _meanwhile.clear()

    when_away(running, both, every_other_without_mkldnn)
    assert len(ends) == 2
    assert "too little memory" in ends


def test_results_that_inference_mode_needs_can_be_saved_for_the_backward_pass(
    running: Gated,
) -> None:
    def look(step: int, model: Gated) -> None:
        with torch.inference_mode():
            looked.extend(float(result.sum()) for result in kept)
        kept.clear()

    looked: list[float] = []
    kept: list[torch.Tensor] = []
    running.activate = keeping(kept)
    results = trained(running, look)
    assert recomputed(running) > 0
    assert_same(results, trained(gated()))
    assert len(looked) == 6 * STEPS


def result_written_by_an_op(model: Gated, gate: torch.Tensor) -> torch.Tensor:
    activated = Saved.apply(gate)
    if model.planned():
        activated.data.mul_(0.5)
    return activated


def result_written_through_a_window(model: Gated, gate: torch.Tensor) -> torch.Tensor:
    activated = Saved.apply(gate)
    if model.planned():
        window = activated.detach().numpy()
        window *= 0.5
    return activated


def operand_written_through_a_window(model: Gated, gate: torch.Tensor) -> torch.Tensor:
    window = gate.detach().numpy() if model.planned() else None
    activated = Saved.apply(gate)
    if window is not None:
        window[:] = 0
    return activated


def small_operands_with_gaps(model: Gated, gate: torch.Tensor) -> torch.Tensor:
    """Loops over numbers that lie apart round in another way."""
    rows = gate[:32, :64].clone()[:, ::2]
    columns = gate.detach()[0, :64].clone().view(64, 1, 1)
    outer = Saved.apply(rows, lambda small: torch.atan2(small, columns))
    return torch.tanh(gate + outer.mean())


def denormal_numbers_flushed(model: Gated, gate: torch.Tensor) -> torch.Tensor:
    def op(x: torch.Tensor) -> torch.Tensor:
        model.gates.append(x * 1e-37)
        torch.set_flush_denormal(True)
        y = model.gates[-1] / 1e-37
        torch.set_flush_denormal(False)
        return y

    return torch.tanh(gate + Saved.apply(gate, op))


def default_type_changed(model: Gated, gate: torch.Tensor) -> torch.Tensor:
    def op(x: torch.Tensor) -> torch.Tensor:
        model.gates.append((x * 1000).int())
        torch.set_default_dtype(torch.bfloat16)
        y = model.gates[-1] / 3000
        torch.set_default_dtype(torch.float32)
        return y

    return torch.tanh(gate + Saved.apply(gate, op))


def onednn_switched_off(model: Gated, gate: torch.Tensor) -> torch.Tensor:
    def op(x: torch.Tensor) -> torch.Tensor:
        with torch.backends.mkldnn.flags(enabled=False):
            return torch.nn.functional.gelu(x)

    return torch.tanh(gate + Saved.apply(gate, op))


_scale = 1.0


@torch.library.custom_op("teraio_tests::scaled", mutates_args=(), tags=(torch.Tag.pointwise,))
def scaled(x: torch.Tensor) -> torch.Tensor:
    return torch.tanh(x) * _scale


class Product(torch.autograd.Function):
    """Saves the product of its operands, which its own backward does not need."""

    @staticmethod
    def forward(
        ctx: Any, a: torch.Tensor, b: torch.Tensor, op: Callable[..., torch.Tensor]
    ) -> torch.Tensor:
        with torch.enable_grad():
            y = op(a.detach(), b).detach()
        ctx.save_for_backward(y, b)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        y, b = ctx.saved_tensors
        return (gradients[0] * torch.cos(y)).to(b.dtype) @ b.t(), None, None


def product(op: Callable[..., torch.Tensor]) -> Activate:
    def activate(model: Gated, gate: torch.Tensor) -> torch.Tensor:
        # Weights of another layer: those of this one wait for gradients.
        y: torch.Tensor = Product.apply(gate, model.layers[0].weight, op)
        return torch.tanh(y.float())

    activate.__name__ = getattr(op, "__name__", "product")
    return activate


def batches_of_rows(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Folded into one product if a gradient is wanted, else a product for each batch."""
    return torch.matmul(a.view(8, 64, 128), b).view(512, 128)


def rows_apart(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """On its way it makes what still wants a gradient, and is folded for that."""
    return torch.nn.functional.linear(a.view(256, 128, 2).transpose(1, 2), b).view(512, 128)


def autocast_rows_apart(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return torch.matmul(a.view(256, 128, 2).transpose(1, 2), b).view(512, 128)


def autocast_with_an_old_cast(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Of the weight as it was before it changed."""
    with torch.autocast("cpu", torch.bfloat16):
        with torch.enable_grad():
            torch.mm(a[:32], b)
        b.data.mul_(1.01)
        with torch.enable_grad():
            return torch.mm(a, b).detach()


def autocast_product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return torch.nn.functional.linear(a, b)


def deterministic_product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    torch.use_deterministic_algorithms(True)
    y = torch.mm(a, b)
    torch.use_deterministic_algorithms(False)
    return y


def attention(model: Gated, gate: torch.Tensor, dropout_p: float = 0.0) -> torch.Tensor:
    heads = gate.view(4, 8, 64, 32).transpose(1, 2)
    y = torch.nn.functional.scaled_dot_product_attention(heads, heads, heads, dropout_p=dropout_p)
    return torch.tanh(y.transpose(1, 2).reshape(512, 128))


def attention_with_dropout(model: Gated, gate: torch.Tensor) -> torch.Tensor:
    return attention(model, gate, dropout_p=0.5)


def op_with_a_state(model: Gated, gate: torch.Tensor) -> torch.Tensor:
    def op(x: torch.Tensor) -> torch.Tensor:
        global _scale
        _scale = 0.7
        y: torch.Tensor = torch.ops.teraio_tests.scaled(x)
        _scale = 1.0
        return y

    return Saved.apply(gate, op)


@pytest.mark.filterwarnings("ignore:TF32 acceleration")  # of switching oneDNN off
@pytest.mark.parametrize(
    "activate",
    [
        result_written_by_an_op,
        result_written_through_a_window,
        operand_written_through_a_window,
        small_operands_with_gaps,
        denormal_numbers_flushed,
        default_type_changed,
        onednn_switched_off,
        op_with_a_state,
        product(torch.mm),
        product(batches_of_rows),
        product(rows_apart),
        product(autocast_product),
        product(autocast_rows_apart),
        product(autocast_with_an_old_cast),
        product(deterministic_product),
        attention,
        attention_with_dropout,
    ],
)
def test_what_an_op_depends_on(
    activate: Callable[[Gated, torch.Tensor], torch.Tensor], spill: str
) -> None:
    """Results are made again from what they were made from, in the same way, or moved."""
    model = gated(activate)
    teraio.offload(model, memory_budget="3MiB", ssd=spill)
    results, count = trained(model), recomputed(model)
    teraio.restore(model)
    assert_same(results, trained(gated(activate)))
    assert count > 0


def remade(model: Gated) -> set[str]:
    """Names of the ops whose results the plan makes again."""
    report = teraio.report(model)
    assert report.plan is not None and report.trace is not None
    storages = (report.trace.storages[again.storage] for again in report.plan.recomputations)
    return {report.trace.ops[s.birth].name for s in storages if s.birth is not None}


def only_results_of(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans make again what they can of one op's results, whether they would choose to or not."""
    possible = recomputation.possible

    def of_that_op(trace: Trace, again: Recomputation, operands: Iterable[int]) -> bool:
        birth = trace.storages[again.storage].birth
        return (
            birth is not None and trace.ops[birth].name == name and possible(trace, again, operands)
        )

    def planned(trace: Trace, hardware: Hardware, options: PlanOptions) -> Plan:
        def made(again: tuple[Recomputation, ...]) -> Plan:
            problem = planner._problem(trace, hardware, options, again)
            return planner._solved(problem, hardware, options)

        *_, most = recomputation.worthwhile(trace, hardware, made(()))
        return made(most)

    monkeypatch.setattr(recomputation, "possible", of_that_op)
    monkeypatch.setattr(planner, "_planned", planned)


@pytest.mark.parametrize(
    ("activate", "name"),
    [
        (product(torch.mm), "aten::mm"),
        (product(batches_of_rows), "aten::matmul"),
        (product(rows_apart), "aten::linear"),
        (product(autocast_product), "aten::linear"),
        (product(autocast_rows_apart), "aten::matmul"),
        (attention, "aten::scaled_dot_product_attention"),
    ],
)
def test_products_are_made_again(
    activate: Activate, name: str, spill: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    only_results_of(name, monkeypatch)
    model = gated(activate)
    teraio.offload(model, memory_budget="3MiB", ssd=spill)
    results, count = trained(model), recomputed(model)
    names = remade(model)
    teraio.restore(model)
    assert name in names
    assert_same(results, trained(gated(activate)))
    assert count > 0


def set_precision(value: str) -> None:
    """Of products on all backends that have none of their own."""
    torch._C._set_fp32_precision_setter("generic", "all", value)


def test_settings_are_as_they_were_after_results_are_made_again(
    spill: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A precision that is set for all, and not for products, goes on to count for these."""
    only_results_of("aten::mm", monkeypatch)

    def other_precision(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        set_precision("tf32")
        y = torch.mm(a, b)
        set_precision("ieee")
        return y

    before = torch._C._get_fp32_precision_getter("generic", "all")
    model = gated(product(other_precision))
    teraio.offload(model, memory_budget="3MiB", ssd=spill)
    try:
        trained(model)
        assert "aten::mm" in remade(model)
        for value in ("tf32", "ieee"):
            set_precision(value)
            assert torch._C._get_fp32_precision_getter("mkldnn", "matmul") == value
    finally:
        set_precision(before)
        teraio.restore(model)


def test_attention_that_draws_numbers_is_not_made_again(spill: str) -> None:
    model = gated(attention_with_dropout)
    teraio.offload(model, memory_budget="3MiB", ssd=spill)
    trained(model)
    names = remade(model)
    teraio.restore(model)
    assert "aten::scaled_dot_product_attention" not in names


def test_a_plan_without_it(spill: str) -> None:
    model = gated()
    teraio.offload(model, memory_budget="3MiB", ssd=spill, recompute=False)
    trained(model)
    report = teraio.report(model)
    teraio.restore(model)
    assert report.plan is not None
    assert report.plan.moves and not report.plan.recomputations
    assert sum(step.recomputed_bytes for step in report.steps) == 0
