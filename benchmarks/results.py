"""Results as files: what was measured, with the machine, the versions and the commit.

In: Compared records, what micro-benchmarks found. Out: JSON files, and back. Must not know: torch,
how tables look.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from benchmarks.codec import decode, encode
from benchmarks.comparison import Compared, Results
from benchmarks.control_group import read_ahead_pages, why_not
from benchmarks.machine import output
from benchmarks.micro.findings import MicroResults
from benchmarks.origin import origin
from benchmarks.rotation import RESERVE_BYTES, RESERVE_PART, Place
from benchmarks.verdict import LEAST_STEPS, TOLERANCES

FORMAT = 1


def collect(suite: str, place: Place, compared: tuple[Compared, ...]) -> Results:
    here = origin()
    return Results(
        format=FORMAT,
        suite=suite,
        date=here.date,
        machine=here.machine,
        device=_device(place),
        commit=here.commit,
        versions=here.versions,
        settings=settings(place),
        compared=compared,
    )


def save(results: Results | MicroResults, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(encode(results), indent=1) + "\n", encoding="utf-8")


def load(path: Path) -> Results | MicroResults:
    """Raises ValueError for a file that isn't one of ours."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON file: {error}") from error
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise ValueError(
            f"{path} has no results of format {FORMAT} that a suite or a micro-benchmark wrote"
        )
    try:
        return decode(MicroResults, value) if "micro" in value else decode(Results, value)
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: {error}") from error


def _device(place: Place) -> str:
    if place.device == "cpu":
        return "cpu"
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    return output(query) or place.device


def settings(place: Place) -> tuple[str, ...]:
    """How it is measured, in lines; the load is that of now and before."""
    return (
        f"{place.threads} threads",
        f"{len(place.ssd)} drive folders",
        f"load average before {place.load_before:.1f}, at the end {os.getloadavg()[0]:.1f}",
        f"teraio's budget is the limit less {RESERVE_BYTES / 1e6:.0f} MB and "
        f"{RESERVE_PART:.1%} of the ideal run's peak, on the CPU",
        f"kernel swap: {why_not() or f'{read_ahead_pages()} pages read at once'}",
        "losses may differ by "
        + ", ".join(f"{value:.0e} ({dtype})" for dtype, value in TOLERANCES.items())
        + "; not at all for teraio and kernel swap",
        f"at least {LEAST_STEPS} timed steps",
        "OMP_WAIT_POLICY=PASSIVE and THP_MEM_ALLOC_ENABLE=1 for all",
    )
