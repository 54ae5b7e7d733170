"""Whether a result counts: right losses, within the memory limit, enough steps.

In: a Result and the ideal run's Outcome. Out: a Verdict. Must not know: tables; times play no part.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from benchmarks.comparison import Result
from benchmarks.job import Outcome
from benchmarks.systems import system_of

LEAST_STEPS = 5
# Largest difference of a loss, as a part of it, for systems that compute in another order.
TOLERANCES = {"fp32": 1e-4, "bf16": 2e-2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """``faults`` is empty for a result that counts. The difference is relative to the loss."""

    faults: tuple[str, ...]
    loss_difference: float | None

    @property
    def valid(self) -> bool:
        return not self.faults


def judge(result: Result, ideal: Outcome | None) -> Verdict:
    outcome = result.outcome
    if outcome is None:
        return Verdict(faults=(f"{result.status}: {result.reason}",), loss_difference=None)
    if ideal is None:
        return Verdict(faults=("there is no ideal run to compare with",), loss_difference=None)
    difference = loss_difference(outcome, ideal)
    faults = (
        _wrong_losses(result, difference),
        _wrong_parameters(result, outcome, ideal),
        _over_limit(result, outcome),
        _too_few_steps(outcome),
        _without_plan(outcome),
    )
    return Verdict(faults=tuple(fault for fault in faults if fault), loss_difference=difference)


def loss_difference(outcome: Outcome, ideal: Outcome) -> float:
    """The largest over the steps that both made; infinite when a loss is no number."""
    pairs = list(zip(outcome.losses, ideal.losses, strict=False))
    if not pairs or not all(math.isfinite(value) for pair in pairs for value in pair):
        return math.inf
    return max(abs(ours - theirs) / max(abs(theirs), 1e-12) for ours, theirs in pairs)


def _wrong_losses(result: Result, difference: float) -> str:
    exact = system_of(result.job.system).exact
    allowed = 0.0 if exact else TOLERANCES[result.job.dtype]
    if difference <= allowed:
        return ""
    return f"losses differ by {difference:.1e} of the ideal run's, {allowed:.0e} is allowed"


def _wrong_parameters(result: Result, outcome: Outcome, ideal: Outcome) -> str:
    if outcome.parameters != ideal.parameters:
        return f"{outcome.parameters:,} parameters, the ideal run has {ideal.parameters:,}"
    same_steps = len(outcome.steps) == len(ideal.steps)
    known = outcome.parameters_sha256 is not None and system_of(result.job.system).exact
    if known and same_steps and outcome.parameters_sha256 != ideal.parameters_sha256:
        return "the parameters differ from the ideal run's after as many steps"
    return ""


def _over_limit(result: Result, outcome: Outcome) -> str:
    limit = result.job.limit_bytes
    if limit is None or outcome.peak_bytes <= limit:
        return ""
    return f"held {outcome.peak_bytes / 1e6:,.0f} MB, the limit is {limit / 1e6:,.0f} MB"


def _too_few_steps(outcome: Outcome) -> str:
    timed = sum(step.timed for step in outcome.steps)
    return "" if timed >= LEAST_STEPS else f"{timed} timed steps, {LEAST_STEPS} are needed"


def _without_plan(outcome: Outcome) -> str:
    """Timed steps of teraio have to be steps under its plan; else the time is of something else."""
    if outcome.teraio is None:
        return ""
    planned = outcome.teraio.planned
    if len(planned) != len(outcome.steps):
        return f"teraio saw {len(planned)} iterations, {len(outcome.steps)} steps were made"
    without = sum(step.timed and not ran for step, ran in zip(outcome.steps, planned, strict=True))
    return f"{without} timed steps ran without a plan" if without else ""
