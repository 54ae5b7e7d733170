"""Optimizers of a random program.

In: draws and parameters. Out: one of PyTorch's optimizers. Must not know: the program.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
from torch import nn, optim

Make = Callable[[list[nn.Parameter], bool], optim.Optimizer]


def _in_groups(parameters: list[nn.Parameter], foreach: bool) -> optim.Optimizer:
    halves = parameters[::2], parameters[1::2]
    groups = [{"params": half, "lr": 1e-3 * (i + 1)} for i, half in enumerate(halves)]
    return optim.NAdam(groups, foreach=foreach)


ANYWHERE: tuple[Make, ...] = (
    _in_groups,
    lambda p, foreach: optim.SGD(p, lr=0.01, momentum=0.9, nesterov=True, foreach=foreach),
    lambda p, _: optim.SGD(p, lr=0.01, momentum=0.5, fused=True),
    lambda p, foreach: optim.RMSprop(p, lr=1e-3, centered=True, momentum=0.5, foreach=foreach),
    lambda p, foreach: optim.Adagrad(p, lr=1e-2, foreach=foreach),
    lambda p, foreach: optim.Adam(p, lr=1e-3, weight_decay=0.01, foreach=foreach),
    lambda p, _: optim.Adam(p, lr=1e-3, fused=True, amsgrad=True),
    lambda p, foreach: optim.AdamW(p, lr=1e-3, amsgrad=True, foreach=foreach),
    lambda p, _: optim.AdamW(p, lr=torch.tensor(1e-3), foreach=False),
    lambda p, foreach: optim.RAdam(p, foreach=foreach),
    lambda p, foreach: optim.ASGD(p, lr=1e-2, t0=2, foreach=foreach),
    lambda p, foreach: optim.Rprop(p, lr=1e-3, foreach=foreach),
    lambda p, foreach: optim.Adadelta(p, foreach=foreach),
    lambda p, foreach: optim.Adamax(p, foreach=foreach, maximize=True),
    lambda p, foreach: optim.Adafactor(p, foreach=foreach),
    lambda p, _: optim.LBFGS(p, lr=0.05, max_iter=2, history_size=2),
)
ON_CPU: tuple[Make, ...] = (lambda p, _: optim.Adagrad(p, lr=1e-2, fused=True),)


def optimizer(draw: random.Random, parameters: list[nn.Parameter], on_cpu: bool) -> optim.Optimizer:
    make = draw.choice(ANYWHERE + (ON_CPU if on_cpu else ()))
    return make(parameters, draw.random() < 0.5)
