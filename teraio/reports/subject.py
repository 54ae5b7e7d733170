"""What a report is about: a trace, and as much as is known beyond it.

In: any record that holds a trace. Out: a Subject. Must not know: files, rendering.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from teraio.errors import ConfigurationError, PlanError
from teraio.planner import moved_bytes, replayed, validate
from teraio.records import Hardware, Move, Plan, RunReport, StepReport, Telemetry, Trace

# Sums of sizes stay exact in 64 bits.
_MOST_BYTES = 1 << 62


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """One iteration: its trace, the plan for it and the machine of the plan, and measured steps.

    ``trace`` is as the plan has it. Where that makes results again, ``recorded`` is the trace
    without it. ``telemetry`` is what the machine did during these steps, and ``budget_bytes`` what
    the run was given; None where nothing has run.
    """

    name: str
    trace: Trace
    hardware: Hardware | None = None
    plan: Plan | None = None
    steps: tuple[StepReport, ...] = ()
    telemetry: Telemetry | None = None
    recorded: Trace | None = None
    budget_bytes: int | None = None

    @property
    def unlimited(self) -> Trace:
        """The trace of the iteration without a plan."""
        return self.recorded or self.trace

    @property
    def moves(self) -> tuple[Move, ...]:
        """The moves of the plan; none without a plan."""
        return self.plan.moves if self.plan else ()

    @property
    def copy_bytes(self) -> list[int]:
        """Bytes that each move writes, or reads, or both; of storages where no tier is known."""
        if self.hardware is None:
            return [self.trace.storages[move.storage].nbytes for move in self.moves]
        return moved_bytes(self.trace, self.hardware, self.moves)


def subject_of(record: object, name: str) -> Subject:
    """The Subject of a Trace or a RunReport. Raises ConfigurationError for records without one."""
    if isinstance(record, Trace):
        return _checked(Subject(name=name, trace=record))
    if isinstance(record, RunReport) and record.trace is not None:
        return _checked(
            Subject(
                name=name,
                trace=record.trace,
                hardware=record.hardware,
                plan=record.plan,
                steps=record.steps,
                telemetry=record.telemetry,
                budget_bytes=None if record.phase == "planned" else record.budget_bytes,
            )
        )
    if isinstance(record, RunReport):
        raise ConfigurationError(
            f"{name} was saved before the run had recorded a trace; save the report later."
        )
    raise ConfigurationError(
        f"{name} holds a {type(record).__name__} and no trace; pass the file of a trace, a plan "
        "made by `teraio plan`, or a run report."
    )


def _checked(subject: Subject) -> Subject:
    """A file may say anything: what reports rely on is checked here, once."""
    trace, n = subject.trace, len(subject.trace.ops)
    if not n or not any(op.duration_ns for op in trace.ops):
        raise ConfigurationError(f"{subject.name} holds a trace without any op that takes time.")
    workspace = max(op.workspace_bytes for op in trace.ops)
    if trace.base_bytes + workspace + sum(s.nbytes for s in trace.storages) > _MOST_BYTES:
        raise ConfigurationError(f"{subject.name} holds a trace with more bytes than can be.")
    if subject.plan is None:
        return subject
    if subject.hardware is None:
        raise ConfigurationError(f"{subject.name} holds a plan and no hardware that it is for.")
    if any(stall.op >= n for stall in subject.plan.stalls):
        raise PlanError(f"{subject.name} holds a plan with a stall of an op that its trace lacks.")
    try:
        validate(trace, subject.hardware, subject.plan)
    except PlanError as error:
        raise PlanError(f"{subject.name} holds a plan that breaks a rule: {error}") from None
    return as_planned(subject)


def as_planned(subject: Subject) -> Subject:
    """A Subject with the trace as its plan has it, from one with the trace as it was recorded."""
    if subject.plan is None or not subject.plan.recomputations:
        return subject
    trace = replayed(subject.trace, subject.plan.recomputations)
    return replace(subject, trace=trace, recorded=subject.trace)
