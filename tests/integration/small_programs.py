"""Small programs, and the proof that a memory budget changes none of their bits.

In: a function that makes a Program. Out: an assertion. Must not know: single programs.
"""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

import teraio
from teraio.engine.testing import stress
from tests.integration.training import NO_LIMIT, digest

WIDTH = 256
STEPS = 7
SHARE = 50
MAX_DELAY_US = 300

T = TypeVar("T")


@dataclass
class Program:
    """``step`` runs one iteration and gives what to compare of it; ``state`` is what lasts."""

    model: nn.Module
    step: Callable[[int], Any]
    state: Callable[[], Any]
    others: tuple[nn.Module, ...] = ()
    share: int = SHARE  # of the unlimited peak, in percent


class Programs(dict[str, Callable[[], Program]]):
    """Functions that make a Program, by name; a decorator adds them."""

    def __call__(self, build: Callable[[], Program]) -> Callable[[], Program]:
        self[build.__name__] = build
        return build

    def new(self, name: str) -> Program:
        """The program anew, with the weights that it always begins with."""
        torch.manual_seed(0)
        return self[name]()


def mlp(depth: int = 6, width: int = WIDTH, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Linear(width, width, dtype=dtype), nn.Tanh()]
    return nn.Sequential(*layers)


def data(step: int, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1000 + step)
    return torch.randn(*(shape or (96, WIDTH)), generator=generator, dtype=dtype)


def adam(model: nn.Module, **settings: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-3, **settings)


def trained(
    model: nn.Module,
    loss_of: Callable[[int], torch.Tensor],
    optimizer: torch.optim.Optimizer | None = None,
    after: Callable[[], None] = lambda: None,
) -> Program:
    """The usual loop around ``loss_of``."""
    stepped = adam(model) if optimizer is None else optimizer

    def step(i: int) -> Any:
        loss = loss_of(i)
        loss.backward()
        stepped.step()
        stepped.zero_grad()
        after()
        return loss.detach()

    return Program(model, step, lambda: [model.state_dict(), stepped.state_dict()["state"]])


def fingerprint(value: Any) -> Any:
    """All bits of what a program gives."""
    if isinstance(value, torch.Tensor):
        if value.is_nested:
            return fingerprint([value.values(), value.offsets()])
        if value.is_sparse:
            whole = value.coalesce()
            return fingerprint([whole.indices(), whole.values()])
        return digest(value.int_repr() if value.is_quantized else value)
    if isinstance(value, Mapping):
        return {key: fingerprint(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | deque):
        return [fingerprint(inner) for inner in value]
    if isinstance(value, np.ndarray):
        return value.tobytes()
    return value.hex() if isinstance(value, float) else value


def iteration(model: nn.Module) -> AbstractContextManager[None]:
    """An iteration that no optimizer step ends, if the model is offloaded."""
    try:
        return teraio.iteration(model)
    except teraio.ConfigurationError:
        return nullcontext()


def run(made: Program, budget: int | None, spill: str) -> tuple[Any, Any]:
    """What a program computes, and the report of the run if there is a budget."""
    gc.collect()  # what earlier programs left would count as memory of this one
    report = None
    models = (made.model, *made.others)
    if budget is not None:
        for model in models:
            teraio.offload(model, memory_budget=budget, ssd=spill)
        if budget != NO_LIMIT:
            stress(MAX_DELAY_US)
    try:
        torch.manual_seed(1)
        given = [fingerprint(made.step(i)) for i in range(STEPS)]
        if budget is not None:
            report = teraio.report(made.model)
    finally:
        if budget is not None:
            stress(0)
            for model in models:
                teraio.restore(model)
    given.append(fingerprint(made.state()))
    return given, report


def with_enough(run: Callable[[int], T], peak: int, shares: Iterable[int]) -> T:
    """``run`` with the first budget that does, of these shares of the peak in percent."""
    *smaller, largest = shares
    for share in smaller:
        with suppress(teraio.BudgetError, torch.OutOfMemoryError):
            return run(peak * share // 100)
    return run(peak * largest // 100)


def same_bits_under_a_budget(
    new: Callable[[], Program], spill: str, shares: Iterable[int] = ()
) -> teraio.RunReport:
    """Runs new programs without teraio, without a limit and under a budget; reports the last.

    The budget is the program's own share of the peak, or else the first of ``shares`` that is
    enough.
    """
    expected, _ = run(new(), None, spill)
    unlimited, report = run(new(), NO_LIMIT, spill)
    assert unlimited == expected
    peak = max(step.peak_bytes for step in report.steps)
    given, report = with_enough(
        lambda budget: run(new(), budget, spill), peak, (new().share, *shares)
    )
    assert given == expected
    assert [step.iteration for step in report.steps if step.peak_bytes > report.budget_bytes] == []
    return report
