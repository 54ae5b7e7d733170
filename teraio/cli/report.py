"""``teraio report``: an iteration as a page, a picture or a timeline.

In: the command line. Out: files. Must not know: what is on them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from teraio.reports.subject import Subject

_EXAMPLES = """
[bold]Examples[/bold]

  teraio report run.plan -o page.html

  teraio report run.trace --png memory.png --svg memory.svg

  teraio report run.plan --perfetto plan.json --beside torch_profiler.json
"""


def add_to(app: typer.Typer) -> None:
    """Registers the command."""
    app.command("report", epilog=_EXAMPLES)(_report)


def _report(
    file: Annotated[Path, typer.Argument(help="A trace, a plan, or the report of a run.")],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="The HTML page; default: named after FILE."),
    ] = None,
    png: Annotated[Path | None, typer.Option(help="A picture of the same.")] = None,
    svg: Annotated[Path | None, typer.Option(help="A drawing of the same.")] = None,
    perfetto: Annotated[
        Path | None, typer.Option(help="A timeline for ui.perfetto.dev and chrome://tracing.")
    ] = None,
    beside: Annotated[
        Path | None,
        typer.Option(help="With --perfetto: a trace of torch.profiler to merge it with."),
    ] = None,
) -> None:
    """Draw an iteration: one HTML page that works offline, pictures, or a timeline."""
    from teraio.cli.console import out
    from teraio.cli.inputs import check_output, load_subject
    from teraio.errors import ConfigurationError

    if beside is not None and perfetto is None:
        raise ConfigurationError("--beside goes with --perfetto, which names the file to write.")
    if output is None and not (png or svg or perfetto):
        output = file.with_suffix(".html")
    wanted = [path for path in (output, png, svg, perfetto) if path]
    for path, ending in ((png, ".png"), (svg, ".svg")):
        if path is not None and path.suffix.lower() != ending:
            raise ConfigurationError(f"{path}: its name must end in {ending}.")
    read = [path for path in (file, beside) if path]
    for path, *endings in (
        (output, ".html", ".htm"),
        (png, ".png"),
        (svg, ".svg"),
        (perfetto, ".json"),
    ):
        if path is not None:
            check_output(path, *read, endings=endings)
    subject = load_subject(file)
    if output is not None:
        from teraio.reports.page import page

        output.write_text(page(subject), encoding="utf-8")
    for picture in (png, svg):
        if picture is not None:
            from teraio.reports.picture import draw

            draw(subject, picture)
    if perfetto is not None:
        _write_timeline(subject, perfetto, beside)
    for path in wanted:
        out().print(f"saved: {path} ({path.stat().st_size / 1e6:.1f} MB)", markup=False)


def _write_timeline(subject: Subject, path: Path, beside: Path | None) -> None:
    from teraio.reports.perfetto import timeline_document

    document = timeline_document(subject, None if beside is None else _torch_trace(beside))
    path.write_text(json.dumps(document, separators=(",", ":")), encoding="utf-8")


def _torch_trace(path: Path) -> dict[str, Any]:
    import gzip
    import zlib

    from teraio.errors import ConfigurationError

    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        document = json.loads(data)
    except (ValueError, EOFError, RecursionError, gzip.BadGzipFile, zlib.error) as error:
        raise ConfigurationError(f"{path} is no trace of torch.profiler: {error}.") from None
    if not isinstance(document, dict):
        raise ConfigurationError(f"{path} is no trace of torch.profiler: it holds no object.")
    return document
