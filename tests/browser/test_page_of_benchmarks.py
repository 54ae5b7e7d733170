"""The benchmarks' page in a headless Chromium: no network, no complaints, tables that sort."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.page import page
from tests.browser.chromium import Browser
from tests.unit.bench_results import micro_results, suite_results

SIZES = {1280: 800, 1920: 1080}
RESULTS = (suite_results(), micro_results())
# Texts of one chart that lie over each other.
OVERLAPS = """(() => {
  const found = [];
  for (const chart of document.querySelectorAll('svg')) {
    const texts = [...chart.querySelectorAll('text')]
      .map((text) => [text.textContent, text.getBoundingClientRect()]);
    texts.forEach(([one, a], i) => texts.slice(i + 1).forEach(([other, b]) => {
      const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left);
      const tall = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
      if (wide > 1 && tall > 4) found.push(`${one} / ${other}`);
    }));
  }
  return found;
})()"""
# Charts that reach out of the card they are in.
OUTSIDE = """[...document.querySelectorAll('svg text')].filter((text) => {
  const [inner, outer] = [text, text.closest('.card')].map((it) => it.getBoundingClientRect());
  return inner.left < outer.left || inner.right > outer.right;
}).map((text) => text.textContent)"""


@pytest.fixture(params=SIZES)
def shown(request: pytest.FixtureRequest, chromium: Browser, tmp_path: Path) -> Browser:
    width: int = request.param
    (tmp_path / "report.html").write_text(page(RESULTS), encoding="utf-8")
    chromium.events.clear()
    chromium.open(tmp_path / "report.html", width, SIZES[width])
    return chromium


def test_a_page_shows_charts_and_tables_without_network_or_complaints(
    shown: Browser, tmp_path: Path
) -> None:
    assert shown.evaluate("document.querySelectorAll('svg').length") == 2 * 2 + 3
    assert shown.evaluate("document.querySelectorAll('table').length") == 2 * 3 + 1
    assert shown.complaints() == []
    assert shown.requests() == [(tmp_path / "report.html").resolve().as_uri()]


def test_no_texts_overlap_and_nothing_is_wider_than_the_window(shown: Browser) -> None:
    assert shown.evaluate("document.querySelectorAll('svg text').length") > 60
    assert shown.evaluate(OVERLAPS) == []
    assert shown.evaluate(OUTSIDE) == []
    scroll, inner = shown.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
    assert scroll <= inner


def column(chromium: Browser, table: int, number: int) -> list[str]:
    found: list[str] = chromium.evaluate(
        f"[...document.querySelectorAll('table')[{table}].tBodies[0].rows]"
        f".map((row) => row.cells[{number}].textContent)"
    )
    return found


def choose(chromium: Browser, table: int, number: int) -> None:
    chromium.evaluate(
        f"document.querySelectorAll('table')[{table}].tHead.rows[0].cells[{number}].click()"
    )


def test_tables_sort_figures_by_size_both_ways(shown: Browser) -> None:
    last = 6
    assert column(shown, last, 0) == ["10,000", "250,000", "30,000"]
    choose(shown, last, 0)
    assert column(shown, last, 0) == ["10,000", "30,000", "250,000"]
    choose(shown, last, 0)
    assert column(shown, last, 0) == ["250,000", "30,000", "10,000"]


def test_empty_cells_come_last_in_both_directions(shown: Browser) -> None:
    tokens = 4
    for _ in range(2):
        choose(shown, 0, tokens)
        cells = column(shown, 0, tokens)
        count = sum(map(bool, cells))
        assert 0 < count < len(cells)
        assert all(cells[:count])


def test_words_sort_by_letters(shown: Browser) -> None:
    choose(shown, 0, 0)
    names = column(shown, 0, 0)
    assert names == sorted(names, key=str.casefold)


def test_texts_of_a_hostile_file_stay_text(chromium: Browser, tmp_path: Path) -> None:
    evil = "</title><script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>"
    hostile = replace(RESULTS[0], machine=evil, suite=evil, settings=(evil,))
    (tmp_path / "evil.html").write_text(page([hostile]), encoding="utf-8")
    chromium.events.clear()
    chromium.open(tmp_path / "evil.html", 1280, 800)
    assert evil in chromium.evaluate("document.querySelector('h1').textContent")
    assert chromium.evaluate("window.hacked") is None
    assert chromium.complaints() == []
