"""Whether the plan is still the right one.

In: what each iteration held and how it ran, and for what the plan was made. Out: whether the next
one is to be recorded, and whether this one is worth a plan, or all are to be profiled anew. Must
not know: how plans are made, the native core.

The profiled iteration may compute slowly (cold caches, fresh pages, a busy machine), or be a small
one of a program whose sequences differ in length. So the first ones under a plan are recorded too,
and so are some after one that was larger. Programs also change for good.
"""

from __future__ import annotations

from teraio.records import Plan, StepReport

_FIRST = 3
_AFTER_LARGER = 20
# Iterations are of one kind if no more than this part of their ops differ. Worth a plan is what is
# larger by more than this part, or as large and quicker by more than that.
_OTHER_OPS_SHARE = 0.02
# Where the planned one had so many ops that the others lack, such as those of an evaluation or of a
# batch without a step, it was of another kind too. (Others may well have shorter sequences.)
_LACKING_OPS_SHARE = 0.2
_LARGER_SHARE = 0.05
_QUICKER_SHARE = 0.05
# Or one whose SSDs are slower or faster by this part beside ops than alone, if what waits for them
# is this part of the iteration.
_OTHER_SPEED_SHARE = 0.1
_WAITS_SHARE = 0.01
# Another profile is due after so many in a row that are of another kind.
_DRIFT_ITERATIONS = 3


class Revision:
    """Of one run's plans."""

    def __init__(self) -> None:
        self._to_record = 0
        self._live_bytes = self._refused_bytes = 0
        self._larger_seen, self._larger_awaited = 0, 1
        self._ideal_s = 0.0
        self._ops = 0
        self._drifting = 0
        self._patience = _DRIFT_ITERATIONS

    @property
    def records(self) -> bool:
        """Whether the next iteration is to be recorded."""
        return self._to_record > 0

    def record_first(self) -> None:
        """A plan is made for something new: the iterations that begin to follow it are recorded."""
        self._to_record = _FIRST

    def record_larger(self) -> None:
        """An iteration was larger: the next one of its kind is to be recorded.

        Where none came soon after the last one, this is done ever more rarely.
        """
        self._larger_seen += 1
        if self._larger_seen == self._larger_awaited:
            self._to_record = _AFTER_LARGER
            self._larger_seen = 0
            self._larger_awaited *= 2

    def planned(self, live_bytes: int, ideal_s: float, ops: int, *, moves: bool) -> None:
        """There is a plan for an iteration that held so much and takes so long without waiting."""
        self._live_bytes, self._ideal_s, self._ops = live_bytes, ideal_s, ops
        self._refused_bytes = 0
        self._larger_seen, self._larger_awaited = 0, 1
        if not moves:
            self._to_record = 0

    def refused(self, live_bytes: int) -> None:
        """No plan can be made for an iteration that held so much."""
        self._refused_bytes = live_bytes
        self._to_record = 0

    def recorded(self) -> None:
        """One of the iterations to record is over."""
        self._to_record -= 1

    def larger(self, step: StepReport, live_bytes: int) -> bool:
        """Whether an iteration held more than the planned one, and was of its kind.

        One with an evaluation in it, say, is not what the others are like.
        """
        known_bytes = max(self._live_bytes, self._refused_bytes)
        if live_bytes <= (1 + _LARGER_SHARE) * known_bytes or _drifts(step):
            return False
        # Where nothing moves, ops are counted only in iterations that are recorded.
        return not step.ops or abs(step.ops - self._ops) <= _OTHER_OPS_SHARE * self._ops

    def quicker(self, live_bytes: int, ideal_s: float) -> bool:
        """Whether an iteration computed quicker than the planned one, and was no smaller."""
        return self._as_large(live_bytes) and ideal_s < (1 - _QUICKER_SHARE) * self._ideal_s

    def other_speed(self, step: StepReport, live_bytes: int, plan: Plan, share: float) -> bool:
        """Whether in an iteration no smaller than the planned one the SSDs had another ``share`` of
        their rates than 1, where ops wait for them, or would by the plan.
        """
        waits_s = max(step.stall_s, plan.predicted_s - plan.ideal_s)
        differs = abs(share - 1) > _OTHER_SPEED_SHARE
        return self._as_large(live_bytes) and differs and waits_s > _WAITS_SHARE * plan.ideal_s

    def _as_large(self, live_bytes: int) -> bool:
        return live_bytes >= (1 - _LARGER_SHARE) * self._live_bytes

    def drifted(self, step: StepReport, *, moves: bool) -> bool:
        """Whether too many in a row were not what the plan is for; True also starts anew.

        A program that never repeats itself is not profiled for ever: each time it takes longer.
        """
        lacking = step.ops < (1 - _LACKING_OPS_SHARE) * self._ops
        return self._is_due(_drifts(step) or lacking if moves else step.written_bytes > 0)

    def none_long_enough(self) -> bool:
        """Whether one more iteration without any plan is one too many; True also starts anew."""
        return self._is_due(True)

    def _is_due(self, drifts: bool) -> bool:
        self._drifting = self._drifting + 1 if drifts else 0
        if self._drifting < self._patience:
            return False
        self._drifting = 0
        self._patience *= 2
        return True


def _drifts(step: StepReport) -> bool:
    return step.drift_ops > _OTHER_OPS_SHARE * step.ops
