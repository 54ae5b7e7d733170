"""Stalls in files, those of plans and those that were measured.

In: JSON values. Out: stalls. Must not know: files, plans, reports.
"""

from __future__ import annotations

from typing import Any, get_args

from teraio.files.fields import Fields
from teraio.records import MeasuredStall, Stall, WaitsFor

STALL = ("op", "storage", "waits_for", "seconds")


def read_stall(value: object, where: str) -> Stall:
    """One of a plan."""
    fields = Fields(value, where, STALL)
    return Stall(storage=fields.integer("storage"), **_wait(fields))


def read_measured_stall(value: object, where: str) -> MeasuredStall:
    """One of a step report."""
    fields = Fields(value, where, STALL)
    return MeasuredStall(storage=fields.optional("storage", fields.integer), **_wait(fields))


def _wait(fields: Fields) -> dict[str, Any]:
    """What both have in common."""
    return {
        "op": fields.integer("op"),
        "waits_for": fields.one_of("waits_for", get_args(WaitsFor)),
        "seconds": fields.number("seconds"),
    }
