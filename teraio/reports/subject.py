"""What a report is about: a trace, and as much as is known beyond it.

In: any record that holds a trace. Out: a Subject. Must not know: files, rendering.
"""

from __future__ import annotations

from dataclasses import dataclass

from teraio.errors import ConfigurationError
from teraio.records import Hardware, Move, Plan, RunReport, StepReport, Trace


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """One iteration: its trace, the plan for it and the machine of the plan, and measured steps."""

    name: str
    trace: Trace
    hardware: Hardware | None = None
    plan: Plan | None = None
    steps: tuple[StepReport, ...] = ()

    @property
    def moves(self) -> tuple[Move, ...]:
        """The moves of the plan; none without a plan."""
        return self.plan.moves if self.plan else ()


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
    """A plan's moves must be about the trace beside it; a file may say anything."""
    trace, n = subject.trace, len(subject.trace.ops)
    if not n:
        raise ConfigurationError(f"{subject.name} holds a trace without any op.")
    tiers = {tier.name for tier in subject.hardware.tiers} if subject.hardware else set()
    for move in subject.moves:
        ops = (move.offload_after, move.gone_before, move.fetch_after or 0, move.needed_by or 0)
        if move.storage >= len(trace.storages) or max(ops) >= n or move.tier not in tiers:
            raise ConfigurationError(
                f"{subject.name} holds a plan that is not for the trace beside it."
            )
    return subject
