"""One HTML page about results, which needs no network and no other file.

In: Results. Out: the text of the page, with its charts as SVG. Must not know: files, how figures
are derived.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from benchmarks.comparison import Results
from benchmarks.micro.findings import MicroResults
from benchmarks.rows import Row, rows
from benchmarks.series import curves
from benchmarks.svg import curve_picture, peak_picture, speed_picture
from benchmarks.table import Table
from benchmarks.tables import Section, facts, sections, title
from teraio.reports.template import filled

_ASSETS = Path(__file__).parent / "assets"
_LEGEND = (
    ("teraio", "ours"),
    ("plain PyTorch", "ideal"),
    ("others", "theirs"),
    ("least to largest of the timed steps", "spread"),
    ("the most that any plan can reach", "bound"),
)


def page(found: Sequence[Results | MicroResults]) -> str:
    parts = {
        "title": escape(title(found[0]) if len(found) == 1 else "Benchmarks of teraio"),
        "style": _asset("page.css"),
        "lead": _lead(found),
        "contents": _contents(found),
        "body": "\n".join(
            _article(number, results, len(found)) for number, results in enumerate(found)
        ),
        "script": _asset("page.js"),
    }
    return filled(_asset("page.html"), parts)


def _asset(name: str) -> str:
    return (_ASSETS / name).read_text(encoding="utf-8")


def _lead(found: Sequence[Results | MicroResults]) -> str:
    suites = any(isinstance(results, Results) for results in found)
    about = (
        "Systems that train a model in less memory, on the same work. A result without right "
        "losses, or above its memory limit, has no time. "
    )
    return f"{about if suites else ''}Click a column's head to sort."


def _contents(found: Sequence[Results | MicroResults]) -> str:
    links = [
        f'<a href="#part{number}-{index}">{escape(_label(results, section))}</a>'
        for number, results in enumerate(found)
        for index, section in enumerate(sections(results))
    ]
    return f'<nav aria-label="Contents">{"".join(links)}</nav>' if len(links) > 1 else ""


def _label(results: Results | MicroResults, section: Section) -> str:
    return results.micro if isinstance(results, MicroResults) else section.title


def _article(number: int, results: Results | MicroResults, count: int) -> str:
    pairs = (fact.split(": ", 1) for fact in facts(results))
    origin = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in pairs)
    found = sections(results)
    pictures = _pictures(results)
    parts = [
        f"<h2>{escape(title(results))}</h2>" if count > 1 else "",
        f"<dl>{origin}</dl>",
        *(
            _section(f"part{number}-{index}", section, pictures[index])
            for index, section in enumerate(found)
        ),
    ]
    if isinstance(results, Results) and (drawn := curves(results)):
        charts = "".join(f"<figure>{curve_picture(curve)}</figure>" for curve in drawn)
        parts.append(
            '<section class="card"><h3>Scaling</h3><p class="lead">Speed as a part of plain '
            "PyTorch's without a limit; bars reach from the least to the largest timed step.</p>"
            f'<div class="charts">{charts}</div></section>'
        )
    return f"<article>{''.join(parts)}</article>"


def _pictures(results: Results | MicroResults) -> list[str]:
    """What stands above the tables of each section; nothing where two rows are not there."""
    if isinstance(results, MicroResults):
        return [""] * len(sections(results))
    return [_bars(rows(compared)) for compared in results.compared]


def _bars(found: Sequence[Row]) -> str:
    shown = [row for row in found if row.speed is not None]
    if len(shown) < 2:
        return ""
    marks = "".join(f'<span><i class="{mark}"></i>{text}</span>' for text, mark in _LEGEND)
    return (
        f'<div class="legend">{marks}</div><div class="charts bars">'
        f'<figure class="wide">{speed_picture(shown)}</figure>'
        f'<figure class="narrow">{peak_picture(shown)}</figure></div>'
    )


def _section(name: str, section: Section, pictures: str) -> str:
    about = "".join(f'<p class="lead">{escape(text)}</p>' for text in section.about.split("\n\n"))
    tables = "".join(_table(shown, section.title) for shown in section.tables)
    return (
        f'<section class="card" id="{name}"><h3>{escape(section.title)}</h3>'
        f"{about if section.about else ''}{pictures}{tables}</section>"
    )


def _table(shown: Table, known: str) -> str:
    """``known``: the title that stands above already."""

    def row(tag: str, cells: Sequence[str]) -> str:
        made = (
            f"<{tag}{'' if column < shown.words else f' class={_kind(shown, column)}'}>"
            f"{escape(cell)}</{tag}>"
            for column, cell in enumerate(cells)
        )
        return f"<tr>{''.join(made)}</tr>"

    body = "".join(row("td", cells) for cells in shown.rows)
    caption = "" if shown.title == known else f"<caption>{escape(shown.title)}</caption>"
    return (
        f'<div class="scroll"><table>{caption}'
        f"<thead>{row('th', shown.heads)}</thead><tbody>{body}</tbody></table></div>"
    )


def _kind(shown: Table, column: int) -> str:
    """Long texts may fold, figures don't."""
    longest = max((len(cells[column]) for cells in shown.rows), default=0)
    return "text" if longest > 32 else "figure"
