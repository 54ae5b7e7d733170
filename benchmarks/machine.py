"""The machine that a benchmark runs on: what it is, and what its GPU has left.

In: nothing. Out: text, bytes. Must not know: what is measured.
"""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

import psutil


def machine_name() -> str:
    """Processor, cores and memory."""
    gib = psutil.virtual_memory().total / 2**30
    return f"{_processor()}, {os.cpu_count()} cores, {gib:.0f} GiB"


def free_gpu_bytes() -> int:
    """Memory of the first GPU that nobody uses; none where its driver does not tell."""
    query = ["nvidia-smi", "--id=0", "--query-gpu=memory.free", "--format=csv,noheader,nounits"]
    mebibytes = output(query)
    return int(mebibytes) << 20 if mebibytes.isdigit() else 0


def output(command: list[str]) -> str:
    """What a program prints; nothing if it isn't there or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
