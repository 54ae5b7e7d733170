"""What a benchmark of a single part found, and where.

In: nothing. Out: Findings, MicroResults. Must not know: what is measured, how tables look.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from benchmarks.origin import Origin
from benchmarks.table import Table


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """``figures`` is all that was measured, as plain values; ``failures`` what must not be."""

    tables: tuple[Table, ...]
    figures: Any
    notes: tuple[str, ...] = ()
    failures: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroResults:
    """One call of one benchmark; ``settings`` are its options."""

    format: int
    micro: str
    origin: Origin
    settings: tuple[str, ...]
    findings: Findings
