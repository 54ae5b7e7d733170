"""Several processes that train one model give the same bits, each under a budget of its own.

In: small programs, of which each process runs its part. Out: equality of all that each computes,
with transfers that are delayed at random and freed memory that is filled with NaN. Must not know:
how storages move.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel

import teraio
from tests.integration.small_programs import (
    WIDTH,
    Program,
    Programs,
    adam,
    data,
    mlp,
    same_bits_under_a_budget,
    trained,
)

WORLD = 2
SMALL_BUCKETS_MB = 0.3  # one layer of the model, so that several are under way at once
program = Programs()


def own_data(step: int) -> torch.Tensor:
    """Other data in each process."""
    return data(100 * dist.get_rank() + step)


def wrapped(model: nn.Module, **settings: Any) -> DistributedDataParallel:
    return DistributedDataParallel(model, bucket_cap_mb=SMALL_BUCKETS_MB, **settings)


def data_parallel(**settings: Any) -> Program:
    model = wrapped(mlp(), **settings)
    return trained(model, lambda i: model(own_data(i)).square().mean())


@program
def ddp() -> Program:
    return data_parallel()


@program
def ddp_with_gradients_in_buckets() -> Program:
    return data_parallel(gradient_as_bucket_view=True, static_graph=True)


@program
def ddp_with_unused_parameters() -> Program:
    class Halves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.halves = nn.ModuleList([mlp(3), mlp(3)])

        def forward(self, x: torch.Tensor, which: int) -> torch.Tensor:
            return self.halves[which](x)

    model = wrapped(Halves(), find_unused_parameters=True)
    return trained(model, lambda i: model(own_data(i), i // 3 % 2).square().mean())


@program
def ddp_made_after_the_budget_is_set() -> Program:
    inner = mlp()
    optimizer = adam(inner)
    made: list[DistributedDataParallel] = []

    def loss(i: int) -> torch.Tensor:
        if not made:
            made.append(wrapped(inner))
        return made[0](own_data(i)).square().mean()

    return trained(inner, loss, optimizer)


@program
def ddp_with_accumulation_and_clipping() -> Program:
    model = wrapped(mlp())
    optimizer = adam(model)

    def step(i: int) -> Any:
        with model.no_sync():
            model(own_data(2 * i)).square().mean().backward()
        loss = model(own_data(2 * i + 1)).square().mean()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        optimizer.zero_grad()
        return [loss.detach(), norm]

    return Program(model, step, lambda: [model.state_dict(), optimizer.state_dict()["state"]])


@program
def fsdp1_with_parameters_of_its_own() -> Program:
    model = FullyShardedDataParallel(
        mlp(),
        auto_wrap_policy=ModuleWrapPolicy({nn.Linear}),
        use_orig_params=True,
        device_id=torch.device("cpu"),
    )
    return trained(model, lambda i: model(own_data(i)).square().mean())


@program
def gradients_exchanged_while_backward_runs() -> Program:
    """By the program itself; nobody but the process group has them in between."""
    model = mlp()
    optimizer = adam(model)
    under_way: list[Any] = []

    def exchange(parameter: torch.Tensor) -> None:
        under_way.append(dist.all_reduce(parameter.grad, async_op=True))

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(exchange)

    def step(i: int) -> Any:
        loss = model(own_data(i)).square().mean()
        loss.backward()
        for work in under_way:
            work.wait()
        under_way.clear()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return Program(model, step, lambda: [model.state_dict(), optimizer.state_dict()["state"]])


@program
def weights_averaged_between_steps() -> Program:
    """A collective changes weights of which the drive has a copy, and does not say so."""
    model = mlp()

    def after() -> None:
        with torch.no_grad():
            for parameter in model.parameters():
                dist.all_reduce(parameter.data)
                parameter.div_(WORLD)

    return trained(model, lambda i: model(own_data(i)).square().mean(), after=after)


@program
def activations_gathered_and_scattered() -> Program:
    model = mlp()

    def loss(i: int) -> torch.Tensor:
        x = own_data(i)
        for layer in model:
            x = layer(x)
            gathered = functional.all_gather_tensor_autograd(x, 0, dist.group.WORLD)
            x = functional.reduce_scatter_tensor_autograd(gathered, "sum", 0, dist.group.WORLD)
            x = x / WORLD
        return x.square().mean()

    return trained(model, loss)


@program
def a_pipeline_of_two() -> Program:
    """One process has the first half of the layers, the other one the second."""
    model = mlp(4)
    optimizer = adam(model)
    first = dist.get_rank() == 0

    def step(i: int) -> Any:
        if first:
            hidden = model(data(i))
            sent = dist.isend(hidden.detach(), 1)
            gradient = torch.empty_like(hidden)
            received = dist.irecv(gradient, 1)
            sent.wait()
            received.wait()
            hidden.backward(gradient)
            given = gradient
        else:
            hidden = torch.empty_like(data(i))
            dist.recv(hidden, 0)
            hidden.requires_grad_()
            given = model(hidden).square().mean()
            given.backward()
            dist.send(hidden.grad, 0)
        optimizer.step()
        optimizer.zero_grad()
        return given.detach()

    return Program(model, step, lambda: [model.state_dict(), optimizer.state_dict()["state"]])


@program
def states_of_the_optimizer_divided() -> Program:
    model = wrapped(mlp())
    optimizer = ZeroRedundancyOptimizer(model.parameters(), torch.optim.AdamW, lr=1e-3)
    usual = trained(model, lambda i: model(own_data(i)).square().mean(), optimizer)
    return Program(model, usual.step, model.state_dict)


@program
def ddp_of_sparse_gradients() -> Program:
    """Gloo's threads make tensors by ops, and read their memory without one."""
    embedding = nn.Embedding(2000, WIDTH, sparse=True)
    model = wrapped(nn.Sequential(embedding, *mlp(4)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def loss(i: int) -> torch.Tensor:
        tokens = (own_data(i)[0].abs() * 1000).long() % 2000
        return model(tokens).square().mean()

    return trained(model, loss, optimizer)


@program
def collectives_of_strided_tensors() -> Program:
    model = mlp()

    def loss(i: int) -> torch.Tensor:
        x = own_data(i)
        gathered = [torch.empty(WIDTH, len(x)) for _ in range(WORLD)]
        dist.all_gather(gathered, x.t())
        return model(torch.stack(gathered).mean(0).t()).square().mean()

    return trained(model, loss)


@program
def works_kept_after_they_were_waited_for() -> Program:
    """Gloo's reduce-scatter never says that it is done."""
    model = mlp()
    kept: list[Any] = []

    def after() -> None:
        parts = [torch.empty(p.numel() // WORLD) for p in model.parameters()]
        kept[:] = [
            dist.reduce_scatter_tensor(part, p.detach().flatten(), async_op=True)
            for part, p in zip(parts, model.parameters(), strict=True)
        ]
        for work in kept:
            work.wait()
        with torch.no_grad():
            for part, p in zip(parts, model.parameters(), strict=True):
                p.add_(part.sum(), alpha=1e-6)

    return trained(model, lambda i: model(own_data(i)).square().mean(), after=after)


@program
def fsdp() -> Program:
    model = mlp()
    for layer in model:
        fully_shard(layer)
    fully_shard(model)
    optimizer = adam(model)
    usual = trained(model, lambda i: model(own_data(i)).square().mean(), optimizer)

    def state() -> Any:
        return [
            [p.to_local() for p in model.parameters()],
            [
                value.to_local() if hasattr(value, "to_local") else value
                for states in optimizer.state.values()
                for value in states.values()
            ],
        ]

    return Program(model, usual.step, state)


def one_of_several(rank: int, meeting: str, what: Callable[..., None], *arguments: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=WORLD)
    try:
        what(*arguments)
    finally:
        dist.destroy_process_group()


def in_processes(what: Callable[..., None], meeting: Path, *arguments: Any) -> None:
    """Raises ProcessRaisedException, with the traceback, if one of them fails."""
    torch.multiprocessing.spawn(
        one_of_several, (os.fspath(meeting), what, *arguments), nprocs=WORLD
    )


def prove(name: str, spill: str) -> None:
    report = same_bits_under_a_budget(lambda: program.new(name), spill)
    assert report.steps[-1].read_bytes > 0


@pytest.mark.parametrize("name", program)
def test_processes_get_the_same_bits_under_budgets(name: str, spill: str, tmp_path: Path) -> None:
    in_processes(prove, tmp_path / "meeting", name, spill)


def wrap_many_parameters(spill: str) -> None:
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(700)))
    teraio.offload(model, memory_budget="64MiB", ssd=spill)
    parallel = DistributedDataParallel(model)
    for _ in range(3):
        parallel(torch.ones(1, 2)).sum().backward()
    teraio.restore(model)


def test_a_model_of_many_parameters_can_be_wrapped_after_it_was_offloaded(
    spill: str, tmp_path: Path
) -> None:
    """Data parallelism sends the shapes of all parameters around, as one large tensor."""
    in_processes(wrap_many_parameters, tmp_path / "meeting", spill)


def outlast_a_run(spill: str) -> None:
    model = mlp()
    optimizer = adam(model)
    usual = trained(model, lambda i: model(data(i)).square().mean(), optimizer)
    large = torch.ones(1 << 20)
    teraio.offload(model, memory_budget="4.5MiB", ssd=spill)
    given = large * (dist.get_rank() + 1)
    if dist.get_rank() == 1:
        time.sleep(3)
    work = dist.all_reduce(given, async_op=True)
    teraio.restore(model)
    teraio.offload(model, memory_budget="6MiB", ssd=spill)
    for i in range(3):
        usual.step(i)
    work.wait()
    assert (given == 3).all()
    teraio.restore(model)


def test_a_collective_may_outlast_a_run(spill: str, tmp_path: Path) -> None:
    in_processes(outlast_a_run, tmp_path / "meeting", spill)


def step_in_backward(spill: str) -> None:
    model = mlp()
    teraio.offload(model, memory_budget="64MiB", ssd=spill, optimizer_in_backward=True)
    parallel = DistributedDataParallel(model)
    optimizer = adam(model)
    parallel(own_data(0)).sum().backward()
    with pytest.raises(teraio.ConfigurationError, match="2 processes"):
        optimizer.step()


def test_a_step_in_backward_would_come_before_gradients_are_exchanged(
    spill: str, tmp_path: Path
) -> None:
    in_processes(step_in_backward, tmp_path / "meeting", spill)
