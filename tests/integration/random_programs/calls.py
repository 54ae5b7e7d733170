"""Ways to call a function of a register: threads, streams, contexts, hooks, checkpoints, failures.

In: draws, a world and a function. Out: a function that calls it. Must not know: what it computes.
"""

from __future__ import annotations

import functools
import io
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.graph import register_multi_grad_hook, save_on_cpu, saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from tests.integration.random_programs.world import Function, Interruption, World, failure


@dataclass(frozen=True)
class Call:
    """What is called, and what a way to call it may choose by."""

    world: World
    inner: Function
    flag: bool
    pace: int
    phase: int


Way = Callable[[Call, Tensor], Tensor]


def within(draw: random.Random, world: World, inner: Function, outermost: bool) -> Function:
    """``inner`` as some program would call it."""
    call = Call(world, inner, draw.random() < 0.5, draw.randint(2, 4), draw.randrange(3))
    ways = [*ANYWHERE, *(ON_CPU if world.on_cpu else ON_DEVICE)]
    if outermost:
        ways += OUTERMOST
    return functools.partial(draw.choice(ways), call)


# ------------------------------------------------------------ where and when


def _in_thread(call: Call, x: Tensor) -> Tensor:
    return call.world.in_thread(lambda: call.inner(x))


def _on_stream(call: Call, x: Tensor) -> Tensor:
    world = call.world
    main, other = torch.accelerator.current_stream(), getattr(torch, world.device).Stream()
    other.wait_stream(main)
    x.record_stream(other)
    with other:
        y = call.inner(x)
    main.wait_stream(other)
    y.record_stream(main)
    world.streams.append(other)
    return y


def _sometimes(call: Call, x: Tensor) -> Tensor:
    return call.inner(x) if call.world.step % call.pace == call.phase % call.pace else x


def _by_value(call: Call, x: Tensor) -> Tensor:
    return call.inner(x) if x.detach().mean().item() > 0 else x * 0.5


# ------------------------------------------------------------ contexts


def _cast(call: Call, x: Tensor) -> Tensor:
    with torch.autocast(call.world.device, dtype=torch.bfloat16):
        return call.inner(x).float()


def _inferred(call: Call, x: Tensor) -> Tensor:
    with torch.inference_mode() if call.flag else torch.no_grad():
        y = call.inner(x)
    return x + (y.clone() if call.flag else y)


def _looking_for_anomalies(call: Call, x: Tensor) -> Tensor:
    with torch.autograd.set_detect_anomaly(True, check_nan=False):
        return call.inner(x)


def _with_own_random_numbers(call: Call, x: Tensor) -> Tensor:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        y = call.inner(x)
    before = torch.get_rng_state()
    shift = torch.randn(3)
    torch.set_rng_state(before)
    return y + shift.sum().to(y.device)


# ------------------------------------------------------------ what backward keeps


def _saving_copies(call: Call, x: Tensor) -> Tensor:
    with saved_tensors_hooks(lambda t: t.detach().clone(), lambda t: t):
        return call.inner(x)


def _saving_on_cpu(call: Call, x: Tensor) -> Tensor:
    """A result of the CPU would keep itself."""
    with save_on_cpu():
        return call.inner(x)


def _as_array(t: Tensor) -> Tensor | np.ndarray[Any, Any]:
    plain = t.detach()
    usual = plain.layout == torch.strided and not (plain.is_conj() or plain.is_neg())
    return plain.cpu().numpy() if usual and plain.dtype != torch.bfloat16 else plain


def _saving_arrays(call: Call, x: Tensor) -> Tensor:
    """Arrays of their own, or windows on a tensor's memory where that is the host's."""

    def pack(t: Tensor) -> Tensor | np.ndarray[Any, Any]:
        packed = _as_array(t)
        return packed.copy() if call.flag and isinstance(packed, np.ndarray) else packed

    def unpack(packed: Tensor | np.ndarray[Any, Any]) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        return torch.from_numpy(packed).to(call.world.device)

    with saved_tensors_hooks(pack, unpack):
        return call.inner(x)


def _saving_files(call: Call, x: Tensor) -> Tensor:
    def pack(t: Tensor) -> bytes:
        file = io.BytesIO()
        torch.save(t.detach(), file)
        return file.getvalue()

    with saved_tensors_hooks(pack, lambda packed: torch.load(io.BytesIO(packed))):
        return call.inner(x)


def _made_again(call: Call, x: Tensor) -> Tensor:
    y: Tensor = checkpoint(call.inner, x, use_reentrant=False)
    return y


def _made_again_twice(call: Call, x: Tensor) -> Tensor:
    y: Tensor = checkpoint(
        lambda z: call.inner(checkpoint(call.inner, z, use_reentrant=False)),
        x,
        use_reentrant=False,
    )
    return y


def _made_again_within_backward(call: Call, x: Tensor) -> Tensor:
    """PyTorch wants a backward pass to all leaves around it."""
    if not (torch.is_grad_enabled() and x.requires_grad):
        return call.inner(x)
    y: Tensor = checkpoint(call.inner, x, use_reentrant=True)
    return y


# ------------------------------------------------------------ gradients


def _penalised(call: Call, x: Tensor) -> Tensor:
    if not (torch.is_grad_enabled() and x.requires_grad):
        return call.inner(x)
    y = call.inner(x)
    if not y.requires_grad:
        return y
    (gradient,) = torch.autograd.grad(y.sum(), x, create_graph=True, allow_unused=True)
    return y if gradient is None else y + gradient.tanh()


def _with_backward_aside(call: Call, x: Tensor) -> Tensor:
    """A backward pass of its own, whose gradients stay in the weights."""
    if not torch.is_grad_enabled():
        return call.inner(x)
    leaf = x.detach().requires_grad_()
    loss = call.inner(leaf).square().mean()
    loss.backward(retain_graph=call.flag)
    if call.flag:
        loss.backward()
    return x if leaf.grad is None else x + leaf.grad


def _with_backward_in_thread(call: Call, x: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        return call.inner(x)
    leaf = x.detach().requires_grad_()
    loss = call.inner(leaf).square().mean()
    if loss.requires_grad:
        call.world.in_thread(lambda: loss.backward(inputs=[leaf]))
    y = call.inner(x)
    return y if leaf.grad is None else y + leaf.grad


def _with_product(call: Call, x: Tensor) -> Tensor:
    """With the product of a vector with the Jacobian."""
    if not torch.is_grad_enabled():
        return x + call.inner(x)
    y, gradient = torch.autograd.functional.vjp(call.inner, x.detach(), torch.ones_like(x))
    return x + y.detach() + gradient.detach().tanh()


def _hooked(call: Call, x: Tensor) -> Tensor:
    y = call.inner(x)
    if y.requires_grad:
        y.register_hook(lambda gradient: gradient * 0.9)
    return y


def _hooked_before_node(call: Call, x: Tensor) -> Tensor:
    y = call.inner(x)
    if y.grad_fn is not None:
        y.grad_fn.register_prehook(
            lambda gradients: tuple(None if g is None else g.clamp(-1, 1) for g in gradients)
        )
    return y


def _hooked_on_both(call: Call, x: Tensor) -> Tensor:
    """On several streams nothing would join them for the hook."""

    def look(gradients: Sequence[Tensor | None]) -> None:
        call.world.seen.append([None if g is None else g.sum().item() for g in gradients])

    y = call.inner(x)
    if y.requires_grad and x.requires_grad:
        # It keeps the graph that keeps it.
        call.world.hooks.append(register_multi_grad_hook([x, y], look))
    return y


# ------------------------------------------------------------ failures


def _with_failure(call: Call, x: Tensor) -> Tensor:
    y = call.inner(x)
    doubled = y.detach() * 2
    with failure():
        if call.flag:
            raise Interruption
        torch.add(doubled, torch.zeros(3, 5, 7, device=x.device), out=doubled)
    return x + y * 0.1


def _with_failed_backward(call: Call, x: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        return call.inner(x)
    leaf = x.detach().requires_grad_()
    y = call.inner(leaf)
    if not y.requires_grad:
        return y

    def interrupt(_: Tensor) -> None:
        raise Interruption

    aside = torch.tanh(leaf * 1.0)
    aside.register_hook(interrupt)
    with failure():
        (y.sum() + aside.sum()).backward(inputs=[leaf])
    return x + y.detach()


ANYWHERE: tuple[Way, ...] = (
    _in_thread,
    _sometimes,
    _by_value,
    _cast,
    _inferred,
    _looking_for_anomalies,
    _with_own_random_numbers,
    _saving_copies,
    _saving_arrays,
    _saving_files,
    _made_again,
    _made_again_twice,
    _penalised,
    _with_backward_aside,
    _with_backward_in_thread,
    _with_product,
    _hooked,
    _hooked_before_node,
    _with_failure,
    _with_failed_backward,
)
ON_CPU: tuple[Way, ...] = (_hooked_on_both,)
ON_DEVICE: tuple[Way, ...] = (_saving_on_cpu, *[_on_stream] * 4)  # streams need more tries
OUTERMOST: tuple[Way, ...] = (_made_again_within_backward,)
