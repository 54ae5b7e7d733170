"""``python -m benchmarks micro NAME``: calls benchmarks of single parts, shows and keeps findings.

In: the command line. Out: tables, JSON files; exit status 1 where one failed. Must not know: what
is measured.
"""

from __future__ import annotations

import argparse
from itertools import takewhile
from pathlib import Path

from rich.console import Console

from benchmarks.micro import MICRO, module_of
from benchmarks.micro.findings import Findings, MicroResults
from benchmarks.origin import origin
from benchmarks.results import FORMAT, save
from benchmarks.table import on_terminal

_WIDTH = 150  # where no terminal says its own


def main(arguments: list[str]) -> int:
    names = list(takewhile(lambda word: not word.startswith("-"), arguments))
    rest = arguments[len(names) :]
    if len(names) != 1:
        options = _parser().parse_args(arguments)
        names, rest = options.name or _measuring(), []
        if options.output:
            rest = ["--output", str(options.output)]
    elif names[0] not in MICRO:
        _parser().parse_args(arguments)  # says which there are
    return max(_call(name, rest) for name in names)


def listing(simulated: bool) -> str:
    """Names, each with its line."""
    width = max(map(len, MICRO))
    some = (micro for micro in MICRO.values() if micro.simulated == simulated)
    return "\n".join(f"  {micro.name:{width}}  {micro.line}" for micro in some)


def _measuring() -> list[str]:
    return [micro.name for micro in MICRO.values() if not (micro.simulated or micro.demanding)]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks micro",
        description="Without names: all that measure this machine and don't take much of it, one "
        "after the other. A single one takes options of its own: "
        "python -m benchmarks micro NAME --help.",
        epilog=f"measured here:\n{listing(False)}\n\nsimulated:\n{listing(True)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", nargs="*", type=_known, metavar="NAME")
    _add_output(parser)
    return parser


def _known(name: str) -> str:
    if name not in MICRO:
        raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(MICRO)}")
    return name


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--output", type=Path, metavar="DIR", help="keep NAME.json there")


def _call(name: str, arguments: list[str]) -> int:
    module = module_of(name)
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks micro {name}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_output(parser)
    module.add_options(parser)
    options = parser.parse_args(arguments)
    findings = module.run(options)
    _show(findings)
    if options.output:
        results = MicroResults(
            format=FORMAT,
            micro=name,
            origin=origin(),
            settings=_settings(options),
            findings=findings,
        )
        path = options.output / f"{name}.json"
        save(results, path)
        Console(stderr=True).print(f"figures: {path}")
    return 1 if findings.failures else 0


def _show(findings: Findings) -> None:
    console = Console()
    console = console if console.is_terminal else Console(width=_WIDTH)
    for table in findings.tables:
        console.print(on_terminal(table))
    for line in (*findings.notes, *(f"FAILED  {line}" for line in findings.failures)):
        console.print(line, markup=False)


def _settings(options: argparse.Namespace) -> tuple[str, ...]:
    kept = {name: value for name, value in vars(options).items() if name != "output"}
    return tuple(f"{name.replace('_', '-')} {_words(value)}" for name, value in kept.items())


def _words(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
