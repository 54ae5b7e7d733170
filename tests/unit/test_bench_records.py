"""Benchmark results are files that say where they come from, and become tables and pictures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import benchmarks
from benchmarks.codec import decode, encode
from benchmarks.comparison import Entry
from benchmarks.job import Outcome
from benchmarks.report import report
from benchmarks.results import load, save
from benchmarks.shapes import SHAPES
from benchmarks.suites import SUITES
from benchmarks.systems import SYSTEMS
from tests.unit.bench_records import IDEAL, compared, figures, missing, outcome, ran, results_of

COMMITTED = Path(benchmarks.__file__).parent / "results"

RESULTS = results_of(
    compared(
        ran(IDEAL, outcome()),
        ran(Entry(system="teraio", share=0.5), outcome(wall_s=1.25, teraio=figures())),
        ran(Entry(system="teraio", share=0.7), outcome(wall_s=1.125, teraio=figures())),
        missing(Entry(system="torchao"), "no GPU"),
    )
)


def test_results_come_back_from_their_file_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "results.json"
    save(RESULTS, path)
    assert load(path) == RESULTS


@pytest.mark.parametrize("text", ["", "[]", '{"format": 99}', '{"format": 1}'])
def test_a_file_that_is_none_of_ours_is_refused_by_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"other\.json"):
        load(path)


def test_a_record_with_a_field_too_many_is_refused() -> None:
    value = encode(outcome())
    assert decode(Outcome, json.loads(json.dumps(value))) == outcome()
    with pytest.raises(ValueError, match="surprise"):
        decode(Outcome, {**value, "surprise": 1})


def test_a_field_that_came_later_may_be_lacking_and_others_may_not() -> None:
    assert decode(Entry, {"system": "teraio", "share": 0.5}) == Entry(system="teraio", share=0.5)
    with pytest.raises(ValueError, match="system"):
        decode(Entry, {"share": 0.5})


@pytest.mark.parametrize("path", sorted(COMMITTED.glob("cpu-*.json")), ids=lambda path: path.stem)
def test_results_of_suites_that_are_kept_can_be_read(path: Path) -> None:
    load(path)


def test_a_report_has_the_tables_and_draws_bars_and_the_curve_over_limits(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    written = report(RESULTS, tmp_path, "figures")
    assert [path.name for path in written] == [
        "figures.md",
        "figures-llama-3m-fp32.svg",
        "figures-over-limit.svg",
    ]
    text = written[0].read_text()
    for fact in ("a machine", "0123456789ab", "torch 2.13.0", "2026-01-01", "no GPU"):
        assert fact in text
    for picture in written[1:]:
        assert f"]({picture.name})" in text
        assert picture.read_text().lstrip().startswith("<?xml")


def test_all_suites_name_known_models_and_systems_and_each_run_once() -> None:
    for suite in SUITES.values():
        for comparison in suite.comparisons:
            assert comparison.shape in SHAPES
            names = [entry.name for entry in comparison.entries]
            assert len(names) == len(set(names))
            assert {entry.system for entry in comparison.entries} <= SYSTEMS.keys()
            assert comparison.timed >= 5


def test_arithmetic_of_a_token_by_hand() -> None:
    shape = SHAPES["llama-100m"]
    layer = 4 * 768 * 768 + 3 * 768 * 2048
    matrices = 14 * layer + 768 * 256
    assert shape.flops_per_token == 6 * matrices + 12 * 14 * 768 * 256
