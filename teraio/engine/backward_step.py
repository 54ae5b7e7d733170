"""The optimizer's step inside the backward pass: each parameter once its gradient is there.

So gradients die young, and what the step needs moves while the backward pass computes. The first
step of an optimizer is an ordinary one and shows which parameters it owns; from then on a hook of
each parameter steps it, and ``optimizer.step()`` finds no gradients. In: parameters, optimizers as
they step. Out: the same numbers, or an error for a loop that needs all gradients at once. Must not
know: plans, budgets, iterations.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from typing import Any, NoReturn, cast

import torch
from torch.amp.grad_scaler import GradScaler
from torch.autograd.function import BackwardCFunction
from torch.optim import Optimizer
from torch.utils.weak import WeakTensorKeyDictionary

import teraio._C as _C
from teraio.engine.backward_passes import BackwardPass, BackwardPasses
from teraio.errors import ConfigurationError

log = logging.getLogger("teraio")

# Their step looks at one parameter, its gradient and its state at a time. Others may not.
_SEPARATE = tuple(
    getattr(torch.optim, name)
    for name in (
        "ASGD",
        "Adadelta",
        "Adafactor",
        "Adagrad",
        "Adam",
        "AdamW",
        "Adamax",
        "Muon",
        "NAdam",
        "RAdam",
        "RMSprop",
        "Rprop",
        "SGD",
    )
    if hasattr(torch.optim, name)
)
_REMEDY = "Take optimizer_in_backward=True out of teraio.offload for such a loop."


class UsedGradient(torch.Tensor):
    """Stands where the gradient of a parameter was, until ``zero_grad()``; any use of it raises.

    It has the shape, dtype and device that ``.grad`` must have, but no memory.
    """

    parameter_name: str

    @staticmethod
    def __new__(cls, parameter: torch.Tensor, name: str) -> UsedGradient:
        used: UsedGradient = torch.Tensor._make_wrapper_subclass(
            cls, parameter.shape, dtype=parameter.dtype, device=parameter.device
        )
        used.__dict__["parameter_name"] = name
        return used

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> NoReturn:
        _raise_used(args)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> NoReturn:
        _raise_used(args)


def _raise_used(args: Any) -> NoReturn:
    used = next((one for one in _in_lists(args) if isinstance(one, UsedGradient)), None)
    name = used.__dict__["parameter_name"] if used is not None else "a parameter"
    if torch._C._current_graph_task_id() != -1:
        raise ConfigurationError(
            f"the backward pass gives {name} another gradient before optimizer.step() and "
            "zero_grad(), but the optimizer has stepped it with the first one "
            "(optimizer_in_backward=True). Gradients can't be accumulated over several backward "
            "passes, nor kept from one iteration to the next. After an exception in a backward "
            f"pass call zero_grad() before the next one. {_REMEDY}"
        )
    raise ConfigurationError(
        f"the gradient of {name} was used by the optimizer during the backward pass and is gone "
        "(optimizer_in_backward=True). Clipping or scaling gradients, code that reads .grad and "
        f"zero_grad(set_to_none=False) need it. {_REMEDY}"
    )


class BackwardStep:
    """Steps the parameters of some models in the backward pass, for any number of optimizers."""

    def __init__(self, also_separate: tuple[type[Optimizer], ...] = ()) -> None:
        """``also_separate``: further optimizers that step each parameter by itself."""
        self._separate = (*_SEPARATE, *also_separate)
        self._names: MutableMapping[torch.Tensor, str] = WeakTensorKeyDictionary()
        self._optimizers: weakref.WeakKeyDictionary[Optimizer, _Run] = weakref.WeakKeyDictionary()
        self._gradients: dict[int, str] = {}
        self._passes = BackwardPasses()
        self._scale = GradScaler.scale
        GradScaler.scale = self._without_scaling(GradScaler.scale)  # type: ignore[method-assign]

    def add(self, names: Mapping[torch.Tensor, str]) -> None:
        """From now on these parameters, here with their names, are stepped in backward."""
        self._names.update(names)

    def forget(self, parameters: Iterable[torch.Tensor]) -> None:
        """Ordinary steps of these from now on."""
        for parameter in parameters:
            self._names.pop(parameter, None)
            step = _step_of(parameter)
            if step is not None:
                step.handle.remove()
            if isinstance(parameter.grad, UsedGradient):
                parameter.grad = None

    def close(self) -> None:
        """Ordinary steps from now on."""
        GradScaler.scale = self._scale  # type: ignore[method-assign]
        self._passes.close()
        for run in self._optimizers.values():
            run.forget_hooks()
        self.forget(list(self._names))  # also those whose optimizer is gone

    def take_gradients(self) -> dict[int, str]:
        """The block ids of the gradients that were used up since the last call, and whose."""
        taken, self._gradients = self._gradients, {}
        return taken

    def check_copies(self, optimized: Iterable[str]) -> None:
        """Raises ConfigurationError if an optimizer has copies (``NAME:master``) of parameters."""
        copied = {f"{name}:master" for name in self._names.values()}
        for name in optimized:
            if name in copied:
                raise ConfigurationError(
                    f"the optimizer steps copies of the parameters ({name}), whose gradients are "
                    f"there after the backward pass only (optimizer_in_backward=True). {_REMEDY}"
                )

    def before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """Call it as a global pre-hook of ``optimizer.step``.

        Raises ConfigurationError where the step would not do what an ordinary one does.
        """
        mine = [pair for pair in _parameters(optimizer) if pair[1] in self._names]
        if not mine:
            return
        _check_optimizer(optimizer, self._separate)
        _check_alone()
        if any(value is not None for value in (*args[1:], *kwargs.values())):
            raise ConfigurationError(
                "optimizer.step() got a closure, which computes gradients again; with "
                f"optimizer_in_backward=True they are used up in backward. {_REMEDY}"
            )
        run = self._optimizers.setdefault(optimizer, _Run(optimizer))
        for _, parameter in mine:
            self._check_gradient(optimizer, parameter)
        run.check_settings(optimizer)
        run.set_hooks(optimizer, self._take_used_away, self._after_step)

    def _check_gradient(self, optimizer: Optimizer, parameter: torch.Tensor) -> None:
        step = _step_of(parameter)
        used = isinstance(parameter.grad, UsedGradient)
        if step is None or step.optimizer() is not optimizer:
            if used:
                raise ConfigurationError(
                    f"{self._names[parameter]} belongs to two optimizers, and the other one "
                    f"has stepped it in the backward pass (optimizer_in_backward=True). {_REMEDY}"
                )
        elif step.done and not used and not self._forgets_interrupted(step):
            raise ConfigurationError(
                f"the gradient of {step.name} was taken away or replaced between backward() and "
                "optimizer.step(), but the optimizer has stepped it with the one of the backward "
                f"pass (optimizer_in_backward=True). {_REMEDY}"
            )
        elif used and not step.done:
            raise ConfigurationError(
                f"{step.name} got no gradient in this iteration, and zero_grad() has not taken the "
                "old one away, which an ordinary step would use again. Call optimizer.zero_grad() "
                f"in every iteration, or: {_REMEDY}"
            )

    # [Note: order of step hooks]
    # optimizer.step() must find no gradients, but whatever the user runs before and after it, in
    # hooks too, must find the used ones and fail rather than see none. So they are away only from
    # the last hook before the step to the first one after it.
    def _take_used_away(self, optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
        for _, parameter in _parameters(optimizer):
            if isinstance(parameter.grad, UsedGradient):
                parameter.grad = None

    def _after_step(self, optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
        self._optimizers[optimizer].settings.clear()
        for group, parameter in _parameters(optimizer):
            name = self._names.get(parameter)
            if name is None or not parameter.requires_grad:
                continue
            step = _step_of(parameter)
            if parameter.grad is not None and (step is None or step.optimizer() is not optimizer):
                step = self._own(parameter, name, optimizer, group)
            if step is not None and (step.done or parameter.grad is not None):
                step.done = False
                parameter.grad = step.used

    def _own(
        self, parameter: torch.Tensor, name: str, optimizer: Optimizer, group: int
    ) -> _ParameterStep:
        before = _step_of(parameter)
        if before is not None:
            if before.optimizer() is not None:
                raise ConfigurationError(
                    f"{name} belongs to two optimizers, so it can't be stepped in the backward "
                    f"pass. {_REMEDY}"
                )
            before.handle.remove()
        step = _ParameterStep(self, parameter, name, optimizer, group)
        step.handle = parameter.register_post_accumulate_grad_hook(step)  # type: ignore[no-untyped-call]
        return step

    def step_one(self, parameter: torch.Tensor, step: _ParameterStep) -> None:
        """Steps one parameter with its gradient, which is gone then."""
        optimizer = step.optimizer()
        if optimizer is None or parameter.grad is None:
            return  # nobody steps it any more, or who does is yet to be seen
        if step.done and not self._forgets_interrupted(step):
            raise ConfigurationError(
                f"a second backward pass gives {step.name} another gradient before "
                "optimizer.step(), but the optimizer has stepped it with the first one "
                f"(optimizer_in_backward=True). {_REMEDY}"
            )
        self._optimizers[optimizer].note_settings(optimizer, step.group)
        self._gradients[_C.block_id(parameter.grad)] = step.name
        _C.begin_optimizer()
        try:
            _step_with(optimizer, step.group, parameter)
        finally:
            _C.end_optimizer()
        step.done = True
        step.passes = frozenset(self._passes.running)
        parameter.grad = step.used

    # [Note: interrupted backward passes]
    # An exception, such as a Ctrl-C, may end a backward pass that has stepped some parameters
    # already. A loop that goes on, with another batch, finds these a step ahead and all else in
    # order, so it gets a warning.
    def _forgets_interrupted(self, step: _ParameterStep) -> bool:
        """Whether the parameter was stepped in a pass that was interrupted; it is ready again."""
        interrupted = next((one for one in step.passes if one.interrupted), None)
        if interrupted is None or not step.passes.isdisjoint(self._passes.running):
            return False
        step.done = False
        if not interrupted.told:
            interrupted.told = True
            log.warning(
                "an exception ended a backward pass in which parameters, %s for example, had been "
                "stepped already (optimizer_in_backward=True). They keep that step. Load a "
                "checkpoint if that matters.",
                step.name,
            )
        return True

    def _without_scaling(self, scale: Callable[..., Any]) -> Callable[..., Any]:
        def refused(scaler: GradScaler, outputs: Any) -> Any:
            if isinstance(outputs, Iterator):  # can be looked at once only
                outputs = list(outputs)
            if scaler.is_enabled() and self._may_step_parameters(outputs):
                raise ConfigurationError(
                    "a GradScaler decides after the backward pass whether and how gradients are "
                    "used; with optimizer_in_backward=True they are used during it. " + _REMEDY
                )
            return scale(scaler, outputs)

        return refused

    def _may_step_parameters(self, outputs: Any) -> bool:
        """Whether the backward pass of ``outputs`` may give these parameters gradients."""
        seen: set[Any] = set()
        waiting: list[Any] = []
        for output in _in_lists(outputs):
            if output in self._names:
                return True
            waiting.append(output.grad_fn)
        while waiting:
            node = waiting.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            # Functions in Python, as those of reentrant checkpoints, may begin passes of their own.
            if isinstance(node, BackwardCFunction):
                return True
            leaf = getattr(node, "variable", None)
            if leaf is not None and leaf in self._names:
                return True
            waiting.extend(other for other, _ in node.next_functions)
        return False


class _ParameterStep:
    """The hook of one parameter. It knows the optimizer weakly, which holds the parameter."""

    handle: Any

    def __init__(
        self,
        owner: BackwardStep,
        parameter: torch.Tensor,
        name: str,
        optimizer: Optimizer,
        group: int,
    ) -> None:
        self._owner = owner
        self.name = name
        self.group = group
        self.optimizer = weakref.ref(optimizer)
        self.used = UsedGradient(parameter, name)
        self.done = False  # since the optimizer's last step()
        self.passes: frozenset[BackwardPass] = frozenset()  # one of them has stepped it last

    def __call__(self, parameter: torch.Tensor) -> None:
        self._owner.step_one(parameter, self)


class _Run:
    """What is known of one optimizer between two of its steps."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.settings: dict[int, dict[str, Any]] = {}  # by group, as its parameters were stepped
        self._handles: list[Any] = []

    def note_settings(self, optimizer: Optimizer, group: int) -> None:
        if group not in self.settings:
            self.settings[group] = _settings(optimizer.param_groups[group])

    def check_settings(self, optimizer: Optimizer) -> None:
        for group, used in self.settings.items():
            now = _settings(optimizer.param_groups[group])
            changed = [name for name in used.keys() | now.keys() if used.get(name) != now.get(name)]
            if changed:
                raise ConfigurationError(
                    f"{', '.join(sorted(changed))} of the optimizer changed between backward() and "
                    "step(), but its parameters were stepped in the backward pass "
                    "(optimizer_in_backward=True). Change settings before backward(), or after "
                    f"step() as learning-rate schedulers do, or: {_REMEDY}"
                )

    def set_hooks(
        self,
        optimizer: Optimizer,
        last_before: Callable[..., None],
        first_after: Callable[..., None],
    ) -> None:
        """For the step that begins now: see [Note: order of step hooks]."""
        self.forget_hooks()
        before = optimizer.register_step_pre_hook(last_before)
        after = optimizer.register_step_post_hook(first_after)
        cast(Any, optimizer._optimizer_step_post_hooks).move_to_end(after.id, last=False)
        self._handles = [before, after]

    def forget_hooks(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []


def _settings(group: Mapping[str, Any]) -> dict[str, Any]:
    """What a group of parameters is stepped with, as plain values."""
    return {
        name: value.tolist() if isinstance(value, torch.Tensor) else value
        for name, value in group.items()
        if name != "params"
    }


def _step_with(optimizer: Optimizer, group: int, parameter: torch.Tensor) -> None:
    """What ``optimizer.step()`` does to one of its parameters, without its hooks."""
    alone = object.__new__(type(optimizer))
    alone.__dict__.update(optimizer.__dict__)  # the state above all, which both share
    alone.param_groups = [{**optimizer.param_groups[group], "params": [parameter]}]
    step = type(optimizer).step
    if getattr(step, "hooked", False):
        step = step.__wrapped__  # type: ignore[attr-defined]
    step(alone)


def _parameters(optimizer: Optimizer) -> list[tuple[int, torch.Tensor]]:
    """The optimizer's parameters with the numbers of their groups."""
    groups = enumerate(optimizer.param_groups)
    return [(number, parameter) for number, group in groups for parameter in group["params"]]


def _step_of(parameter: torch.Tensor) -> _ParameterStep | None:
    hooks = getattr(parameter, "_post_accumulate_grad_hooks", None) or {}
    return next((hook for hook in hooks.values() if isinstance(hook, _ParameterStep)), None)


def _check_optimizer(optimizer: Optimizer, separate: tuple[type[Optimizer], ...]) -> None:
    kind = type(optimizer)
    if kind not in separate:
        raise ConfigurationError(
            f"{kind.__module__}.{kind.__qualname__} is not known to step each parameter by itself, "
            "as optimizer_in_backward=True needs it. Those of torch.optim that are: "
            f"{', '.join(known.__name__ for known in _SEPARATE)}. {_REMEDY}"
        )
    if any(group.get("differentiable") for group in optimizer.param_groups):
        raise ConfigurationError(
            f"a differentiable optimizer can't step in the backward pass. {_REMEDY}"
        )


def _check_alone() -> None:
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return
    if (size := distributed.get_world_size()) > 1:
        raise ConfigurationError(
            f"{size} processes train together. What they exchange, gradients above all, is there "
            "after the backward pass only, and with optimizer_in_backward=True gradients are used "
            f"during it. {_REMEDY}"
        )


def _in_lists(value: Any) -> Iterator[torch.Tensor]:
    """The tensors in lists and tuples that may hold each other."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for element in value:
            yield from _in_lists(element)
