"""Where and from what figures come: machine, date, commit, versions.

In: nothing. Out: Origin. Must not know: what is measured.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata

from benchmarks.machine import machine_name, output
from benchmarks.worker import ROOT

_PACKAGES = ("torch", "transformers", "deepspeed", "torchao", "numpy")


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    date: str
    machine: str
    commit: str
    versions: tuple[str, ...]


def origin() -> Origin:
    """Of figures that are measured here and now."""
    return Origin(
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        machine=machine_name(),
        commit=_commit(),
        versions=_versions(),
    )


def _commit() -> str:
    commit = output(["git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD"])
    changed = output(["git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no"])
    return f"{commit or 'unknown'}{' with changes' if changed else ''}"


def _versions() -> tuple[str, ...]:
    kernel = f"Linux {platform.release()}"
    return (f"Python {platform.python_version()}", kernel, *map(_version, _PACKAGES))


def _version(package: str) -> str:
    try:
        return f"{package} {metadata.version(package)}"
    except metadata.PackageNotFoundError:
        return f"{package} not installed"
