"""Subjects to report on: a made-up run, and any small one for hypothesis.

In: nothing. Out: Subjects and strategies. Must not know: how reports look.
"""

from __future__ import annotations

from typing import Any

from hypothesis import assume
from hypothesis import strategies as st

from teraio.planner import least_budget, live_by_op, plan
from teraio.records import Plan, Reading, RunReport, StepReport, Telemetry, Trace
from teraio.reports.subject import Subject, subject_of
from tests.unit import strategies
from tests.unit.traces import SSD, hardware, transformer_trace

TRACE: Trace = transformer_trace(layers=3, hidden=256, ffn=704, vocab=2000, tokens=512, ideal_s=0.1)
HARDWARE = hardware(int(live_by_op(TRACE).max() * 0.5), SSD)
PLAN: Plan = plan(TRACE, HARDWARE)
TELEMETRY = Telemetry(
    seconds=59.0,
    samples=60,
    readings=(
        Reading(of="GPU", what="busy", unit="share", last=0.5, mean=0.875, least=0.25, most=1.0),
        Reading(
            of="process",
            what="resident memory",
            unit="bytes",
            last=3 << 30,
            mean=2.5 * 2**30,
            least=2 << 30,
            most=4 << 30,
        ),
        Reading(of="process", what="CPU", unit="cores", last=1.5, mean=1.25, least=1.0, most=1.75),
        Reading(
            of="drive of /mnt/nvme0",
            what="written",
            unit="bytes/s",
            last=1e9,
            mean=2e9,
            least=0.0,
            most=3e9,
        ),
        Reading(of="GPU", what="power", unit="W", last=300.0, mean=310.0, least=70.0, most=702.0),
    ),
    missing=("GPU: no figure for PCIe in (Not Supported)",),
)


def step(iteration: int, duration_s: float = 0.12, phase: Any = "run") -> StepReport:
    """One measured iteration."""
    return StepReport(
        iteration=iteration,
        phase=phase,
        duration_s=duration_s,
        stall_s=0.02,
        peak_bytes=PLAN.peak_bytes,
        read_bytes=PLAN.read_bytes,
        written_bytes=PLAN.written_bytes,
        ops=len(TRACE.ops),
        drift_ops=0,
    )


def run_report(steps: int = 6) -> RunReport:
    """A run that profiled two iterations and then followed PLAN."""
    measured = tuple(step(i, phase="profile" if i < 2 else "run") for i in range(steps))
    return RunReport(
        budget_bytes=HARDWARE.budget_bytes,
        phase="run",
        hardware=HARDWARE,
        trace=TRACE,
        plan=PLAN,
        steps=measured,
        telemetry=TELEMETRY,
    )


def subject() -> Subject:
    """The run as a Subject."""
    return subject_of(run_report(), "run.report")


@st.composite
def subjects(draw: Any) -> Subject:
    """Any small trace with a plan between the least budget and what it takes without a limit."""
    trace = draw(strategies.traces())
    assume(any(op.duration_ns for op in trace.ops))
    low, high = least_budget(trace), int(live_by_op(trace).max())
    assume(high > 0)
    machine = draw(strategies.hardware(draw(st.integers(low, max(low, high)))))
    return Subject(name="random", trace=trace, hardware=machine, plan=plan(trace, machine))
