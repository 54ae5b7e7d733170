"""The HTML page in a headless Chromium: without a network, without complaints, with its charts.

Skipped where Chromium is missing; with TERAIO_REQUIRE=chromium that is a failure.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from teraio.reports.page import page
from teraio.reports.subject import Subject
from tests.browser.chromium import Browser
from tests.unit import reports_data
from tests.unit.reports_data import TRACE

SIZES = {1280: 800, 1920: 1080}
CHARTS = ("memory", "channels", "lifetimes", "measured", "sizes")
# Texts of one chart that lie over each other; those of ticks, titles, annotations and legends.
OVERLAPS = """(() => {
  const found = [];
  for (const chart of document.querySelectorAll('.chart .main-svg')) {
    const texts = [...chart.querySelectorAll('text')]
      .map((text) => [text.textContent, text.getBoundingClientRect()])
      .filter(([content, box]) => content.trim() && box.width > 0 && box.height > 0);
    for (let i = 0; i < texts.length; i += 1) {
      for (let j = i + 1; j < texts.length; j += 1) {
        const [a, b] = [texts[i][1], texts[j][1]];
        const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left);
        const tall = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
        if (wide > 1 && tall > 3) found.push(`${texts[i][0]} / ${texts[j][0]}`);
      }
    }
  }
  return found;
})()"""


def shown(chromium: Browser, subject: Subject, folder: Path, width: int = 1280) -> Browser:
    (folder / "page.html").write_text(page(subject), encoding="utf-8")
    chromium.events.clear()
    chromium.open(folder / "page.html", width, SIZES[width])
    return chromium


def lines(chromium: Browser) -> list[str]:
    """The names of the storages that the chart of lifetimes shows."""
    found: list[str] = chromium.evaluate(
        "[...document.querySelectorAll('#lifetimes .ytick text')].map((text) => text.textContent)"
    )
    return found


@pytest.mark.parametrize("width", SIZES)
def test_a_run_shows_all_charts_without_network_or_complaints(
    width: int, chromium: Browser, tmp_path: Path
) -> None:
    shown(chromium, reports_data.subject(), tmp_path, width)
    for chart in CHARTS:
        drawn = chromium.evaluate(
            f"document.querySelectorAll('#{chart} .trace, #{chart} .points path').length"
        )
        assert drawn > 0, chart
    assert chromium.complaints() == []
    assert chromium.requests() == [(tmp_path / "page.html").resolve().as_uri()]


@pytest.mark.parametrize("width", SIZES)
def test_no_texts_overlap_and_nothing_is_wider_than_the_window(
    width: int, chromium: Browser, tmp_path: Path
) -> None:
    shown(chromium, reports_data.subject(), tmp_path, width)
    assert chromium.evaluate("document.querySelectorAll('.chart .main-svg text').length") > 60
    assert chromium.evaluate(OVERLAPS) == []
    assert chromium.evaluate("document.documentElement.scrollWidth") <= width


def test_a_run_shows_what_the_machine_did(chromium: Browser, tmp_path: Path) -> None:
    shown(chromium, reports_data.subject(), tmp_path)
    text = "document.getElementById('telemetry-card').innerText"
    found = " ".join(chromium.evaluate(text).split())
    assert "60 looks over 59.0 s" in found
    assert "process resident memory 3.00 GiB 2.50 GiB 2.00 GiB 4.00 GiB" in found
    assert "GPU: no figure for PCIe in (Not Supported)" in found
    without = replace(reports_data.subject(), telemetry=None)
    shown(chromium, without, tmp_path)
    assert chromium.evaluate("document.getElementById('telemetry-card').hidden")


@pytest.mark.parametrize("kept", ["trace", "plan"])
def test_a_page_shows_only_what_is_known(kept: str, chromium: Browser, tmp_path: Path) -> None:
    subject = replace(reports_data.subject(), steps=())
    if kept == "trace":
        subject = replace(subject, plan=None, hardware=None)
    shown(chromium, subject, tmp_path)
    assert chromium.complaints() == []
    assert chromium.evaluate("document.getElementById('measured-card').hidden")
    assert chromium.evaluate("document.getElementById('channels-card').hidden") == (kept == "trace")
    assert lines(chromium)


def test_search_finds_a_tensor(chromium: Browser, tmp_path: Path) -> None:
    shown(chromium, reports_data.subject(), tmp_path)
    wanted = "layers.1.gate.weight"
    assert wanted not in lines(chromium)[:1]
    chromium.evaluate("document.getElementById('search').focus()")
    chromium.type(wanted)
    names = {s.name for s in TRACE.storages if wanted in s.name}
    chromium.wait_for(f"document.querySelectorAll('#lifetimes .ytick').length === {len(names)}")
    assert set(lines(chromium)) == names
    found = chromium.evaluate("document.getElementById('found').textContent")
    assert found.startswith(f"{len(names)} of ")


def test_a_search_without_result_says_so_and_can_be_taken_back(
    chromium: Browser, tmp_path: Path
) -> None:
    shown(chromium, reports_data.subject(), tmp_path)
    before = lines(chromium)
    chromium.evaluate("document.getElementById('search').focus()")
    chromium.type("nobody has this name")
    chromium.wait_for("document.getElementById('found').textContent.startsWith('0 of ')")
    chromium.evaluate(
        "(() => { const box = document.getElementById('search'); box.value = '';"
        " box.dispatchEvent(new Event('input')); })()"
    )
    chromium.wait_for("!document.getElementById('found').textContent.startsWith('0 of ')")
    assert lines(chromium) == before
    assert chromium.complaints() == []


def test_zooming_one_chart_zooms_all_over_time(chromium: Browser, tmp_path: Path) -> None:
    shown(chromium, reports_data.subject(), tmp_path)
    chromium.evaluate(
        "void Plotly.relayout('memory', {'xaxis.range[0]': 10, 'xaxis.range[1]': 20})"
    )
    for chart in ("channels", "lifetimes"):
        chromium.wait_for(
            f"JSON.stringify(document.getElementById('{chart}').layout.xaxis.range) === '[10,20]'"
        )


def test_pointing_at_memory_tells_the_time_with_its_unit(chromium: Browser, tmp_path: Path) -> None:
    shown(chromium, reports_data.subject(), tmp_path)
    chromium.evaluate("Plotly.Fx.hover('memory', {xval: 33.3}, 'xy')")
    text = "document.querySelector('#memory .hoverlayer').textContent"
    chromium.wait_for(f"{text}.startsWith('at ')")
    assert re.match(r"at \d\d(\.\d\d?)? ms", chromium.evaluate(text))


def test_names_of_a_hostile_file_stay_text(chromium: Browser, tmp_path: Path) -> None:
    evil = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>"
    first: Any = replace(TRACE.storages[0], name=evil)
    ops = tuple(replace(op, name=f"aten::{evil}", module=evil) for op in TRACE.ops)
    trace = replace(TRACE, ops=ops, storages=(first, *TRACE.storages[1:]))
    shown(chromium, replace(reports_data.subject(), name=evil, trace=trace), tmp_path)
    assert chromium.evaluate("document.getElementById('title').textContent") == evil
    assert chromium.evaluate("window.hacked") is None
    assert chromium.complaints() == []
