"""The page of the benchmarks: charts that show the figures, all tables, text that stays text."""

from __future__ import annotations

from dataclasses import replace
from html import escape
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import svg
from benchmarks.page import page
from benchmarks.rows import rows
from benchmarks.series import curves
from benchmarks.tables import document, sections
from tests.unit.bench_results import micro_results, suite_results

RESULTS = suite_results()
ROWS = [row for row in rows(RESULTS.compared[0]) if row.speed]


def drawn(picture: str, tag: str, kind: str) -> list[dict[str, str]]:
    """The attributes of all elements of a tag and class."""
    found = ElementTree.fromstring(picture).iter(tag)
    return [element.attrib for element in found if kind in element.get("class", "").split()]


def test_bars_are_as_long_as_speeds_and_whiskers_reach_over_their_spread() -> None:
    picture = svg.speed_picture(ROWS)
    (ideal,) = drawn(picture, "rect", "ideal")
    speeds = [row.speed for row in ROWS if row.speed and row.system == "teraio"]
    bars = drawn(picture, "rect", "ours")
    assert len(bars) == len(speeds) == 5
    for bar, speed in zip(bars, speeds, strict=True):
        part = float(bar["width"]) / float(ideal["width"])
        assert part == pytest.approx(speed.of_ideal.middle, abs=1e-3)
    whole = float(ideal["width"])
    spans = drawn(picture, "line", "spread")[::3]  # each has two ends
    for span, row in zip(spans, ROWS, strict=True):
        assert row.speed is not None
        length = (float(span["x2"]) - float(span["x1"])) / whole
        spread = row.speed.of_ideal
        assert length == pytest.approx(spread.high - spread.low, abs=2e-3)


def test_a_mark_shows_the_bound_of_each_plan() -> None:
    picture = svg.speed_picture(ROWS)
    (ideal,) = drawn(picture, "rect", "ideal")
    planned = [row.speed for row in ROWS if row.speed and row.speed.bound_s]
    marks = drawn(picture, "line", "bound")
    assert len(marks) == len(planned) == 5
    for mark, speed in zip(marks, planned, strict=True):
        part = (float(mark["x1"]) - float(ideal["x"])) / float(ideal["width"])
        assert speed.bound_s is not None
        wanted = speed.of_ideal.middle * speed.seconds.middle / speed.bound_s
        assert part == pytest.approx(wanted, abs=2e-3)


def test_memory_is_drawn_to_scale_with_its_limit() -> None:
    picture = svg.peak_picture(ROWS)
    bars = [float(bar["width"]) for bar in drawn(picture, "rect", "soft")]
    peaks = [row.peak_bytes or 0 for row in ROWS]
    scale = max(bars) / max(peaks)
    assert bars == pytest.approx([scale * peak for peak in peaks], abs=0.06)
    assert len(drawn(picture, "line", "limit")) == sum(bool(row.limit_bytes) for row in ROWS) == 3


def test_curves_are_over_limit_model_and_drives_where_there_are_points() -> None:
    found = {curve.name: curve for curve in curves(RESULTS)}
    assert {name: sorted(curve.lines) for name, curve in found.items()} == {
        "limit": ["llama-13m fp32", "llama-3m fp32"],
        "model": ["infinity fp32", "teraio fp32"],
        "drives": ["llama-13m fp32", "llama-3m fp32"],
    }
    assert [x for x, _ in found["limit"].lines["llama-3m fp32"]] == [35.0, 50.0, 70.0]
    assert [x for x, _ in found["model"].lines["infinity fp32"]] == [3.0, 13.0]
    for curve in found.values():
        picture = svg.curve_picture(curve)
        points = sum(len(line) for line in curve.lines.values())
        assert len(list(ElementTree.fromstring(picture).iter("circle"))) == points


@given(st.floats(1e-6, 1e12))
def test_ticks_are_few_and_reach_the_largest_value(most: float) -> None:
    ticks = svg._ticks(most)
    assert ticks[0] == 0
    assert ticks[-1] >= most * (1 - 1e-6)
    assert 2 <= len(ticks) <= 7


def test_a_page_and_a_document_have_every_cell_of_every_table() -> None:
    for results in (RESULTS, micro_results()):
        html, text = page([results]), document(results)
        for section in sections(results):
            for shown in section.tables:
                for cell in {cell for row in (shown.heads, *shown.rows) for cell in row}:
                    assert escape(cell) in html
                    assert cell in text


def test_a_page_says_where_its_figures_come_from() -> None:
    html = page([RESULTS, micro_results()])
    for fact in (
        *("a machine", "0123456789ab", "2026-01-01 00:00 UTC", "1 threads"),
        *("another machine", "fedcba987654", "2026-01-02 00:00 UTC", "ops 10000 30000"),
        *("a note", "FAILED: too slow", "torch 2.13.0"),
    ):
        assert fact in html


def test_a_result_that_does_not_count_has_no_bar() -> None:
    picture = svg.speed_picture(ROWS)
    assert "ZeRO-Offload" not in picture
    assert "invalid: " in page([RESULTS])


def test_a_page_asks_for_nothing_from_elsewhere() -> None:
    html = page([RESULTS, micro_results()])
    assert "http://" not in html and "https://" not in html
    assert "default-src 'none'" in html


def test_texts_of_files_stay_texts() -> None:
    evil = "</script><script>alert(1)</script>{{style}}"
    hostile = replace(RESULTS, machine=evil, suite=evil, settings=(evil,))
    html = page([hostile, replace(micro_results(), micro=evil)])
    assert "<script>alert" not in html
    assert html.count(escape(evil)) >= 4
