"""The machine that a benchmark ran on, in words.

In: nothing. Out: text. Must not know: what is measured.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path

import psutil


def machine_name() -> str:
    """Processor, cores and memory."""
    gib = psutil.virtual_memory().total / 2**30
    return f"{_processor()}, {os.cpu_count()} cores, {gib:.0f} GiB"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
