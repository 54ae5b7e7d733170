"""The life of an offloaded run: profile, plan, run, closed; where iterations begin and end.

In: models and settings, checked. Out: reports. There is one runtime per process, because there is
one memory; further models join it. Must not know: how plans are found or how data moves.
"""

from __future__ import annotations

import logging
import math
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
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
from teraio.engine import list_ops, peers, raw_access, schedule
from teraio.engine.adoption import Adoption
from teraio.engine.backward_step import BackwardStep
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
from teraio.engine.progress import Progress
from teraio.engine.revision import Revision
from teraio.planner import ideal_s, least_budget, live_by_op, replayed
from teraio.planner import plan as make_plan
from teraio.planner.feasibility import PLAN_RESERVE, run_budget
from teraio.planner.memory import carried_twins, returning_twins
from teraio.profiler.hardware import Work, at_share_of_speed, share_of_speed
from teraio.profiler.trace import Recorded, build_trace, with_blocks, with_durations
from teraio.records import Kind, Plan, PlanOptions, RunReport, StepReport
from teraio.runtime.resources import Resources
from teraio.runtime.steps import Steps
from teraio.sizes import format_size

log = logging.getLogger("teraio")

# Iterations that end later, or never, are given up with what they needed until then.
_LOOK_ON_S = 60.0
# What planning takes at most, measured for traces of 2,000 to 100,000 ops; but no more than this
# part of the budget is made free for it.
_PLANNING_BYTES = 48 << 20
_PLANNING_BYTES_PER_OP = 512
_PLANNING_SHARE = 8


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
    ) -> None:
        """``budget_bytes`` of the memory of ``device`` (``cpu``, ``cuda:0``) are there for tensors.

        ``host_bytes`` of host memory may serve as a tier beside a device's memory. ``compress``
        says what is encoded on its way to the SSDs. ``recompute`` is that of ``PlanOptions``.
        ``on_trace`` is called when a trace is recorded; with it the run makes no plan.
        """
        self._resources = Resources(
            budget_bytes=budget_bytes,
            folders=folders,
            spill_bytes=spill_bytes,
            device=device,
            host_bytes=host_bytes,
            require_gds=require_gds,
            compress=compress,
        )
        self.hardware = self._resources.hardware
        self.budget_bytes = budget_bytes
        self.phase: Literal["profile", "run", "closed"] = "profile"
        self.recorded: Recorded | None = None
        self.plan: Plan | None = None
        self._steps = Steps()
        self._iterations = Iterations(_C.mark_training_thread, self._end_iteration)
        self.device = device
        self._options = PlanOptions(recompute=recompute)
        self._on_trace = on_trace
        self._profile_iterations = profile_iterations
        self._profiled = 0
        self._revision = Revision()
        self._spill_work = Work(0.0, 0.0, 0.0, 0, 0)  # of the last iteration
        self._live_bytes = 0  # the most of storages in the last iteration, wherever they were
        self._places = Places()
        self._participants = Participants()
        self._deaths: dict[int, weakref.finalize[Any, Any]] = {}  # id(model) -> what is done then
        self._module_numbers = numbers_of_modules()
        self._module_paths: dict[str, int] = {}  # as names of parameters begin
        self._backward_step: BackwardStep | None = None
        self._live_at_start: list[tuple[int, int, bool]] = []
        self._names_at_start: dict[int, tuple[Kind, str]] = {}
        self._module_hooks = ModuleHooks(self._module_numbers, self._iterations.model_called)
        self._compiled = CompiledGraphs(self._module_paths)
        self._progress = Progress(profile_iterations)
        self._status = status.StatusFile()
        self._started_s = time.time()
        self._folders = tuple(str(folder) for folder in folders)
        self._adoption = Adoption(device, budget_bytes, self._resources.counted_bytes)
        raw_access.install()
        peers.install()
        list_ops.install(list_ops.limit_within(budget_bytes))
        self._compiled.install()
        self._optimizer_hooks = [
            register_optimizer_step_pre_hook(self._before_step),
            register_optimizer_step_post_hook(self._after_step),
        ]
        self._resources.telemetry.start()

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
        for name, module in model.named_modules():
            number = self._places.add_module(prefix + (name or _root_name(model)))
            self._module_numbers[module] = number
            self._module_paths[(prefix + name).rstrip(".")] = number
        if optimizer_in_backward:
            self._backward_step = self._backward_step or BackwardStep()
            self._backward_step.add({id(p): prefix + name for name, p in model.named_parameters()})
        self._adoption.adopt(tensors_of(model, prefix))
        _C.release_free_pages()  # malloc keeps where the weights were
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            _C.guard_quietly()
        self._participants.add_model(model, prefix)
        self._deaths[id(model)] = weakref.finalize(model, self._model_died, id(model))
        self._deaths[id(model)].atexit = False
        _C.mark_training_thread()
        self._start_profile(self._profile_iterations)

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
        self._forget(id(model))

    def _model_died(self, key: int) -> None:
        if self.phase == "closed" or _C.forked():
            return
        if _C.on_io_thread():
            # Python's collector runs on any thread that runs Python, and closing waits for I/O.
            threading.Thread(target=self._model_died, args=(key,)).start()
            return
        try:
            self._forget(key)
        except errors.SpillError as error:  # nobody is there to catch it
            log.error("closing the run of a deleted model: %s", error)

    def _forget(self, key: int) -> None:
        self._participants.forget_model(key)
        death = self._deaths.pop(key, None)
        if death is not None:
            death.detach()  # or the model keeps what the run knows for as long as it lives
        if not self._participants:
            self.close()

    def close(self) -> None:
        """Brings everything back into memory and removes every hook."""
        if self.phase == "closed":
            return
        self.phase = "closed"
        self._progress.stop()
        self._resources.telemetry.stop()
        for hook in self._optimizer_hooks:
            hook.remove()
        self._module_hooks.remove()
        if self._backward_step is not None:
            self._backward_step.close()
        list_ops.uninstall()
        self._status.close()
        try:
            self._resources.stop()
        finally:
            # Until then other threads may meet storages that are away.
            self._compiled.uninstall()
            peers.uninstall()
            raw_access.uninstall()
            self._resources.close()
        log.info("closed: everything is back in memory")

    def report(self) -> RunReport:
        """The state of the run."""
        return RunReport(
            budget_bytes=self.budget_bytes,
            phase=self.phase,
            hardware=self.hardware,
            trace=self.recorded.trace if self.recorded else None,
            plan=self.plan,
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
        if self.phase == "profile" or self._revision.records:
            participants.note_gradients(optimizer, used)

    @_disable_dynamo
    def _after_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if not self._participants.trains(optimizer):
            return
        _C.end_optimizer()
        # With several optimizers, an iteration ends with the step of the one that came up last.
        if self._participants.add_optimizer(optimizer) and self._iterations.comes_up(optimizer):
            self._start_profile(self._profile_iterations)
        self._iterations.stepped(optimizer)

    def _end_iteration(self) -> None:
        stats = _C.end_iteration()
        step = self._steps.add(stats, "profile" if self.phase == "profile" else "run")
        self._live_bytes = stats["live_bytes"]
        self._spill_work = Work(*stats["spill"])
        if stats["over_budget"]:
            with explained():
                raise errors.BudgetError(stats["over_budget"])
        if self.phase == "profile":
            self._profiled_one()
        elif self.phase == "run":
            self._watch(step)
        self._status.update(self._status_now)

    def _status_now(self) -> status.RunStatus:
        totals, tier = _C.totals(), self.hardware.tiers[0]
        return status.RunStatus(
            **status.this_process(),
            started_s=self._started_s,
            updated_s=time.time(),
            folders=self._folders,
            phase=self.phase,
            budget_bytes=self.budget_bytes,
            used_bytes=totals["used"],
            away_bytes=totals["away"],
            spill_bytes=totals["spill_reserved"],
            read_bytes_per_s=tier.read_bytes_per_s,
            write_bytes_per_s=tier.write_bytes_per_s,
            predicted_s=self.plan.predicted_s if self.plan else None,
            ideal_s=self.plan.ideal_s if self.plan else None,
            steps=tuple(self._steps.latest[-status.STEPS_TOLD :]),
            telemetry=self._resources.telemetry.telemetry(),
        )

    # ------------------------------------------------------------ profile, plan, drift

    def _start_profile(self, iterations: int) -> None:
        self.phase = "profile"
        self.plan = None
        self._resources.telemetry.begin()
        self._profiled = self._profile_iterations - iterations
        _C.unfollow()
        _C.look_on(self._resources.spare_bytes(), int(_LOOK_ON_S * 1e9))
        _C.expect_moves(True)
        _C.record(False)
        self._module_hooks.add()
        self._progress.profiling(self._profiled)
        if iterations == 1:
            self._record()

    def _record(self) -> None:
        # What has come since from elsewhere, from a checkpoint above all, is to move as well.
        self._adoption.adopt(self._participants.tensors())
        self._live_at_start = _C.live_blocks()
        self._names_at_start = self._participants.blocks()  # some may be replaced
        if self._resources.encoded is not None:
            self._resources.encoded.begin_measuring()
        _C.record(True)

    def _profiled_one(self) -> None:
        self._profiled += 1
        left = self._profile_iterations - self._profiled
        if left <= 0:
            self._end_profile()
            return
        self._progress.profiling(self._profiled)
        if left == 1:
            self._record()

    def _end_profile(self) -> None:
        self.recorded = self._traced(_C.take_recording())
        trace = self.recorded.trace
        if not trace.ops:
            log.info("an iteration without any op is no profile: the next one will be")
            self._start_profile(1)
            return
        least = least_budget(trace)
        log.info(
            "profiled %d ops and %d storages: peak %s without a limit, least budget %s, budget %s",
            len(trace.ops),
            len(trace.storages),
            format_size(int(live_by_op(trace).max())),
            format_size(least),
            format_size(self._resources.counted_bytes),
        )
        self.phase = "run"
        _C.look_on(0, 0)
        self._progress.stop()
        if self._on_trace is not None:
            self._places_are_known()
            self._on_trace()
            return
        self._revision.record_first()
        try:
            self._follow_plan(self.recorded, least)
        except BaseException:  # Ctrl-C, say; a loop that goes on shall have its plan
            self._start_profile(1)
            raise
        self._resources.telemetry.begin()

    def _traced(self, recording: dict[str, Any]) -> Recorded:
        return build_trace(
            recording,
            self._live_at_start,
            {**self._names_at_start, **self._participants.blocks()},
            self._places,
            self.device,
        )

    def _follow_plan(self, recorded: Recorded, least: int) -> None:
        """``least`` is the least budget in bytes for what was recorded.

        Raises BudgetError and SpillError where there can be no plan; the one before is followed on.
        """
        begin, most = time.perf_counter(), self._resources.counted_bytes
        if self._resources.encoded is not None:
            trace = self._resources.encoded.encoded(recorded.trace, recorded.dtypes)
            recorded = replace(recorded, trace=trace)
        # The reserve gives way to the largest op.
        budget = max(int(most * (1 - PLAN_RESERVE)), min(least, most))
        _C.release_free_pages(self._planning_bytes(len(recorded.trace.ops)))
        target = replace(self.hardware, budget_bytes=budget)
        self._progress.planning(len(recorded.trace.ops))
        try:
            with explained():
                plan = make_plan(recorded.trace, target, self._options)
        except errors.BudgetError as error:
            if least <= most:
                raise
            # Of the budget, a part may be set aside from what storages may take.
            whole = run_budget(math.ceil(least * self.budget_bytes / most))
            raise errors.BudgetError(
                f"{error}. Pass memory_budget={whole} or more, or make that op smaller, with a "
                "smaller batch for example."
            ) from None
        finally:
            self._progress.stop()
        planned_s = time.perf_counter() - begin
        if _moves(plan):
            space = {tier.tier: tier.space_bytes for tier in plan.tiers}
            _C.reserve_spill(space["ssd"])
        self.plan, self.recorded = plan, recorded
        self._revision.planned(
            self._live_bytes, plan.ideal_s, len(recorded.trace.ops), moves=_moves(plan)
        )
        if _moves(plan):
            planned = replayed(recorded.trace, plan.recomputations)
            codecs = (
                self._resources.encoded.numbers(planned)
                if self._resources.encoded
                else [0] * len(planned.storages)
            )
            schedule.follow(
                planned,
                plan,
                recorded.blocks,
                returning_twins(planned, carried_twins(planned)),
                recorded.births,
                self._places,
                codecs,
            )
            log.info(
                "planned in %.2f s: %d moves, %d results made again, %s to write and %s to read "
                "per iteration, spill space %s; predicted %.3f s per iteration, ideal %.3f s "
                "(%.0f %%)",
                planned_s,
                len(plan.moves),
                len(plan.recomputations),
                format_size(plan.written_bytes),
                format_size(plan.read_bytes),
                format_size(plan.spill_bytes),
                plan.predicted_s,
                plan.ideal_s,
                100 * plan.ideal_s / plan.predicted_s,
            )
        else:
            _C.unfollow()
            log.info(
                "everything fits the budget, so nothing moves; ideal %.3f s per iteration",
                plan.ideal_s,
            )
        self._record_or_rest()
        _C.release_free_pages()
        _C.begin_iteration()  # planning is no part of it

    def _planning_bytes(self, ops: int) -> int:
        """What making a plan takes of the memory under the budget, which may be all there is."""
        if not self._resources.on_host:
            return 0
        nbytes = _PLANNING_BYTES + ops * _PLANNING_BYTES_PER_OP
        return min(nbytes, self._resources.counted_bytes // _PLANNING_SHARE)

    def _places_are_known(self) -> None:
        # What was compiled with hooks would be compiled anew without them.
        if not self._compiled.any_called:
            self._module_hooks.remove()

    def _record_or_rest(self) -> None:
        moves = self.plan is not None and _moves(self.plan)
        if self._revision.records:
            self._module_hooks.add()
            _C.expect_moves(True)
            self._record()
            return
        _C.record(False)
        _C.expect_moves(moves)
        if not moves:
            self._places_are_known()  # nothing to follow

    def _watch(self, step: StepReport) -> None:
        if self.plan is not None and self.recorded is not None:
            self._revise(step, self.plan, self.recorded)
        if self.plan is not None and self._revision.drifted(step, moves=_moves(self.plan)):
            log.info(
                "iterations differ from the plan, the last one in %d of its %d ops: profiling "
                "again",
                step.drift_ops,
                step.ops,
            )
            self._start_profile(1)

    def _revise(self, step: StepReport, plan: Plan, planned: Recorded) -> None:
        revision = self._revision
        fits = not _moves(plan) and step.written_bytes == 0
        larger = not fits and revision.larger(step, self._live_bytes)
        if not revision.records:
            if larger:
                revision.record_larger()
                self._record_or_rest()
            return
        revision.recorded()
        recording = _C.take_recording()
        better: Recorded | None = None
        if larger and recording["ops"][0]:
            log.info("an iteration held %s: planning again", format_size(self._live_bytes))
            revision.record_first()
            better = self._traced(recording)
        elif _moves(plan) and step.drift_ops == 0:
            planned = with_blocks(planned, recording)
            better = self._if_quicker(with_durations(planned, recording))
            if self._has_other_speed(step, plan):
                better = better or planned
        if better is None:
            self._record_or_rest()
            return
        try:
            self._follow_plan(better, least_budget(better.trace))
        except (errors.BudgetError, errors.SpillError) as error:  # it was made all the same
            log.info("the present plan stays: %s", error)
            revision.refused(self._live_bytes)
            self._record_or_rest()
        except BaseException:  # as in _end_profile()
            self._start_profile(1)
            raise

    def _if_quicker(self, timed: Recorded | None) -> Recorded | None:
        if timed is None or not self._revision.quicker(self._live_bytes, ideal_s(timed.trace)):
            return None
        log.info("an iteration computed in %.3f s: planning again", ideal_s(timed.trace))
        return timed

    def _has_other_speed(self, step: StepReport, plan: Plan) -> bool:
        """Whether the SSDs were not as fast as the plan has it; then ``hardware`` says so."""
        tier, *others = self.hardware.tiers
        share = share_of_speed(tier, self._spill_work)
        if share is None:
            return False
        if not self._revision.other_speed(step, self._live_bytes, plan, share):
            return False
        self.hardware = replace(self.hardware, tiers=(at_share_of_speed(tier, share), *others))
        log.info("the SSDs had %.0f %% of their speed beside ops: planning again", 100 * share)
        return True


def _moves(plan: Plan) -> bool:
    return bool(plan.moves or plan.recomputations)


def _root_name(model: torch.nn.Module) -> str:
    return type(model).__name__
