"""From one training iteration on the meta device to the Trace it would have on an accelerator.

In: a model and an optimizer on the meta device, a function that runs an iteration, an Accelerator.
Out: a Trace with simulated times. Must not know: model configurations, plans, budgets.

The native observer and recorder see what happens, as in a real run; they are told of modules and of
the optimizer in the same way. Storages of the meta device have sizes but no data, so neither a GPU
nor memory is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

import teraio._C as _C
from teraio.engine import list_ops
from teraio.engine.adoption import MIN_STORAGE_BYTES
from teraio.engine.backward_step import BackwardStep
from teraio.engine.module_hooks import ModuleHooks, numbers_of_modules
from teraio.engine.participants import Participants
from teraio.engine.places import Places
from teraio.errors import ConfigurationError
from teraio.profiler.trace import build_trace
from teraio.records import Kind, Trace
from teraio.whatif.costs import Float32Matmul, Kernel, TensorShape, seconds
from teraio.whatif.meta_device import like_cuda
from teraio.whatif.mixed_precision import MasterAdamW
from teraio.whatif.presets import Accelerator


def trace_iteration(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    iteration: Callable[[], None],
    *,
    accelerator: Accelerator,
    inputs: Mapping[str, torch.Tensor] | None = None,
    float32_matmul: Float32Matmul = "fp32",
    list_op_bytes: int | None = None,
    optimizer_in_backward: bool = False,
) -> Trace:
    """The Trace of ``iteration()`` on ``accelerator``, with times from the cost model.

    All tensors must be on the meta device. ``iteration`` runs twice: the first time makes the
    optimizer's states. It must end with ``optimizer.step()``, which ends an iteration of a real run
    as well. ``inputs`` gives names to the tensors that the program feeds. Ops on lists of tensors,
    and the steps of foreach and fused optimizers, run in parts of ``list_op_bytes``, by default an
    eighth of the accelerator's memory. ``optimizer_in_backward`` is that of ``teraio.offload``.

    Raises ConfigurationError for tensors that are elsewhere, and while a model is offloaded in this
    process, since both use the one native observer.
    """
    _check(model)
    watch = _Watch(model, optimizer, inputs or {})
    if list_op_bytes is None:
        list_op_bytes = list_ops.limit_within(accelerator.memory_bytes)
    with _observed(list_op_bytes), watch.hooks(optimizer_in_backward):
        iteration()
        watch.note_gradients()
        names = watch.names()  # some may be replaced
        live_at_start = [(block, nbytes, True) for block, nbytes, _ in _C.live_blocks()]
        _C.end_iteration()
        _C.record(True)
        _C.log_calls()
        iteration()
        watch.note_gradients()
        recording = _C.take_recording()
        signatures, patterns = _C.take_calls()
        _C.end_iteration()
        names |= watch.names()
    times = _pattern_times(signatures, patterns, accelerator, float32_matmul)
    name, module, phase, _, workspace = recording["ops"]
    durations = [times[pattern] for pattern in recording["calls"]]
    recording["ops"] = (name, module, phase, durations, workspace)
    device = f"{accelerator.name} (simulated)"
    return build_trace(recording, live_at_start, names, watch.places, device).trace


def _check(model: torch.nn.Module) -> None:
    if _C.active():
        raise ConfigurationError(
            "a model is offloaded in this process, and its observer can't watch the meta device as "
            "well; make what-if traces in a process of their own."
        )
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.device.type != "meta":
            raise ConfigurationError(
                f"{name} is on {tensor.device}; a what-if trace takes a model whose tensors are "
                'all on the meta device. Build it inside `with torch.device("meta"):`.'
            )


@contextmanager
def _observed(list_op_bytes: int) -> Iterator[None]:
    _C.watch_meta(MIN_STORAGE_BYTES)
    list_ops.install(list_op_bytes)
    try:
        with like_cuda():
            yield
    finally:
        list_ops.uninstall()
        _C.record(False)
        _C.unwatch_meta()


def _pattern_times(
    signatures: Sequence[Any],
    patterns: Sequence[Sequence[int]],
    accelerator: Accelerator,
    float32_matmul: Float32Matmul,
) -> list[int]:
    """Nanoseconds of each pattern."""
    times_ns = [1e9 * seconds(_kernel(s), accelerator, float32_matmul) for s in signatures]
    return [round(sum(times_ns[signature] for signature in pattern)) for pattern in patterns]


def _kernel(signature: Any) -> Kernel:
    name, view, inputs, outputs, flags = signature
    return Kernel(
        name=name,
        view=view,
        inputs=tuple(_shape(*tensor) for tensor in inputs),
        outputs=tuple(_shape(*tensor) for tensor in outputs),
        flags=tuple(flags),
    )


def _shape(dtype: str, shape: Sequence[int], nbytes: int, written: bool) -> TensorShape:
    return TensorShape(dtype=dtype, shape=tuple(shape), nbytes=nbytes, written=written)


class _Watch:
    """Tells the native observer which module runs and when the optimizer does; knows names."""

    def __init__(
        self,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        inputs: Mapping[str, torch.Tensor],
    ) -> None:
        self.places = Places()
        self._optimizer = optimizer
        self._model = model
        self._inputs = inputs
        self._participants = Participants()
        self._participants.add_model(model, "")
        self._participants.add_optimizer(optimizer)
        self._backward_step: BackwardStep | None = None
        numbers = numbers_of_modules()
        for name, module in model.named_modules():
            numbers[module] = self.places.add_module(name or type(model).__name__)
        self._module_hooks = ModuleHooks(numbers)

    @contextmanager
    def hooks(self, optimizer_in_backward: bool) -> Iterator[None]:
        for name, parameter in self._model.named_parameters():
            _C.adopt(parameter, name)
        for name, buffer in self._model.named_buffers():
            _C.adopt(buffer, name)
        for name, tensor in self._inputs.items():
            _C.adopt(tensor, name)
        _C.mark_training_thread()
        hooks = [
            self._optimizer.register_step_pre_hook(lambda *_: _C.begin_optimizer()),
            self._optimizer.register_step_post_hook(lambda *_: _C.end_optimizer()),
        ]
        if optimizer_in_backward:
            self._backward_step = BackwardStep(also_separate=(MasterAdamW,))
            self._backward_step.add({p: name for name, p in self._model.named_parameters()})
            hooks.append(register_optimizer_step_pre_hook(self._backward_step.before_step))
        self._module_hooks.add()
        try:
            yield
        finally:
            self._module_hooks.remove()
            if self._backward_step is not None:
                self._backward_step.close()
            for hook in hooks:
                hook.remove()

    def note_gradients(self) -> None:
        """Remembers the gradients of now; those of the iteration before are still known."""
        taken = {} if self._backward_step is None else self._backward_step.take_gradients()
        self._participants.note_gradients(self._optimizer, taken)

    def names(self) -> dict[int, tuple[Kind, str]]:
        """Kind and name of every block that is known by name."""
        inputs: dict[int, tuple[Kind, str]] = {
            _C.block_id(tensor): ("input", name) for name, tensor in self._inputs.items()
        }
        return inputs | self._participants.blocks()
