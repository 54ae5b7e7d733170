"""Benchmarks of single parts, one module each, all called by ``python -m benchmarks micro``.

In: nothing. Out: MICRO by name. Must not know: what is measured; modules are imported when called.

A module says in its text what it measures, and has ``add_options(parser)`` and ``run(options)``,
which returns Findings.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from importlib import import_module
from typing import Protocol

from benchmarks.micro.findings import Findings


@dataclass(frozen=True, slots=True, kw_only=True)
class Micro:
    """``simulated``: it plans and simulates other machines, and measures nothing but that.

    ``demanding``: it takes much of a machine, and is called by its name only.
    """

    name: str
    line: str
    simulated: bool = False
    demanding: bool = False


class Module(Protocol):
    def add_options(self, parser: argparse.ArgumentParser) -> None: ...
    def run(self, options: argparse.Namespace) -> Findings: ...


MICRO = {
    micro.name: micro
    for micro in (
        Micro(name="overhead", line="what teraio costs a step and an op when everything fits"),
        Micro(name="drive", line="teraio's I/O tier beside fio on the same folder"),
        Micro(name="interference", line="what traffic to a drive costs the computing beside it"),
        Micro(name="pack", line="packing and codecs beside a plain copy on the same device"),
        Micro(
            name="planning", line="how long planning takes as traces grow, and how good plans are"
        ),
        Micro(name="prediction", line="times and memory that plans predict, beside measured ones"),
        Micro(name="endurance", line="thousands of steps under a budget: bits, memory and speed"),
        Micro(
            name="larger",
            line="a model that is larger than the machine's memory (30 GB of a drive)",
            demanding=True,
        ),
        Micro(name="backward-step", line="the optimizer's step after and in the backward pass"),
        Micro(name="compression", line="what codecs make of a training run's storages"),
        Micro(name="tool", line="how quickly the commands of teraio answer"),
        Micro(
            name="whatif-models",
            line="traces and plans published models for a GPU that is not here",
            simulated=True,
        ),
        Micro(
            name="paper-tables",
            line="the tables of the TERAIO paper in simulation, beside its figures",
            simulated=True,
        ),
        Micro(
            name="published-speed",
            line="simulated speeds of training beside published, measured ones",
            simulated=True,
        ),
    )
}


def module_of(name: str) -> Module:
    found: Module = import_module(f"benchmarks.micro.{name.replace('-', '_')}")
    return found
