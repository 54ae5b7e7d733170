"""Which plan a run follows: profile, plan, run, and plan again when the program has changed.

In: iterations as they end. Out: the plan that the engine follows, and what was recorded for it.
Must not know: models, where iterations end, how plans are found.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal

import teraio._C as _C
from teraio import errors
from teraio.engine import schedule
from teraio.engine.compiled_graphs import CompiledGraphs, explained
from teraio.engine.module_hooks import ModuleHooks
from teraio.engine.places import Places
from teraio.planner import ideal_s, least_budget, live_by_op, replayed
from teraio.planner import plan as make_plan
from teraio.planner.feasibility import PLAN_RESERVE, run_budget
from teraio.planner.memory import carried_twins, returning_twins
from teraio.profiler.hardware import Work, at_share_of_speed, share_of_speed
from teraio.profiler.recorder import Recorder
from teraio.profiler.trace import Recorded, with_blocks, with_durations
from teraio.records import Hardware, Plan, PlanOptions, StepReport, Trace
from teraio.runtime.progress import Progress
from teraio.runtime.resources import Resources
from teraio.runtime.revision import Revision
from teraio.sizes import format_size

log = logging.getLogger("teraio")

# Iterations that end later, or never, are given up with what they needed until then.
_LOOK_ON_S = 60.0
# What planning takes at most, measured for traces of 2,000 to 100,000 ops; but no more than this
# part of the budget is made free for it.
_PLANNING_BYTES = 48 << 20
_PLANNING_BYTES_PER_OP = 512
_PLANNING_SHARE = 8


class Planning:
    """Call ``profile`` first, and ``iteration_ended`` after each iteration until ``close``.

    ``plan`` is None until there is one, ``recorded`` is the last that a plan was made for, or is to
    be. ``hardware`` is what plans may use, at the speed that it showed.
    """

    def __init__(
        self,
        resources: Resources,
        recorder: Recorder,
        places: Places,
        module_hooks: ModuleHooks,
        compiled: CompiledGraphs,
        *,
        profile_iterations: int,
        options: PlanOptions,
        on_trace: Callable[[], None] | None,
    ) -> None:
        """``module_hooks`` are there while places matter. With ``on_trace``, which is called when a
        trace is recorded, there is no plan."""
        self.phase: Literal["profile", "run", "closed"] = "profile"
        self.recorded: Recorded | None = None
        self.plan: Plan | None = None
        self.hardware = resources.hardware
        self._resources = resources
        self._recorder = recorder
        self._places = places
        self._module_hooks = module_hooks
        self._compiled = compiled
        self._profile_iterations = profile_iterations
        self._left = profile_iterations  # to profile, this one included
        self._options = options
        self._on_trace = on_trace
        self._revision = Revision()
        self._progress = Progress()
        self._live_bytes = 0  # the most of storages in the last iteration, wherever they were
        self._spill_work = Work(0.0, 0.0, 0.0, 0, 0)  # of the last iteration

    @property
    def may_record(self) -> bool:
        """Whether this iteration, or the next one, may be recorded."""
        return self.phase == "profile" or self._revision.records

    def profile(self) -> None:
        """Profiles (again), from the iteration on that begins, and plans then."""
        self._profile(self._profile_iterations)

    def iteration_ended(self, step: StepReport, stats: Mapping[str, Any]) -> None:
        """``stats`` are of ``_C.end_iteration()``, ``step`` is their report.

        Raises BudgetError where the budget is too small for what was profiled, SpillError where
        there is no room for what a plan moves.
        """
        self._live_bytes = stats["live_bytes"]
        self._spill_work = Work(*stats["spill"])
        if self.phase == "profile":
            self._profiled_one(step)
        elif self.phase == "run":
            self._watch(step)

    def close(self) -> None:
        """Nothing is profiled and planned from now on."""
        self.phase = "closed"

    # ------------------------------------------------------------ profile

    def _profile(self, iterations: int) -> None:
        self.phase = "profile"
        self.plan = None
        self._progress.profiling(iterations)
        self._resources.telemetry.begin()
        _C.unfollow()
        _C.look_on(self._resources.spare_bytes(), int(_LOOK_ON_S * 1e9))
        _C.expect_moves(True)
        self._recorder.cancel()
        self._module_hooks.add()
        self._profile_next(iterations)

    def _profile_next(self, left: int) -> None:
        """So many are left; the last one is recorded."""
        self._left = left
        if left == 1:
            self._recorder.begin()

    def _profiled_one(self, step: StepReport) -> None:
        if self._left > 1:
            self._profile_next(self._left - 1)
        else:
            self._end_profile(step)

    def _end_profile(self, step: StepReport) -> None:
        self.recorded = self._recorder.recorded(self._recorder.take())
        trace = self.recorded.trace
        if not trace.ops:
            log.info("an iteration without any op is no profile: the next one will be")
            self._profile(1)
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
        if self._on_trace is not None:
            self._places_are_known()
            self._on_trace()
            return
        self._revision.record_first()
        try:
            self._follow_plan_if_any(self.recorded, least, step.peak_bytes)
        except BaseException:  # Ctrl-C, say; a loop that goes on shall have its plan
            self._profile(1)
            raise
        self._resources.telemetry.begin()

    def _follow_plan_if_any(self, recorded: Recorded, least: int, profiled_bytes: int) -> None:
        """A plan knows less of a program than the engine sees as it runs: iterations that could be
        profiled within the budget can be run within it, without any."""
        try:
            self._follow_plan(recorded, least)
        except errors.BudgetError as error:
            if profiled_bytes > self._resources.counted_bytes:
                raise
            log.warning(
                "there is no plan for this budget, so iterations go on as the profiled ones did, "
                "and wait for data more often: %s",
                error,
            )
            self._revision.refused(self._live_bytes)
            self._record_or_rest()

    def _places_are_known(self) -> None:
        # What was compiled with hooks would be compiled anew without them.
        if not self._compiled.any_called:
            self._module_hooks.remove()

    # ------------------------------------------------------------ plan

    def _follow_plan(self, recorded: Recorded, least: int) -> None:
        """``least`` is the least budget in bytes for what was recorded.

        Raises BudgetError and SpillError where there can be no plan; the one before is followed on.
        """
        begin = time.perf_counter()
        if self._resources.encoded is not None:
            trace = self._resources.encoded.encoded(recorded.trace, recorded.dtypes)
            recorded = replace(recorded, trace=trace)
        plan = self._plan_for(recorded.trace, least)
        planned_s = time.perf_counter() - begin
        moves = _moves(plan)
        if moves:
            space = {tier.tier: tier.space_bytes for tier in plan.tiers}
            _C.reserve_spill(space["ssd"])
        self.plan, self.recorded = plan, recorded
        self._revision.planned(self._live_bytes, plan.ideal_s, len(recorded.trace.ops), moves=moves)
        if moves:
            self._follow(recorded, plan)
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

    def _plan_for(self, trace: Trace, least: int) -> Plan:
        most = self._resources.counted_bytes
        # The reserve gives way to the largest op.
        budget = max(int(most * (1 - PLAN_RESERVE)), min(least, most))
        _C.release_free_pages(self._planning_bytes(len(trace.ops)))
        try:
            with explained(), self._progress.planning(len(trace.ops)):
                return make_plan(trace, replace(self.hardware, budget_bytes=budget), self._options)
        except errors.BudgetError as error:
            if least <= most:
                raise
            # Of the budget, a part may be set aside from what storages may take.
            whole = run_budget(math.ceil(least * self._resources.budget_bytes / most))
            raise errors.BudgetError(
                f"{error}. Pass memory_budget={whole} or more, or make that op smaller, with a "
                "smaller batch for example."
            ) from None

    def _planning_bytes(self, ops: int) -> int:
        """What making a plan takes of the memory under the budget, which may be all there is."""
        if not self._resources.on_host:
            return 0
        nbytes = _PLANNING_BYTES + ops * _PLANNING_BYTES_PER_OP
        return min(nbytes, self._resources.counted_bytes // _PLANNING_SHARE)

    def _follow(self, recorded: Recorded, plan: Plan) -> None:
        encoded = self._resources.encoded
        planned = replayed(recorded.trace, plan.recomputations)
        schedule.follow(
            planned,
            plan,
            recorded.blocks,
            returning_twins(planned, carried_twins(planned)),
            recorded.births,
            self._places,
            encoded.numbers(planned) if encoded else [0] * len(planned.storages),
        )

    # ------------------------------------------------------------ run

    def _record_or_rest(self) -> None:
        moves = self.plan is None or _moves(self.plan)
        if self._revision.records:
            self._module_hooks.add()
            _C.expect_moves(True)
            self._recorder.begin()
            return
        self._recorder.cancel()
        _C.expect_moves(moves)
        if not moves:
            self._places_are_known()  # nothing to follow

    def _watch(self, step: StepReport) -> None:
        if self.plan is None:
            wants_one = self._on_trace is None
            if wants_one and self._revision.none_long_enough():
                self._profile(1)
            return
        if self.recorded is not None:
            self._revise(step, self.plan, self.recorded)
        if self.plan is not None and self._revision.drifted(step, moves=_moves(self.plan)):
            log.info(
                "iterations differ from the plan, the last one in %d of its %d ops: profiling "
                "again",
                step.drift_ops,
                step.ops,
            )
            self._profile(1)

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
        recording = self._recorder.take()
        better: Recorded | None = None
        hardware = self.hardware
        if larger and recording["ops"][0]:
            log.info("an iteration held %s: planning again", format_size(self._live_bytes))
            revision.record_first()
            better = self._recorder.recorded(recording)
        elif _moves(plan) and step.drift_ops == 0:
            planned = with_blocks(planned, recording)
            better = self._if_quicker(with_durations(planned, recording))
            found = self._other_speed(step, plan)
            if found is not None:
                self.hardware = found
                better = better or planned
        if better is None:
            self._record_or_rest()
            return
        try:
            self._follow_plan(better, least_budget(better.trace))
        except (errors.BudgetError, errors.SpillError) as error:  # it was made all the same
            log.info("the present plan stays: %s", error)
            self.hardware = hardware
            revision.refused(self._live_bytes)
            self._record_or_rest()
        except BaseException:  # as in _end_profile()
            self._profile(1)
            raise

    def _if_quicker(self, timed: Recorded | None) -> Recorded | None:
        if timed is None or not self._revision.quicker(self._live_bytes, ideal_s(timed.trace)):
            return None
        log.info("an iteration computed in %.3f s: planning again", ideal_s(timed.trace))
        return timed

    def _other_speed(self, step: StepReport, plan: Plan) -> Hardware | None:
        """The hardware with the speed that the SSDs had; None where that makes no other plan."""
        tier, *others = self.hardware.tiers
        share = share_of_speed(tier, self._spill_work)
        if share is None:
            return None
        if not self._revision.other_speed(step, self._live_bytes, plan, share):
            return None
        log.info("the SSDs had %.0f %% of their speed beside ops: planning again", 100 * share)
        return replace(self.hardware, tiers=(at_share_of_speed(tier, share), *others))


def _moves(plan: Plan) -> bool:
    return bool(plan.moves or plan.recomputations)
