"""Results as documents: tables and pictures side by side, and one page that needs no other file.

In: Results. Out: Markdown files, pictures, an HTML page. Must not know: how figures are derived.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from benchmarks.charts import draw
from benchmarks.comparison import Results
from benchmarks.micro.findings import MicroResults
from benchmarks.page import page
from benchmarks.tables import document

AnyResults = Results | MicroResults


def report(results: AnyResults, folder: Path, stem: str, picture: str = "svg") -> list[Path]:
    """Writes ``STEM.md`` with all tables and links to the pictures; returns what was written.

    Raises ValueError where matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        raise ValueError("pictures beside tables are drawn by matplotlib; pip install '.[bench]'")
    folder.mkdir(parents=True, exist_ok=True)
    pictures = draw(results, folder, stem, picture) if isinstance(results, Results) else []
    links = "\n\n".join(f"![{path.stem}]({path.name})" for path in pictures)
    text = folder / f"{stem}.md"
    text.write_text(f"{document(results)}\n{links}\n" if links else document(results), "utf-8")
    return [text, *pictures]


def report_page(found: Mapping[Path, AnyResults], folder: Path) -> Path:
    """Writes the page about all results: named after the file they are from, if it is only one."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{next(iter(found)).stem if len(found) == 1 else 'report'}.html"
    path.write_text(page(list(found.values())), encoding="utf-8")
    return path
