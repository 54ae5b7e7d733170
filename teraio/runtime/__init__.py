"""The life of an offloaded run: its models come and go, its iterations end, it is closed.

In: models and settings, checked. Out: reports. There is one runtime per process, because there is
one memory; further models join it. Must not know: when plans are made, how data moves.
"""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any, Literal

import torch
from torch._compile import _disable_dynamo
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

import teraio._C as _C
from teraio import errors, status
from teraio.engine import list_ops, peers, raw_access
from teraio.engine.adoption import Adoption
from teraio.engine.backward_step import BackwardStep
from teraio.engine.captured_graphs import captured_graphs
from teraio.engine.compiled_graphs import CompiledGraphs, explained
from teraio.engine.compression import Compression
from teraio.engine.iterations import Iterations
from teraio.engine.materialize import (
    StoredTensor,
    check_shapes,
    is_elsewhere,
    lacks_data,
    materialize,
)
from teraio.engine.module_hooks import ModuleHooks, numbers_of_modules
from teraio.engine.participants import Participants, tensors_of
from teraio.engine.places import Places
from teraio.profiler.recorder import Recorder
from teraio.records import PlanOptions, RunReport, Trace
from teraio.runtime.planning import Planning
from teraio.runtime.resources import Resources
from teraio.runtime.steps import Steps
from teraio.sizes import format_size

log = logging.getLogger("teraio")


class Runtime:
    """One run under a memory budget. Create it, add models, close it."""

    def __init__(
        self,
        *,
        budget_bytes: int,
        folders: Sequence[Path],
        spill_bytes: int,
        profile_iterations: int,
        device: str,
        host_bytes: int = 0,
        require_gds: bool = False,
        compress: Compression | None = None,
        recompute: bool = True,
        on_trace: Callable[[], None] | None = None,
        ends_with_models: bool = True,
    ) -> None:
        """``budget_bytes`` of the memory of ``device`` (``cpu``, ``cuda:0``) are there for tensors.

        ``host_bytes`` of host memory may serve as a tier beside a device's memory. ``compress``
        says what is encoded on its way to the SSDs. ``recompute`` is that of ``PlanOptions``.
        ``on_trace`` is called when a trace is recorded; with it the run makes no plan. A run that
        does not end with its last model is closed by whoever made it.
        """
        self.device = device
        self._resources = Resources(
            budget_bytes=budget_bytes,
            folders=folders,
            spill_bytes=spill_bytes,
            device=device,
            host_bytes=host_bytes,
            require_gds=require_gds,
            compress=compress,
        )
        self._steps = Steps()
        self._places = Places()
        self._participants = Participants()
        self._iterations = Iterations(
            _C.mark_training_thread, self._end_iteration, self._participants.knows
        )
        self._adoption = Adoption(device, budget_bytes, self._resources.counted_bytes)
        self._deaths: dict[int, weakref.finalize[Any, Any]] = {}  # id(model) -> what is done then
        self._module_numbers = numbers_of_modules()
        self._module_paths: dict[str, int] = {}  # as names of parameters begin
        self._module_hooks = ModuleHooks(self._module_numbers, self._iterations.model_called)
        self._compiled = CompiledGraphs(self._module_paths)
        self._ends_with_models = ends_with_models
        self._backward_step: BackwardStep | None = None
        self._planning = Planning(
            self._resources,
            Recorder(
                self._participants, self._adoption, self._places, device, self._resources.encoded
            ),
            self._places,
            self._module_hooks,
            self._compiled,
            profile_iterations=profile_iterations,
            options=PlanOptions(recompute=recompute),
            on_trace=on_trace,
        )
        self._status = status.StatusFile()
        self._started_s = time.time()
        self._folders = tuple(str(folder) for folder in folders)
        raw_access.install()
        peers.install()
        list_ops.install(list_ops.limit_within(budget_bytes))
        self._compiled.install()
        if not self._resources.on_host:
            captured_graphs.run_begins()
        self._optimizer_hooks = [
            register_optimizer_step_pre_hook(self._before_step),
            register_optimizer_step_post_hook(self._after_step),
        ]
        self._resources.telemetry.start()

    @property
    def phase(self) -> Literal["profile", "run", "closed"]:
        """A run that is closed is over."""
        return self._planning.phase

    @property
    def trace(self) -> Trace | None:
        """What the last plan was made for, or is to be; None until an iteration is recorded."""
        recorded = self._planning.recorded
        return recorded.trace if recorded else None

    # ------------------------------------------------------------ models

    def add_model(
        self,
        model: torch.nn.Module,
        *,
        stored: Mapping[str, StoredTensor] | None = None,
        to_device: bool = False,
        optimizer_in_backward: bool = False,
    ) -> None:
        """Moves the model's storages under the budget, and profiles (again) with it.

        A model on the meta device gets its storages first, filled from ``stored`` if that is given.
        With ``to_device`` one that is elsewhere is brought to the run's device.
        """
        check_shapes(model)
        prefix = self._participants.new_prefix()
        device = torch.device(self.device)
        for name, tensor in tensors_of(model, prefix).items():
            if tensor.is_meta or (to_device and tensor.device != device):
                self._adoption.check_size(name, tensor)
        if stored is not None or lacks_data(model) or (to_device and is_elsewhere(model, device)):

            def hand_over(tensor: torch.Tensor, name: str) -> None:
                self._adoption.adopt_own(prefix + name, tensor)

            materialize(model, device, stored, hand_over)
        self._adoption.adopt(tensors_of(model, prefix))  # what fails comes before what is kept
        for name, module in model.named_modules():
            number = self._places.add_module(prefix + (name or type(model).__name__))
            self._module_numbers[module] = number
            self._module_paths[(prefix + name).rstrip(".")] = number
        if optimizer_in_backward:
            self._backward_step = self._backward_step or BackwardStep()
            self._backward_step.add({p: prefix + name for name, p in model.named_parameters()})
        _C.release_free_pages()  # malloc keeps where the weights were
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            _C.guard_quietly()
        self._participants.add_model(model, prefix)
        self._deaths[id(model)] = weakref.finalize(model, self._model_died, id(model))
        self._deaths[id(model)].atexit = False
        _C.mark_training_thread()
        self._planning.profile()

    def has_model(self, model: torch.nn.Module) -> bool:
        """Whether the model is offloaded by this runtime."""
        return model in self._participants

    def knows_module(self, module: torch.nn.Module) -> bool:
        """Whether the module is one of an offloaded model."""
        return module in self._module_numbers

    def remove_model(self, model: torch.nn.Module) -> None:
        """The last model to go closes the run. Raises BudgetError where it can't all come back."""
        if len(self._participants) == 1:
            away, free = _C.totals()["away"], self._resources.free_bytes()
            if away > free:
                raise errors.BudgetError(
                    f"restore() would bring {format_size(away)} back to {self.device}, which has "
                    f"{format_size(free)} left. Nothing has changed. Save a checkpoint, which "
                    "needs no memory there, or free memory of the device first."
                )
        elif self._backward_step is not None:
            self._backward_step.forget(model.parameters())
        self._forget(id(model))
        if not self._participants:
            self.close()

    def _model_died(self, key: int) -> None:
        if self.phase == "closed" or _C.forked():
            return
        if _C.on_io_thread():
            # Python's collector runs on any thread that runs Python, and closing waits for I/O.
            threading.Thread(target=self._model_died, args=(key,)).start()
            return
        try:
            self._forget(key)
            if self._ends_with_models and not self._participants:
                self.close()
        except errors.SpillError as error:  # nobody is there to catch it
            log.error("closing the run of a deleted model: %s", error)

    def _forget(self, key: int) -> None:
        self._participants.forget_model(key)
        death = self._deaths.pop(key, None)
        if death is not None:
            death.detach()  # or the model keeps what the run knows for as long as it lives

    def close(self) -> None:
        """Brings everything back into memory and removes every hook.

        In a process that was forked off it does nothing: the run is the other one's.
        """
        if self.phase == "closed" or _C.forked():
            return
        self._planning.close()
        steps: list[Callable[[], None]] = [
            self._resources.telemetry.stop,
            *(hook.remove for hook in self._optimizer_hooks),
            self._module_hooks.remove,
            list_ops.uninstall,
            self._status.close,
            self._resources.stop,
            # Until then other threads may meet storages that are away.
            captured_graphs.run_ends,
            self._compiled.uninstall,
            peers.uninstall,
            raw_access.uninstall,
            self._resources.close,
        ]
        if self._backward_step is not None:
            steps.insert(0, self._backward_step.close)
        with ExitStack() as closing:  # where one raises, by Ctrl-C say, the others go on
            for step in reversed(steps):
                closing.callback(step)
        log.info("closed: everything is back in memory")

    def report(self) -> RunReport:
        """The state of the run."""
        planning = self._planning
        return RunReport(
            budget_bytes=self._resources.budget_bytes,
            phase=planning.phase,
            hardware=planning.hardware,
            trace=self.trace,
            plan=planning.plan,
            steps=tuple(self._steps.latest),
            telemetry=self._resources.telemetry.telemetry(),
        )

    # ------------------------------------------------------------ iterations

    def iteration(self) -> AbstractContextManager[None]:
        """One iteration; optimizer steps inside don't end it."""
        return self._iterations.mark()

    # A step may be compiled, but not these. (What it takes, optimizers have loaded already.)
    @_disable_dynamo
    def _before_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        participants = self._participants
        if not participants.trains(optimizer):
            self._iterations.stranger_stepped()
            return
        if not participants.knows(optimizer):
            self._adoption.adopt(participants.tensors_of(optimizer))  # states may have been loaded
        used: dict[int, str] = {}
        if self._backward_step is not None:
            self._backward_step.check_copies(name for name, _ in participants.named(optimizer))
            self._backward_step.before_step(optimizer, args, kwargs)
            used = self._backward_step.take_gradients()
        _C.begin_optimizer()
        if self._planning.may_record:
            participants.note_gradients(optimizer, used)

    @_disable_dynamo
    def _after_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if not self._participants.trains(optimizer):
            return
        _C.end_optimizer()
        # With several optimizers, an iteration ends with the step of the one that came up last.
        if self._participants.add_optimizer(optimizer):
            another = self._iterations.comes_up(optimizer)
        else:
            another = self._iterations.takes_over(optimizer)
        if another:
            self._planning.profile()
        self._iterations.stepped(optimizer)

    def _end_iteration(self) -> None:
        stats = _C.end_iteration()
        step = self._steps.add(stats, "profile" if self.phase == "profile" else "run")
        if stats["over_budget"]:
            self._planning.profile()  # or one iteration would be recorded together with the next
            with explained():
                raise errors.BudgetError(stats["over_budget"])
        try:
            self._planning.iteration_ended(step, stats)
        finally:
            self._participants.iteration_ended()
        self._status.update(self._status_now)

    def _status_now(self) -> status.RunStatus:
        totals, plan, tier = _C.totals(), self._planning.plan, self._planning.hardware.tiers[0]
        return status.RunStatus(
            **status.this_process(),
            started_s=self._started_s,
            updated_s=time.time(),
            folders=self._folders,
            phase=self.phase,
            budget_bytes=self._resources.budget_bytes,
            used_bytes=totals["used"],
            away_bytes=totals["away"],
            spill_bytes=totals["spill_reserved"],
            read_bytes_per_s=tier.read_bytes_per_s,
            write_bytes_per_s=tier.write_bytes_per_s,
            predicted_s=plan.predicted_s if plan else None,
            ideal_s=plan.ideal_s if plan else None,
            steps=tuple(self._steps.latest[-status.STEPS_TOLD :]),
            telemetry=self._resources.telemetry.telemetry(),
        )
