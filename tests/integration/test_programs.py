"""Programs that use PyTorch in ways of their own give the same bits under a budget.

In: small programs, one function each. Out: equality of all that they compute, with transfers that
are delayed at random and freed memory that is filled with NaN. Must not know: how storages move.
"""

from __future__ import annotations

import copy
import functools
import gc
import io
import json
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, grad, jvp, stack_module_state, vmap
from torch.nn.utils import parametrizations, parametrize
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import teraio
from tests.integration.small_programs import (
    WIDTH,
    Program,
    Programs,
    adam,
    data,
    iteration,
    mlp,
    same_bits_under_a_budget,
    trained,
)

program = Programs()


# ------------------------------------------------------------ autograd


class Scale(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        ctx.kept = x * 2  # not by save_for_backward
        return x * weight

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        x, weight = ctx.saved_tensors
        return gradient * weight + 0 * ctx.kept, (gradient * x).sum(0)


@program
def custom_autograd_function() -> Program:
    model = mlp()
    weight = nn.Parameter(torch.ones(96, WIDTH))
    model.register_parameter("scale", weight)

    def loss(i: int) -> torch.Tensor:
        x = data(i)
        for layer in model:
            x = Scale.apply(layer(x), weight.mean(0))
        return x.square().mean()

    return trained(model, loss)


@program
def double_backward() -> Program:
    model = mlp()

    def loss(i: int) -> torch.Tensor:
        x = data(i).requires_grad_()
        y = model(x)
        (gradient,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        return y.square().mean() + (gradient.norm(dim=1) - 1).square().mean()

    return trained(model, loss)


@program
def gradients_by_autograd_grad() -> Program:
    model = mlp()
    parameters = list(model.parameters())

    def step(i: int) -> Any:
        loss = model(data(i)).square().mean()
        gradients = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter -= 0.1 * gradient
        return loss.detach()

    def marked(i: int) -> Any:
        with iteration(model):
            return step(i)

    return Program(model, marked, model.state_dict)


@program
def hooks_on_tensors_and_modules() -> Program:
    model = mlp()
    seen: list[torch.Tensor] = []
    kept: dict[str, torch.Tensor] = {}
    model[2].register_forward_pre_hook(lambda _, args: (args[0] * 1.01,))
    model[4].register_forward_hook(lambda _, args, result: kept.update(result=result.detach()))
    model[6].register_full_backward_hook(lambda _, inner, outer: (inner[0] * 0.5,))
    model[8].register_full_backward_pre_hook(lambda _, outer: (outer[0] * 2,))
    model[0].weight.register_hook(lambda gradient: gradient.clamp(-1, 1))
    model[4].weight.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad.clone()))

    def loss(i: int) -> torch.Tensor:
        x = model(data(i))
        x.register_hook(lambda gradient: gradient + 1e-3)
        return x.square().mean()

    usual = trained(model, loss)

    def step(i: int) -> Any:
        given = usual.step(i), list(seen), kept["result"]
        seen.clear()
        return given

    return Program(model, step, usual.state)


@program
def saved_tensor_hooks() -> Program:
    model = mlp()

    def loss(i: int) -> torch.Tensor:
        with torch.autograd.graph.saved_tensors_hooks(torch.Tensor.double, torch.Tensor.float):
            return model(data(i)).square().mean()

    return trained(model, loss)


@program
def save_on_cpu() -> Program:
    model = mlp()

    def loss(i: int) -> torch.Tensor:
        with torch.autograd.graph.save_on_cpu():
            return model(data(i)).square().mean()

    return trained(model, loss)


def _checkpointed(reentrant: bool) -> Program:
    model = nn.Sequential(*(nn.Sequential(mlp(2), nn.Dropout(0.2)) for _ in range(4)))

    def loss(i: int) -> torch.Tensor:
        x = data(i).requires_grad_()
        for block in model:
            x = checkpoint(block, x, use_reentrant=reentrant)
        return x.square().mean()

    return trained(model, loss)


@program
def checkpoint_reentrant() -> Program:
    return _checkpointed(True)


@program
def checkpoint_not_reentrant() -> Program:
    return _checkpointed(False)


@program
def in_place_on_views() -> Program:
    model = mlp()

    def loss(i: int) -> torch.Tensor:
        x = model[:6](data(i)).clone()
        x[:, ::2].mul_(2)
        x.view(-1)[5:4000].add_(1)
        x.t()[3].copy_(x[0, :96])
        halves = x.chunk(2)
        y = torch.cat([halves[1], halves[0]])
        y[y > 1] = 0.5
        y = model[6:](F.relu(y, inplace=True))
        return y.square().mean()

    return trained(model, loss)


@program
def retained_graph_and_gradients() -> Program:
    model = mlp()

    def loss(i: int) -> torch.Tensor:
        middle = model[:6](data(i))
        middle.retain_grad()
        y = model[6:](middle)
        y.mean().backward(retain_graph=True)
        return y.square().mean() + middle.grad.square().sum()

    return trained(model, loss)


@program
def anomaly_detection() -> Program:
    model = mlp()

    def loss(i: int) -> torch.Tensor:
        return model(data(i)).square().mean()

    usual = trained(model, loss)

    def step(i: int) -> Any:
        with torch.autograd.detect_anomaly(check_nan=True):
            return usual.step(i)

    return Program(model, step, usual.state)


@program
def forward_mode() -> Program:
    model = mlp()
    weights = dict(model.named_parameters())

    def loss(i: int) -> torch.Tensor:
        value, tangent = jvp(
            lambda x: functional_call(model, weights, (x,)), (data(i),), (data(i + 50),)
        )
        return value.square().mean() + tangent.square().mean()

    return trained(model, loss)


# ------------------------------------------------------------ torch.func


@program
def functional_gradients() -> Program:
    model = mlp()
    weights = {name: p.detach() for name, p in model.named_parameters()}

    def step(i: int) -> Any:
        nonlocal weights

        def loss(given: dict[str, torch.Tensor]) -> torch.Tensor:
            return functional_call(model, given, (data(i),)).square().mean()

        with iteration(model):
            gradients = grad(loss)(weights)
            weights = {name: weights[name] - 0.1 * gradients[name] for name in weights}
        return [weights["0.weight"], gradients["4.weight"]]

    return Program(model, step, lambda: weights)


@program
def gradients_per_sample() -> Program:
    model = mlp(4)
    weights = dict(model.named_parameters())

    def loss(given: Any, sample: torch.Tensor) -> torch.Tensor:
        return functional_call(model, given, (sample,)).square().mean()

    def one(i: int) -> torch.Tensor:
        each = vmap(grad(loss), in_dims=(None, 0))(
            {name: p.detach() for name, p in weights.items()}, data(i, 4, WIDTH)
        )
        norms = [gradient.flatten(1).norm(dim=1).sum() for gradient in each.values()]
        return model(data(i)).square().mean() * torch.stack(norms).sum()

    return trained(model, one)


@program
def ensemble_by_vmap() -> Program:
    models = nn.ModuleList(mlp(4) for _ in range(3))
    base = copy.deepcopy(models[0]).to("meta")
    stacked = {name: nn.Parameter(p) for name, p in stack_module_state(list(models))[0].items()}
    model = nn.ParameterList(stacked.values())
    optimizer = adam(model)

    def step(i: int) -> Any:
        x = data(i)
        results = vmap(lambda p: functional_call(base, p, (x,)))(stacked)
        loss = results.square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return Program(model, step, lambda: [stacked, optimizer.state_dict()["state"]])


# ------------------------------------------------------------ modules


@program
def weight_norm() -> Program:
    model = nn.Sequential(
        *(parametrizations.weight_norm(nn.Linear(WIDTH, WIDTH)) for _ in range(6))
    )
    return trained(model, lambda i: model(data(i)).square().mean())


@program
def spectral_norm_and_orthogonal() -> Program:
    model = nn.Sequential(
        *(parametrizations.spectral_norm(nn.Linear(WIDTH, WIDTH)) for _ in range(4)),
        parametrizations.orthogonal(nn.Linear(WIDTH, 32)),
    )

    def loss(i: int) -> torch.Tensor:
        with parametrize.cached():
            return model(model[:4](data(i))).square().mean()

    return trained(model, loss)


@program
def old_spectral_norm() -> Program:
    model = nn.Sequential(
        *(nn.utils.spectral_norm(nn.Linear(WIDTH, WIDTH)) for _ in range(5)),
        nn.utils.weight_norm(nn.Linear(WIDTH, WIDTH)),
    )
    return trained(model, lambda i: model(data(i)).square().mean())


@program
def batch_norm() -> Program:
    features = 8192  # running statistics large enough to move
    model = nn.Sequential(
        nn.Linear(64, features),
        nn.BatchNorm1d(features),
        nn.ReLU(),
        nn.Linear(features, 64),
        nn.Linear(64, features),
        nn.BatchNorm1d(features, momentum=None),
        nn.Linear(features, 64),
    )

    def loss(i: int) -> torch.Tensor:
        return model(data(i, 32, 64)).square().mean()

    usual = trained(model, loss)

    def step(i: int) -> Any:
        given = usual.step(i)
        model.eval()
        with torch.no_grad():
            evaluated = model(data(i, 8, 64))
        model.train()
        return given, evaluated

    return Program(model, step, usual.state)


@program
def convolutions() -> Program:
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(inplace=True),
        nn.Conv2d(32, 64, 3, padding=1, stride=2),
        nn.GroupNorm(8, 64),
        nn.SiLU(),
        nn.MaxPool2d(2),
        nn.ConvTranspose2d(64, 64, 2, stride=2),
        nn.Upsample(scale_factor=2, mode="bilinear"),
        nn.Conv2d(64, 64, 3, groups=64),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(256, 256),
    ).to(memory_format=torch.channels_last)

    def loss(i: int) -> torch.Tensor:
        images = data(i, 4, 3, 32, 32).contiguous(memory_format=torch.channels_last)
        return model(images).square().mean()

    return trained(model, loss)


def _recurrent(kind: type[nn.RNNBase]) -> Program:
    """A whole call of one is an op, and what it saves for the backward pass can't leave before."""
    layers = [kind(64, 64, batch_first=True) for _ in range(4)]
    model = nn.ModuleList([*layers, mlp(8, 128), nn.Linear(64, 128)])
    lengths = torch.tensor([6] * 64 + [4] * 64)

    def loss(i: int) -> torch.Tensor:
        x = data(i, 128, 6, 64)
        for layer in layers:
            if i % 2:
                packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True)
                x, _ = nn.utils.rnn.pad_packed_sequence(layer(packed)[0], batch_first=True)
            else:
                x, _ = layer(x)
        return model[-2](model[-1](x)).square().mean()

    return replace(trained(model, loss), share=80)


@program
def lstm() -> Program:
    return _recurrent(nn.LSTM)


@program
def gru() -> Program:
    return _recurrent(nn.GRU)


@program
def transformer_layers() -> Program:
    layer = nn.TransformerEncoderLayer(128, 4, 256, dropout=0.1, batch_first=True)
    model = nn.TransformerEncoder(layer, 4, enable_nested_tensor=True)

    def loss(i: int) -> torch.Tensor:
        return model(data(i, 4, 24, 128)).square().mean()

    usual = trained(model, loss)

    def step(i: int) -> Any:
        given = usual.step(i)
        model.eval()
        mask = torch.zeros(4, 24, dtype=torch.bool)
        mask[1, 10:] = True
        with torch.no_grad():  # the fast path, with nested tensors
            fast = model(data(i, 4, 24, 128), src_key_padding_mask=mask)
        model.train()
        return given, fast

    return Program(model, step, usual.state)


@program
def sparse_embedding() -> Program:
    model = nn.ModuleDict(
        {
            "table": nn.Embedding(2048, 64, sparse=True),
            "bag": nn.EmbeddingBag(2048, 64, sparse=True),
            "body": mlp(3, 64),
        }
    )
    sparse = [*model["table"].parameters(), *model["bag"].parameters()]
    of_tables = torch.optim.SparseAdam(sparse, lr=1e-3)
    of_body = adam(model["body"])

    def step(i: int) -> Any:
        ids = torch.randint(0, 2048, (8, 16), generator=torch.Generator().manual_seed(i))
        x = model["table"](ids).mean(1) + model["bag"](ids)
        loss = model["body"](x).square().mean()
        loss.backward()
        gradient = model["table"].weight.grad
        of_tables.step()
        of_body.step()
        of_tables.zero_grad()
        of_body.zero_grad()
        return loss.detach(), gradient

    return Program(model, step, lambda: [model.state_dict(), of_tables.state_dict()["state"]])


@program
def lazy_modules() -> Program:
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.LazyLinear(WIDTH), nn.LazyLinear(WIDTH))
    model(data(0))
    return trained(model, lambda i: model(data(i)).square().mean())


@program
def traced_by_jit() -> Program:
    model = torch.jit.trace(mlp(), data(0))
    return trained(model, lambda i: model(data(i)).square().mean())


class Scripted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = torch.relu(layer(x)) * 1.5 + 0.1
        return x


@program
def scripted_by_jit() -> Program:
    model = torch.jit.script(Scripted())
    return trained(model, lambda i: model(data(i)).square().mean())


@program
def made_by_fx() -> Program:
    model = torch.fx.symbolic_trace(Scripted())
    return trained(model, lambda i: model(data(i)).square().mean())


# ------------------------------------------------------------ dtypes and layouts


@program
def complex_numbers() -> Program:
    model = mlp(4, dtype=torch.complex64)

    def loss(i: int) -> torch.Tensor:
        x = torch.fft.fft(data(i), norm="ortho")
        y = torch.view_as_real(model(x))
        return (
            y.square().mean()
            + torch.stft(y.flatten()[:4096], 512, return_complex=True, window=torch.ones(512))
            .abs()
            .mean()
        )

    return trained(model, loss)


@program
def double_precision() -> Program:
    model = mlp(dtype=torch.float64)
    return trained(model, lambda i: model(data(i, dtype=torch.float64)).square().mean())


@program
def half_precision() -> Program:
    model = mlp(dtype=torch.bfloat16)
    return trained(model, lambda i: model(data(i).bfloat16()).square().mean())


@program
def quantised_tensors() -> Program:
    model = mlp()
    kept: list[torch.Tensor] = []

    def loss(i: int) -> torch.Tensor:
        kept.append(torch.quantize_per_tensor(data(i), 0.1, 0, torch.qint8))
        return model(kept[-min(len(kept), 3)].dequantize()).square().mean()

    return trained(model, loss)


@program
def quantised_by_channel() -> Program:
    """The scales of so many channels are a storage that moves."""
    model = mlp()
    kept: list[torch.Tensor] = []

    def loss(i: int) -> torch.Tensor:
        scales = torch.full((4096,), 0.1) + i / 100
        zeros = torch.zeros(4096)
        wide = data(i, 4096, 6)
        kept.append(torch.quantize_per_channel(wide, scales, zeros, 0, torch.qint8))
        x = kept[-min(len(kept), 3)].dequantize().view(96, WIDTH)
        return model(x).square().mean()

    return trained(model, loss)


@program
def fake_quantisation() -> Program:
    model = mlp(4)

    def loss(i: int) -> torch.Tensor:
        x = data(i)
        for layer in model[::2]:
            weight = torch.fake_quantize_per_tensor_affine(layer.weight, 0.01, 0, -128, 127)
            x = torch.tanh(F.linear(x, weight, layer.bias))
        return x.square().mean()

    return trained(model, loss)


@program
def quantised_for_inference() -> Program:
    teacher = torch.ao.quantization.quantize_dynamic(mlp(3), {nn.Linear}, dtype=torch.qint8)
    model = mlp()

    def loss(i: int) -> torch.Tensor:
        with torch.no_grad():
            target = teacher(data(i))
        return (model(data(i)) - target).square().mean()

    return trained(model, loss)


@program
def nested_jagged_tensors() -> Program:
    model = mlp()

    def loss(i: int) -> torch.Tensor:
        nested = torch.nested.nested_tensor(
            [data(i, n, WIDTH) for n in (30, 50, 17)], layout=torch.jagged
        )
        return model(nested).values().square().mean()

    return trained(model, loss)


@program
def nested_tensors_of_many_components() -> Program:
    """The sizes of so many components are a storage that moves."""
    model = mlp()
    kept: list[torch.Tensor] = []

    def loss(i: int) -> torch.Tensor:
        rows = data(i, 6144, 4).split(2)
        kept.append(torch.nested.nested_tensor(list(rows)))
        nested = kept[-min(len(kept), 3)] * 2
        padded = torch.nested.to_padded_tensor(nested, 0.0)
        return model(padded.reshape(96, WIDTH)).square().mean()

    return trained(model, loss)


@program
def sparse_tensors_that_are_kept() -> Program:
    model = mlp()
    graph = (data(77, WIDTH, WIDTH) > 0.5).float()
    coo, csr = graph.to_sparse(), graph.to_sparse_csr()

    def loss(i: int) -> torch.Tensor:
        x = model[:6](data(i))
        x = torch.sparse.mm(csr, x.t()).t() / WIDTH
        x = torch.sparse.mm(coo, model[6:](x).t())
        return x.square().mean()

    usual = trained(model, loss)

    def step(i: int) -> Any:
        given = usual.step(i)
        coo.mul_(0.999)
        return given, coo.to_dense(), csr.to_dense()

    return Program(model, step, usual.state)


@program
def sparse_matrices() -> Program:
    model = mlp()

    def loss(i: int) -> torch.Tensor:
        adjacency = (data(i + 30, 96, 96) > 1).float()
        x = model[:6](data(i))
        x = torch.sparse.mm(adjacency.to_sparse_csr(), x)
        x = torch.sparse.mm(adjacency.to_sparse(), model[6:](x))
        return x.square().mean()

    return trained(model, loss)


@program
def expanded_and_overlapping() -> Program:
    model = mlp()
    base = torch.arange(WIDTH, dtype=torch.float32)

    def loss(i: int) -> torch.Tensor:
        x = data(i) + base.expand(96, WIDTH) / WIDTH
        windows = x.unfold(1, 16, 8).reshape(96, -1)[:, :WIDTH]
        y = model(windows).as_strided((50, 100), (WIDTH, 2))
        return y.square().mean()

    return trained(model, loss)


# ------------------------------------------------------------ optimizers and averages


def _with(make: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]) -> Program:
    model = mlp()
    return trained(model, lambda i: model(data(i)).square().mean(), make(model.parameters()))


for name, make in {
    "adam_amsgrad_maximize": lambda p: torch.optim.Adam(p, amsgrad=True, maximize=True),
    "adam_foreach_amsgrad": lambda p: torch.optim.Adam(p, foreach=True, amsgrad=True),
    "adam_with_a_tensor_as_rate": lambda p: torch.optim.Adam(p, lr=torch.tensor(1e-3)),
    "nadam": lambda p: torch.optim.NAdam(p, foreach=True),
    "radam": lambda p: torch.optim.RAdam(p),
    "rmsprop": lambda p: torch.optim.RMSprop(p, momentum=0.9, centered=True, foreach=True),
    "adagrad": lambda p: torch.optim.Adagrad(p),
    "adagrad_fused": lambda p: torch.optim.Adagrad(p, fused=True),
    "adadelta": lambda p: torch.optim.Adadelta(p, foreach=True),
    "adamax": lambda p: torch.optim.Adamax(p, foreach=True),
    "asgd": lambda p: torch.optim.ASGD(p, foreach=True),
    "rprop": lambda p: torch.optim.Rprop(p, foreach=True),
    "sgd_fused": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, fused=True),
}.items():
    program[name] = functools.partial(_with, make)


@program
def muon() -> Program:
    model = nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(6)))
    return trained(
        model, lambda i: model(data(i)).square().mean(), torch.optim.Muon(model.parameters())
    )


@program
def lbfgs_with_closure() -> Program:
    model = mlp(3)
    optimizer = torch.optim.LBFGS(
        model.parameters(), max_iter=3, history_size=3, line_search_fn="strong_wolfe"
    )

    def step(i: int) -> Any:
        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = model(data(i)).square().mean()
            loss.backward()
            return loss

        return optimizer.step(closure)

    return Program(model, step, model.state_dict)


@program
def scaler_on_the_cpu() -> Program:
    model = mlp()
    optimizer = adam(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16, growth_interval=2)

    def step(i: int) -> Any:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(data(i)).square().mean()
        if i == 3:
            loss = loss * float("inf")  # a step that is left out
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        norm = nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        return loss.detach(), norm, scaler.get_scale()

    return Program(model, step, lambda: [model.state_dict(), optimizer.state_dict()["state"]])


@program
def averaged_model() -> Program:
    model = mlp()
    decay = torch.optim.swa_utils.get_ema_multi_avg_fn(0.9)
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=decay)
    plain = torch.optim.swa_utils.AveragedModel(model)

    def after() -> None:
        average.update_parameters(model)
        plain.update_parameters(model)

    usual = trained(model, lambda i: model(data(i)).square().mean(), after=after)

    def step(i: int) -> Any:
        given = usual.step(i)
        with torch.no_grad():
            return given, average(data(i))

    return Program(model, step, lambda: [usual.state(), average.state_dict(), plain.state_dict()])


@program
def swapped_data() -> Program:
    """Trains, then evaluates with averaged weights that are put in place by ``param.data =``."""
    model = mlp()
    average = {name: p.detach().clone() for name, p in model.named_parameters()}

    def after() -> None:
        for name, p in model.named_parameters():
            average[name].lerp_(p.detach(), 0.1)

    usual = trained(model, lambda i: model(data(i)).square().mean(), after=after)

    def step(i: int) -> Any:
        given = usual.step(i)
        for name, p in model.named_parameters():
            p.data, average[name] = average[name], p.data
        with torch.no_grad():
            evaluated = model(data(i))
        for name, p in model.named_parameters():
            p.data, average[name] = average[name], p.data
        return given, evaluated

    return Program(model, step, lambda: [usual.state(), average])


@program
def parameters_as_one_vector() -> Program:
    model = mlp(3)

    def after() -> None:
        vector = nn.utils.parameters_to_vector(model.parameters())
        nn.utils.vector_to_parameters(vector.detach() * 0.999, model.parameters())

    return trained(model, lambda i: model(data(i)).square().mean(), after=after)


@program
def flat_parameters() -> Program:
    """All weights are views of one storage, as in FSDP's first version."""
    model = mlp(4)
    flat = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    begin = 0
    for p in model.parameters():
        p.data = flat[begin : begin + p.numel()].view_as(p)
        begin += p.numel()
    return trained(model, lambda i: model(data(i)).square().mean())


@program
def parameters_set_new_in_mid_run() -> Program:
    model = mlp()
    optimizer = adam(model)
    usual = trained(model, lambda i: model(data(i)).square().mean(), optimizer)

    def step(i: int) -> Any:
        given = usual.step(i)
        if i == 1:  # early enough for another profile
            fresh = nn.Linear(WIDTH, WIDTH)
            with torch.no_grad():
                fresh.weight.copy_(torch.eye(WIDTH))
            model[4] = fresh
            optimizer.add_param_group({"params": list(fresh.parameters())})
        return given

    return Program(model, step, usual.state)


@program
def low_rank_factors_added_to_frozen_weights() -> Program:
    """No parameter that the optimizer steps was there when the model was offloaded."""
    model = mlp().requires_grad_(False)
    optimizers: list[torch.optim.Optimizer] = []

    def adapt() -> None:
        for layer in list(model)[::2]:
            layer.register_parameter("down", nn.Parameter(torch.ones(32, WIDTH) / WIDTH))
            layer.register_parameter("up", nn.Parameter(torch.zeros(WIDTH, 32)))
            layer.register_forward_hook(lambda m, x, y: y + x[0] @ m.down.t() @ m.up.t())
        optimizers.append(torch.optim.AdamW([p for p in model.parameters() if p.requires_grad]))

    def step(i: int) -> Any:
        if not optimizers:
            adapt()
        loss = model(data(i)).square().mean()
        loss.backward()
        optimizers[0].step()
        optimizers[0].zero_grad()
        return loss.detach()

    return Program(model, step, model.state_dict)


@program
def gan() -> Program:
    generator, critic = mlp(4), mlp(4)
    of_generator, of_critic = adam(generator), adam(critic)

    def step(i: int) -> Any:
        fake = generator(data(i))
        loss = critic(fake.detach()).mean() - critic(data(i + 100)).mean()
        of_critic.zero_grad()
        loss.backward()
        of_critic.step()
        other = -critic(fake).mean()
        of_generator.zero_grad()
        other.backward()
        of_generator.step()
        return loss.detach(), other.detach()

    def state() -> Any:
        return [
            generator.state_dict(),
            critic.state_dict(),
            of_generator.state_dict()["state"],
            of_critic.state_dict()["state"],
        ]

    return Program(generator, step, state, others=(critic,))


# ------------------------------------------------------------ memory that others see


@program
def arrays_of_numpy() -> Program:
    model = mlp()
    inputs = [np.ascontiguousarray(data(i).numpy()) for i in range(3)]

    def loss(i: int) -> torch.Tensor:
        return model(torch.from_numpy(inputs[i % 3])).square().mean()

    usual = trained(model, loss)
    held: list[np.ndarray] = []

    def step(i: int) -> Any:
        given = usual.step(i)
        inputs[0] += 0.5  # the program goes on to write to its arrays
        if i == 2:
            held.append(model[0].weight.detach().numpy())
        if held:
            held[0][0] *= 0.5  # a window on a weight that is written to between steps
        return given, [array.copy() for array in held]

    return Program(model, step, usual.state)


@program
def functions_of_python_on_each_element() -> Program:
    model = mlp()
    for name in "abc":
        model.register_buffer(name, torch.randn(96, WIDTH))

    def loss(i: int) -> torch.Tensor:
        a, b, c = model.a, model.b, model.c
        a.apply_(lambda x: x * 0.5)
        b.map_(a, lambda x, y: x - y)
        c.map2_(a, b, lambda x, y, z: x * 0.5 + y * z)
        return model(data(i) + c).square().mean()

    return trained(model, loss)


@program
def copies_and_pickles() -> Program:
    model = mlp()
    usual = trained(model, lambda i: model(data(i)).square().mean())

    def step(i: int) -> Any:
        given = usual.step(i)
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        loaded = torch.load(file, weights_only=False)
        return given, loaded.state_dict(), copy.deepcopy(model)(data(i)).detach()

    return Program(model, step, usual.state)


@program
def other_threads() -> Program:
    model = mlp()
    usual = trained(model, lambda i: model(data(i)).square().mean())

    def step(i: int) -> Any:
        found: list[Any] = []

        def read() -> None:
            with torch.no_grad():
                found.extend([model(data(i)), model[4].weight.sum()])

        given = usual.step(i)
        reader = threading.Thread(target=read)
        reader.start()
        reader.join()
        return given, found

    return Program(model, step, usual.state)


@program
def dropout_and_random_state() -> Program:
    model = nn.Sequential(*(nn.Sequential(mlp(1), nn.Dropout(0.3)) for _ in range(6)))

    def loss(i: int) -> torch.Tensor:
        x = model(data(i))
        with torch.random.fork_rng():
            x = x + torch.randn(96, WIDTH) * 0.01
        return x.square().mean() + torch.rand(96, WIDTH).mean()

    usual = trained(model, loss)
    return Program(model, lambda i: (usual.step(i), torch.get_rng_state()), usual.state)


@program
def deterministic_mode() -> Program:
    model = mlp()

    def loss(i: int) -> torch.Tensor:
        x = model(data(i))
        torch.use_deterministic_algorithms(True)
        try:
            fresh = torch.empty(96, WIDTH)  # filled with NaN in this mode
            index = torch.arange(96) % 7
            x = torch.zeros_like(x).index_add_(0, index, x)
        finally:
            torch.use_deterministic_algorithms(False)
        return x.square().mean() + fresh.isnan().sum()

    return trained(model, loss)


@program
def inference_mode() -> Program:
    model = mlp()
    usual = trained(model, lambda i: model(data(i)).square().mean())

    def step(i: int) -> Any:
        given = usual.step(i)
        with torch.inference_mode():
            x = model(data(i))
            x.mul_(2)
        return given, x

    return Program(model, step, usual.state)


@program
def storages_of_other_sizes() -> Program:
    model = mlp()
    kept = torch.zeros(96, WIDTH)

    def loss(i: int) -> torch.Tensor:
        with torch.no_grad():
            kept.resize_(96 + 8 * i, WIDTH)
            kept[-96:].copy_(data(i))
            buffer = torch.empty(0)
            torch.cat([kept[:50], kept[50:]], out=buffer)
        storage = buffer.untyped_storage()
        storage.resize_(96 * WIDTH * 4)
        again = torch.empty(0).set_(storage, 0, (96, WIDTH))
        return model(again.clone()).square().mean()

    return trained(model, loss)


@program
def freed_and_refilled_storages() -> Program:
    """Storages are emptied after the forward and refilled in backward, as FSDP does."""
    model = mlp()
    whole = {name: p.detach().clone() for name, p in model.named_parameters()}

    def loss(i: int) -> torch.Tensor:
        for name, p in model.named_parameters():
            p.untyped_storage().resize_(whole[name].untyped_storage().nbytes())
            with torch.no_grad():
                p.data.copy_(whole[name])
        return model(data(i)).square().mean()

    def after() -> None:
        for name, p in model.named_parameters():
            whole[name].copy_(p.detach())
            p.untyped_storage().resize_(0)

    optimizer = adam(model)
    usual = trained(model, loss, optimizer, after)
    return Program(model, usual.step, lambda: [whole, optimizer.state_dict()["state"]])


@program
def tensor_subclasses() -> Program:
    class Named(torch.Tensor):
        pass

    model = mlp()

    def loss(i: int) -> torch.Tensor:
        y = model(data(i).as_subclass(Named))
        assert isinstance(y, Named)
        return y.square().mean().as_subclass(torch.Tensor)

    return trained(model, loss)


@program
def dispatch_modes() -> Program:
    counts: dict[str, int] = {}

    class Counting(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            counts[str(func)] = counts.get(str(func), 0) + 1
            return func(*args, **(kwargs or {}))

    model = mlp()

    def loss(i: int) -> torch.Tensor:
        with Counting():
            return model(data(i)).square().mean()

    usual = trained(model, loss)
    return Program(model, lambda i: (usual.step(i), dict(counts)), usual.state)


@program
def profile_with_stacks() -> Program:
    model = mlp()
    usual = trained(model, lambda i: model(data(i)).square().mean())

    def step(i: int) -> Any:
        with torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU], with_stack=True, record_shapes=True
        ):
            return usual.step(i)

    return Program(model, step, usual.state)


@program
def profile_with_shapes() -> Program:
    model = mlp()
    usual = trained(model, lambda i: model(data(i)).square().mean())

    def step(i: int) -> Any:
        with torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True
        ) as profile:
            computed = usual.step(i)
        products = [e.input_shapes for e in profile.events() if e.name == "aten::mm"]
        return computed, sorted(products)

    return Program(model, step, usual.state)


@program
def observed_executions() -> Program:
    model = mlp()
    usual = trained(model, lambda i: model(data(i)).square().mean())

    def step(i: int) -> Any:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "trace.json"
            observer = torch.profiler.ExecutionTraceObserver().register_callback(str(path))
            observer.start()
            computed = usual.step(i)
            observer.stop()
            observer.unregister_callback()
            nodes = json.loads(path.read_text())["nodes"]
        return computed, sum(node["name"] == "aten::mm" for node in nodes)

    return Program(model, step, usual.state)


@program
def optimizer_of_views() -> Program:
    """It steps pieces of the model's only parameter."""
    model = nn.Module()
    model.flat = nn.Parameter(torch.randn(6 * WIDTH, WIDTH) * 0.05)
    pieces = [piece.requires_grad_() for piece in model.flat.detach().split(WIDTH)]

    def loss(i: int) -> torch.Tensor:
        x = data(i)
        for piece in pieces:
            x = torch.tanh(x @ piece)
        return x.square().mean()

    return trained(model, loss, torch.optim.AdamW(pieces, lr=1e-3))


class Remembering(torch.optim.Optimizer):
    """Steps by the mean of the last gradients, and keeps states in ways of its own."""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        super().__init__(parameters, {"lr": 0.1})
        self.state["steps"] = 0

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        self.state["steps"] += 1
        for parameter in self.param_groups[0]["params"]:
            mine = self.state[parameter]
            mine.setdefault("last", deque(maxlen=2)).append(parameter.grad.clone())
            pair = mine.setdefault("sums", [{"all": torch.zeros_like(parameter)}])
            pair[0]["all"].add_(parameter.grad)
            for gradient in mine["last"]:
                parameter.sub_(gradient, alpha=0.05)
            parameter.sub_(pair[0]["all"], alpha=0.01 / self.state["steps"])


@program
def optimizer_with_states_of_its_own_kind() -> Program:
    model = mlp()
    optimizer = Remembering(model.parameters())
    return trained(model, lambda i: model(data(i)).square().mean(), optimizer)


# ------------------------------------------------------------ the test


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    yield
    gc.collect()


@pytest.mark.parametrize("name", program)
def test_a_program_gives_the_same_bits_under_a_budget(name: str, spill: str) -> None:
    report = same_bits_under_a_budget(lambda: program.new(name), spill)
    assert report.steps[-1].read_bytes > 0


def test_states_in_lists_are_states_too(spill: str) -> None:
    model = mlp()
    optimizer = Remembering(model.parameters())
    step = trained(model, lambda i: model(data(i)).square().mean(), optimizer).step
    step(0)
    teraio.offload(model, memory_budget="1MiB", ssd=[spill])
    for i in range(4):
        step(i)
    trace = teraio.report(model).trace
    assert trace is not None
    sums = [storage for storage in trace.storages if storage.name.endswith(":sums.0.all")]
    assert {storage.kind for storage in sums} == {"optimizer_state"}
    assert sum(storage.nbytes for storage in sums) == 6 * WIDTH * WIDTH * 4
    teraio.restore(model)
