"""One self-contained HTML page about an iteration, which works without a network.

In: a Subject. Out: the text of the page. Must not know: how figures are found.

Names come from files, which may be anybody's: they are data in JSON with ``<`` escaped, and the
page's script shows them as text only.
"""

from __future__ import annotations

import json
from html import escape
from importlib import resources
from importlib.util import find_spec
from pathlib import Path

from teraio.errors import ConfigurationError
from teraio.reports.page_data import page_data
from teraio.reports.subject import Subject
from teraio.reports.template import filled


def page(subject: Subject) -> str:
    """The page. Raises ConfigurationError where plotly is not installed."""
    library = _plotly()
    data = json.dumps(page_data(subject), separators=(",", ":"), allow_nan=False)
    parts = {
        "title": escape(subject.name),
        "style": _asset("page.css"),
        "plotly": library,
        "data": data.replace("<", "\\u003c"),
        "script": _asset("page.js"),
    }
    return filled(_asset("page.html"), parts)


def _plotly() -> str:
    """The JavaScript library, from its Python package; that itself is not imported."""
    found = find_spec("plotly")
    if found is None or not found.submodule_search_locations:
        raise ConfigurationError(
            "the HTML page is drawn by plotly, which is not installed; "
            "pip install 'teraio[reports]', or pip install plotly."
        )
    folder = Path(next(iter(found.submodule_search_locations)))
    return (folder / "package_data" / "plotly.min.js").read_text(encoding="utf-8")


def _asset(name: str) -> str:
    return (resources.files("teraio.reports") / "assets" / name).read_text(encoding="utf-8")
