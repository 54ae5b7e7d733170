"""Where a device's allocator finds no memory that fits, storages leave until it does.

In: the simulated device, with its memory in pieces that are no use for what is asked. Out: the
request is served, as storages could leave. Must not know: plans.
"""

from __future__ import annotations

import gc
from collections.abc import Callable

import pytest
import torch

import teraio
from teraio.engine.accelerator import Accelerator
from tests.device.sim import SimModule
from tests.device.test_offloading import peak_bytes, plain, start_anew
from tests.integration.test_faults import open_spill_files, read_only_spill_files
from tests.integration.training import Case, Training, make_batch

KIB, MIB = 1 << 10, 1 << 20
BUDGET = 12 * MIB
WEIGHTS, WEIGHT = 6, 1 * MIB
# Fourteen of them fill a segment for small requests but for 1 KiB, which fits other requests.
SMALL = 4 * KIB + 512


def empty(nbytes: int) -> torch.Tensor:
    return torch.empty(nbytes, dtype=torch.uint8, device="sim")


def test_small_requests_are_served_where_only_large_pieces_are_free(
    sim: SimModule, spill: str
) -> None:
    whole = empty(5 * MIB)
    model = torch.nn.ParameterList(torch.ones(WEIGHT // 4, device="sim") for _ in range(WEIGHTS))
    teraio.offload(model, memory_budget=BUDGET, ssd=spill)
    del whole
    part = empty(MIB // 2)  # the rest of the whole is free, but its segment can't be given back
    small = [empty(SMALL) for _ in range(3 * MIB // 2 // SMALL)]
    assert sim.reserved() <= BUDGET
    assert part.nbytes + sum(tensor.nbytes for tensor in small) < BUDGET // 4
    teraio.restore(model)
    assert all(torch.equal(weight.cpu(), torch.ones(WEIGHT // 4)) for weight in model)


def test_the_largest_small_request_is_served_where_a_slightly_smaller_piece_is_free(
    sim: SimModule, spill: str
) -> None:
    whole = empty(8 * MIB)
    model = torch.nn.ParameterList(torch.ones(WEIGHT // 4, device="sim") for _ in range(2))
    teraio.offload(model, memory_budget=BUDGET, ssd=spill)
    del whole
    part = empty(MIB)  # keeps the whole's segment, whose rest is free
    empty(6 * MIB)  # the most that an op has needed, and no power of two
    small = [empty(128 * KIB) for _ in range(11)]
    small.append(empty(16 * KIB))  # the last segment for small requests has 112 KiB left
    assert sim.reserved() == BUDGET
    small.append(empty(128 * KIB))
    assert sim.reserved() <= BUDGET
    assert part.nbytes + sum(tensor.nbytes for tensor in small) < BUDGET // 4
    teraio.restore(model)
    assert all(torch.equal(weight.cpu(), torch.ones(WEIGHT // 4)) for weight in model)


def outer_product(column: torch.Tensor) -> torch.Tensor:
    return column @ column.T


def broadcast_sum(column: torch.Tensor) -> torch.Tensor:
    return column + column.T


def filled(column: torch.Tensor) -> torch.Tensor:
    return column.new_ones(len(column), len(column))


def loss_of_classes(column: torch.Tensor) -> torch.Tensor:
    classes = torch.zeros(len(column), dtype=torch.long, device=column.device)
    return torch.nn.functional.cross_entropy(column.expand(-1, len(column)), classes)


@pytest.mark.parametrize("op", [outer_product, broadcast_sum, filled, loss_of_classes])
def test_an_op_that_makes_more_than_any_before_is_served(
    op: Callable[[torch.Tensor], torch.Tensor], accelerator: str, spill: str
) -> None:
    scale = 1 if accelerator == "sim" else 64  # else cuBLAS's workspace is what needs most
    # CUDA's softmax copies what is expanded.
    larger = scale // 2 if accelerator == "cuda" and op is loss_of_classes else scale
    column = torch.linspace(0, 1, 1536 * int(larger**0.5), device=accelerator)[:, None]
    expected = op(column).cpu()
    weights = [torch.ones(scale * WEIGHT // 4, device=accelerator) for _ in range(WEIGHTS)]
    model = torch.nn.ParameterList(weights)
    del weights
    start_anew(accelerator)
    teraio.offload(model, memory_budget=scale * BUDGET, ssd=spill)
    assert torch.equal(op(column).cpu(), expected)
    assert peak_bytes(accelerator) <= scale * BUDGET
    teraio.restore(model)
    assert all((weight == 1).all() for weight in model)


def test_memory_that_is_taken_without_an_op_is_served(sim: SimModule, spill: str) -> None:
    """As copies of storages are: deepcopy, torch.load."""
    model = torch.nn.ParameterList(torch.ones(WEIGHT // 4, device="sim") for _ in range(WEIGHTS))
    teraio.offload(model, memory_budget=BUDGET, ssd=spill)
    with teraio.iteration(model):
        empty(6 * MIB)  # the most that an op has needed
    storage = torch.UntypedStorage(6 * MIB, device="sim")
    assert sim.reserved() <= BUDGET
    assert storage.nbytes() == 6 * MIB
    teraio.restore(model)
    assert all(torch.equal(weight.cpu(), torch.ones(WEIGHT // 4)) for weight in model)


# What an allocator may give beyond a request, rather than cut a block, for each of a few requests.
SLACK = 3 * 128 * KIB


def test_what_an_op_needs_does_not_depend_on_what_comes_and_goes(
    sim: SimModule, spill: str
) -> None:
    """Operands come in for it, others leave meanwhile; neither is a need of its own."""
    case = Case("llama", steps=5, device="sim")
    _, peak = plain(case)

    def needs(budget: int) -> list[tuple[str, int]]:
        start_anew("sim")
        training = Training(case)
        teraio.offload(training.model, memory_budget=budget, ssd=spill)
        training.run()
        trace = teraio.report(training.model).trace
        teraio.restore(training.model)
        assert trace is not None
        return [(op.name, op.workspace_bytes) for op in trace.ops if op.phase != "optimizer"]

    roomy, tight = needs(8 * peak), needs(peak * 4 // 10)
    assert [name for name, _ in tight] == [name for name, _ in roomy]
    pairs = zip(tight, roomy, strict=True)
    assert max(abs(a - b) for (_, a), (_, b) in pairs) <= SLACK
    assert max(nbytes for _, nbytes in roomy) > 2 * SLACK  # attention is made of other ops


def test_a_drive_that_fails_where_memory_is_lacking_is_named(sim: SimModule, spill: str) -> None:
    model = torch.nn.ParameterList(torch.ones(WEIGHT // 4, device="sim") for _ in range(WEIGHTS))
    teraio.offload(model, memory_budget=BUDGET, ssd=spill)
    with (
        read_only_spill_files(spill),
        pytest.warns(UserWarning, match="teraio could not.*writing .* failed.*errno 9"),
        pytest.raises(torch.OutOfMemoryError),
    ):
        empty(BUDGET - WEIGHTS * WEIGHT // 2)
    assert empty(BUDGET - WEIGHTS * WEIGHT // 2).numel() > 0
    teraio.restore(model)
    assert all(torch.equal(weight.cpu(), torch.ones(WEIGHT // 4)) for weight in model)


class Scales(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        weights = [torch.full((WEIGHT // 4,), 0.5, device="sim") for _ in range(WEIGHTS)]
        self.weights = torch.nn.ParameterList(weights)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        scale = (inputs * inputs).sum()
        return torch.stack([(scale * weight).sum() for weight in self.weights]).sum()


def test_an_op_of_the_plan_is_served_with_a_larger_operand_that_it_does_not_know(
    sim: SimModule, spill: str
) -> None:
    inputs, larger = torch.ones(4, device="sim"), torch.ones(5 * MIB // 4, device="sim")
    model = Scales()
    teraio.offload(model, memory_budget=BUDGET, ssd=spill)
    for _ in range(4):
        with teraio.iteration(model):
            model(inputs).backward()
            model.zero_grad()
    assert teraio.report(model).phase == "run"
    with teraio.iteration(model):
        total = model(larger)
    assert float(total.detach()) == larger.numel() * 0.5 * (WEIGHTS * WEIGHT // 4)
    assert sim.reserved() <= BUDGET
    teraio.restore(model)


def larger_batch(training: Training) -> str:
    batch = make_batch("mixtral", 20, torch.Generator().manual_seed(5))
    loss = training.model(**{name: tensor.to("sim") for name, tensor in batch.items()}).loss
    loss.backward()
    training.optimizer.zero_grad()
    return float(loss.detach()).hex()


def test_a_batch_that_is_larger_than_planned_is_served(sim: SimModule, spill: str) -> None:
    case = Case("mixtral", steps=3, device="sim")
    _, peak = plain(case)
    theirs = Training(case)
    theirs.run()
    expected = larger_batch(theirs)
    del theirs
    start_anew("sim")
    ours = Training(case)
    budget = peak * 6 // 10
    teraio.offload(ours.model, memory_budget=budget, ssd=spill)
    ours.run()
    assert teraio.report(ours.model).phase == "run"
    assert larger_batch(ours) == expected
    assert sim.reserved() <= budget
    teraio.restore(ours.model)


def test_what_a_run_on_the_cpu_has_left_takes_no_memory_of_a_device(
    sim: SimModule, spill: str
) -> None:
    def trained(device: str) -> torch.nn.Module:
        layers = (torch.nn.Linear(256, 256, device=device) for _ in range(8))
        model = torch.nn.Sequential(*layers)
        teraio.offload(model, memory_budget=2 * MIB, ssd=spill)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(4):
            model(torch.ones(4, 256, device=device)).mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        teraio.restore(model)
        return model

    earlier = trained("cpu")
    weights = [parameter.detach().clone() for parameter in earlier.parameters()]
    trained("sim")
    gc.collect()
    assert sim.allocated() == 0
    assert all(map(torch.equal, earlier.parameters(), weights))


def test_a_storage_of_a_run_on_the_cpu_grows_in_host_memory(sim: SimModule, spill: str) -> None:
    earlier = torch.nn.Linear(256, 256)
    teraio.offload(earlier, memory_budget=16 * MIB, ssd=spill)
    left = torch.ones(256, 256)
    teraio.restore(earlier)
    model = torch.nn.Linear(256, 256, device="sim")
    teraio.offload(model, memory_budget=2 * MIB, ssd=spill)
    left.resize_(4 * MIB)
    assert left[:65536].eq(1).all()
    teraio.restore(model)


def test_a_device_that_takes_no_limit_leaves_no_file_open(
    sim: SimModule, spill: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(accelerator: Accelerator, nbytes: int | None) -> None:
        if nbytes is not None:
            raise RuntimeError("no limits here")

    monkeypatch.setattr(Accelerator, "limit_memory", refuse)
    model = torch.nn.ParameterList([torch.ones(WEIGHT // 4, device="sim")])
    with pytest.raises(RuntimeError, match="no limits") as error:
        teraio.offload(model, memory_budget=BUDGET, ssd=spill)
    assert open_spill_files(spill) == [], error
