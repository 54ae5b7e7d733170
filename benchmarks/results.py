"""Results as files: what was measured, with the machine, the versions and the commit.

In: Compared records. Out: JSON files, and back. Must not know: torch, tables.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from benchmarks.codec import decode, encode
from benchmarks.comparison import Compared, Results
from benchmarks.control_group import why_not
from benchmarks.machine import machine_name
from benchmarks.rotation import RESERVE_BYTES, RESERVE_PART, Place
from benchmarks.verdict import LEAST_STEPS, TOLERANCES
from benchmarks.worker import ROOT

FORMAT = 1
_PACKAGES = ("torch", "transformers", "deepspeed", "torchao", "numpy")


def collect(suite: str, place: Place, compared: tuple[Compared, ...]) -> Results:
    return Results(
        format=FORMAT,
        suite=suite,
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        machine=machine_name(),
        device=_device(place),
        commit=_commit(),
        versions=_versions(),
        settings=_settings(place),
        compared=compared,
    )


def save(results: Results, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(encode(results), indent=1) + "\n", encoding="utf-8")


def load(path: Path) -> Results:
    """Raises ValueError for a file that isn't one of ours."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no JSON file: {error}") from error
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise ValueError(f"{path} has no results of format {FORMAT} that a suite wrote")
    try:
        return decode(Results, value)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _device(place: Place) -> str:
    if place.device == "cpu":
        return "cpu"
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    return _output(query) or place.device


def _commit() -> str:
    commit = _output(["git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD"])
    changed = _output(["git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no"])
    return f"{commit or 'unknown'}{' with changes' if changed else ''}"


def _output(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def _versions() -> tuple[str, ...]:
    kernel = f"Linux {platform.release()}"
    return (f"Python {platform.python_version()}", kernel, *map(_version, _PACKAGES))


def _version(package: str) -> str:
    try:
        return f"{package} {metadata.version(package)}"
    except metadata.PackageNotFoundError:
        return f"{package} not installed"


def _settings(place: Place) -> tuple[str, ...]:
    return (
        f"{place.threads} threads",
        f"{len(place.ssd)} drive folders",
        f"load average before {place.load_before:.1f}, at the end {os.getloadavg()[0]:.1f}",
        f"teraio's budget is the limit less {RESERVE_BYTES / 1e6:.0f} MB and "
        f"{RESERVE_PART:.0%} of the ideal run's peak, on the CPU",
        f"control groups: {why_not() or 'in use'}",
        "losses may differ by "
        + ", ".join(f"{value:.0e} ({dtype})" for dtype, value in TOLERANCES.items())
        + "; not at all for teraio and kernel swap",
        f"at least {LEAST_STEPS} timed steps",
        "OMP_WAIT_POLICY=PASSIVE for all",
    )
