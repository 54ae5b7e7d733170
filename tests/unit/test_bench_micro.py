"""Micro-benchmarks: one command calls all, and results say where they are from."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks.__main__ import main
from benchmarks.micro import MICRO, command, module_of
from benchmarks.micro.findings import Findings, MicroResults
from benchmarks.micro.overhead import Overhead, count_ops
from benchmarks.report import report, report_page
from benchmarks.results import load, save
from benchmarks.table import Table, markdown, table
from tests.policy.source import ROOT
from tests.unit.bench_results import micro_results, suite_results

FOUND = Findings(
    tables=(table("What was found", ("name", "s"), [("one", "1.5")]),), figures={"one": 1.5}
)


@pytest.mark.parametrize("name", MICRO)
def test_each_is_a_module_that_says_what_it_does_and_takes_options(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    module = module_of(name)
    parser = argparse.ArgumentParser()
    module.add_options(parser)
    assert vars(parser.parse_args([])).keys() == vars(parser.parse_args([])).keys()
    assert module.__doc__ and callable(module.run)
    with pytest.raises(SystemExit) as left:
        main(["micro", name, "--help"])
    assert left.value.code == 0
    assert f"python -m benchmarks micro {name}" in capsys.readouterr().out


def test_the_list_has_all_suites_and_micro_benchmarks_and_loads_no_torch() -> None:
    code = (
        "import sys; from benchmarks.__main__ import main; main(['--list']);"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name, micro in MICRO.items():
        assert f"{name} " in done.stdout and micro.line in done.stdout
    for suite in ("quick", "cpu", "gpu", "paper"):
        assert f"  {suite} " in done.stdout


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """The modules replaced by ones that note their options."""
    called: list[tuple[str, Any]] = []

    def module(name: str) -> SimpleNamespace:
        def run(options: argparse.Namespace) -> Findings:
            called.append((name, options))
            return replace(FOUND, failures=("too slow",) if name == "tool" else ())

        def add_options(parser: argparse.ArgumentParser) -> None:
            parser.add_argument("--rounds", type=int, nargs="+", default=[5])

        return SimpleNamespace(__doc__="What it does.", run=run, add_options=add_options)

    monkeypatch.setattr(command, "module_of", module)
    return called


def test_one_takes_its_own_options_and_its_results_say_where_they_are_from(
    fake: list[tuple[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["micro", "drive", "--rounds", "2", "3", "-o", str(tmp_path)]) == 0
    assert [(name, options.rounds) for name, options in fake] == [("drive", [2, 3])]
    assert "What was found" in capsys.readouterr().out
    results = load(tmp_path / "drive.json")
    assert isinstance(results, MicroResults)
    assert (results.micro, results.findings) == ("drive", FOUND)
    assert results.settings == ("rounds 2 3",)
    assert results.origin.machine and results.origin.commit
    assert any(version.startswith("torch ") for version in results.origin.versions)


def test_several_run_one_after_the_other_and_none_means_all_that_measure(
    fake: list[tuple[str, Any]], tmp_path: Path
) -> None:
    assert main(["micro", "drive", "pack", "--output", str(tmp_path)]) == 0
    assert [name for name, _ in fake] == ["drive", "pack"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["drive.json", "pack.json"]
    fake.clear()
    assert main(["micro"]) == 1  # as one of them fails
    others = {"larger", "whatif-models", "paper-tables", "published-speed"}
    assert [name for name, _ in fake] == [name for name in MICRO if name not in others]


@pytest.mark.parametrize("arguments", [["nonsense"], ["drive", "pack", "--rounds", "2"]])
def test_what_is_not_there_is_refused_by_name(
    arguments: list[str], fake: list[tuple[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main(["micro", *arguments])
    assert left.value.code == 2
    assert fake == []
    said = capsys.readouterr().err
    assert "'nonsense' is none of overhead, drive" in said or "--rounds 2" in said


def test_results_come_back_from_their_file_as_they_were(tmp_path: Path) -> None:
    save(micro_results(), tmp_path / "planning.json")
    assert load(tmp_path / "planning.json") == micro_results()


@pytest.mark.parametrize("value", [1, "x", [], {"format": 1, "micro": 3}, None])
def test_results_that_are_not_ours_are_refused(value: object, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(value))
    with pytest.raises(ValueError, match=r"a\.json"):
        load(tmp_path / "a.json")


def test_one_report_of_suites_and_micro_benchmarks_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    save(suite_results(), tmp_path / "suite.json")
    save(micro_results(), tmp_path / "planning.json")
    files = [str(tmp_path / name) for name in ("suite.json", "planning.json")]
    assert main(["report", *files, "-o", str(tmp_path / "out")]) == 0
    written = capsys.readouterr().out.split()
    assert str(tmp_path / "out" / "report.html") in written
    assert {"suite.md", "planning.md", "report.html", "suite-over-drives.svg"} <= {
        path.name for path in (tmp_path / "out").iterdir()
    }
    assert (tmp_path / "out" / "planning.md").read_text().startswith("# planning, 2026-01-02")


def test_two_files_of_one_name_do_not_take_each_others_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [tmp_path / name / "planning.json" for name in "ab"]
    for file in files:
        save(micro_results(), file)
    assert main(["report", *map(str, files), "-o", str(tmp_path / "out")]) == 1
    assert "two of the files have one name" in capsys.readouterr().err
    assert main(["report", *map(str, files)]) == 0
    html = (tmp_path / "a" / "report.html").read_text()
    assert html.count("another machine") == 2


def test_the_page_about_one_file_is_named_after_it(tmp_path: Path) -> None:
    assert report_page({Path("a/planning.json"): micro_results()}, tmp_path).name == "planning.html"
    (text,) = report(micro_results(), tmp_path, "planning")
    assert "| 10,000 | 50% | 0.49 |" in text.read_text()


def test_a_bar_in_a_cell_does_not_end_it() -> None:
    shown = Table(title="t", heads=("a", "b"), rows=(("x | y", "1\n2"),))
    assert markdown(shown).splitlines() == ["| a | b |", "| --- | ---: |", "| x \\| y | 1 2 |"]


def test_overhead_compares_turns_that_lie_side_by_side() -> None:
    # The machine gets four times as slow, for both.
    one = Overhead(model="m", ops=1000, plain=[1.0, 2.0, 4.0], offloaded=[1.1, 2.2, 4.4])
    assert one.ratios == pytest.approx([1.1, 1.1, 1.1])
    assert one.us_per_op == pytest.approx(200.0)


def test_overhead_counts_the_ops_that_ops_make() -> None:
    assert count_ops(lambda: torch.ones(2)) == 3  # ones, which calls empty and fill_


def test_an_overhead_without_a_spread_is_refused() -> None:
    with pytest.raises(SystemExit, match="--rounds 1: a spread takes two"):
        main(["micro", "overhead", "--rounds", "1"])
