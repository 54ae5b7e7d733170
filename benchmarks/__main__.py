"""The command of the benchmarks.

In: the command line. Out: results as JSON, tables, pictures, pages; exit status 1 if the ideal run
or one of teraio's does not count. Must not know: how a run is made, how a table looks.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from benchmarks.comparison import IDEAL, Comparison, Results
from benchmarks.micro import command as micro
from benchmarks.report import report, report_page
from benchmarks.results import collect, load, save, settings
from benchmarks.rotation import Place, run_each
from benchmarks.rows import rows
from benchmarks.suites import DEEPSPEED, SUITES, Suite
from benchmarks.systems import SYSTEMS
from benchmarks.tables import document
from benchmarks.worker import ROOT


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments and arguments[0] == "micro":
        return micro.main(arguments[1:])
    if arguments and arguments[0] == "report":
        return _report(arguments[1:])
    if arguments == ["--list"]:
        print(_listing())
        return 0
    return _suite(arguments)


def _suite(arguments: list[str]) -> int:
    options = _parser().parse_args(arguments)
    suite = SUITES[options.suite]
    console = Console(stderr=True)
    base = options.ssd or [str(ROOT / "build" / "spill")]
    for folder in [*base, options.reports] if options.reports else base:
        Path(folder).mkdir(parents=True, exist_ok=True)
    chosen = comparisons_of(suite, options.comparison, options.system)
    if any(entry.system in DEEPSPEED for one in chosen for entry in one.entries):
        _prepare_deepspeed(console)
    minutes = suite.minutes if options.minutes is None else options.minutes
    place = Place(
        device=suite.device,
        threads=options.threads,
        ssd=tuple(base),
        deadline=time.monotonic() + 60 * minutes,
        reports=options.reports,
    )
    path = options.output or _new_file(options.suite)
    results = collect(options.suite, place, ())
    # Whoever ends the suite keeps what has been made until then.
    for one in run_each(
        chosen,
        place,
        lambda text: console.print(f"[dim]{datetime.now(UTC):%H:%M:%S}[/] {text}"),
    ):
        compared = (*results.compared, one)
        results = replace(results, settings=settings(place), compared=compared)
        save(results, path)
    print(document(results))
    return 0 if all_ours_count(results) else 1


def _prepare_deepspeed(console: Console) -> None:
    """Before the suite's time begins, as it takes minutes once on a machine."""
    if importlib.util.find_spec("deepspeed") is None:
        return
    console.print("[dim]DeepSpeed compiles its native parts where that has not been done yet[/]")
    cache = os.environ.get("TORCH_EXTENSIONS_DIR", "~/.cache/torch_extensions")
    for lock in Path(cache).expanduser().rglob("lock"):
        console.print(f"[yellow]waiting until whoever compiles has deleted {lock}[/]")
        console.print("[yellow]if nobody does (one was interrupted), delete it yourself[/]")
    command = [sys.executable, "-m", "benchmarks.systems.zero"]
    # A run that can't do without them says so itself.
    subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def comparisons_of(
    suite: Suite, shapes: Sequence[str], systems: Sequence[str]
) -> tuple[Comparison, ...]:
    """The suite's comparisons, all if nothing is chosen; the ideal run is part of each."""
    return tuple(
        replace(one, entries=tuple(e for e in one.entries if not systems or e.system in systems))
        for one in suite.comparisons
        if not shapes or one.name in shapes or one.shape in shapes
    )


def all_ours_count(results: Results) -> bool:
    """True when every ideal run, and every one of teraio's that could be made, counts."""
    found = [row for compared in results.compared for row in rows(compared)]
    statuses = [result.status for compared in results.compared for result in compared.results]
    return all(
        row.speed is not None
        for row, status in zip(found, statuses, strict=True)
        if (row.system == IDEAL and status != "left out")
        or (row.system == "teraio" and status in ("ran", "failed"))
    )


def _new_file(suite: str) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="teraio-benchmarks-"))
    path = folder / f"{suite}.json"
    Console(stderr=True).print(f"figures: {path}")
    return path


def _listing() -> str:
    width = max(map(len, SUITES))
    suites = "\n".join(
        f"  {name:{width}}  {suite.line} ({suite.device}, {suite.minutes:g} minutes)"
        for name, suite in SUITES.items()
    )
    return (
        f"suites (--suite NAME):\n{suites}\n\n"
        f"micro-benchmarks (micro NAME):\n{micro.listing(False)}\n\n"
        f"simulations of other machines (micro NAME):\n{micro.listing(True)}"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        usage="%(prog)s --suite NAME [options]\n"
        "       %(prog)s micro [NAME ...] [options]\n"
        "       %(prog)s report FILE [FILE ...] [-o DIR]\n"
        "       %(prog)s --list",
        description="Systems that train in less memory, side by side on the same work, and "
        "benchmarks of teraio's parts.",
        epilog=_listing(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--suite", choices=sorted(SUITES), required=True)
    parser.add_argument("--ssd", action="append", metavar="DIR", help="one per drive; repeatable")
    parser.add_argument("--threads", type=int, default=min(os.cpu_count() or 1, 16))
    parser.add_argument("--minutes", type=float, help="start nothing more after this time")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="where to write the JSON")
    parser.add_argument(
        "--reports", type=Path, metavar="DIR", help="keep what teraio tells of its runs here"
    )
    parser.add_argument("--system", action="append", default=[], choices=sorted(SYSTEMS))
    parser.add_argument("--comparison", action="append", default=[], metavar="SHAPE")
    return parser


def _report(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks report")
    parser.add_argument("files", nargs="+", type=Path, help="what suites and micro wrote")
    parser.add_argument("-o", "--output", type=Path, metavar="DIR", help="default: beside each")
    parser.add_argument("--format", choices=("svg", "png"), default="svg", help="of pictures")
    options = parser.parse_args(arguments)
    try:
        found = {path: load(path) for path in options.files}
        if options.output and len({path.stem for path in found}) < len(found):
            raise ValueError("two of the files have one name; leave out --output, or rename one")
        print(report_page(found, options.output or options.files[0].parent))
        for path, results in found.items():
            folder = options.output or path.parent
            for written in report(results, folder, path.stem, options.format):
                print(written)
    except (OSError, ValueError) as error:
        print(f"report: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
