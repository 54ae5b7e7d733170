"""What is compared, and what came of it.

In: nothing. Out: Entry, Comparison, Result, Results. Must not know: torch, processes, tables.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from benchmarks.job import Job, Outcome

IDEAL = "ideal"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One row to be. ``share``: limit as a part of the ideal run's peak; None: no limit.

    ``host_share`` is host memory for teraio's tier in between, as a part of the same peak;
    ``drives`` how many of the given folders it may use, all if None. ``in_backward``: teraio steps
    each parameter in the backward pass.
    """

    system: str
    share: float | None = None
    host_share: float = 0.0
    drives: int | None = None
    in_backward: bool = False

    @property
    def name(self) -> str:
        share = "" if self.share is None else f" at {self.share:.0%}"
        host = f" with host memory {self.host_share:.0%}" if self.host_share else ""
        several = "" if self.drives == 1 else "s"
        drives = "" if self.drives is None else f" on {self.drives} drive{several}"
        stepping = " stepping in backward" if self.in_backward else ""
        return f"{self.system}{share}{host}{drives}{stepping}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One model, batch and precision under several systems; the ideal run is always made."""

    shape: str
    dtype: str
    entries: tuple[Entry, ...]
    warm_up: int = 4
    timed: int = 5

    @property
    def name(self) -> str:
        return f"{self.shape} {self.dtype}"


Status = Literal["ran", "unavailable", "failed", "left out"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """``reason`` says why there is no outcome."""

    entry: Entry
    job: Job
    status: Status
    reason: str
    outcome: Outcome | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """The results of one comparison; the first is the ideal run."""

    comparison: Comparison
    results: tuple[Result, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """All that one call of the benchmarks measured, and where."""

    format: int
    suite: str
    date: str
    machine: str
    device: str
    commit: str
    versions: tuple[str, ...]
    settings: tuple[str, ...]
    compared: tuple[Compared, ...]
