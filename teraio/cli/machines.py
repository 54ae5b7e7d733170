"""The machine that a plan is for, as named on the command line.

In: ``this``, a preset's name or a hardware file; drives and host memory. Out: a Hardware. Must not
know: traces.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from teraio.errors import ConfigurationError
from teraio.records import Hardware
from teraio.sizes import parse_size

THIS = "this"


def machine(name: str, ssd: Sequence[str], host: str | None, budget_bytes: int | None) -> Hardware:
    """The hardware called ``name``; ``ssd`` names folders of this machine, or how many drives.

    A ``budget_bytes`` of None takes the machine's own. Raises ConfigurationError for what does not
    fit together.
    """
    host_bytes = 0 if host is None else parse_size(host, whole=None, what="--host")
    if name == THIS:
        return _this(ssd, host_bytes, budget_bytes)
    if Path(name).is_file():
        return _from_file(Path(name), ssd, host_bytes, budget_bytes)
    if Path(name).suffix or Path(name).name != name:
        raise ConfigurationError(
            f"--hardware: there is no file {name}; `teraio doctor -o {name}` measures this machine "
            "and makes one."
        )
    from teraio.whatif.presets import hardware

    return hardware(
        name, ssds=_drives(ssd), host_bytes=host_bytes, memory_budget_bytes=budget_bytes
    )


def _this(ssd: Sequence[str], host_bytes: int, budget_bytes: int | None) -> Hardware:
    from teraio.cli.inputs import check_folders
    from teraio.engine.folders import spill_folders
    from teraio.profiler.hardware import free_memory_bytes

    if host_bytes:
        raise ConfigurationError(
            "--host: on this machine models are on the CPU, so its memory is what the budget "
            "limits; name a GPU with --hardware."
        )
    counts = [folder for folder in ssd if folder.isdecimal()]
    if counts:
        raise ConfigurationError(
            f"--ssd {counts[0]} counts the drives of another machine (--hardware); for this one "
            "pass a folder on each drive."
        )
    folders = spill_folders(ssd or None, what="--ssd")
    check_folders(folders, allow_tmpfs=False)
    from teraio.profiler.machine import measured_hardware

    if budget_bytes is None:
        budget_bytes = free_memory_bytes()
    return measured_hardware(folders, budget_bytes)


def _from_file(
    path: Path, ssd: Sequence[str], host_bytes: int, budget_bytes: int | None
) -> Hardware:
    from teraio.files import load

    if ssd or host_bytes:
        raise ConfigurationError(
            f"{path} says what the machine has; leave --ssd and --host out, or name a preset."
        )
    hardware = load(path, Hardware)
    return hardware if budget_bytes is None else replace(hardware, budget_bytes=budget_bytes)


def _drives(ssd: Sequence[str]) -> int:
    if not ssd:
        return 4
    if len(ssd) > 1 or not ssd[0].isdecimal():
        raise ConfigurationError(
            f"--ssd {ssd[0]}: for another machine than this one, pass how many drives it has."
        )
    return int(ssd[0])


def with_one_more_drive(
    hardware: Hardware, name: str, ssd: Sequence[str], host: str | None
) -> Hardware:
    """The machine as named, with one more drive like those it has."""
    if name != THIS and not Path(name).is_file():
        return machine(name, [str(_drives(ssd) + 1)], host, hardware.budget_bytes)
    from teraio.planner import grown

    return replace(
        hardware,
        tiers=tuple(
            grown(tier, len(tier.folders) or max(1, len(ssd))) if tier.name == "ssd" else tier
            for tier in hardware.tiers
        ),
    )
