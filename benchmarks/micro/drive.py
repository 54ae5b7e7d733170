"""How fast a folder is for teraio's I/O tier, beside fio on the same folder.

In: options. Out: bytes per second, both measured in turns. Must not know: models.

fio does what the tier does: direct I/O, requests of 8 MiB from two threads, into a file that has
been written before. Its memory lies in small pages, as huge ones would have to be set aside for it;
the tier's lies in huge ones, which is the reason if fio is slower.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from benchmarks.micro.findings import Findings
from benchmarks.table import Table, table

_REQUEST = "8m"
_THREADS = 2
_DIRECTIONS = ("write", "read")

Rates = dict[str, float]


def teraio_rates(folder: Path, nbytes: int) -> Rates:
    """What teraio measures when a run starts, in a process of its own; bytes/s."""
    program = (
        "import json, sys, torch, teraio._C as core; space = core.SpillSpace();"
        "space.add_folder(sys.argv[1]); print(json.dumps(space.measure(0, int(sys.argv[2]))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder), str(nbytes)],
        capture_output=True,
        text=True,
        check=True,
    )
    speed = json.loads(done.stdout)
    return {direction: speed[f"{direction}_bytes_per_s"] for direction in _DIRECTIONS}


def fio_rates(folder: Path, nbytes: int) -> Rates:
    """Bytes/s of fio with the tier's settings."""
    with tempfile.TemporaryDirectory(dir=folder) as own:
        return {direction: _fio(Path(own), direction, nbytes) for direction in _DIRECTIONS}


def _fio(folder: Path, direction: str, nbytes: int) -> float:
    command = (
        "fio",
        "--name=tier",
        f"--directory={folder}",
        f"--rw={direction}",
        f"--bs={_REQUEST}",
        f"--size={nbytes // _THREADS}",
        f"--numjobs={_THREADS}",
        "--ioengine=psync",
        "--direct=1",
        "--overwrite=1",
        "--thread",
        "--group_reporting",
        "--output-format=json",
    )
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout)["jobs"][0][direction]["bw_bytes"])


def measure(folder: Path, rounds: int, nbytes: int) -> dict[str, list[Rates]]:
    """Rates by tool and round; a tool that is not installed has none."""
    tools = {"teraio": teraio_rates}
    if shutil.which("fio"):
        tools["fio"] = fio_rates
    found: dict[str, list[Rates]] = {name: [] for name in tools}
    for _ in range(rounds):
        for name, rates in tools.items():
            found[name].append(rates(folder, nbytes))
    return found


def _shown(found: dict[str, list[Rates]], folder: Path) -> Table:
    return table(
        f"{folder}, GB/s, median (least to largest)",
        ("tool", *_DIRECTIONS),
        [
            (name, *(_cell([one[way] for one in rounds]) for way in _DIRECTIONS))
            for name, rounds in found.items()
        ],
    )


def _cell(rates: Sequence[float]) -> str:
    middle, low, high = (value / 1e9 for value in (median(rates), min(rates), max(rates)))
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--ssd", type=Path, metavar="DIR", default=Path.cwd(), help="the folder")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--megabytes", type=int, default=512)


def run(options: argparse.Namespace) -> Findings:
    found = measure(options.ssd, options.rounds, options.megabytes << 20)
    alone = "fio is not installed, so there is nothing to compare with."
    return Findings(
        tables=(_shown(found, options.ssd),),
        figures=found,
        notes=() if "fio" in found else (alone,),
    )
