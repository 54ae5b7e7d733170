"""A results file as a document: tables and pictures side by side in one folder.

In: Results. Out: a Markdown file and pictures. Must not know: how figures are derived.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.charts import draw
from benchmarks.comparison import Results
from benchmarks.tables import document


def report(results: Results, folder: Path, stem: str, picture: str = "svg") -> list[Path]:
    """Writes ``STEM.md`` with all tables and links to the pictures; returns what was written."""
    pictures = draw(results, folder, stem, picture)
    links = "\n\n".join(f"![{path.stem}]({path.name})" for path in pictures)
    text = folder / f"{stem}.md"
    text.parent.mkdir(parents=True, exist_ok=True)
    text.write_text(f"{document(results)}\n{links}\n" if links else document(results), "utf-8")
    return [text, *pictures]
